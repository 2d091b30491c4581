"""Scan files, one module per format. `READERS` is the table: the first row that recognises a file,
by its content and not its name, reads it. Nothing outside a format's module depends on its
container."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from ptycho_dist.config import DataConfig
from ptycho_dist.data.readers import (
    cxi,
    fold_slice,
    npz,
    own_hdf5,
    plain_hdf5,
    ptycho_vit,
    ptychodus,
    ptyd,
)
from ptycho_dist.data.readers.completion import to_scan
from ptycho_dist.data.readers.content import PackedPatterns, Reader, ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File
from ptycho_dist.data.scan import Measurement, Patterns, Scan, ScanError, resolve_measurement
from ptycho_dist.distributed import run_once_a_node, run_together

READERS: tuple[Reader, ...] = (
    ptychodus.NPZ_READER,
    npz.READER,
    plain_hdf5.READER,
    own_hdf5.READER,
    cxi.READER,
    ptyd.READER,
    ptychodus.READER,
    ptycho_vit.READER,
    fold_slice.READER,
)
_NO_OPTIONS = DataConfig()


def read_scan(
    path: str | Path,
    measurement: Measurement | None = None,
    *,
    options: DataConfig = _NO_OPTIONS,
    default_measurement: Measurement | None = None,
) -> Scan:
    """Open a scan file. A collective where a process group is up: the ranks of a node share one
    copy of the patterns.

    Parameters
    ----------
    path
        The file: PtychoPINN's NPZ, our own HDF5, CXI, ptypy's .ptyd, a ptychodus product, a
        fold_slice or ptycho-vit file or pair, or any HDF5 file whose datasets `options.hdf5` names.
        docs/file_formats.md lists what is read of each.
    measurement
        `amplitude` or `counts`, what the diffraction array holds; None: `options.measurement`, else
        the file or its format must say it.
    options
        What the file does not say: geometry, probe, mask, window.
    default_measurement
        Used where neither file nor options say it, e.g. that of the scan which a bundle was trained
        on.

    Raises
    ------
    ScanError
        The file can't be used. With several ranks, every rank raises `FailedTogether` with the same
        message.
    """

    def read_all_but_patterns() -> ScanContent:
        content = _reader_of(Path(path), options).read(Path(path), options)
        # before the patterns are unpacked, which may take minutes
        said = resolve_measurement(
            content.path,
            content.measurement,
            measurement or options.measurement,
            default_measurement,
        )
        return replace(content, measurement=said)

    content = run_together(read_all_but_patterns)
    patterns = _open_together(content.diffraction)
    return run_together(lambda: to_scan(content, patterns, options))


def read_object(path: str | Path, *, options: DataConfig = _NO_OPTIONS) -> np.ndarray:
    """Return the object of a scan file, complex64 (H, W): the reference that a reconstruction is
    compared with.

    Raises
    ------
    ScanError
        The file can't be used, or has no object.
    """
    path = Path(path)
    reader = _reader_of(path, options)
    stored = (
        reader.read_object(path, options)
        if reader.read_object
        else reader.read(path, options).object_guess
    )
    if stored is None:
        raise ScanError(
            path,
            "object",
            "a scan without one",
            "an object: without a reference there is nothing to compare with",
        )
    return stored


def format_name(path: str | Path, *, options: DataConfig = _NO_OPTIONS) -> str:
    """Return the name of the format that `read_scan` reads a file as.

    Raises
    ------
    ScanError
        It is neither NPZ nor HDF5.
    """
    reader = _find_reader(Path(path), options)
    if reader is None and not h5py.is_hdf5(path):
        raise _unrecognised(Path(path))
    return reader.name if reader else "HDF5 of no known format"


def _open_together(diffraction: Patterns | PackedPatterns) -> Patterns:
    """Return the patterns, unpacked once a node where they must be. A collective."""
    packed = diffraction if isinstance(diffraction, PackedPatterns) else None
    copy = run_once_a_node(lambda: packed.copy_in_order() if packed else None)
    try:
        return run_together(lambda: packed.open(copy) if packed else diffraction)  # type: ignore[return-value]
    finally:
        run_once_a_node(lambda: copy.unlink() if copy else None)


def _reader_of(path: Path, options: DataConfig) -> Reader:
    reader = _find_reader(path, options)
    if reader is None:
        raise _unrecognised(path)
    given = {
        "transpose": options.transpose is not None,
        "hdf5": options.hdf5.diffraction is not None,
    }
    refused = [key for key, is_given in given.items() if is_given and key not in reader.accepts]
    if refused:
        keys = " and ".join(f"data.{key}" for key in refused)
        raise ScanError(path, "format", reader.name, f"another format for {keys}, or no such key")
    return reader


def _find_reader(path: Path, options: DataConfig) -> Reader | None:
    if not path.exists():
        raise ScanError(path, "file", "no such file", "a scan file")
    return next((reader for reader in READERS if reader.recognises(path, options)), None)


def _unrecognised(path: Path) -> ScanError:
    """Return the error for a file that no reader recognises."""
    needs = f"what one of the formats needs. {'; '.join(reader.needs for reader in READERS)}"
    if h5py.is_hdf5(path):
        with Hdf5File(path) as file:
            return ScanError(path, "format", f"HDF5 with {file.names()[:12]}", needs)
    if not path.is_file():
        return ScanError(path, "file", "not a file", "a scan file")
    with path.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(b"MATLAB"):
        expected = "HDF5, as MATLAB's save -v7.3 writes it"
        return ScanError(path, "format", "a MATLAB file older than 7.3", expected)
    if start.startswith(b"\x89HDF"):
        return ScanError(path, "format", "a damaged HDF5 file", "an intact one")
    expected = "an NPZ archive (PK) or an HDF5 file (\\x89HDF)"
    return ScanError(path, "format", f"{start!r} at its beginning", expected)
