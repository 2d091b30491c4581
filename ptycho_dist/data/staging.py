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
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.readers.array_file import split_dataset
from ptycho_dist.data.readers.pairs import other_files
from ptycho_dist.data.scan import Scan
from ptycho_dist.data.scan_writer import write_scan
from ptycho_dist.progress import Progress

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24


class StagingError(ValueError):
    """A scan file that can't be copied to the node's disk; the message names the file, what was
    found and what was expected."""


def stage_scans(
    scans: Sequence[Path], directory: Path, *, repack: DataConfig | None = None
) -> list[Path]:
    """Copy scan files into `directory`, unless the same content lies there already; return their
    new paths.

    The files that an HDF5 scan links to, and the other one of a pair, are copied to the same place
    relative to it. A lock makes a second process or job on the node wait, and find the copy. The
    copy is read back and its SHA-256 compared with that of the bytes read from the source.

    Parameters
    ----------
    scans
        Files of any format that can be read.
    directory
        Where to; made if missing.
    repack
        Read the scan with these options and write `NAME.npz` instead, uncompressed and pattern
        after pattern: reading one of many that are packed together costs the reading of all. What
        the options say (measurement, window, probe, mask) is then in the file. It is read back
        against the checksums that it was written with.

    Raises
    ------
    ValueError
        A file is missing, two have the same name, a link leads out of the scan's folder, the disk
        has no room, the source changed meanwhile, or the copy differs; or, to be repacked, it
        can't be read.
    """
    copies = [directory / (f"{scan.stem}.npz" if repack else scan.name) for scan in scans]
    for scan, copy in zip(scans, copies, strict=True):
        _require_stageable(scan, copy, copies, repack=repack is not None)
    others: dict[Path, Path] = {}
    if not repack:
        for scan in scans:
            others |= _copies_of_other_files(scan, directory)
    for scan in scans:
        others.pop(scan.resolve(), None)
    directory.mkdir(parents=True, exist_ok=True)
    for other, copy in others.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        _stage(other, copy, repack=None)
    return [_stage(scan, copy, repack=repack) for scan, copy in zip(scans, copies, strict=True)]


def _require_stageable(scan: Path, copy: Path, copies: list[Path], *, repack: bool) -> None:
    if not scan.is_file():
        found = "a directory" if scan.exists() else "no file"
        raise StagingError(f"{scan}: found {found}, expected a scan file to copy")
    if copies.count(copy) > 1:
        raise StagingError(
            f"{scan}: found another scan of the same name in the list, expected names that can lie "
            "in one directory"
        )
    if repack and copy.exists() and copy.samefile(scan):
        raise StagingError(
            f"{scan}: found that it lies in {copy.parent} itself, expected another directory to "
            "write to"
        )


def _copies_of_other_files(scan: Path, directory: Path) -> dict[Path, Path]:
    """Return where the files go that a scan can't be read without."""
    folder, copies = scan.resolve().parent, {}
    for other in other_files(scan):
        if not other.is_relative_to(folder):
            raise StagingError(
                f"{scan}: found a link to {other}, expected links to files in {folder} or below, "
                "which can be copied along; --repack writes all of the scan to one file"
            )
        copies[other] = directory / other.relative_to(folder)
    return copies


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
            seconds = time.monotonic() - started
            logger.info(
                "%s: found the same content at %s, SHA-256 compared in %.1f s", path, copy, seconds
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
        logger.info(
            "%s: %.1f MB %s to %s and read back in %.1f s, SHA-256 %s",
            path,
            size / 1e6,
            "repacked" if repack else "copied",
            copy,
            time.monotonic() - started,
            digest,
        )
    return copy


def _copy(path: Path, temporary: Path, copy: Path) -> str:
    """Copy, read back, and return the SHA-256."""
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
    """Write as NPZ, read back, and return the SHA-256."""
    write_scan(scan, temporary)
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
    """Return the options and the identity of all files that they or the scan name, as JSON gives
    them back."""
    named = [
        split_dataset(name)[0]
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
    """Return True where the copy is that of this source and still holds what was written."""
    try:
        record, size = json.loads(record_path.read_text()), copy.stat().st_size
    except (OSError, ValueError):
        return False
    digest = record.get("sha256") if isinstance(record, dict) else None
    expected = {**wanted, "copy_bytes": size, "sha256": digest}
    return record == expected and _sha256_of(copy, copy) == digest


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
    """Return the hash of what is read, and write it on where a writer is given."""
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
