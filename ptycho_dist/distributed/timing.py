"""How long collectives take."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ptycho_dist.distributed.process_group import device_of, is_up


def time_when_done() -> float:
    """Return a clock's seconds once the GPU has done all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class CollectiveTimer:
    """Time that this rank spends in a training step's collectives: that of the loss, and those of
    the gradients after the last of them was ready.

    While the timer runs, the GPU is synchronised before and after each collective, so run it for a
    few steps only.

    Attributes
    ----------
    running
        True while timing is on.
    seconds
        One entry per collective since the list was last cleared; as many on every rank.
    """

    def __init__(self) -> None:
        self.running = False
        self.seconds: list[float] = []
        self._began: float | None = None

    def begin(self) -> None:
        """Mark the start of a collective; of several starts before one `end`, the last counts."""
        if self.running:
            self._began = time_when_done()

    def end(self) -> None:
        if self._began is not None:
            self.seconds.append(time_when_done() - self._began)
            self._began = None


collective_timer = CollectiveTimer()
"""The timer of this process."""


def average_gradients(state, bucket):  # type: ignore[no-untyped-def] # DDP refuses annotations that are strings, as all are here
    """DDP's own averaging as a hook for `register_comm_hook`; `collective_timer` times it if `end`
    is called after backward."""
    world = dist.group.WORLD
    assert world is not None, "DDP has a process group"
    collective_timer.begin()
    return allreduce_hook(world, bucket)


def seconds_an_all_reduce(num_bytes: int, *, max_seconds: float = 0.5) -> float:
    """Mean time in which the ranks add up `num_bytes` of float32, measured for about `max_seconds`
    (once, if a single reduction takes longer)."""
    if not is_up():
        return 0.0
    device = device_of()
    tensor = torch.zeros(num_bytes // 4, device=device)

    def seconds(turns: int) -> float:
        dist.barrier()
        started = time.perf_counter()
        for _ in range(turns):
            dist.all_reduce(tensor)
        elapsed = torch.tensor(time_when_done() - started, dtype=torch.float64, device=device)
        # the slowest rank's time, so that all ranks take the same number of turns next
        dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
        return elapsed.item() / turns

    first = seconds(1)  # also connects the ranks
    return seconds(max(1, min(100, int(max_seconds / first))))
