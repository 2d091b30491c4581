"""Exact sums of float64 energies, the same bits for any sharding, order or number of ranks.

Floating-point addition rounds, so its result depends on the order. Here each energy becomes an
integer, a multiple of 2**-1074 (the smallest float64), and integers add exactly. For the reduction
the total is cut into 32-bit limbs, one int64 each: their sums over up to 2**31 ranks can't
overflow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ptycho_dist.distributed import sum_integers

_FRACTION_BITS = 1074
_LIMB_BITS = 32
_COUNT_BITS = 42  # room for 4e12 patterns, each of the largest float64
_NUM_LIMBS = -(-(1024 + _FRACTION_BITS + _COUNT_BITS) // _LIMB_BITS)
_CACHED_PIXELS = 1 << 16  # their squares, 512 kB, stay in a core's cache until they are added


@dataclass(frozen=True, slots=True)
class ExactSum:
    """Sum of the energies of `count` patterns, over all ranks; `total` is exact."""

    total: Fraction
    count: int

    @property
    def mean(self) -> Fraction:
        return self.total / self.count

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.total + other.total, self.count + other.count)


def exact_energy_sum(
    local_chunks: Iterable[np.ndarray | Tensor], process_group: ProcessGroup | None = None
) -> ExactSum:
    """Sum over all ranks of sum(x**2) a pattern. One `all_reduce` of 69 int64 (552 bytes), whatever
    the data.

    Parameters
    ----------
    local_chunks
        This rank's shard in pieces of shape (n, ..., H, W), real; a pattern is the last two axes.
        May be empty.

    Raises
    ------
    ValueError
        A value is not finite, or a chunk is not made of real patterns. With several ranks, every
        rank raises.
    """

    def local_limbs() -> list[int]:
        fixed_point_sum = count = 0
        for chunk in local_chunks:
            energies = pattern_energies(chunk)
            fixed_point_sum += _fixed_point_sum(energies)
            count += len(energies)
        limbs = np.frombuffer(
            fixed_point_sum.to_bytes(_NUM_LIMBS * _LIMB_BITS // 8, "little"), dtype="<u4"
        )
        return [count, *limbs.tolist()]

    count, *limbs = sum_integers(local_limbs, 1 + _NUM_LIMBS, process_group)
    fixed_point_sum = sum(limb << (_LIMB_BITS * place) for place, limb in enumerate(limbs))
    return ExactSum(Fraction(fixed_point_sum, 1 << _FRACTION_BITS), count)


def pattern_energies(chunk: np.ndarray | Tensor) -> np.ndarray:
    """sum(x**2) over the last two axes in float64: shape (n, ..., H, W) to (patterns,).

    The squares of float32 are exact in float64, and NumPy adds each pattern's, which lie one after
    the other, in an order that only their number decides: an energy has the same bits in whatever
    chunk it comes. A BLAS dot product would be faster by a quarter, but adds in an order that
    depends on its threads and on the processor, and so on the ranks of a node.
    """
    if isinstance(chunk, Tensor):
        chunk = chunk.detach().cpu()
        # NumPy has no bfloat16
        chunk = (chunk.float() if chunk.dtype is torch.bfloat16 else chunk).numpy()
    if chunk.ndim < 3 or chunk.dtype.kind not in "fiu":
        raise ValueError(
            f"patterns: found an array of shape {chunk.shape} and type {chunk.dtype}, expected "
            "real numbers (n, ..., H, W)"
        )
    num_pixels = chunk.shape[-2] * chunk.shape[-1]
    patterns = np.ascontiguousarray(chunk).reshape(-1, num_pixels)
    energies = np.empty(len(patterns))
    together = max(1, _CACHED_PIXELS // num_pixels)
    with np.errstate(over="ignore", invalid="ignore"):  # said below
        for start in range(0, len(patterns), together):
            block = slice(start, start + together)
            np.square(patterns[block], dtype=np.float64).sum(axis=1, out=energies[block])
    if not np.isfinite(energies).all():
        raise ValueError(
            f"patterns: the energy of pattern {int(np.argmin(np.isfinite(energies)))} of a chunk "
            "is not finite"
        )
    return energies


def _fixed_point_sum(energies: np.ndarray) -> int:
    """Exact sum of float64, in units of 2**-1074."""
    mantissas, exponents = np.frexp(energies)
    integers = np.ldexp(mantissas, 53).astype(np.int64)  # energy = integer * 2**(exponent - 53)
    # Large integers are slow: those of one exponent are added while they are small.
    of_exponents = {
        exponent: sum(integers[exponents == exponent].tolist())
        for exponent in set(exponents.tolist())
    }
    return sum(
        total << (exponent + _FRACTION_BITS) >> 53 for exponent, total in of_exponents.items()
    )
