"""Patterns in a file, read on request.

Nothing is mapped: the pages of a map that a process has touched count as its memory, and a run
touches them all. What is read here belongs to the caller; the page cache, which all processes of a
node share, keeps what there is room for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import numpy as np

from ptycho_dist.data.scan import ScanError
from ptycho_dist.progress import Progress

BLOCK_BYTES = 1 << 27
"""Memory in use while patterns are brought into their order."""


class PatternFile:
    """Patterns (n, N, N) that lie one after the other in a file, which stays open: its name may be
    removed.

    Parameters
    ----------
    path
        File to open.
    offset
        Where the first pattern begins, bytes.
    shape, dtype
        Of all patterns; any byte order.
    pixels_transposed
        True where the file holds each pattern column after column.
    scan_path, key
        For messages: the scan, and the array in it.
    """

    def __init__(
        self,
        path: Path,
        *,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        pixels_transposed: bool,
        scan_path: Path,
        key: str,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._stream = path.open("rb", buffering=0)
        self._offset = offset
        self._pixels_transposed = pixels_transposed
        self._scan_path = scan_path
        self._key = key

    def __getitem__(self, patterns: np.ndarray) -> np.ndarray:
        """Return patterns by number, int64 (k,), in any order and also repeated: (k, N, N). Each is
        read once, neighbours together.

        Raises
        ------
        ScanError
            The file was cut short after it was opened.
        OSError
            It can't be read any more.
        """
        numbers, place = np.unique(patterns, return_inverse=True)
        read = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        runs = np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) != 1) + 1)
        for run in runs if len(numbers) else ():
            first = int(numbers[run[0]])
            wanted = read[run[0] : run[-1] + 1]
            start = self._offset + first * wanted[0].nbytes
            if not _read_into(self._stream, wanted, start):
                raise ScanError(
                    self._scan_path,
                    self._key,
                    f"{os.fstat(self._stream.fileno()).st_size} bytes, which end within patterns "
                    f"{first} to {first + len(run) - 1}",
                    f"{self.shape[0]} patterns, as when the file was opened: it was cut short or "
                    "is being rewritten",
                )
        if self._pixels_transposed:
            read = read.swapaxes(1, 2)
        return read if np.array_equal(place, np.arange(len(place))) else read[place]


def bring_patterns_first(
    source: IO[bytes],
    offset: int,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    target: IO[bytes],
    what: str,
) -> None:
    """Write an array (rows, columns, n) of a file, in C order, to another file as (n, rows,
    columns). Memory is bounded: as many patterns as fit into `BLOCK_BYTES` are gathered at a time.

    Raises
    ------
    EOFError
        The file ends too early.
    """
    rows, columns, num_patterns = shape
    pixels = rows * columns
    a_block = max(1, BLOCK_BYTES // (2 * pixels * dtype.itemsize))
    progress = Progress(what)
    for first in range(0, num_patterns, a_block):
        count = min(a_block, num_patterns - first)
        block = np.empty((pixels, count), dtype)
        for pixel in range(pixels):
            if not _read_into(
                source, block[pixel], offset + (pixel * num_patterns + first) * dtype.itemsize
            ):
                raise EOFError(f"the file ends within pattern {first}")
        target.write(np.ascontiguousarray(block.T).data)
        progress(first + count, num_patterns)


def _read_into(stream: IO[bytes], array: np.ndarray, offset: int) -> bool:
    """Fill a contiguous array from a place in a file; return False where the file ends before."""
    target = array.reshape(-1).view(np.uint8).data
    while target:
        try:
            done = os.preadv(stream.fileno(), [target], offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, stream.name) from error
        if not done:
            return False
        target, offset = target[done:], offset + done
    return True
