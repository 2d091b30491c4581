"""Scan files, one module a format. What a file is, its content says, not its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from ptycho_dist.config import DataConfig, ScanConfig
from ptycho_dist.data.readers import (
    cxi,
    fold_slice,
    own_hdf5,
    plain_hdf5,
    ptycho_vit,
    ptychodus,
    ptyd,
)
from ptycho_dist.data.readers.content import ScanContent, to_scan, with_options
from ptycho_dist.data.readers.hdf5_file import Hdf5File
from ptycho_dist.data.readers.npz import read_npz_object, read_npz_scan
from ptycho_dist.data.scan import Measurement, Scan, ScanError
from ptycho_dist.distributed import run_together

T = TypeVar("T")


class _Hdf5Format(NamedTuple):
    recognises: Callable[[Hdf5File], bool]
    read: Callable[[Hdf5File, ScanConfig], ScanContent]
    needs: str


_HDF5_FORMATS = (
    _Hdf5Format(own_hdf5.is_own, own_hdf5.read_own, own_hdf5.NEEDS),
    _Hdf5Format(cxi.is_cxi, cxi.read_cxi, cxi.NEEDS),
    _Hdf5Format(ptyd.is_ptyd, ptyd.read_ptyd, ptyd.NEEDS),
    _Hdf5Format(ptychodus.is_product, ptychodus.read_product, ptychodus.NEEDS),
    _Hdf5Format(ptycho_vit.is_pair, ptycho_vit.read_pair, ptycho_vit.NEEDS),
    _Hdf5Format(fold_slice.is_fold_slice, fold_slice.read_fold_slice, fold_slice.NEEDS),
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
        docs/file_formats.md tells what is read of each.
    measurement
        Whether the diffraction array holds `amplitude` or `counts`; None: `options.measurement`,
        else the file or its format must say it.
    options
        What the file does not say of itself: geometry, probe, mask, window.
    default_measurement
        Taken where nobody says it, e.g. what the scan that a bundle was trained on holds.

    Raises
    ------
    ScanError
        The file can't be used. With several ranks, every rank raises `FailedTogether` with the same
        message.
    """
    path = Path(path)
    measurement = measurement or options.measurement
    kind = run_together(lambda: _kind(path))
    if kind == "npz":
        scan = read_npz_scan(
            path, measurement, default_measurement, needs_probe=options.probe is None
        )
        return run_together(lambda: with_options(scan, options))
    return run_together(
        lambda: _intact(
            path,
            lambda: to_scan(
                _content(path, kind, options), options, measurement, default_measurement
            ),
        )
    )


def read_object(path: str | Path, *, options: DataConfig = _NO_OPTIONS) -> np.ndarray:
    """The object of a scan file, complex64 (H, W): the reference that a reconstruction is compared
    with.

    Raises
    ------
    ScanError
        The file can't be used, or has no object.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "npz":
        return read_npz_object(path)
    stored = _intact(path, lambda: _object(path, kind, options))
    if stored is None:
        raise ScanError(
            path,
            "object",
            "a scan without one",
            "an object: without a reference there is nothing to compare with",
        )
    return stored


def _object(
    path: Path, kind: Literal["npz product", "hdf5"], options: DataConfig
) -> np.ndarray | None:
    if kind == "npz product":
        return ptychodus.read_npz_product_object(path)
    with Hdf5File(path) as file:
        if options.hdf5.diffraction is None and ptychodus.is_product(file):
            return ptychodus.read_product_object(file)
    return _content(path, kind, options).object_guess


def format_name(path: str | Path, *, options: DataConfig = _NO_OPTIONS) -> str:
    """What `read_scan` takes a file for.

    Raises
    ------
    ScanError
        It is neither NPZ nor HDF5.
    """
    path = Path(path)
    kind = _kind(path)
    if kind != "hdf5":
        return "NPZ, PtychoPINN's keys" if kind == "npz" else "NPZ, a product of ptychodus"
    if options.hdf5.diffraction is not None:
        return "HDF5, datasets named by data.hdf5"
    known = _intact(path, lambda: _hdf5_format(path))
    return f"HDF5, {known.needs.partition(':')[0]}" if known else "HDF5 of no known format"


def _hdf5_format(path: Path) -> _Hdf5Format | None:
    with Hdf5File(path) as file:
        return next((known for known in _HDF5_FORMATS if known.recognises(file)), None)


def other_files(path: str | Path) -> list[Path]:
    """What a scan file can't be read without: the other file of its pair, and what its links lead
    to; all in its folder or below."""
    import h5py

    path = Path(path)
    if not h5py.is_hdf5(path):
        return []
    named = [one for one in (path, ptychodus.companion(path)) if one is not None]
    found: dict[Path, None] = dict.fromkeys(one.resolve() for one in named)
    for one in named:
        with Hdf5File(one) as file:
            found |= dict.fromkeys(file.linked_files())
    found.pop(path.resolve())
    return list(found)


def _intact(path: Path, read: Callable[[], T]) -> T:
    """What h5py raises where the bytes of a file contradict each other, said as any other trouble
    with a file."""
    try:
        return read()
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise ScanError(
            path, "file", f"HDF5 that can't be read ({error})", "an intact file"
        ) from error


def _kind(path: Path) -> Literal["npz", "npz product", "hdf5"]:
    if not path.is_file():
        raise ScanError(
            path, "file", "no such file" if not path.exists() else "not a file", "a scan file"
        )
    with path.open("rb") as stream:
        start = stream.read(8)
    if start.startswith(b"PK"):
        return "npz product" if ptychodus.is_npz_product(path) else "npz"
    import h5py

    if h5py.is_hdf5(path):
        return "hdf5"
    if start.startswith(b"MATLAB"):
        raise ScanError(
            path, "format", "a MATLAB file older than 7.3", "HDF5, as MATLAB's save -v7.3 writes it"
        )
    if start.startswith(b"\x89HDF"):
        raise ScanError(path, "format", "a damaged HDF5 file", "an intact one")
    raise ScanError(
        path,
        "format",
        f"{start!r} at its beginning",
        "an NPZ archive (PK) or an HDF5 file (\\x89HDF)",
    )


def _content(path: Path, kind: Literal["npz product", "hdf5"], options: DataConfig) -> ScanContent:
    if kind == "npz product":
        return ptychodus.read_npz_product(path, options)
    with Hdf5File(path) as file:
        if options.hdf5.diffraction is not None:
            return plain_hdf5.read_plain_hdf5(file, options)
        for known in _HDF5_FORMATS:
            if known.recognises(file):
                return known.read(file, options)
        needs = "; ".join([*(known.needs for known in _HDF5_FORMATS), plain_hdf5.NEEDS])
        raise ScanError(
            path,
            "format",
            f"HDF5 with {file.names()[:12]}",
            f"what one of the formats needs. {needs}",
        )
