"""The ranks of a benchmark: processes of their own, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(num_ranks: int, body: Callable[..., Any], *given: Any, backend: str = "gloo") -> Any:
    """What `body(*given)`, called on every rank, gives on rank 0."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        call = (num_ranks, backend, f"file://{folder}/store", results, body, given)
        processes = [
            context.Process(target=_run_rank, args=(rank, *call)) for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("a rank failed")
    return results.get()


def _run_rank(
    rank: int,
    num_ranks: int,
    backend: str,
    store: str,
    results: Any,
    body: Callable[..., Any],
    given: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=num_ranks)
    found = body(*given)
    if rank == 0:
        results.put(found)
        results.close()
        results.join_thread()
    dist.barrier()
    dist.destroy_process_group()
