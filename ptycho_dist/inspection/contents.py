"""Names, shapes and types of what lies in a scan file, whatever its format, a scan or not. Numbers
are read only where they are one."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ptycho_dist.data.readers.hdf5_file import Hdf5File
from ptycho_dist.data.scan import ScanError
from ptycho_dist.memory_supply import size_in_words

if TYPE_CHECKING:
    import h5py

MOST_ENTRIES = 60
"""Of one file; a beamline's NeXus file may have thousands."""
_LONGEST_TEXT = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One array, number, attribute or link of a file.

    Attributes
    ----------
    name
        As the file has it, in printable characters.
    shape, type
        In words; empty where there is none.
    stored
        How it lies in the file: its size there, compression, chunks; where a link leads to; the
        value of a single number.
    """

    name: str
    shape: str = ""
    type: str = ""
    stored: str = ""


def list_contents(path: Path) -> list[Entry]:
    """Everything in an NPZ or HDF5 file, in its order; after `MOST_ENTRIES` the number of the
    others. Links are shown, not followed.

    Raises
    ------
    ScanError
        It can't be read as either.
    """
    with path.open("rb") as stream:
        entries = _of_npz(path) if stream.read(2) == b"PK" else _of_hdf5(path)
    shown: list[Entry] = []
    others = 0
    try:
        for entry in entries:
            if len(shown) < MOST_ENTRIES:
                shown.append(entry)
            else:
                others += 1
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        KeyError,
        TypeError,
    ) as error:
        raise ScanError(
            path, "file", f"contents that can't be listed ({error})", "an intact file"
        ) from error
    return [*shown, Entry(name=f"and {others} others")] if others else shown


def printable(text: object) -> str:
    """In one line, without what would steer a terminal, and not too long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return plain if len(plain) <= _LONGEST_TEXT else f"{plain[:_LONGEST_TEXT]}..."


def _of_npz(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            ratio = (
                f", deflated {info.file_size / max(info.compress_size, 1):.3g} times"
                if info.compress_type
                else ", not compressed"
            )
            stored = f"{size_in_words(info.compress_size)}{ratio}"
            name = printable(info.filename.removesuffix(".npy"))
            try:
                with archive.open(info) as stream:
                    shape, is_fortran, dtype = _npy_header(stream)
            except (ValueError, KeyError):
                yield Entry(name=name, type="no array", stored=stored)
                continue
            order = ", Fortran order" if is_fortran and len(shape) > 1 else ""
            yield Entry(
                name=name, shape=_shape(shape), type=printable(dtype), stored=f"{stored}{order}"
            )


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    return readers[np.lib.format.read_magic(stream)](stream)


def _of_hdf5(path: Path) -> Iterator[Entry]:
    with Hdf5File(path) as file:
        yield from (
            Entry(name=f"@{printable(name)}", stored=_value(value))
            for name, value in file.root.attrs.items()
        )
        yield from _of_group(file.root, "", set())


def _of_group(group: h5py.Group, above: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
    import h5py

    info = h5py.h5o.get_info(group.id)
    if (info.fileno, info.addr) in seen:
        return
    seen.add((info.fileno, info.addr))
    for key in group:
        name = f"{above}/{printable(key)}"
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            yield Entry(
                name=name,
                type="link",
                stored=f"to {printable(link.path)} in {printable(link.filename)}",
            )
        elif isinstance(link, h5py.SoftLink):
            yield Entry(name=name, type="link", stored=f"to {printable(link.path)}")
        elif isinstance(item := group[key], h5py.Dataset):
            yield _of_dataset(name, item)
        elif isinstance(item, h5py.Group):
            yield from _of_group(item, name, seen)


def _of_dataset(name: str, dataset: h5py.Dataset) -> Entry:
    shape = dataset.shape or ()
    if dataset.is_virtual:
        stored = (
            f"virtual, of {len({source.file_name for source in dataset.virtual_sources()})} file(s)"
        )
    elif dataset.external:
        stored = f"raw data in {printable(dataset.external[0][0])}"
    elif dataset.shape is not None and math.prod(shape) == 1 and dataset.dtype.kind in "fiubc":
        stored = _value(dataset[()])
    else:
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
        named = [
            printable(text.decode(errors="replace")) or f"filter {code}"
            for code, _, _, text in filters
        ]
        chunks = f"chunks {_shape(dataset.chunks)}" if dataset.chunks else "contiguous"
        stored = ", ".join([size_in_words(dataset.id.get_storage_size()), chunks, *named])
    kind = "text" if dataset.dtype.kind in "OS" else printable(dataset.dtype)
    return Entry(name=name, shape=_shape(shape), type=kind, stored=stored)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "one value"


def _value(value: object) -> str:
    array = np.asarray(value)
    if array.size != 1:
        return f"{_shape(array.shape)} {printable(array.dtype)}"
    one = array.reshape(-1)[0]
    return (
        f"{one:.10g}"
        if array.dtype.kind == "f"
        else printable(one.decode(errors="replace") if isinstance(one, bytes) else one)
    )
