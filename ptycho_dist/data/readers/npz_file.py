"""Arrays in NPZ archives, located by their headers and read on request. Nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from ptycho_dist.data.scan import ScanError

T = TypeVar("T")

DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
"""What `zipfile` raises for a damaged, encrypted or exotic archive."""
_ZIP_LOCAL_HEADER_BYTES = 30
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class NpzArray:
    """One array of an archive, as its NPY header describes it."""

    path: Path
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    header_bytes: int

    @property
    def key(self) -> str:
        return self.info.filename.removesuffix(".npy")

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def refused(self, found: object, expected: str) -> ScanError:
        return ScanError(self.path, self.key, found, expected)

    def read(self, kinds: str, largest_bytes: int, expected: str = "numbers") -> np.ndarray:
        """Return the whole array.

        Raises
        ------
        ScanError
            Its type is not among `kinds` (NumPy's letters), it is larger than `largest_bytes`
            unpacked, or its data are damaged.
        """
        if self.dtype.kind not in kinds or self.dtype.hasobject:
            raise self.refused(f"shape {self.shape}, type {self.dtype}", expected)
        if self.num_bytes > largest_bytes:
            raise self.refused(f"{self.num_bytes} bytes", f"at most {largest_bytes}")
        return self.with_stream(lambda stream: np.lib.format.read_array(stream, allow_pickle=False))

    def with_stream(self, action: Callable[[IO[bytes]], T]) -> T:
        """Return what `action` makes of the unpacked bytes, header included."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.info) as stream:
                return action(stream)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise self.refused(f"damaged data ({error})", "an intact archive") from error

    def data_start(self) -> int:
        """Return where the numbers of an uncompressed array begin in the file."""
        with self.path.open("rb") as stream:
            stream.seek(self.info.header_offset)
            header = stream.read(_ZIP_LOCAL_HEADER_BYTES)
        # the local header's own name and extra field may be longer than the directory's
        name_bytes, extra_bytes = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        local_bytes = _ZIP_LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        return self.info.header_offset + local_bytes + self.header_bytes


def read_npz_headers(path: Path, keys: Sequence[str]) -> dict[str, NpzArray]:
    """Return those of the arrays `keys` that the archive holds, in this order, unread.

    Raises
    ------
    ScanError
        The file is no intact archive, holds none of the arrays, or a header is invalid.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for key in keys:
                if f"{key}.npy" in names:
                    info = archive.getinfo(f"{key}.npy")
                    with archive.open(info) as stream:
                        arrays[key] = _read_header(path, info, stream)
    except DAMAGED_ZIP as error:
        raise ScanError(
            path,
            "file",
            f"not a readable NPZ archive ({error})",
            "a zip archive as numpy.savez writes it",
        ) from error
    if not arrays:
        raise ScanError(
            path, "file", f"an archive of {names[:8]}", f"arrays named {', '.join(keys)}"
        )
    return arrays


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, Fortran order and type of the array that a stream holds; KeyError or ValueError
    where it holds none."""
    return _HEADER_READERS[np.lib.format.read_magic(stream)](stream)


def _read_header(path: Path, info: zipfile.ZipInfo, stream: IO[bytes]) -> NpzArray:
    try:
        header = read_npy_header(stream)
    except (ValueError, KeyError) as error:
        raise ScanError(
            path, info.filename, f"no NPY header ({error})", "an array as numpy.savez writes it"
        ) from error
    array = NpzArray(path, info, *header, header_bytes=stream.tell())
    if min(array.shape, default=0) < 0:
        raise array.refused(f"shape {array.shape}", "lengths of at least 0")
    data_bytes = info.file_size - array.header_bytes
    if not array.dtype.hasobject and data_bytes != array.num_bytes:
        raise array.refused(
            f"{data_bytes} bytes",
            f"{array.num_bytes}, as its header says: {array.shape} of {array.dtype}",
        )
    return array
