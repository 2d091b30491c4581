"""Scan files, one module a format."""

from __future__ import annotations

from pathlib import Path

from ptycho_dist.data.readers.npz import read_npz_scan
from ptycho_dist.data.scan import Measurement, Scan, ScanError

_READERS = {".npz": read_npz_scan}


def read_scan(path: str | Path, measurement: Measurement | None = None, *, default_measurement: Measurement | None = None) -> Scan:
    """Open a scan file. A collective where a process group is up: the ranks of a node share one copy of the patterns.

    Parameters
    ----------
    path
        The file; its suffix tells the format.
    measurement
        Whether the diffraction array holds `amplitude` or `counts`; None: the file's metadata must say it.
    default_measurement
        Taken where neither says it, e.g. what the scan that a bundle was trained on holds.

    Raises
    ------
    ScanError
        The file can't be used. With several ranks, every rank raises `FailedTogether` with the same message.
    """
    path = Path(path)
    if path.suffix.lower() not in _READERS:
        raise ScanError(path, "format", f"{path.suffix or 'no suffix'!r}", " or ".join(_READERS))
    return _READERS[path.suffix.lower()](path, measurement, default_measurement)
