"""Whether the normalised patterns lie in the memory of each rank's device, or are streamed from
disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ptycho_dist.distributed import largest, on_every_rank_of_this_node
from ptycho_dist.memory_supply import MemorySupply, host_bytes_left, size_in_words

LARGEST_PART = 0.25
"""Of the memory that is left when training begins; network, activations and whatever else the node
does need the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The choice, the same on every rank.

    Attributes
    ----------
    device
        What this rank computes on.
    num_bytes
        float32 X_norm of all patterns that a rank draws from.
    held
        Whether they are held on the device.
    why
        For the log: what was compared, as this rank sees it.
    """

    device: torch.device
    num_bytes: int
    held: bool
    why: str

    @property
    def held_bytes(self) -> int:
        return self.num_bytes if self.held else 0

    def __str__(self) -> str:
        return f"{'held in memory' if self.held else 'streamed from disk'}: {self.why}"


def choose_placement(num_bytes: int) -> Placement:
    """Hold what takes at most `LARGEST_PART` of the memory that is left, on every rank; else
    stream. A collective.

    A GPU is one rank's alone; the node's memory is for all its ranks together.
    """
    supplies = [
        outcome.value
        for outcome in on_every_rank_of_this_node(MemorySupply.of_this_rank)
        if outcome.value is not None
    ]
    own = _placement(num_bytes, supplies)
    held = not largest([not own.held])[0]
    return (
        own
        if held == own.held
        else replace(own, held=held, why=f"{own.why}, but not on every rank")
    )


def choose_placement_alone(num_bytes: int) -> Placement:
    """The same for a process that computes by itself; no collective."""
    return _placement(num_bytes, [MemorySupply.of_this_rank()])


def _placement(num_bytes: int, supplies: Sequence[MemorySupply]) -> Placement:
    """Return the choice of one rank, given the supplies of its node's ranks."""
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if device.type == "cuda":
        needed, left = num_bytes, (torch.cuda.mem_get_info(device)[0], "the GPU")
        what = f"{size_in_words(num_bytes)} of normalised patterns a rank"
    else:
        needed, left = (
            len(supplies) * num_bytes,
            host_bytes_left(supplies) or (0, "nobody says what"),
        )
        what = (
            f"{size_in_words(num_bytes)} of normalised patterns a rank, {len(supplies)} "
            "rank(s) on the node"
        )
    held = needed <= LARGEST_PART * left[0]
    why = (
        f"{what}, {'at most' if held else 'more than'} {LARGEST_PART:g} of the "
        f"{size_in_words(left[0])} that {left[1]} has left"
    )
    return Placement(device=device, num_bytes=num_bytes, held=held, why=why)
