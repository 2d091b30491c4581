"""Statistics of a scan's patterns, from one pass in pieces of bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptycho_dist.data.pieces import CHUNK_PIXELS, pieces
from ptycho_dist.data.scan import Scan

_LARGEST_TELLING = 1e5
"""Counts above which float32 can't tell whether the square of a number is whole."""
_TELLING_PATTERNS = 4
"""Patterns of each piece whose numbers are tested for being whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternStatistics:
    """Statistics of all patterns; masked pixels, and NaN, infinite or negative values, are 0.

    Attributes
    ----------
    counts
        float64 (n,): sum of each pattern, of its squares if it holds amplitudes.
    mean_pattern
        float64 (N, N): mean of the same per pixel.
    largest
        float64 (N, N): the largest number in the file at each pixel.
    num_at_largest
        How many numbers equal the largest of all.
    at_type_limit
        int64 (N, N): how many numbers at each pixel are the largest of their integer type; 0 for
        other types.
    num_invalid
        How many numbers are `NaN`, `infinite` or `negative`; only kinds that occur.
    first_invalid
        (pattern, row, column) of the first of each kind.
    zero_fraction
        Fraction of zeros among the pixels that are not masked.
    num_telling, num_whole, num_whole_squares
        Number of positive values tested, of those that are whole, and of those whose squares are.
    """

    counts: np.ndarray
    mean_pattern: np.ndarray
    largest: np.ndarray
    num_at_largest: int
    at_type_limit: np.ndarray
    num_invalid: dict[str, int]
    first_invalid: dict[str, tuple[int, int, int]]
    zero_fraction: float
    num_telling: int
    num_whole: int
    num_whole_squares: int


def pattern_statistics(scan: Scan) -> PatternStatistics:
    """Read all patterns once.

    Raises
    ------
    ScanError
        They can't be read.
    """
    shape = (scan.pattern_size, scan.pattern_size)
    counted = np.ones(shape, dtype=bool) if scan.mask is None else scan.mask
    is_integer = scan.diffraction.dtype.kind in "iu"
    type_limit = np.iinfo(scan.diffraction.dtype).max if is_integer else None
    counts = np.empty(scan.num_patterns)
    total, largest = np.zeros(shape), np.zeros(shape)
    at_largest, at_type_limit = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    num_invalid: dict[str, int] = {}
    first_invalid: dict[str, tuple[int, int, int]] = {}
    num_zero, whole = 0, np.zeros(3, dtype=np.int64)
    for numbers in pieces(
        np.arange(scan.num_patterns), shape[0], CHUNK_PIXELS, f"inspecting {scan.path.name}"
    ):
        stored = np.asarray(scan.diffraction[numbers])
        if type_limit is not None:
            at_type_limit += ((stored == type_limit) & counted).sum(axis=0)
        values = np.where(counted, stored.astype(np.float64), 0.0)
        _clear_invalid(values, numbers, num_invalid, first_invalid)
        highest = values.max(axis=0)
        at_highest = (values == highest).sum(axis=0)
        at_largest = np.where(
            highest > largest, at_highest, at_largest + np.where(highest == largest, at_highest, 0)
        )
        largest = np.maximum(largest, highest)
        num_zero += int(((values == 0) & counted).sum())
        whole += _whole_numbers(values[:_TELLING_PATTERNS])
        if scan.measurement == "amplitude":
            values **= 2
        counts[numbers] = values.sum(axis=(1, 2))
        total += values.sum(axis=0)
    num_telling, num_whole, num_whole_squares = whole.tolist()
    return PatternStatistics(
        counts=counts,
        mean_pattern=total / scan.num_patterns,
        largest=largest,
        num_at_largest=int(at_largest[largest == largest.max()].sum()),
        at_type_limit=at_type_limit,
        num_invalid=num_invalid,
        first_invalid=first_invalid,
        zero_fraction=num_zero / (scan.num_patterns * np.count_nonzero(counted)),
        num_telling=num_telling,
        num_whole=num_whole,
        num_whole_squares=num_whole_squares,
    )


def _clear_invalid(
    values: np.ndarray,
    numbers: np.ndarray,
    num_invalid: dict[str, int],
    first_invalid: dict[str, tuple[int, int, int]],
) -> None:
    """Set invalid values of the patterns `numbers` to 0 and record how many there are."""
    for kind, is_so in (
        ("NaN", np.isnan(values)),
        ("infinite", np.isinf(values)),
        ("negative", (values < 0) & np.isfinite(values)),
    ):
        if is_so.any():
            pattern, row, column = np.argwhere(is_so)[0].tolist()
            num_invalid[kind] = num_invalid.get(kind, 0) + int(is_so.sum())
            first_invalid.setdefault(kind, (int(numbers[pattern]), row, column))
            values[is_so] = 0


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    """Return how many values are telling, are whole, and have whole squares: int64 (3,)."""
    telling = values[(values > 0) & (values**2 <= _LARGEST_TELLING)]
    squares = telling**2
    # The root of a whole number, rounded to float32, has a square that is off by 2^-23 of it.
    has_whole_square = np.abs(squares - np.round(squares)) <= 2.0**-22 * squares
    return np.array([len(telling), (telling == np.round(telling)).sum(), has_whole_square.sum()])
