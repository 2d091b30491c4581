"""The patterns of several scans, read by number or in pieces of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ptycho_dist.data.pieces import CHUNK_PIXELS, pieces
from ptycho_dist.data.scan import Scan


class PatternSource:
    """Patterns of several scans by number, counted through all scans in their order."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        self.scans = tuple(scans)
        self.first_pattern = np.cumsum([0, *(scan.num_patterns for scan in scans)])
        self.positions_px = np.concatenate([scan.positions_px for scan in scans])

    def scan_of(self, patterns: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first_pattern, patterns, side="right") - 1

    def amplitude(self, patterns: np.ndarray) -> np.ndarray:
        """Measured amplitude of `patterns` (k,): float32 (k, N, N)."""
        scan_of_pattern = self.scan_of(patterns)
        numbers = np.unique(scan_of_pattern)
        if len(numbers) == 1:  # nothing to put together
            return self.scans[numbers[0]].amplitude(patterns - self.first_pattern[numbers[0]])
        amplitude = np.empty(
            (len(patterns), *self.scans[0].diffraction.shape[1:]), dtype=np.float32
        )
        for number in numbers:
            belongs = scan_of_pattern == number
            amplitude[belongs] = self.scans[number].amplitude(
                patterns[belongs] - self.first_pattern[number]
            )
        return amplitude

    def chunks(
        self, patterns: np.ndarray, what: str = "reading this rank's shard"
    ) -> Iterator[np.ndarray]:
        """The amplitudes of `patterns` in pieces of bounded memory."""
        for piece in pieces(patterns, self.scans[0].pattern_size, CHUNK_PIXELS, what):
            yield self.amplitude(piece)
