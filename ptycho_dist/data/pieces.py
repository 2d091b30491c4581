"""Passes over patterns in pieces of bounded memory, which log their progress."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptycho_dist.data.scan import Scan
from ptycho_dist.progress import Progress

CHUNK_PIXELS = 1 << 19
"""Pixels in memory in a pass that computes: the arrays on the way from the file to normalised
amplitudes take some 32 bytes a pixel."""

COPIED_PIXELS = 1 << 22
"""Pixels in memory in a pass that copies: patterns that are packed together are unpacked for each
piece that has some of them."""


def pieces(
    patterns: np.ndarray, pattern_size: int, most_pixels: int, what: str
) -> Iterator[np.ndarray]:
    """Yield pattern numbers (k,) in pieces of at most so many pixels, or of one pattern; `what` is
    for the log."""
    a_piece = max(1, most_pixels // pattern_size**2)
    progress = Progress(what)
    for start in range(0, len(patterns), a_piece):
        piece = patterns[start : start + a_piece]
        yield piece
        progress(start + len(piece), len(patterns))


def stored_pieces(scan: Scan) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the numbers of all patterns in their order, and the patterns as they are stored."""
    everything, what = np.arange(scan.num_patterns), f"writing the patterns of {scan.path.name}"
    for numbers in pieces(everything, scan.pattern_size, COPIED_PIXELS, what):
        patterns = np.ascontiguousarray(scan.diffraction[numbers], dtype=scan.diffraction.dtype)
        yield slice(numbers[0], numbers[-1] + 1), patterns
