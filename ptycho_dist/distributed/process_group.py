"""The process group, if one is up: its size, this rank, and leaving it."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

T = TypeVar("T")


def is_up() -> bool:
    """Return True in a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size(process_group: ProcessGroup | None = None) -> int:
    return dist.get_world_size(process_group) if is_up() else 1


def rank(process_group: ProcessGroup | None = None) -> int:
    return dist.get_rank(process_group) if is_up() else 0


def backend() -> str:
    """Name of the backend: `gloo`, `nccl`, or `none` for a single process."""
    return dist.get_backend() if is_up() else "none"


def device_of(process_group: ProcessGroup | None = None) -> torch.device:
    """Device of the tensors that the backend reduces: NCCL takes CUDA tensors only."""
    if is_up() and dist.get_backend(process_group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def gather(local_value: T, process_group: ProcessGroup | None = None) -> list[T]:
    """Return every rank's (picklable) value, by rank."""
    if not is_up():
        return [local_value]
    values: list[Any] = [None] * world_size(process_group)
    dist.all_gather_object(values, local_value, group=process_group)
    return values


def leave_together() -> None:
    """End the process group once every rank is here.

    A group that is torn down while the interpreter exits can abort the process.
    """
    if is_up():
        dist.barrier()
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return once every rank is here, or one of them is gone."""
    if is_up():
        with contextlib.suppress(RuntimeError):
            dist.barrier()
