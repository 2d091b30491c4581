"""Patterns read from a file: the ones that were asked for, in that order, each once, and an error
where the file has lost them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_dist.data import pattern_file
from ptycho_dist.data.pattern_file import PatternFile, bring_patterns_first
from ptycho_dist.data.scan import ScanError

PATTERNS = np.random.default_rng(0).integers(0, 60_000, (37, 6, 6))


def pattern_file_of(
    path: Path, patterns: np.ndarray, *, offset: int = 13, transposed: bool = False
) -> PatternFile:
    path.write_bytes(
        b"x" * offset + (patterns.swapaxes(1, 2) if transposed else patterns).tobytes()
    )
    return PatternFile(
        path,
        offset=offset,
        shape=patterns.shape,
        dtype=patterns.dtype,
        pixels_transposed=transposed,
        scan_path=Path("s.npz"),
        key="diff",
    )


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<u2", ">u2", "u1", ">i4"])
@pytest.mark.parametrize("transposed", [False, True])
def test_numbers_of_every_type_and_byte_order(tmp_path: Path, dtype: str, transposed: bool) -> None:
    patterns = (PATTERNS % 251).astype(dtype)
    read = pattern_file_of(tmp_path / "patterns", patterns, transposed=transposed)[
        np.array([36, 0, 7])
    ]
    assert read.dtype == patterns.dtype
    np.testing.assert_array_equal(read, patterns[[36, 0, 7]])


ORDERS = {
    "none": [],
    "one": [36],
    "all": list(range(37)),
    "backwards": list(range(36, -1, -1)),
    "runs": [3, 4, 5, 20, 21, 30],
    "repeated": [5, 0, 5, 5, 36, 0],
    "repeated, ascending": [0, 0, 1, 1],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_patterns_come_in_the_order_asked_for(tmp_path: Path, order: list[int]) -> None:
    numbers = np.array(order, dtype=np.int64)
    np.testing.assert_array_equal(
        pattern_file_of(tmp_path / "patterns", PATTERNS)[numbers], PATTERNS[numbers]
    )


def test_each_pattern_is_read_once_and_neighbours_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = pattern_file_of(tmp_path / "patterns", PATTERNS, offset=0)
    reads: list[tuple[int, int]] = []
    preadv = os.preadv

    def counting(handle: int, buffers: list[memoryview], offset: int) -> int:
        reads.append((offset // PATTERNS[0].nbytes, len(buffers[0]) // PATTERNS[0].nbytes))
        return preadv(handle, buffers, offset)

    monkeypatch.setattr(pattern_file.os, "preadv", counting)
    patterns[np.array([9, 4, 5, 4, 3, 30])]
    assert reads == [(3, 3), (9, 1), (30, 1)]


def test_reads_that_give_less_than_was_asked_for_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does beyond 2 GiB."""
    preadv = os.preadv
    monkeypatch.setattr(
        pattern_file.os,
        "preadv",
        lambda handle, buffers, offset: preadv(handle, [buffers[0][:100]], offset),
    )
    np.testing.assert_array_equal(
        pattern_file_of(tmp_path / "patterns", PATTERNS)[np.array([2, 3, 11])], PATTERNS[[2, 3, 11]]
    )


def test_file_whose_name_is_taken_away_is_read_on(tmp_path: Path) -> None:
    patterns = pattern_file_of(path := tmp_path / "patterns", PATTERNS)
    path.unlink()
    np.testing.assert_array_equal(patterns[np.array([1])], PATTERNS[[1]])


def test_file_that_is_cut_short_names_scan_and_patterns(tmp_path: Path) -> None:
    patterns = pattern_file_of(path := tmp_path / "patterns", PATTERNS, offset=0)
    os.truncate(path, 20 * PATTERNS[0].nbytes + 5)
    np.testing.assert_array_equal(patterns[np.array([19])], PATTERNS[[19]])
    with pytest.raises(
        ScanError,
        match=r"^s\.npz: diff: found 5765 bytes, which end within patterns 20 to 21, expected 37 patterns, as when",
    ):
        patterns[np.array([3, 20, 21])]


def test_file_system_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = pattern_file_of(path := tmp_path / "patterns", PATTERNS)

    def fail(*arguments: Any) -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(pattern_file.os, "preadv", fail)
    with pytest.raises(OSError, match="Stale file handle") as failed:
        patterns[np.array([1])]
    assert failed.value.filename == str(path)


def test_interleaved_patterns_that_end_too_early(tmp_path: Path) -> None:
    (tmp_path / "interleaved").write_bytes(np.moveaxis(PATTERNS, 0, 2).tobytes()[:-1])
    with (
        (tmp_path / "interleaved").open("rb", buffering=0) as source,
        pytest.raises(EOFError, match="ends within pattern 0"),
    ):
        bring_patterns_first(source, 0, (6, 6, 37), PATTERNS.dtype, io.BytesIO(), "test")
