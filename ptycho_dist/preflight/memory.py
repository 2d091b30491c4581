"""Whether a training step fits into the memory of every node and GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ptycho_dist.config import Config
from ptycho_dist.data.prepare import PreparedData
from ptycho_dist.distributed import on_every_rank, world_size
from ptycho_dist.memory_supply import MemorySupply, host_bytes_left, size_in_words
from ptycho_dist.preflight.table import Row, row_of_every_rank
from ptycho_dist.training.memory import StepMemory, estimate_step_memory
from ptycho_dist.training.processes import resolve_precision
from ptycho_dist.training.start import Start

FIX = (
    "Raise train.accumulate_grad_batches (the step stays the same), start fewer ranks per node or "
    "more nodes, or lower train.global_batch_size."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Sizes that decide how much memory a run takes.

    Attributes
    ----------
    num_parameters
        Of the network.
    num_groups
        Groups that the busiest rank computes at a time.
    """

    num_parameters: int
    num_groups: int


def memory_row(config: Config, data: PreparedData, hosts: Sequence[str], demand: Demand) -> Row:
    """Compare what a step takes with what each node and GPU has left. A collective.

    Parameters
    ----------
    hosts
        The node's name of each rank.
    """
    unknown = MemorySupply(host={}, slurm=None, own=0, device=None)  # not held against the run
    of_hosts: dict[str, list[MemorySupply]] = {}
    for host, outcome in zip(hosts, on_every_rank(MemorySupply.of_this_rank), strict=True):
        of_hosts.setdefault(host, []).append(outcome.value or unknown)

    def require_enough(step: StepMemory) -> str:
        left = [_require_enough(step, name, on_host) for name, on_host in of_hosts.items()]
        return f"{describe_step(step)}; {left[0]}"

    weights = 4 * demand.num_parameters
    bare = StepMemory(
        parameters=weights,
        gradients=weights,
        optimizer=2 * weights,
        activations=0,
        batch=0,
        patterns=0,
        loading=0,
    )
    try:
        require_enough(bare)
    except ValueError as error:  # before the network itself is made
        return Row(what="memory", found=str(error), verdict="FAIL", fix=FIX)
    module = Start(config=config, resumed=True).module(data)

    def look() -> str:
        step = estimate_step_memory(
            module.to(data.placement.device),
            torch.from_numpy(_widest_group(data)),
            num_groups=demand.num_groups,
            validates=len(data.subset.validation) > 0,
            precision=resolve_precision(config.train.precision),
            num_ranks=world_size(),
            num_patterns=len(data.source.positions_px),
            held_bytes=data.placement.held_bytes,
        )
        return require_enough(step)

    return row_of_every_rank("memory", look, fix=FIX)


def _widest_group(data: PreparedData) -> np.ndarray:
    """Return the positions float64 (C, 2) of the group with the largest canvas."""
    groups = np.concatenate([data.subset.train_groups, data.subset.validation_groups])
    positions_px = data.source.positions_px[groups]
    return positions_px[np.ptp(positions_px, axis=1).max(axis=1).argmax()]


def _require_enough(step: StepMemory, host: str, on_host: Sequence[MemorySupply]) -> str:
    """Return what a node has left for a rank's GPU and for all its ranks; raise if too little."""
    found = []
    on_gpu = [supply.device for supply in on_host if supply.device is not None]
    if on_gpu:
        found.append(f"{size_in_words(min(on_gpu))} free on the GPU")
        if step.for_step > min(on_gpu):
            raise ValueError(f"{describe_step(step)}, but {host} has {found[-1]}")
    left = host_bytes_left(on_host)
    if left is not None:
        needed = len(on_host) * (step.loading + (0 if on_gpu else step.for_step))
        found.append(
            f"the node's ranks need {size_in_words(needed)}, {left[1]} has "
            f"{size_in_words(left[0])} left"
        )
        if needed > left[0]:
            raise ValueError(f"{describe_step(step)}; {host}: {found[-1]}")
    return "; ".join(found) or "the free memory is not known"


def describe_step(step: StepMemory) -> str:
    """Return the parts of a step's memory, in words."""
    parts = {
        "parameters": step.parameters,
        "gradients": step.gradients,
        "Adam": step.optimizer,
        "activations": step.activations,
        "batch": step.batch,
        "patterns": step.patterns,
        "loading": step.loading,
    }
    total = size_in_words(sum(parts.values()))
    least = "" if step.activations else "at least "
    named = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items() if size)
    return f"{least}{total} a rank: {named}"
