"""Files in the kernel's page cache: none of them there, all of them, or how much."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())  # pages that are not yet on the disk would stay
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bring_into_page_cache(path: Path) -> None:
    with path.open("rb") as stream:
        while stream.read(1 << 24):
            pass


def part_in_page_cache(path: Path) -> float:
    """By mincore, which only looks: any read, even one that may not wait for the disk, lets the
    kernel read ahead."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        content = np.frombuffer(pages, np.uint8)
        is_cached = np.empty(-(-len(content) // mmap.PAGESIZE), np.uint8)
        failed = libc.mincore(
            *(
                ctypes.c_void_p(number)
                for number in (content.ctypes.data, len(content), is_cached.ctypes.data)
            )
        )
        del content  # the map can't be closed while an array looks into it
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return float(np.mean(is_cached & 1))
