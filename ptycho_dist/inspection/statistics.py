"""One pass over the patterns of a scan, in pieces of bounded memory: what is needed to describe
them and to find what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptycho_dist.data.pieces import CHUNK_PIXELS, pieces
from ptycho_dist.data.scan import Scan

_LARGEST_TELLING = 1e5
"""Counts above which float32 can't tell whether the square of a number is a whole one."""
_TELLING_PATTERNS = 4
"""Of each piece, patterns whose numbers are asked whether they are whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternStatistics:
    """Of all patterns; pixels that the mask leaves out, and numbers that are no measurement, count
    as 0.

    Attributes
    ----------
    counts
        float64 (n,): sum of each pattern, of the squares where it holds amplitudes.
    mean_pattern
        float64 (N, N): mean of the same a pixel.
    largest
        float64 (N, N): the largest number that the file has at each pixel.
    num_at_largest
        How many numbers equal the largest of all.
    at_type_limit
        int64 (N, N): how many numbers at each pixel are the largest that an integer type holds; 0
        for other types.
    num_invalid
        How many numbers are NaN, infinite or negative, by these words; only those there are.
    first_invalid
        Of each of these, (pattern, row, column) of the first.
    zero_fraction
        Of the pixels that count.
    num_telling, num_whole, num_whole_squares
        Positive numbers that were asked whether they are whole, and those that are, or whose
        squares are.
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
    size = scan.pattern_size
    counted = np.ones((size, size), dtype=bool) if scan.mask is None else scan.mask
    type_limit = (
        np.iinfo(scan.diffraction.dtype).max if scan.diffraction.dtype.kind in "iu" else None
    )
    counts = np.empty(scan.num_patterns)
    total, largest = np.zeros((size, size)), np.zeros((size, size))
    at_largest, at_type_limit = (
        np.zeros((size, size), dtype=np.int64),
        np.zeros((size, size), dtype=np.int64),
    )
    num_invalid: dict[str, int] = {}
    first_invalid: dict[str, tuple[int, int, int]] = {}
    num_zero = num_telling = num_whole = num_whole_squares = 0
    for numbers in pieces(
        np.arange(scan.num_patterns), size, CHUNK_PIXELS, f"inspecting {scan.path.name}"
    ):
        stored = np.asarray(scan.diffraction[numbers])
        if type_limit is not None:
            at_type_limit += ((stored == type_limit) & counted).sum(axis=0)
        values = np.where(counted, stored.astype(np.float64), 0.0)
        for word, is_so in (
            ("NaN", np.isnan(values)),
            ("infinite", np.isinf(values)),
            ("negative", (values < 0) & np.isfinite(values)),
        ):
            if is_so.any():
                pattern, row, column = (int(place) for place in np.argwhere(is_so)[0])
                num_invalid[word] = num_invalid.get(word, 0) + int(is_so.sum())
                first_invalid.setdefault(word, (int(numbers[pattern]), row, column))
                values[is_so] = 0
        highest = values.max(axis=0)
        at_highest = (values == highest).sum(axis=0)
        at_largest = np.where(
            highest > largest, at_highest, at_largest + np.where(highest == largest, at_highest, 0)
        )
        largest = np.maximum(largest, highest)
        num_zero += int(((values == 0) & counted).sum())
        telling = _telling(values[:_TELLING_PATTERNS])
        num_telling += len(telling)
        num_whole += int((telling == np.round(telling)).sum())
        # The root of a whole number, rounded to float32, has a square that is off by 2^-23 of it.
        num_whole_squares += int(
            (np.abs(telling**2 - np.round(telling**2)) <= 2.0**-22 * telling**2).sum()
        )
        if scan.measurement == "amplitude":
            values **= 2
        counts[numbers] = values.sum(axis=(1, 2))
        total += values.sum(axis=0)
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


def _telling(values: np.ndarray) -> np.ndarray:
    return values[(values > 0) & (values**2 <= _LARGEST_TELLING)]
