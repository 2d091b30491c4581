"""What the ranks do together, do once, or must hold in common."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from ptycho_dist.distributed.failures import FailedTogether, describe
from ptycho_dist.distributed.process_group import gather, is_up, rank
from ptycho_dist.distributed.reductions import sum_integers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """Result of an action on one rank: a value, or the reason why there is none."""

    value: T | None
    failure: str | None = None


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


def from_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and return its (picklable) result on all ranks; if it raises, raise
    `FailedTogether` on all."""
    local_result = run_together(action if rank() == 0 else lambda: None)
    return gather(local_result)[0]  # type: ignore[return-value]


def run_once_a_node(action: Callable[[], T]) -> T:
    """Run `action` on the first rank of each node and return its (picklable) result on the other
    ranks of that node."""
    node = _node()
    is_first_of_node = gather(node).index(node) == rank()
    local_result = run_together(action if is_first_of_node else lambda: None)
    return next(result for other, result in gather((node, local_result)) if other == node)  # type: ignore[return-value]


def on_every_rank(action: Callable[[], T]) -> list[Outcome[T]]:
    """Run `action` on every rank and return the (picklable) outcomes of all, by rank; a failure is
    an outcome, not an error."""
    try:
        own: Outcome[T] = Outcome(action())
    except Exception as error:  # whatever it is, the other ranks must know
        own = Outcome(None, describe(error))
    return gather(own)


def on_every_rank_of_this_node(action: Callable[[], T]) -> list[Outcome[T]]:
    """Run `action` as `on_every_rank` does, and return the outcomes of this rank's node."""
    node, outcomes = _node(), on_every_rank(action)
    return [outcome for other, outcome in zip(gather(node), outcomes, strict=True) if other == node]


def require_same(local_values: Mapping[str, Any]) -> None:
    """Raise on every rank, with the rank and both values, unless all ranks hold equal values.

    Raises
    ------
    FailedTogether
        Some rank's value differs from rank 0's. Floats are compared by their bits: NaN equals
        itself, 0.0 differs from -0.0.
    """
    comparable = {
        name: value.hex() if isinstance(value, float) else value
        for name, value in local_values.items()
    }
    of_ranks = gather((comparable, dict(local_values)))
    expected, expected_shown = of_ranks[0]
    for other, (values, shown) in enumerate(of_ranks):
        for name in expected:
            if values[name] != expected[name]:
                raise FailedTogether(
                    f"ranks differ: {name} is {shown[name]!r} on rank {other}, but "
                    f"{expected_shown[name]!r} on rank 0"
                )


def first_failure(own: str) -> str:
    """Record what stops this rank, and return the record of the rank that stopped first.

    Not a collective: each rank calls it when it stops. The launcher's store keeps the record, and
    outlives the rank.
    """
    if not is_up() or "MASTER_ADDR" not in os.environ:
        return own
    key = f"ptycho_dist/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        return store.compare_set(key, "", own).decode()
    except (RuntimeError, ValueError, OSError):  # the launcher is gone
        return own


def _node() -> str:
    """Return what identifies this machine: its name, and its kernel's boot id where names repeat
    (containers)."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname() + (boot_id.read_text() if boot_id.exists() else "")
