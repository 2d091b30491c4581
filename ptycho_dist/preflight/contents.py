"""Names, shapes and types of what lies in a scan file of any format, or of none. Links are shown,
not followed; only single numbers are read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ptycho_dist.data.readers.hdf5_file import Hdf5File, dataset_filters
from ptycho_dist.data.readers.npz_file import DAMAGED_ZIP, read_npy_header
from ptycho_dist.data.scan import ScanError
from ptycho_dist.memory_supply import size_in_words

MOST_ENTRIES = 60
"""Shown of one file; a beamline's NeXus file may have thousands."""
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
        Size in the file, compression and chunks; the target of a link; the value of a single
        number.
    """

    name: str
    shape: str = ""
    type: str = ""
    stored: str = ""


def list_contents(path: Path) -> list[Entry]:
    """Return the entries of an NPZ or HDF5 file; after `MOST_ENTRIES` the number of the others.

    Raises
    ------
    ScanError
        It can't be read as either.
    """
    with path.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    try:
        entries = list(_of_npz(path) if is_zip else _of_hdf5(path))
    except DAMAGED_ZIP as error:
        raise ScanError(
            path, "file", f"contents that can't be listed ({error})", "an intact file"
        ) from error
    others = len(entries) - MOST_ENTRIES
    return [*entries[:MOST_ENTRIES], Entry(name=f"and {others} others")] if others > 0 else entries


def printable(text: object) -> str:
    """Return text in one line, without what would steer a terminal, and not too long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return plain if len(plain) <= _LONGEST_TEXT else f"{plain[:_LONGEST_TEXT]}..."


def _of_npz(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            ratio = info.file_size / max(info.compress_size, 1)
            packed = f"deflated {ratio:.3g} times" if info.compress_type else "not compressed"
            stored = f"{size_in_words(info.compress_size)}, {packed}"
            name = printable(info.filename.removesuffix(".npy"))
            try:
                with archive.open(info) as stream:
                    shape, is_fortran, dtype = read_npy_header(stream)
            except (ValueError, KeyError):
                yield Entry(name=name, type="no array", stored=stored)
                continue
            if is_fortran and len(shape) > 1:
                stored += ", Fortran order"
            yield Entry(name=name, shape=_shape(shape), type=printable(dtype), stored=stored)


def _of_hdf5(path: Path) -> list[Entry]:
    with Hdf5File(path) as file:
        entries = [
            Entry(name=f"@{printable(name)}", stored=_value(value))
            for name, value in file.root.attrs.items()
        ]

        def look_at(name: str, link: object) -> None:
            name_shown = "/" + "/".join(map(printable, name.split("/")))
            if isinstance(link, h5py.HardLink):
                if isinstance(item := file.root[name], h5py.Dataset):
                    entries.append(_of_dataset(name_shown, item))
                return
            target = f"to {printable(link.path)}"  # type: ignore[attr-defined]
            if isinstance(link, h5py.ExternalLink):
                target += f" in {printable(link.filename)}"
            entries.append(Entry(name=name_shown, type="link", stored=target))

        file.root.visititems_links(look_at)
    return entries


def _of_dataset(name: str, dataset: h5py.Dataset) -> Entry:
    shape = dataset.shape or ()
    if dataset.is_virtual:
        files = {source.file_name for source in dataset.virtual_sources()}
        stored = f"virtual, of {len(files)} file(s)"
    elif dataset.external:
        stored = f"raw data in {printable(dataset.external[0][0])}"
    elif dataset.shape is not None and math.prod(shape) == 1 and dataset.dtype.kind in "fiubc":
        stored = _value(dataset[()])
    else:
        named = [
            printable(text) or f"filter {code}" for code, text in dataset_filters(dataset).items()
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
    if array.dtype.kind == "f":
        return f"{one:.10g}"
    return printable(one.decode(errors="replace") if isinstance(one, bytes) else one)
