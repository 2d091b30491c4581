"""Scans in a pair of files, and patterns in a file of their own."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.array_file import split_dataset
from ptycho_dist.data.readers.hdf5_file import Hdf5File, linked_files
from ptycho_dist.data.readers.hdf5_patterns import Hdf5Patterns, SomePatterns, open_patterns
from ptycho_dist.data.scan import Patterns, ScanError

_DIFFRACTION_KEYS = (
    "dp",
    "entry/data/data",
    "exchange/data",
    "entry_1/data_1/data",
    "entry_1/instrument_1/detector_1/data",
)


def companion(path: Path) -> Path | None:
    """Return the other file of a pair, `x_para.hdf5` for `x_dp.hdf5` and vice versa; None where
    there is none."""
    for own, other in (("_dp", "_para"), ("_para", "_dp")):
        if path.stem.endswith(own):
            beside = path.with_name(path.stem.removesuffix(own) + other + path.suffix)
            return beside if beside.is_file() else None
    return None


def other_files(path: Path) -> list[Path]:
    """Return the files that an HDF5 scan can't be read without: the other file of its pair, and
    what their links lead to."""
    if not h5py.is_hdf5(path):
        return []
    named = [one for one in (path, companion(path)) if one is not None]
    found = [other for one in named for other in (one.resolve(), *linked_files(one))]
    return [other for other in dict.fromkeys(found) if other != path.resolve()]


def open_diffraction(path: Path, options: ScanConfig) -> Hdf5Patterns:
    """Return the patterns that belong to a file without any: those of `data.diffraction`, or of the
    other file of the pair, or in the file itself after all."""
    key = None
    if options.diffraction is None:
        path = companion(path) or path
    else:
        path, key = split_dataset(options.diffraction)
    with Hdf5File(path) as file:
        key = key or file.first(_DIFFRACTION_KEYS)
        if key is None:
            raise ScanError(
                path,
                "diffraction",
                f"only {file.names()[:12]}",
                "the patterns: --data.diffraction FILE, or FILE:/dataset",
            )
        return open_patterns(file, key, is_transposed=bool(options.transpose))


def patterns_of_positions(
    path: Path, key: str, patterns: Patterns, indexes: np.ndarray | None
) -> Patterns:
    """Return the patterns `indexes` in this order; a product may have left some out."""
    if indexes is None:
        return patterns
    count = patterns.shape[0]
    numbers = indexes.reshape(-1).astype(np.int64)
    if (
        len(numbers) == 0
        or (numbers != indexes.reshape(-1)).any()
        or not 0 <= numbers.min() <= numbers.max() < count
    ):
        found = f"numbers from {indexes.min()} to {indexes.max()}" if len(numbers) else "no numbers"
        raise ScanError(path, key, found, f"numbers of the {count} patterns, from 0 to {count - 1}")
    if np.array_equal(numbers, np.arange(count)):
        return patterns
    source = np.zeros(len(numbers), dtype=np.int64)
    return SomePatterns(sources=[patterns], source=source, number=numbers)
