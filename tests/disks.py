"""Small file systems in memory, for disks that are full or may not be written."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

READ_ONLY, REMOUNT = 1, 32  # of mount(2)
libc = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path, flags: int, options: str) -> None:
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options.encode()):
        pytest.skip(f"can't mount a tmpfs: {os.strerror(ctypes.get_errno())}")


def unmount(folder: Path) -> None:
    libc.umount2(str(folder).encode(), 2)
