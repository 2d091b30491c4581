"""Write a scan in one of our formats, which `read_scan` reads back to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ptycho_dist.atomic_file import replacing
from ptycho_dist.config import DataConfig
from ptycho_dist.data.hdf5_writer import write_hdf5
from ptycho_dist.data.npz_writer import write_npz
from ptycho_dist.data.scan import Scan

WRITERS = {".npz": write_npz, ".h5": write_hdf5, ".hdf5": write_hdf5}
"""By the suffix of the file."""


def write_scan(scan: Scan, path: Path, options: DataConfig | None = None) -> None:
    """Write a scan as it was read, window, mask and probe of the options included, whole or not at
    all. An existing file is replaced.

    Parameters
    ----------
    path
        Its suffix is one of `WRITERS`.
    options
        A number of photons is written from them where the scan has none.

    Raises
    ------
    ScanError
        The patterns can't be read.
    OSError
        The file can't be written.
    """
    if scan.nphotons is None and options and isinstance(options.nphotons, int | float):
        scan = replace(scan, nphotons=float(options.nphotons))
    with replacing(path) as temporary:
        WRITERS[path.suffix](scan, temporary)
