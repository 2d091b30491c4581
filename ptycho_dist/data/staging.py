"""Scan files on a node's own disk: copied once, however many processes and jobs ask for them, and checked by size and hash."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ptycho_dist.atomic_file import replacing
from ptycho_dist.data.readers import other_files
from ptycho_dist.progress import Progress

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24


class StagingError(ValueError):
    """A scan file that can't be copied to the node's disk; the message names the file, what was found and what was expected."""


def stage_scans(scans: Sequence[Path], directory: Path) -> list[Path]:
    """Copy scan files into `directory`, unless the same content lies there already; gives their new paths.

    The files that an HDF5 scan links to, and the other one of a pair, are copied too, to the same place relative to it.

    A lock keeps a second process or job on the node from writing too: it waits, and then finds the copy. The copy is read back and its
    SHA-256 compared with that of the bytes that were read from the source.

    Raises
    ------
    StagingError
        A file is missing, two have the same name, the disk has no room, the source changed meanwhile, or the copy differs.
    """
    names = [scan.name for scan in scans]
    others: dict[Path, Path] = {}
    for scan in scans:
        if not scan.is_file():
            raise StagingError(f"{scan}: found {'no file' if not scan.exists() else 'a directory'}, expected a scan file to copy")
        if names.count(scan.name) > 1:
            raise StagingError(f"{scan}: found another scan of the same name in the list, expected names that can lie in one directory")
        others |= {other: directory / other.relative_to(scan.resolve().parent) for other in other_files(scan)}
    directory.mkdir(parents=True, exist_ok=True)
    for other, copy in others.items():
        if other not in {scan.resolve() for scan in scans}:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _stage(other, copy)
    return [_stage(scan, directory / scan.name) for scan in scans]


def _stage(scan: Path, copy: Path) -> Path:
    record_path = copy.with_name(f".{copy.name}.staged")
    with copy.with_name(f".{copy.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = _identity(scan)
        started = time.monotonic()
        if _is_whole(copy, record_path, source):
            logger.info("%s: found the same content at %s, SHA-256 compared in %.1f s", scan, copy, time.monotonic() - started)
            return copy
        _require_room(scan, copy)
        record_path.unlink(missing_ok=True)
        with replacing(copy) as temporary:
            with scan.open("rb") as reader, temporary.open("wb") as writer:
                read = _sha256(reader, f"copying {scan.name}", source["bytes"], writer)
            if _identity(scan) != source:
                raise StagingError(f"{scan}: found that it changed while it was copied, expected a scan that is complete; try again")
            with temporary.open("rb") as reader:
                written = _sha256(reader, f"checking {copy}", source["bytes"])
            if written != read:
                raise StagingError(f"{copy}: found SHA-256 {written}, expected {read} as {scan} has: the disk of this node is not sound")
        with replacing(record_path) as temporary:
            temporary.write_text(json.dumps({**source, "sha256": read}))
        seconds = time.monotonic() - started
        logger.info("%s: %.1f MB copied to %s and read back in %.1f s, SHA-256 %s", scan, source["bytes"] / 1e6, copy, seconds, read)
    return copy


def _identity(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"source": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _is_whole(copy: Path, record_path: Path, source: dict[str, Any]) -> bool:
    """Whether the copy is that of this source, and still holds what was written."""
    if not (copy.is_file() and record_path.is_file()):
        return False
    try:
        record = json.loads(record_path.read_text())
    except ValueError:
        return False
    expected = {**source, "sha256": record.get("sha256")} if isinstance(record, dict) else None
    if record != expected or copy.stat().st_size != source["bytes"]:
        return False
    with copy.open("rb") as reader:
        return _sha256(reader, f"checking {copy}", source["bytes"]) == record["sha256"]


def _require_room(scan: Path, copy: Path) -> None:
    wanted, free = scan.stat().st_size, shutil.disk_usage(copy.parent).free
    if wanted > free:
        raise StagingError(
            f"{scan}: found {wanted} bytes and {free} free in {copy.parent}, expected room: choose another directory, or read it in place"
        )


def _sha256(reader: IO[bytes], what: str, total_bytes: int, writer: IO[bytes] | None = None) -> str:
    """Hash what is read, and write it on where a writer is given; a long pass says how far it is."""
    digest = hashlib.sha256()
    progress = Progress(what, "bytes")
    done = 0
    while chunk := reader.read(_CHUNK_BYTES):
        digest.update(chunk)
        if writer is not None:
            writer.write(chunk)
        done += len(chunk)
        progress(done, total_bytes)
    return digest.hexdigest()
