"""PtychoPINN's NPZ files.

Patterns are memory-mapped where the file holds them uncompressed. A compressed member is unpacked once a node, to a temporary file that
every rank of the node maps, and whose name is taken away once they have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickletools
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np

from ptycho_dist.data.scan import Measurement, Scan, ScanError, resolve_measurement
from ptycho_dist.distributed import run_once_a_node, run_together

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DIFFRACTION_KEYS = ("diffraction", "diff3d")
_KEYS = (*_DIFFRACTION_KEYS, "xcoords", "ycoords", "probeGuess", "objectGuess", "_metadata")
_ZIP_LOCAL_HEADER_BYTES = 30
_LARGEST_METADATA_BYTES = 1 << 20
_LARGEST_SMALL_ARRAY_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class _Member:
    """One array of the archive: what its NPY header says."""

    path: Path
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    header_bytes: int

    @property
    def key(self) -> str:
        return self.info.filename.removesuffix(".npy")

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def refused(self, found: object, expected: str) -> ScanError:
        return ScanError(self.path, self.key, found, expected)


def read_npz_scan(
    path: Path, measurement: Measurement | None, default_measurement: Measurement | None, *, needs_probe: bool = True
) -> Scan:
    """Read `diffraction` or `diff3d`, `xcoords`, `ycoords`, `probeGuess`, and if there `objectGuess` and `_metadata`; see `read_scan`.

    Where the probe comes from elsewhere (`needs_probe` false), the file's is neither asked for nor read.
    """
    diffraction, rest = run_together(lambda: _read_all_but_patterns(path, measurement, default_measurement, needs_probe))
    unpacked = run_once_a_node(lambda: _unpack(diffraction) if diffraction.info.compress_type else None)
    try:
        patterns = run_together(lambda: _map_patterns(diffraction, unpacked))
    finally:
        run_once_a_node(lambda: unpacked.unlink() if unpacked else None)
    return run_together(lambda: _scan(_patterns_first(diffraction, patterns), rest))


def _scan(patterns: np.ndarray, rest: dict[str, Any]) -> Scan:
    probe = np.empty((0, *patterns.shape[1:]), dtype=np.complex64) if rest["probe"] is None else rest["probe"]
    return Scan(**{**rest, "diffraction": patterns, "probe": probe})


def _read_all_but_patterns(
    path: Path, measurement: Measurement | None, default_measurement: Measurement | None, needs_probe: bool
) -> tuple[_Member, dict[str, Any]]:
    members = _read_headers(path)

    def require(key: str) -> _Member:
        if key not in members:
            raise ScanError(path, key, f"only the keys {sorted(members)}", f"this key (of {', '.join(_KEYS)})")
        return members[key]

    diffraction = require(next((key for key in _DIFFRACTION_KEYS if key in members), _DIFFRACTION_KEYS[0]))
    largest_bytes = max(diffraction.num_bytes, _LARGEST_SMALL_ARRAY_BYTES)
    for key in ("xcoords", "ycoords", "probeGuess"):  # read whole: what is compressed may be far larger than the file
        if key in members and members[key].num_bytes > largest_bytes:
            raise members[key].refused(f"{members[key].num_bytes} bytes", f"at most {largest_bytes} with such patterns")
    rows, columns = _coordinates(require("ycoords")), _coordinates(require("xcoords"))
    if len(rows) != len(columns):
        raise ScanError(path, "xcoords, ycoords", f"{len(columns)} and {len(rows)} values", "as many of one as of the other")
    metadata = _read_metadata(members["_metadata"]) if "_metadata" in members else {}
    return diffraction, {
        "path": path,
        "key": diffraction.key,
        "measurement": resolve_measurement(path, metadata.get("measurement"), measurement, default_measurement),
        "positions_px": np.stack([rows, columns], axis=1),
        "probe": _probe(require("probeGuess")) if needs_probe else None,
        "object_guess": _object_guess(members["objectGuess"]) if "objectGuess" in members else None,
        "nphotons": _nphotons(path, metadata),
        "fingerprint": _fingerprint(members),
    }


def _read_headers(path: Path) -> dict[str, _Member]:
    """NPY headers of the known keys. Nothing is unpickled: an array of objects has a header like any other."""
    if not path.is_file():
        raise ScanError(path, "file", "no such file" if not path.exists() else "not a file", "an NPZ scan")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            members = {}
            for key in _KEYS:
                if f"{key}.npy" in names:
                    info = archive.getinfo(f"{key}.npy")
                    with archive.open(info) as stream:
                        members[key] = _read_header(path, info, stream)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ScanError(path, "file", f"not a readable NPZ archive ({error})", "a zip archive as numpy.savez writes it") from error
    if not members:
        raise ScanError(path, "file", f"an archive of {names[:8]}", f"arrays named {', '.join(_KEYS)}")
    return members


def _read_header(path: Path, info: zipfile.ZipInfo, stream: IO[bytes]) -> _Member:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, is_fortran, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError) as error:
        raise ScanError(path, info.filename, f"no NPY header ({error})", "an array as numpy.savez writes it") from error
    member = _Member(path, info, shape, is_fortran, dtype, header_bytes=stream.tell())
    if min(shape, default=0) < 0:
        raise member.refused(f"shape {shape}", "lengths of at least 0")
    if not dtype.hasobject and info.file_size != member.header_bytes + member.num_bytes:
        raise member.refused(f"{info.file_size - member.header_bytes} bytes", f"{member.num_bytes}, as its header says: {shape} of {dtype}")
    return member


def _read_array(member: _Member) -> np.ndarray:
    def read(stream: IO[bytes]) -> np.ndarray:
        return np.lib.format.read_array(stream, allow_pickle=False)

    return _with_stream(member, read)


def _with_stream(member: _Member, action: Callable[[IO[bytes]], T]) -> T:
    try:
        with zipfile.ZipFile(member.path) as archive, archive.open(member.info) as stream:
            return action(stream)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise member.refused(f"damaged data ({error})", "an intact archive") from error


def _unpack(member: _Member) -> Path:
    """Unpack a compressed member to a temporary file."""
    free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
    if member.info.file_size > free_bytes:
        raise member.refused(
            f"{member.info.file_size} bytes once unpacked and {free_bytes} free in {tempfile.gettempdir()}",
            "room for them: set TMPDIR, or save the scan with numpy.savez, which can be read in place",
        )
    logger.info(
        "%s: unpacking %s (%.0f MB) to %s; saved with numpy.savez it could be read in place",
        member.path,
        member.key,
        member.info.file_size / 1e6,
        tempfile.gettempdir(),
    )
    with tempfile.NamedTemporaryFile(prefix="ptycho_dist_", suffix=".npy", delete=False) as unpacked:
        try:
            _with_stream(member, lambda stream: shutil.copyfileobj(stream, unpacked, 1 << 22))
        except BaseException:
            Path(unpacked.name).unlink()
            raise
    return Path(unpacked.name)


def _map_patterns(member: _Member, unpacked: Path | None) -> np.ndarray:
    if member.dtype.hasobject or 0 in member.shape:
        raise member.refused(
            f"an array of shape {member.shape} and type {member.dtype}", "diffraction patterns, (n, N, N), of real numbers"
        )
    offset = member.header_bytes if unpacked else _data_start(member) + member.header_bytes
    order: Literal["F", "C"] = "F" if member.is_fortran else "C"
    return np.memmap(unpacked or member.path, dtype=member.dtype, mode="r", offset=offset, shape=member.shape, order=order)


def _data_start(member: _Member) -> int:
    """Where an uncompressed member's bytes begin: after its local header, whose name and extra field have their own lengths."""
    with member.path.open("rb") as stream:
        stream.seek(member.info.header_offset)
        header = stream.read(_ZIP_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return member.info.header_offset + _ZIP_LOCAL_HEADER_BYTES + name_bytes + extra_bytes


def _patterns_first(member: _Member, patterns: np.ndarray) -> np.ndarray:
    """(n, N, N) as it is, a cube too; (N, N, n) as a view with the patterns first."""
    if patterns.ndim == 3 and patterns.shape[1] != patterns.shape[2] and patterns.shape[0] == patterns.shape[1]:
        return np.moveaxis(patterns, 2, 0)
    return patterns


def _fingerprint(members: dict[str, _Member]) -> str:
    checksums = [(key, member.info.file_size, member.info.CRC) for key, member in sorted(members.items())]
    return hashlib.sha256(repr(checksums).encode()).hexdigest()


def _coordinates(member: _Member) -> np.ndarray:
    if len(member.shape) != 1 or member.dtype.kind not in "fiu":
        raise member.refused(f"shape {member.shape} of {member.dtype}", "one real number a pattern, (n,)")
    return _read_array(member).astype(np.float64)


def _probe(member: _Member) -> np.ndarray:
    if member.dtype.kind not in "cf":
        raise member.refused(f"type {member.dtype}", "complex numbers")
    probe = _as_complex64(_read_array(member))
    if probe.ndim == 3 and probe.shape[2] == 1:
        probe = probe[..., 0]
    return probe[None] if probe.ndim == 2 else probe


def _object_guess(member: _Member) -> np.ndarray:
    if len(member.shape) != 2 or member.dtype.kind not in "cf":
        raise member.refused(f"shape {member.shape} of {member.dtype}", "a complex object, (H, W)")
    return _as_complex64(_read_array(member))


def _as_complex64(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity is refused by whoever can't use it
        return array.astype(np.complex64)


def _read_metadata(member: _Member) -> dict[str, Any]:
    if math.prod(member.shape) != 1 or member.info.file_size > _LARGEST_METADATA_BYTES:
        raise member.refused(f"shape {member.shape}, {member.info.file_size} bytes", "one JSON text of at most 1 MiB")
    if member.dtype.hasobject:
        return _json_in_pickle(member)
    text = _read_array(member).item()
    if member.dtype.kind not in "US":
        raise member.refused(f"type {member.dtype}", "JSON text")
    return _parse_json(member, text)


def _json_in_pickle(member: _Member) -> dict[str, Any]:
    """The JSON text in a pickled 0-d object array, found by listing the pickle's strings: none of it is executed."""

    def read_strings(stream: IO[bytes]) -> list[str]:
        stream.read(member.header_bytes)
        return [str(value) for opcode, value, _ in pickletools.genops(stream.read()) if "UNICODE" in opcode.name]

    try:
        texts = [text for text in _with_stream(member, read_strings) if text.lstrip().startswith("{")]
    except ValueError as error:
        raise member.refused(f"an object that can't be read ({error})", "JSON text") from error
    if len(texts) != 1:
        raise member.refused("a pickled object that is no JSON text", "JSON text, as json.dumps gives it (pickles are not executed)")
    return _parse_json(member, texts[0])


def _parse_json(member: _Member, text: str | bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise member.refused(f"{str(text)[:40]!r} ({error})", "JSON text") from error
    if not isinstance(metadata, dict):
        raise member.refused(f"{type(metadata).__name__}", "a JSON object")
    return metadata


def _nphotons(path: Path, metadata: dict[str, Any]) -> float | None:
    parameters = metadata.get("physics_parameters", {})
    if not isinstance(parameters, dict):
        raise ScanError(path, "_metadata physics_parameters", type(parameters).__name__, "a JSON object")
    return parameters.get("nphotons")


def read_npz_object(path: Path) -> np.ndarray:
    """The `objectGuess` of a file, complex64 (H, W): the reference that a reconstruction is compared with."""
    members = _read_headers(path)
    if "objectGuess" not in members:
        raise ScanError(
            path, "objectGuess", f"only the keys {sorted(members)}", "this key: without a reference there is nothing to compare with"
        )
    return _object_guess(members["objectGuess"])
