"""Sums, means and maxima over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ptycho_dist.distributed.failures import raise_on_every_rank
from ptycho_dist.distributed.process_group import device_of, is_up, world_size
from ptycho_dist.distributed.timing import collective_timer


def sum_integers(
    local_values: Callable[[], Sequence[int]],
    length: int,
    process_group: ProcessGroup | None = None,
) -> list[int]:
    """Add a vector of `length` integers over all ranks in one `all_reduce`, or fail together.

    Parameters
    ----------
    local_values
        Called once; returns this rank's integers. Their sums over all ranks must stay below 2**63.

    Raises
    ------
    FailedTogether
        On every rank, if `local_values` raised on any. The failure travels in the same reduction,
        so no rank waits for one that is gone.
    """
    if not is_up():
        return list(local_values())
    failures_and_values = torch.zeros(1 + length, dtype=torch.int64)
    local_error: Exception | None = None
    try:
        failures_and_values[1:] = torch.tensor(local_values(), dtype=torch.int64)
    except Exception as error:  # whatever it is, the other ranks must know
        local_error = error
        failures_and_values[0] = 1
    failures_and_values = failures_and_values.to(device_of(process_group))
    dist.all_reduce(failures_and_values, group=process_group)
    num_failures, *sums = failures_and_values.tolist()
    if num_failures:
        raise_on_every_rank(local_error, process_group)
    return sums


def sum_floats(local_values: Tensor) -> Tensor:
    """Add a float64 tensor over all ranks; the result is on the CPU."""
    total = local_values.detach().to(device_of(), torch.float64, copy=True)
    if is_up():
        dist.all_reduce(total)
    return total.cpu()


def largest(local_values: Sequence[float]) -> list[float]:
    """Return the largest of each value over all ranks, e.g. to agree on a clock or a flag."""
    if not is_up():
        return list(local_values)
    values = torch.tensor(local_values, dtype=torch.float64, device=device_of())
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.tolist()


def mean_over_ranks(local_sum: Tensor, local_count: int) -> Tensor:
    """Global mean, whose gradient under DDP is that of one process on the union of all terms.

    Parameters
    ----------
    local_sum
        Scalar with its graph: the sum of this rank's terms; zero (with a graph) without terms.
    local_count
        Number of terms on this rank.

    Returns
    -------
    Tensor
        Scalar float64; its value is the global mean on every rank. DDP averages the ranks'
        gradients, so each carries world_size / global count.
    """
    local_sum = local_sum.double()
    sum_and_count = torch.stack([local_sum.detach(), local_sum.new_tensor(local_count)])
    if is_up():
        collective_timer.begin()
        dist.all_reduce(sum_and_count)
        collective_timer.end()
    # no term on any rank: zero
    global_sum, global_count = sum_and_count[0], sum_and_count[1].clamp_min(1)
    local_share = local_sum * (world_size() / global_count)
    return local_share + (global_sum / global_count - local_share.detach())
