"""Diffraction patterns that stay in their HDF5 file and are read by number."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ptycho_dist.data.readers.hdf5_file import DAMAGED_HDF5, Hdf5File
from ptycho_dist.data.scan import Patterns, ScanError

LARGEST_PATTERN_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Hdf5Patterns:
    """A dataset (n, rows, columns), or a window of it.

    Each process opens the file itself when it first reads: a handle does not survive a fork or a
    pickle.

    Attributes
    ----------
    path, key
        File and dataset.
    num_patterns, dtype
        n, and the type of a pixel.
    rows, columns
        Window of the detector that is read.
    is_transposed
        True where the file has (n, columns, rows).
    chunk
        Number of patterns that are stored together; one can't be unpacked alone.
    needs_plugins
        True where hdf5plugin unpacks them.
    """

    path: Path
    key: str
    num_patterns: int
    dtype: np.dtype
    rows: slice
    columns: slice
    is_transposed: bool
    chunk: int
    needs_plugins: bool = False
    _opened: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (
            self.num_patterns,
            self.rows.stop - self.rows.start,
            self.columns.stop - self.columns.start,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def window(self, rows: slice, columns: slice) -> Hdf5Patterns:
        """Return a part of this window; nothing else is read."""
        rows, columns = (
            slice(outer.start + inner.start, outer.start + inner.stop)
            for outer, inner in ((self.rows, rows), (self.columns, columns))
        )
        return replace(self, rows=rows, columns=columns, _opened={})

    def __getitem__(self, patterns: np.ndarray) -> np.ndarray:
        """Return patterns by number, in any order. Those in one chunk or side by side are read once
        and together."""
        wanted, back = np.unique(np.asarray(patterns, dtype=np.int64), return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self.num_patterns:
            raise IndexError(f"patterns {wanted[0]} to {wanted[-1]} of {self.num_patterns}")
        read = np.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        parts = (self.columns, self.rows) if self.is_transposed else (self.rows, self.columns)
        apart = (np.diff(wanted) > 1) & (np.diff(wanted // self.chunk) > 0)
        starts = [0, *(np.flatnonzero(apart) + 1).tolist(), len(wanted)]
        for start, stop in pairwise(starts):
            if start == stop:
                continue
            try:
                block = self._dataset()[wanted[start] : wanted[stop - 1] + 1, parts[0], parts[1]]
            except DAMAGED_HDF5 as error:
                found = (
                    f"patterns {wanted[start]} to {wanted[stop - 1]} that can't be read ({error})"
                )
                raise ScanError(self.path, self.key, found, "an intact file") from error
            block = block[wanted[start:stop] - wanted[start]]
            read[start:stop] = block.swapaxes(1, 2) if self.is_transposed else block
        return read[back.reshape(-1)]

    def _dataset(self) -> h5py.Dataset:
        process = os.getpid()
        dataset = self._opened.get(process)
        if dataset is None:
            if self.needs_plugins:
                import hdf5plugin  # noqa: F401  registers its filters in this process
            dataset = h5py.File(self.path, "r")[self.key]
            self._opened.clear()  # of a handle that came through a fork
            self._opened[process] = dataset
        return dataset


@dataclass(frozen=True, kw_only=True)
class SomePatterns:
    """A selection from several sources: pattern i is pattern `number[i]` of source `source[i]`."""

    sources: Sequence[Patterns]
    source: np.ndarray
    number: np.ndarray

    @classmethod
    def one_after_the_other(cls, sources: Sequence[Patterns]) -> SomePatterns:
        lengths = [source.shape[0] for source in sources]
        return cls(
            sources=sources,
            source=np.repeat(np.arange(len(sources)), lengths),
            number=np.concatenate([np.arange(length) for length in lengths]),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.number), *self.sources[0].shape[1:]

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*(source.dtype for source in self.sources))

    def window(self, rows: slice, columns: slice) -> SomePatterns:
        return replace(self, sources=[window_of(source, rows, columns) for source in self.sources])

    def __getitem__(self, patterns: np.ndarray) -> np.ndarray:
        source, number = self.source[patterns], self.number[patterns]
        read = np.empty((len(number), *self.shape[1:]), dtype=self.dtype)
        for which in np.unique(source):
            read[source == which] = self.sources[which][number[source == which]]
        return read


@dataclass(frozen=True, kw_only=True)
class WindowedPatterns:
    """A window of patterns that are read whole."""

    whole: Patterns
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, ...]:
        return (
            self.whole.shape[0],
            self.rows.stop - self.rows.start,
            self.columns.stop - self.columns.start,
        )

    @property
    def dtype(self) -> np.dtype:
        return self.whole.dtype

    def __getitem__(self, patterns: np.ndarray) -> np.ndarray:
        return np.asarray(self.whole[patterns])[:, self.rows, self.columns]


def window_of(patterns: Patterns, rows: slice, columns: slice) -> Patterns:
    """Return a window of the detector; nothing else is read where the patterns support it."""
    if isinstance(patterns, Hdf5Patterns | SomePatterns):
        return patterns.window(rows, columns)
    return WindowedPatterns(whole=patterns, rows=rows, columns=columns)


def numbers_in_file(patterns: Patterns) -> np.ndarray:
    """Return the number of each pattern in the dataset that it is read from, int64 (n,); several
    datasets are counted through."""
    if isinstance(patterns, WindowedPatterns):
        return numbers_in_file(patterns.whole)
    if isinstance(patterns, SomePatterns) and len(patterns.sources) == 1:
        return numbers_in_file(patterns.sources[0])[patterns.number]
    return np.arange(patterns.shape[0])


def open_patterns(file: Hdf5File, key: str, *, is_transposed: bool = False) -> Hdf5Patterns:
    """Return the patterns of a dataset, checked but not read.

    Raises
    ------
    ScanError
        There is no such dataset, it is not (n, rows, columns) of real numbers, or nothing was ever
        written to it.
    """
    dataset = file.dataset(key)
    if dataset is None:
        raise file.missing(key, "diffraction patterns, (n, rows, columns)")
    shape: tuple[int, ...] = dataset.shape or ()
    if len(shape) != 3 or 0 in shape or dataset.dtype.kind not in "fiu":
        raise file.refused(
            key,
            f"shape {dataset.shape} of {dataset.dtype}",
            "diffraction patterns, (n, rows, columns), of real numbers",
        )
    pattern_bytes = math.prod(shape[1:]) * dataset.dtype.itemsize
    if pattern_bytes > LARGEST_PATTERN_BYTES:
        raise file.refused(
            key,
            f"shape {shape}: {pattern_bytes} bytes a pattern",
            f"at most {LARGEST_PATTERN_BYTES}",
        )
    if not dataset.is_virtual and dataset.id.get_storage_size() == 0:
        raise file.refused(
            key, f"shape {shape} without any data in it", "patterns that were written"
        )
    rows, columns = (shape[2], shape[1]) if is_transposed else (shape[1], shape[2])
    return Hdf5Patterns(
        path=file.path.resolve(),
        key=f"/{key.strip('/')}",
        num_patterns=shape[0],
        dtype=dataset.dtype,
        rows=slice(0, rows),
        columns=slice(0, columns),
        is_transposed=is_transposed,
        chunk=dataset.chunks[0] if dataset.chunks else 1,
        needs_plugins=file.needs_plugins,
    )


def frame_of_all(file: Hdf5File, key: str, *, is_transposed: bool = False) -> np.ndarray | None:
    """Return the frame (rows, columns) of a dataset (rows, columns), or (n, rows, columns) whose
    frames are all the same; None where nothing has this name.

    Raises
    ------
    ScanError
        The frames differ: a mask that changes from pattern to pattern is not supported.
    """
    dataset = file.dataset(key)
    if dataset is None:
        return None
    shape: tuple[int, ...] = dataset.shape or ()
    if len(shape) not in (2, 3) or 0 in shape or dataset.dtype.kind not in "biuf":
        raise file.refused(
            key, f"shape {shape} of {dataset.dtype}", "(rows, columns), or (n, rows, columns)"
        )
    frame_bytes = math.prod(shape[-2:]) * dataset.dtype.itemsize
    if frame_bytes > LARGEST_PATTERN_BYTES:
        raise file.refused(key, f"{frame_bytes} bytes a frame", f"at most {LARGEST_PATTERN_BYTES}")
    if len(shape) == 2:
        return dataset[()].T if is_transposed else dataset[()]
    first = dataset[0]
    step = max(1, _BLOCK_BYTES // frame_bytes)
    for start in range(1, shape[0], step):
        differs = (dataset[start : start + step] != first).any(axis=(1, 2))
        if differs.any():
            number = start + int(differs.argmax())
            raise file.refused(
                key,
                f"frame {number} differs from frame 0",
                "one mask for all patterns: leave it out and give data.mask",
            )
    return first.T if is_transposed else first
