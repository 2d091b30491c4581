"""Patterns by number: any order, each chunk unpacked once a request, in every process, and nothing
outside the window."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from ptycho_dist.data.readers.hdf5_file import Hdf5File
from ptycho_dist.data.readers.hdf5_patterns import (
    Hdf5Patterns,
    SomePatterns,
    WindowedPatterns,
    open_patterns,
    window_of,
)
from ptycho_dist.data.scan import ScanError

COUNTS = np.random.default_rng(3).integers(0, 60000, (41, 12, 10)).astype(np.uint16)
ORDERS = {
    "one": [7],
    "none": [],
    "all": list(range(41)),
    "backwards": list(range(40, -1, -1)),
    "repeated": [5, 5, 40, 0, 5, 0],
    "far apart": [40, 1, 20],
    "random": np.random.default_rng(1).integers(0, 41, 100).tolist(),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "one a chunk": {"chunks": (1, 12, 10)},
    "chunks of 8": {"chunks": (8, 12, 10), "compression": "gzip"},
    "chunks across the detector": {"chunks": (25, 5, 4), "compression": "lzf"},
    "bitshuffle": {"chunks": (3, 12, 10), **hdf5plugin.Bitshuffle()},
}


def written(path: Path, **layout: Any) -> Hdf5Patterns:
    with h5py.File(path, "w") as file:
        file.create_dataset("dp", data=COUNTS, **layout)
    with Hdf5File(path) as opened:
        return open_patterns(opened, "dp")


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_order_from_any_layout(
    tmp_path: Path, layout: dict[str, Any], order: list[int]
) -> None:
    patterns = written(tmp_path / "scan.h5", **layout)
    numbers = np.array(order, dtype=np.int64)
    assert patterns.shape == COUNTS.shape
    assert patterns.dtype == COUNTS.dtype
    assert np.array_equal(patterns[numbers], COUNTS[numbers])
    window = patterns.window(slice(2, 9), slice(1, 5))
    assert np.array_equal(window[numbers], COUNTS[numbers, 2:9, 1:5])
    assert np.array_equal(
        window.window(slice(1, 4), slice(2, 4))[numbers], COUNTS[numbers, 3:6, 3:5]
    )


def test_transposed_patterns_and_their_window(tmp_path: Path) -> None:
    written(path := tmp_path / "scan.h5")
    with Hdf5File(path) as file:
        patterns = open_patterns(file, "dp", is_transposed=True)
    numbers = np.array([9, 2, 9])
    assert patterns.shape == (41, 10, 12)
    assert np.array_equal(patterns[numbers], COUNTS[numbers].transpose(0, 2, 1))
    assert np.array_equal(
        patterns.window(slice(0, 3), slice(5, 12))[numbers],
        COUNTS[numbers].transpose(0, 2, 1)[:, 0:3, 5:12],
    )


class CountingDataset:
    """Stands before a dataset and keeps the slices that are asked of it."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.asked: list[tuple[slice, ...]] = []

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray:
        self.asked.append(selection)
        return self.dataset[selection]


@pytest.mark.parametrize("order", [order for order in ORDERS.values() if order])
def test_each_chunk_is_read_once_a_request_and_no_other(tmp_path: Path, order: list[int]) -> None:
    patterns = written(tmp_path / "scan.h5", chunks=(8, 12, 10), compression="gzip").window(
        slice(3, 7), slice(2, 8)
    )
    with h5py.File(tmp_path / "scan.h5") as file:
        counting = CountingDataset(file["dp"])
        patterns._opened[os.getpid()] = counting
        patterns[np.array(order)]
    chunks = [
        chunk
        for numbers, _, _ in counting.asked
        for chunk in range(numbers.start // 8, (numbers.stop - 1) // 8 + 1)
    ]
    assert len(chunks) == len(set(chunks))
    assert set(chunks) == {number // 8 for number in order}
    assert all(selection[1:] == (slice(3, 7), slice(2, 8)) for selection in counting.asked)


def test_number_of_no_pattern_is_refused(tmp_path: Path) -> None:
    patterns = written(tmp_path / "scan.h5")
    for number in (41, -1):
        with pytest.raises(IndexError):
            patterns[np.array([number, 0])]


def test_each_process_opens_the_file_for_itself(tmp_path: Path) -> None:
    """A handle that went through a fork shares its place in the file with the parent's."""
    patterns = written(tmp_path / "scan.h5", chunks=(8, 12, 10), compression="gzip")
    patterns[np.array([0])]
    own = patterns._opened[os.getpid()]
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = (
                np.array_equal(patterns[np.arange(41)], COUNTS)
                and patterns._opened[os.getpid()] is not own
                and len(patterns._opened) == 1
            )
            os.write(write_end, b"y" if answer else b"n")
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    assert os.read(read_end, 1) == b"y"
    os.close(read_end)
    assert np.array_equal(patterns[np.arange(41)], COUNTS)


def test_pickle_takes_no_handle_along(tmp_path: Path) -> None:
    patterns = written(tmp_path / "scan.h5")
    patterns[np.array([0])]
    again = pickle.loads(pickle.dumps(patterns))
    assert again._opened == {}
    assert np.array_equal(again[np.array([4, 2])], COUNTS[[4, 2]])


def test_several_sources_one_after_the_other() -> None:
    together = SomePatterns.one_after_the_other(
        [COUNTS[:5], COUNTS[5:6].astype(np.int32), COUNTS[6:]]
    )
    numbers = np.array([40, 5, 4, 6, 0, 5])
    assert together.shape == COUNTS.shape
    assert together.dtype == np.int32
    assert np.array_equal(together[numbers], COUNTS[numbers])
    assert np.array_equal(
        window_of(together, slice(1, 4), slice(0, 2))[numbers], COUNTS[numbers, 1:4, 0:2]
    )


def test_window_of_an_array() -> None:
    window = window_of(COUNTS, slice(1, 4), slice(0, 2))
    assert isinstance(window, WindowedPatterns)
    assert window.shape == (41, 3, 2)
    assert np.array_equal(window[np.array([3, 3, 1])], COUNTS[[3, 3, 1], 1:4, 0:2])


def test_huge_dataset_in_a_tiny_file_is_refused_unread(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("dp", shape=(1 << 40, 64, 64), dtype=np.uint16, chunks=(1, 64, 64))
        file.create_dataset(
            "wide", shape=(3, 1 << 20, 1 << 20), dtype=np.uint16, chunks=(1, 64, 64)
        )
        file["wide"][0, 0, 0] = 1
    assert (tmp_path / "bomb.h5").stat().st_size < 100_000
    with Hdf5File(tmp_path / "bomb.h5") as opened:
        with pytest.raises(
            ScanError,
            match=r"dp: found shape .* without any data in it, expected patterns that were written",
        ):
            open_patterns(opened, "dp")
        with pytest.raises(
            ScanError,
            match=r"wide: found shape .*: 2199023255552 bytes a pattern, expected at most",
        ):
            open_patterns(opened, "wide")


def test_damaged_chunk_is_named_with_file_and_patterns(tmp_path: Path) -> None:
    patterns = written(
        path := tmp_path / "scan.h5", chunks=(1, 12, 10), compression="gzip", fletcher32=True
    )
    with h5py.File(path) as file:
        place = file["dp"].id.get_chunk_info(20).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 10] ^= 0xFF
    path.write_bytes(content)
    assert np.array_equal(patterns[np.array([19, 21])], COUNTS[[19, 21]])
    with pytest.raises(
        ScanError, match=r"scan\.h5: /dp: found patterns 20 to 20 that can't be read"
    ):
        patterns[np.array([20])]
