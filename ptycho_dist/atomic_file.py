"""Files that are complete or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same directory to write to; on success flush it to disk and
    rename it to `path`.

    On an error the temporary file is removed, and what was at `path` before is untouched.

    Raises
    ------
    OSError
        Disk full, read-only, no permission and the like; names `path`, not the temporary file.
    """
    try:
        with _temporary_beside(path) as temporary:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
        _flush(path.parent)  # the rename itself
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"{error.strerror}; not written", str(path)) from error


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep the suffix: some writers choose the format by it, or add their own where it is missing.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)  # mkstemp's 0600 would hide results from colleagues
        os.close(handle)
        yield Path(name)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _flush(file_or_directory: Path) -> None:
    handle = os.open(file_or_directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
