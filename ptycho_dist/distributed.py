"""The ranks of a run: what they add up, agree on, do once, and fail at together.

The only file that talks to `torch.distributed`, apart from Lightning, which starts the process
group and averages the gradients. Where a process group is up every function here but `rank`,
`world_size` and `backend` is a collective, so every rank must call it; without one it is the plain
local operation.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

T = TypeVar("T")


class FailedTogether(ValueError):
    """At least one rank failed; every rank raises this with the same message, which names the first
    rank that did and its cause."""


class Interrupted(Exception):
    """All ranks stopped after the same step, because somebody asked for it, and can go on from
    there.

    Attributes
    ----------
    exit_status
        What the process should end with: 128 + the signal's number.
    """

    def __init__(self, message: str, *, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What an action gave on one rank: a value, or in words why there is none."""

    value: T | None
    failure: str | None = None


def world_size(process_group: ProcessGroup | None = None) -> int:
    return dist.get_world_size(process_group) if _is_up() else 1


def rank(process_group: ProcessGroup | None = None) -> int:
    return dist.get_rank(process_group) if _is_up() else 0


def sum_integers(
    local_values: Callable[[], Sequence[int]],
    length: int,
    process_group: ProcessGroup | None = None,
) -> list[int]:
    """Add a vector of `length` integers over all ranks in one `all_reduce`, or fail together.

    Parameters
    ----------
    local_values
        Called once; gives this rank's integers. Their sums over all ranks must stay below 2**63.

    Raises
    ------
    FailedTogether
        On every rank, if `local_values` raised on any. The failure travels in the same reduction,
        so nobody waits for a rank that is gone.
    """
    if not _is_up():
        return list(local_values())
    failures_and_values = torch.zeros(1 + length, dtype=torch.int64)
    local_error: Exception | None = None
    try:
        failures_and_values[1:] = torch.tensor(local_values(), dtype=torch.int64)
    except Exception as error:  # whatever it is, the other ranks must hear of it
        local_error = error
        failures_and_values[0] = 1
    failures_and_values = failures_and_values.to(_device(process_group))
    dist.all_reduce(failures_and_values, group=process_group)
    num_failures, *sums = failures_and_values.tolist()
    if num_failures:
        _raise_on_every_rank(local_error, process_group)
    return sums


def run_together(action: Callable[[], T]) -> T:
    """Run `action` on every rank; if it raises on any, raise `FailedTogether` on all."""
    results: list[T] = []

    def local_values() -> list[int]:
        results.append(action())
        return []

    sum_integers(local_values, length=0)
    return results[0]


def run_on_rank_zero(action: Callable[[], None]) -> None:
    """Run `action` on rank 0 while the others wait; if it raises, raise `FailedTogether` on all."""
    run_together(action if rank() == 0 else lambda: None)


def run_once_a_node(action: Callable[[], T]) -> T:
    """Run `action` on the first rank of each node and give its (picklable) result to the other
    ranks of that node."""
    node = _node()
    is_first_of_node = _gather(node).index(node) == rank()
    local_result = run_together(action if is_first_of_node else lambda: None)
    return next(result for other, result in _gather((node, local_result)) if other == node)  # type: ignore[return-value]


def from_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and give its (picklable) result to all ranks; if it raises, raise
    `FailedTogether` on all."""
    local_result = run_together(action if rank() == 0 else lambda: None)
    return _gather(local_result)[0]  # type: ignore[return-value]


def on_every_rank(action: Callable[[], T]) -> list[Outcome[T]]:
    """Run `action` on every rank and give every rank the (picklable) outcome of each, by rank; a
    failure is one of them, not an error."""
    try:
        own: Outcome[T] = Outcome(action())
    except Exception as error:  # whatever it is, the other ranks must hear of it
        own = Outcome(None, describe(error))
    return _gather(own)


def on_every_rank_of_this_node(action: Callable[[], T]) -> list[Outcome[T]]:
    """As `on_every_rank`, of those that share this rank's machine."""
    node = _node()
    return [
        outcome
        for other, outcome in zip(_gather(node), on_every_rank(action), strict=True)
        if other == node
    ]


def require_same(local_values: Mapping[str, Any]) -> None:
    """Raise on every rank, naming the rank and what it holds, unless all ranks hold equal values.

    Raises
    ------
    FailedTogether
        Some rank's value differs from rank 0's. Floats are compared by their bits, so NaN equals
        itself and 0.0 differs from -0.0.
    """
    comparable = {
        name: value.hex() if isinstance(value, float) else value
        for name, value in local_values.items()
    }
    everybodys = _gather((comparable, dict(local_values)))
    rank_zeros, rank_zeros_shown = everybodys[0]
    for other, (values, shown) in enumerate(everybodys):
        for name in rank_zeros:
            if values[name] != rank_zeros[name]:
                raise FailedTogether(
                    f"ranks differ: {name} is {shown[name]!r} on rank {other}, but "
                    f"{rank_zeros_shown[name]!r} on rank 0"
                )


def sum_floats(local_values: Tensor) -> Tensor:
    """Add a float64 tensor over all ranks; the result is on the CPU."""
    total = local_values.detach().to(_device() if _is_up() else "cpu", torch.float64, copy=True)
    if _is_up():
        dist.all_reduce(total)
    return total.cpu()


def largest(local_values: Sequence[float]) -> list[float]:
    """Of each value, the largest that any rank has: how they agree on a clock or a flag."""
    if not _is_up():
        return list(local_values)
    values = torch.tensor(local_values, dtype=torch.float64, device=_device())
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.tolist()


def seconds_an_all_reduce(num_bytes: int, *, max_seconds: float = 0.5) -> float:
    """Mean time that the ranks take to add up `num_bytes` of float32; measured for about
    `max_seconds`, or once where once takes longer."""
    if not _is_up():
        return 0.0
    device = _device()
    tensor = torch.zeros(num_bytes // 4, device=device)

    def seconds(turns: int) -> float:
        dist.barrier()
        started = time.perf_counter()
        for _ in range(turns):
            dist.all_reduce(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        # The slowest rank's, so that all of them take the same number of turns next.
        return largest([time.perf_counter() - started])[0] / turns

    first = seconds(1)  # connects the ranks too
    return seconds(max(1, min(100, int(max_seconds / first))))


def time_when_done() -> float:
    """Seconds of a clock, read when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class CollectiveTimer:
    """How long the collectives of training steps hold this rank up: that of the loss, and those of
    the gradients after the last was ready.

    Where it runs, a GPU is waited for before and after each, so that seconds mean what they say;
    let it run for few steps only.

    Attributes
    ----------
    running
        Whether it takes the time.
    seconds
        Of each collective since it was last emptied; as many on every rank.
    """

    def __init__(self) -> None:
        self.running = False
        self.seconds: list[float] = []
        self._began: float | None = None

    def begin(self) -> None:
        """Here the rank enters a collective; of several before one end, the last counts."""
        if self.running:
            self._began = time_when_done()

    def end(self) -> None:
        """Here its result is there."""
        if self._began is not None:
            self.seconds.append(time_when_done() - self._began)
            self._began = None


collective_timer = CollectiveTimer()
"""Of this process."""


def average_gradients(state, bucket):  # type: ignore[no-untyped-def] # DDP refuses annotations that are strings, as all are here
    """DDP's own averaging, as a hook for `register_comm_hook`, timed by `collective_timer` where
    `end` is called after backward."""
    world = dist.group.WORLD
    assert world is not None, "DDP has a process group"
    collective_timer.begin()
    return allreduce_hook(world, bucket)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSplit:
    """Where the time of a step goes, milliseconds, means over ranks; the four add up to the step.

    Attributes
    ----------
    load_ms
        Until the batch is there.
    compute_ms
        Forward, backward and optimiser.
    communicate_ms
        In collectives, once every rank has come to them: the time of the rank that came last, which
        is the one that they held up least.
    wait_ms
        In collectives, for slower ranks.
    """

    load_ms: float
    compute_ms: float
    communicate_ms: float
    wait_ms: float

    @classmethod
    def of_all_ranks(
        cls, *, num_steps: int, total_s: float, load_s: float, collectives_s: Sequence[float]
    ) -> StepSplit:
        """From the seconds that each rank has spent in some steps, loading their batches, and in
        each of their collectives."""
        communicate = -sum(largest([-seconds for seconds in collectives_s]))
        total, load, collectives = (
            sum_floats(torch.tensor([total_s, load_s, sum(collectives_s)])) / world_size()
        ).tolist()
        in_ms = 1e3 / num_steps
        return cls(
            load_ms=in_ms * load,
            compute_ms=in_ms * (total - load - collectives),
            communicate_ms=in_ms * communicate,
            wait_ms=in_ms * (collectives - communicate),
        )


def mean_over_ranks(local_sum: Tensor, local_count: int) -> Tensor:
    """Global mean, whose gradient under DDP is that of one process on the union of all ranks'
    terms.

    Parameters
    ----------
    local_sum
        Scalar: the sum of this rank's terms, with its graph; a rank without terms gives zero (with
        its graph too).
    local_count
        How many terms it has.

    Returns
    -------
    Tensor
        Scalar float64; its value is the global mean on every rank. DDP averages the ranks'
        gradients, so each carries world_size / global count.
    """
    local_sum = local_sum.double()
    sum_and_count = torch.stack([local_sum.detach(), local_sum.new_tensor(local_count)])
    if _is_up():
        collective_timer.begin()
        dist.all_reduce(sum_and_count)
        collective_timer.end()
    # no term anywhere: zero
    global_sum, global_count = sum_and_count[0], sum_and_count[1].clamp_min(1)
    local_share = local_sum * (world_size() / global_count)
    return local_share + (global_sum / global_count - local_share.detach())


def leave_together() -> None:
    """End the process group once every rank has come here: torn down while the interpreter exits,
    its threads can abort the process."""
    if _is_up():
        dist.barrier()
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Come back once every rank has come here, or one of them has gone."""
    if _is_up():
        with contextlib.suppress(RuntimeError):
            dist.barrier()


def first_failure(own: str) -> str:
    """Leave word of what stops this rank, and give the word of the rank that was stopped first.

    No collective: ranks come here one by one, each in its own time. The word lies in the store that
    the launcher keeps, so it outlives the rank that left it.
    """
    if not _is_up() or "MASTER_ADDR" not in os.environ:
        return own
    key = f"ptycho_dist/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        return store.compare_set(key, "", own).decode()
    except (RuntimeError, ValueError, OSError):  # the launcher is gone: nobody else to ask
        return own


def backend() -> str:
    """What carries the reductions: `gloo`, `nccl`, or `none` for one process alone."""
    return dist.get_backend() if _is_up() else "none"


def _is_up() -> bool:
    return dist.is_available() and dist.is_initialized()


def _node() -> str:
    """What tells this machine from the others: its name, and the boot of its kernel where names may
    be alike."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname() + (boot_id.read_text() if boot_id.exists() else "")


def _device(process_group: ProcessGroup | None = None) -> torch.device:
    """Where the backend wants its tensors: NCCL reduces CUDA tensors only."""
    if dist.get_backend(process_group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _gather(local_value: T, process_group: ProcessGroup | None = None) -> list[T]:
    if not _is_up():
        return [local_value]
    everybodys: list[Any] = [None] * world_size(process_group)
    dist.all_gather_object(everybodys, local_value, group=process_group)
    return everybodys


def _raise_on_every_rank(local_error: Exception | None, process_group: ProcessGroup | None) -> None:
    messages = _gather(None if local_error is None else describe(local_error), process_group)
    failed = [number for number, message in enumerate(messages) if message is not None]
    others = f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else ""
    raise FailedTogether(f"rank {failed[0]}{others}: {messages[failed[0]]}") from local_error


def describe(error: BaseException) -> str:
    """What happened, for a person: the message alone where it was written for one."""
    if "Connection closed by peer" in str(error):
        return "lost the connection to another rank: its process was killed, or its node failed"
    return (
        str(error)
        if isinstance(error, ValueError | OSError | Interrupted | ArgumentError)
        else f"{type(error).__name__}: {error}"
    )
