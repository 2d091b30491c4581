"""A scan of any format, written in one of our own."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from ptycho_dist.atomic_file import replacing
from ptycho_dist.config import DataConfig
from ptycho_dist.data.hdf5_writer import write_hdf5_scan
from ptycho_dist.data.npz_writer import rewrite_scan
from ptycho_dist.data.scan import Scan

logger = logging.getLogger(__name__)

_WRITERS = {".npz": rewrite_scan, ".h5": write_hdf5_scan, ".hdf5": write_hdf5_scan}


def require_new_output(path: Path) -> None:
    """Raise where the name tells no format, or something has it: a scan is never written over."""
    if path.suffix not in _WRITERS:
        raise ValueError(
            f"--convert: {path} ends in {path.suffix!r}, expected {', '.join(_WRITERS)}"
        )
    if path.exists():
        raise ValueError(
            f"--convert: found {path}, expected a new name: nothing is overwritten; remove it, or "
            "choose another"
        )


def convert(scan: Scan, options: DataConfig, path: Path) -> None:
    """Write a scan as it was read, window, mask and probe of the options included, whole or not at
    all.

    A dose that the options say as a number is written where the file had none.

    Raises
    ------
    ValueError
        There is such a file, or its name tells no format.
    OSError
        It can't be written.
    """
    require_new_output(path)
    if scan.nphotons is None and isinstance(options.nphotons, int | float):
        scan = replace(scan, nphotons=float(options.nphotons))
    started = time.monotonic()
    with replacing(path) as temporary:
        _WRITERS[path.suffix](scan, temporary)
    logger.info(
        "wrote %s: %.1f MB in %.1f s", path, path.stat().st_size / 1e6, time.monotonic() - started
    )
