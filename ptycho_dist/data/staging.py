"""Scan files on a node's own disk: written once, however many processes and jobs ask for them, and
checked by size and hash."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ptycho_dist.atomic_file import replacing
from ptycho_dist.config import DataConfig
from ptycho_dist.data.npz_writer import rewrite_scan
from ptycho_dist.data.readers import other_files, read_scan
from ptycho_dist.data.scan import Scan
from ptycho_dist.progress import Progress

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24


class StagingError(ValueError):
    """A scan file that can't be copied to the node's disk; the message names the file, what was
    found and what was expected."""


def stage_scans(
    scans: Sequence[Path], directory: Path, *, repack: DataConfig | None = None
) -> list[Path]:
    """Copy scan files into `directory`, unless the same content lies there already; gives their new
    paths.

    The files that an HDF5 scan links to, and the other one of a pair, are copied too, to the same
    place relative to it.

    A lock keeps a second process or job on the node from writing too: it waits, and then finds the
    copy. The copy is read back and its SHA-256 compared with that of the bytes that were read from
    the source.

    Parameters
    ----------
    scans
        Files of any format that can be read.
    directory
        Where to; made if missing.
    repack
        Read the scan with these options, and write `NAME.npz` instead, whose patterns lie
        uncompressed one after the other: to read one of many that are packed together costs the
        reading of all of them. What the options say (measurement, window, probe, mask) is then in
        the file. It is read back too, against the checksums that it was written with.

    Raises
    ------
    ValueError
        A file is missing, two have the same name, the disk has no room, the source changed
        meanwhile, or the copy differs; or, to be repacked, it can't be read.
    """
    others: dict[Path, Path] = {}
    copies = [directory / (f"{scan.stem}.npz" if repack else scan.name) for scan in scans]
    for scan, copy in zip(scans, copies, strict=True):
        if not scan.is_file():
            raise StagingError(
                f"{scan}: found {'no file' if not scan.exists() else 'a directory'}, expected a "
                "scan file to copy"
            )
        if copies.count(copy) > 1:
            raise StagingError(
                f"{scan}: found another scan of the same name in the list, expected names that "
                "can lie in one directory"
            )
        if repack and copy.exists() and copy.samefile(scan):
            raise StagingError(
                f"{scan}: found that it lies in {directory} itself, expected another directory to "
                "write to"
            )
        if not repack:
            others |= {
                other: directory / other.relative_to(scan.resolve().parent)
                for other in other_files(scan)
            }
    directory.mkdir(parents=True, exist_ok=True)
    for other, copy in others.items():
        if other not in {scan.resolve() for scan in scans}:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _stage(other, copy, repack=None)
    return [_stage(scan, copy, repack=repack) for scan, copy in zip(scans, copies, strict=True)]


def _stage(path: Path, copy: Path, *, repack: DataConfig | None) -> Path:
    record_path = copy.with_name(f".{copy.name}.staged")
    with copy.with_name(f".{copy.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if copy.exists() and copy.samefile(path):
            logger.info("%s: lies there already", path)
            return copy
        source = _identity(path)
        wanted = {**source, "repacked": _record_of(path, repack)} if repack else source
        started = time.monotonic()
        if _is_whole(copy, record_path, wanted):
            logger.info(
                "%s: found the same content at %s, SHA-256 compared in %.1f s",
                path,
                copy,
                time.monotonic() - started,
            )
            return copy
        scan = read_scan(path, options=repack) if repack else None
        _require_room(path, scan.num_bytes if scan else source["bytes"], copy)
        record_path.unlink(missing_ok=True)
        with replacing(copy) as temporary:
            digest = _repack(scan, temporary, copy) if scan else _copy(path, temporary, copy)
            if _identity(path) != source:
                raise StagingError(
                    f"{path}: found that it changed while it was copied, expected a scan that is "
                    "complete; try again"
                )
            size = temporary.stat().st_size
        with replacing(record_path) as temporary:
            temporary.write_text(json.dumps({**wanted, "copy_bytes": size, "sha256": digest}))
        seconds = time.monotonic() - started
        how = "repacked" if repack else "copied"
        logger.info(
            "%s: %.1f MB %s to %s and read back in %.1f s, SHA-256 %s",
            path,
            size / 1e6,
            how,
            copy,
            seconds,
            digest,
        )
    return copy


def _copy(path: Path, temporary: Path, copy: Path) -> str:
    """Copy, and read back; gives the SHA-256."""
    with path.open("rb") as reader, temporary.open("wb") as writer:
        read = _sha256(reader, f"copying {path.name}", path.stat().st_size, writer)
    written = _sha256_of(temporary, copy)
    if written != read:
        raise StagingError(
            f"{copy}: found SHA-256 {written}, expected {read} as {path} has: the disk of this "
            "node is not sound"
        )
    return read


def _repack(scan: Scan, temporary: Path, copy: Path) -> str:
    """Write as NPZ, and read back; gives the SHA-256."""
    rewrite_scan(scan, temporary)
    try:
        with zipfile.ZipFile(temporary) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged:
        raise StagingError(
            f"{copy}: found that {damaged} is not what was written, expected it to be: the disk "
            "of this node is not sound"
        )
    return _sha256_of(temporary, copy)


def _record_of(path: Path, options: DataConfig) -> dict[str, Any]:
    """The options, and which files those are that they or the scan name; as JSON gives it back."""
    named = [
        Path(name.partition(":")[0])
        for name in (options.probe, options.mask, options.diffraction)
        if name is not None
    ]
    files = [_identity(file) for file in (*named, *other_files(path)) if file.exists()]
    return json.loads(json.dumps({**dataclasses.asdict(options), "files": files}))


def _identity(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "source": str(path.resolve()),
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }


def _is_whole(copy: Path, record_path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the copy is that of this source, and still holds what was written."""
    if not (copy.is_file() and record_path.is_file()):
        return False
    try:
        record = json.loads(record_path.read_text())
    except ValueError:
        return False
    if not isinstance(record, dict) or record != {
        **wanted,
        "copy_bytes": copy.stat().st_size,
        "sha256": record.get("sha256"),
    }:
        return False
    return _sha256_of(copy, copy) == record["sha256"]


def _require_room(scan: Path, wanted: int, copy: Path) -> None:
    free = shutil.disk_usage(copy.parent).free
    if wanted > free:
        raise StagingError(
            f"{scan}: found {wanted} bytes and {free} free in {copy.parent}, expected room: "
            "choose another directory, or read it in place"
        )


def _sha256_of(path: Path, copy: Path) -> str:
    with path.open("rb") as reader:
        return _sha256(reader, f"checking {copy}", path.stat().st_size)


def _sha256(reader: IO[bytes], what: str, total_bytes: int, writer: IO[bytes] | None = None) -> str:
    """Hash what is read, and write it on where a writer is given; a long pass says how far it
    is."""
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
