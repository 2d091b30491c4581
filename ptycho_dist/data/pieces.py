"""A long pass over patterns, in pieces of bounded memory; it says how far it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptycho_dist.progress import Progress

CHUNK_PIXELS = 1 << 19
"""How much of a pass that computes is held at a time; the arrays on the way from the file to
normalised amplitudes take some 32 bytes a pixel."""

COPIED_PIXELS = 1 << 22
"""How much of a pass that only copies is; patterns that are packed together are unpacked for each
piece that has some of them."""


def pieces(
    patterns: np.ndarray, pattern_size: int, most_pixels: int, what: str
) -> Iterator[np.ndarray]:
    """Pattern numbers (k,), piece after piece, each of at most so many pixels, or of one pattern;
    `what` is for the log."""
    a_piece = max(1, most_pixels // pattern_size**2)
    progress = Progress(what)
    for start in range(0, len(patterns), a_piece):
        piece = patterns[start : start + a_piece]
        yield piece
        progress(start + len(piece), len(patterns))
