"""`--convert`: a scan of any format, written in one of ours; nothing is overwritten."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from ptycho_dist.config import DataConfig
from ptycho_dist.data.scan import Scan
from ptycho_dist.data.scan_writer import WRITERS, write_scan

logger = logging.getLogger(__name__)


def require_new_output(path: Path) -> None:
    """Raise ValueError where a name has the suffix of no format, or the file exists."""
    if path.suffix not in WRITERS:
        raise ValueError(
            f"--convert: {path} ends in {path.suffix!r}, expected {', '.join(WRITERS)}"
        )
    if path.exists():
        raise ValueError(
            f"--convert: found {path}, expected a new name: nothing is overwritten; remove it, or "
            "choose another"
        )


def convert(scan: Scan, options: DataConfig, path: Path) -> None:
    """Write a scan to a new file; see `write_scan`."""
    require_new_output(path)
    started = time.monotonic()
    write_scan(scan, path, options)
    logger.info(
        "wrote %s: %.1f MB in %.1f s", path, path.stat().st_size / 1e6, time.monotonic() - started
    )
