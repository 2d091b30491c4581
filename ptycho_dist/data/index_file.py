"""Read a list of chosen patterns: `data.index_file`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

LARGEST_BYTES = 1 << 28
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")  # that fits 64 bits


class IndexFileError(ValueError):
    """An index file that can't be used; the message names file, line or entry, found, expected."""

    def __init__(self, path: Path, where: str, found: object, expected: str) -> None:
        super().__init__(f"{path}: {where}: found {found}, expected {expected}")


def read_index_file(path: str | Path, num_patterns: int) -> np.ndarray:
    """Return pattern numbers (k,) int64, ascending, of a `.npy` or text file.

    Numbers count from 0 through all scans in the order of `data.path`. A `.npy` file holds one axis
    of integers; a text file has one number per line, empty lines, and comments after `#`. Their
    order has no meaning.

    Raises
    ------
    IndexFileError
        There is no such file, it holds no number or anything else, or a number is out of range or
        repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise IndexFileError(
            path,
            "file",
            "no such file" if not path.exists() else "not a file",
            "a list of pattern numbers",
        )
    if path.stat().st_size > LARGEST_BYTES:
        raise IndexFileError(
            path, "file", f"{path.stat().st_size} bytes", f"at most {LARGEST_BYTES}"
        )
    numbers, places = _read_npy(path) if path.suffix.lower() == ".npy" else _read_text(path)
    if len(numbers) == 0:
        raise IndexFileError(path, "file", "no number", "at least one pattern")
    outside = np.flatnonzero((numbers < 0) | (numbers >= num_patterns))
    if len(outside):
        raise IndexFileError(
            path,
            places(outside[0]),
            numbers[outside[0]],
            f"a pattern's number, 0 to {num_patterns - 1}",
        )
    order = np.argsort(numbers, kind="stable")
    repeated = np.sort(order[1:][np.diff(numbers[order]) == 0])
    if len(repeated):
        first = int(np.flatnonzero(numbers == numbers[repeated[0]])[0])
        raise IndexFileError(
            path,
            places(repeated[0]),
            f"{numbers[repeated[0]]}, as in {places(first)}",
            "each pattern once",
        )
    return numbers[order].astype(np.int64)


def _read_npy(path: Path) -> tuple[np.ndarray, Callable[[int], str]]:
    try:
        # refuses objects, and a shape larger than the file
        numbers = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise IndexFileError(
            path,
            "file",
            f"not an array that can be read ({error})",
            "one axis of integers as numpy.save writes it",
        ) from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise IndexFileError(
            path, "array", f"shape {numbers.shape} of {numbers.dtype}", "one axis of integers, (k,)"
        )
    return np.array(numbers), lambda entry: f"entry {entry}"


def _read_text(path: Path) -> tuple[np.ndarray, Callable[[int], str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise IndexFileError(
            path, "file", "neither text nor a name that ends in .npy", "one pattern number a line"
        ) from error
    contents = ((number, line.split("#")[0].strip()) for number, line in enumerate(lines, start=1))
    numbers, line_numbers = [], []
    for line_number, content in contents:
        if not content:
            continue
        if not _WHOLE_NUMBER.fullmatch(content):
            raise IndexFileError(
                path, f"line {line_number}", repr(content[:40]), "one whole number"
            )
        numbers.append(int(content))
        line_numbers.append(line_number)
    return np.array(numbers, dtype=np.int64), lambda entry: f"line {line_numbers[entry]}"
