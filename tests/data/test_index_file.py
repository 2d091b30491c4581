"""A list of patterns from a file: what it may hold, and how the rest is refused."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_dist.data import index_file
from ptycho_dist.data.index_file import IndexFileError, read_index_file


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32, np.uint64, ">i4"])
def test_npy_of_any_integers(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "keep.npy", np.array([7, 0, 3], dtype=dtype))
    found = read_index_file(tmp_path / "keep.npy", 8)
    assert found.tolist() == [0, 3, 7]
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    "content", ["7\n0\n3\n", "7\r\n0\r\n3", "# chosen by hand\n\n  7  # the brightest\n0\n3\n\n"]
)
def test_text_of_one_number_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "keep.txt").write_text(content, newline="")
    assert read_index_file(str(tmp_path / "keep.txt"), 8).tolist() == [0, 3, 7]


TEXTS = {
    "beyond the end": ("1\n# no\n8\n", "line 3: found 8, expected a pattern's number, 0 to 7"),
    "negative": ("-1\n", "line 1: found -1, expected a pattern's number, 0 to 7"),
    "twice": ("5\n1\n\n1\n5\n", "line 4: found 1, as in line 2, expected each pattern once"),
    "a fraction": ("1\n2.0\n", "line 2: found '2.0', expected one whole number"),
    "two in a line": ("1 2\n", "line 1: found '1 2', expected one whole number"),
    "a word": ("one\n", "line 1: found 'one', expected one whole number"),
    "an underscore": ("1_0\n", "line 1: found '1_0', expected one whole number"),
    "more digits than 64 bits hold": (
        "9" * 5000,
        f"line 1: found '{'9' * 40}', expected one whole number",
    ),
    "empty": ("", "file: found no number, expected at least one pattern"),
    "comments only": ("# 1\n", "file: found no number, expected at least one pattern"),
}


@pytest.mark.parametrize(("content", "message"), TEXTS.values(), ids=TEXTS)
def test_text_that_can_not_be_used_is_refused_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "keep.txt"
    path.write_text(content)
    with pytest.raises(IndexFileError, match=f"^{re.escape(f'{path}: {message}')}$"):
        read_index_file(path, 8)


ARRAYS: dict[str, tuple[Any, str]] = {
    "beyond the end": ([1, 8], "entry 1: found 8, expected a pattern's number, 0 to 7"),
    "far beyond": (
        np.array([2**64 - 1], np.uint64),
        f"entry 0: found {2**64 - 1}, expected a pattern's number",
    ),
    "negative": (np.array([3, -2], np.int8), "entry 1: found -2, expected a pattern's number"),
    "twice": ([4, 2, 4], "entry 2: found 4, as in entry 0, expected each pattern once"),
    "fractions": ([1.0, 2.0], "array: found shape (2,) of float64, expected one axis of integers"),
    "a mask": ([True, False], "array: found shape (2,) of bool, expected one axis of integers"),
    "two axes": ([[1, 2]], "array: found shape (1, 2) of int64, expected one axis of integers"),
    "a number": (3, "array: found shape () of int64, expected one axis of integers"),
    "nothing": (np.empty(0, np.int64), "file: found no"),
}


@pytest.mark.parametrize(("array", "message"), ARRAYS.values(), ids=ARRAYS)
def test_array_that_can_not_be_used_is_refused_with_its_entry(
    tmp_path: Path, array: Any, message: str
) -> None:
    path = tmp_path / "keep.npy"
    np.save(path, array)
    with pytest.raises(IndexFileError, match=f"^{re.escape(f'{path}: {message}')}"):
        read_index_file(path, 8)


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return Path("sprung").touch, ()


def as_objects(path: Path) -> None:
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def cut_off(path: Path) -> None:
    np.save(path, np.arange(1000))
    path.write_bytes(path.read_bytes()[:500])


def larger_than_memory(path: Path) -> None:
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<i8", "fortran_order": False, "shape": (10**13,)}
        )
        stream.write(bytes(80))


def archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.arange(3))


@pytest.mark.parametrize(
    "write", [as_objects, as_pickle, cut_off, larger_than_memory, archive, Path.touch]
)
def test_file_that_is_no_array_is_refused_and_nothing_in_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "keep.npy"
    write(path)
    with pytest.raises(
        IndexFileError,
        match=rf"^{path}: file: found not an array that can be read \(.*\), expected one axis of integers",
    ):
        read_index_file(path, 8)
    assert not (tmp_path / "sprung").exists()


def test_binary_under_a_text_files_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_bytes(b"\x93NUMPY\xff")
    with pytest.raises(
        IndexFileError, match=r"keep\.txt: file: found neither text nor a name that ends in \.npy"
    ):
        read_index_file(tmp_path / "keep.txt", 8)


def test_missing_file_directory_and_monster_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        IndexFileError,
        match=r"keep\.txt: file: found no such file, expected a list of pattern numbers",
    ):
        read_index_file(tmp_path / "keep.txt", 8)
    with pytest.raises(IndexFileError, match="file: found not a file"):
        read_index_file(tmp_path, 8)
    monkeypatch.setattr(index_file, "LARGEST_BYTES", 3)
    (tmp_path / "keep.txt").write_text("1\n2\n")
    with pytest.raises(IndexFileError, match="file: found 4 bytes, expected at most 3"):
        read_index_file(tmp_path / "keep.txt", 8)
