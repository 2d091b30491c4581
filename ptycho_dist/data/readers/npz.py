"""PtychoPINN's NPZ files.

Patterns are read in place, where they are asked for, if the file holds them uncompressed and one
after the other. Others are unpacked or brought into their order once a node, in a temporary file
that every rank of the node opens, and whose name is taken away once they have.
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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from ptycho_dist.data.geometry import Geometry
from ptycho_dist.data.pattern_file import PatternFile, bring_patterns_first
from ptycho_dist.data.readers.array_file import as_mask
from ptycho_dist.data.scan import Measurement, Scan, ScanError, resolve_measurement
from ptycho_dist.distributed import run_once_a_node, run_together

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DIFFRACTION_KEYS = ("diffraction", "diff3d")
_KEYS = (*_DIFFRACTION_KEYS, "xcoords", "ycoords", "probeGuess", "objectGuess", "mask", "_metadata")
_ZIP_LOCAL_HEADER_BYTES = 30
_LARGEST_METADATA_BYTES = 1 << 20
_LARGEST_SMALL_ARRAY_BYTES = 1 << 26
_READ_IN_PLACE = "with numpy.savez as (n, N, N) in C order"


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

    @property
    def has_patterns_last(self) -> bool:
        """(N, N, n); a cube has its patterns first."""
        return len(self.shape) == 3 and self.shape[0] == self.shape[1] != self.shape[2]

    @property
    def is_interleaved(self) -> bool:
        """Whether the pixels of a pattern lie far apart: the first pixel of all patterns, then the
        second one of all."""
        return len(self.shape) == 3 and self.has_patterns_last != self.is_fortran

    def refused(self, found: object, expected: str) -> ScanError:
        return ScanError(self.path, self.key, found, expected)


def read_npz_scan(
    path: Path,
    measurement: Measurement | None,
    default_measurement: Measurement | None,
    *,
    needs_probe: bool = True,
) -> Scan:
    """Read `diffraction` or `diff3d`, `xcoords`, `ycoords`, `probeGuess`, and `objectGuess`,
    `mask`, `_metadata` if there; see `read_scan`.

    Where the probe comes from elsewhere (`needs_probe` false), the file's is neither asked for nor
    read.
    """
    diffraction, rest = run_together(
        lambda: _read_all_but_patterns(path, measurement, default_measurement, needs_probe)
    )
    copy = run_once_a_node(lambda: _copy_in_order(diffraction))
    try:
        patterns = run_together(lambda: _open_patterns(diffraction, copy))
    finally:
        run_once_a_node(lambda: copy.unlink() if copy else None)
    return run_together(lambda: _scan(patterns, rest))


def _scan(patterns: PatternFile, rest: dict[str, Any]) -> Scan:
    probe = (
        np.empty((0, *patterns.shape[1:]), dtype=np.complex64)
        if rest["probe"] is None
        else rest["probe"]
    )
    return Scan(**{**rest, "diffraction": patterns, "probe": probe})


def _read_all_but_patterns(
    path: Path,
    measurement: Measurement | None,
    default_measurement: Measurement | None,
    needs_probe: bool,
) -> tuple[_Member, dict[str, Any]]:
    members = _read_headers(path)

    def require(key: str) -> _Member:
        if key not in members:
            raise ScanError(
                path, key, f"only the keys {sorted(members)}", f"this key (of {', '.join(_KEYS)})"
            )
        return members[key]

    diffraction = require(
        next((key for key in _DIFFRACTION_KEYS if key in members), _DIFFRACTION_KEYS[0])
    )
    if diffraction.dtype.hasobject or 0 in diffraction.shape:
        raise diffraction.refused(
            f"an array of shape {diffraction.shape} and type {diffraction.dtype}",
            "diffraction patterns, (n, N, N), of real numbers",
        )
    largest_bytes = max(diffraction.num_bytes, _LARGEST_SMALL_ARRAY_BYTES)
    # read whole: what is compressed may be far larger than the file
    for key in ("xcoords", "ycoords", "probeGuess", "mask"):
        if key in members and members[key].num_bytes > largest_bytes:
            raise members[key].refused(
                f"{members[key].num_bytes} bytes", f"at most {largest_bytes} with such patterns"
            )
    rows, columns = _coordinates(require("ycoords")), _coordinates(require("xcoords"))
    if len(rows) != len(columns):
        raise ScanError(
            path,
            "xcoords, ycoords",
            f"{len(columns)} and {len(rows)} values",
            "as many of one as of the other",
        )
    metadata = _read_metadata(members["_metadata"]) if "_metadata" in members else {}
    return diffraction, {
        "path": path,
        "key": diffraction.key,
        "measurement": resolve_measurement(
            path, metadata.get("measurement"), measurement, default_measurement
        ),
        "positions_px": np.stack([rows, columns], axis=1),
        "probe": _probe(require("probeGuess")) if needs_probe else None,
        "object_guess": _object_guess(members["objectGuess"]) if "objectGuess" in members else None,
        "mask": as_mask(path, "mask", _read_array(members["mask"])) if "mask" in members else None,
        "nphotons": _nphotons(path, metadata),
        "fingerprint": _fingerprint(members),
        "geometry": _geometry(path, metadata),
        "origin_m": _origin_m(path, metadata),
    }


def _read_headers(path: Path) -> dict[str, _Member]:
    """NPY headers of the known keys. Nothing is unpickled: an array of objects has a header like
    any other."""
    if not path.is_file():
        raise ScanError(
            path, "file", "no such file" if not path.exists() else "not a file", "an NPZ scan"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            members = {}
            for key in _KEYS:
                if f"{key}.npy" in names:
                    info = archive.getinfo(f"{key}.npy")
                    with archive.open(info) as stream:
                        members[key] = _read_header(path, info, stream)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ScanError(
            path,
            "file",
            f"not a readable NPZ archive ({error})",
            "a zip archive as numpy.savez writes it",
        ) from error
    if not members:
        raise ScanError(
            path, "file", f"an archive of {names[:8]}", f"arrays named {', '.join(_KEYS)}"
        )
    return members


def _read_header(path: Path, info: zipfile.ZipInfo, stream: IO[bytes]) -> _Member:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, is_fortran, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError) as error:
        raise ScanError(
            path, info.filename, f"no NPY header ({error})", "an array as numpy.savez writes it"
        ) from error
    member = _Member(path, info, shape, is_fortran, dtype, header_bytes=stream.tell())
    if min(shape, default=0) < 0:
        raise member.refused(f"shape {shape}", "lengths of at least 0")
    if not dtype.hasobject and info.file_size != member.header_bytes + member.num_bytes:
        raise member.refused(
            f"{info.file_size - member.header_bytes} bytes",
            f"{member.num_bytes}, as its header says: {shape} of {dtype}",
        )
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


def _copy_in_order(member: _Member) -> Path | None:
    """A temporary file that holds the patterns one after the other; None where the scan file
    does."""
    unpacked = None
    if member.info.compress_type:
        unpacked = _write_temporary(
            member,
            "unpacking",
            lambda target: _with_stream(member, lambda stream: _unpack(member, stream, target)),
        )
    if not member.is_interleaved:
        return unpacked
    try:
        return _write_temporary(
            member,
            "bringing into order",
            lambda target: _bring_into_order(member, unpacked, target),
        )
    finally:
        if unpacked:
            unpacked.unlink()


def _write_temporary(member: _Member, what: str, write: Callable[[IO[bytes]], None]) -> Path:
    folder = tempfile.gettempdir()
    free_bytes = shutil.disk_usage(folder).free
    if member.num_bytes > free_bytes:
        raise member.refused(
            f"{member.num_bytes} bytes to copy for {what} and {free_bytes} free in {folder}",
            f"room for them: set TMPDIR, or save the scan {_READ_IN_PLACE}, which is read in place",
        )
    logger.info(
        "%s: %s %s (%.0f MB) in %s; saved %s it would be read in place",
        member.path, what, member.key, member.num_bytes / 1e6, folder, _READ_IN_PLACE,
    )  # fmt: skip
    with tempfile.NamedTemporaryFile(prefix="ptycho_dist_", delete=False) as temporary:
        try:
            write(temporary)
        except BaseException:
            Path(temporary.name).unlink()
            raise
    return Path(temporary.name)


def _unpack(member: _Member, stream: IO[bytes], target: IO[bytes]) -> None:
    stream.read(member.header_bytes)
    shutil.copyfileobj(stream, target, 1 << 22)


def _bring_into_order(member: _Member, unpacked: Path | None, target: IO[bytes]) -> None:
    first, second, num_patterns = member.shape if member.has_patterns_last else member.shape[::-1]
    try:
        with (unpacked or member.path).open("rb", buffering=0) as source:
            start = 0 if unpacked else _data_start(member)
            what = f"bringing {member.key} into order"
            bring_patterns_first(
                source, start, (first, second, num_patterns), member.dtype, target, what
            )
    except EOFError as error:
        raise member.refused(f"damaged data ({error})", "an intact archive") from error


def _open_patterns(member: _Member, copy: Path | None) -> PatternFile:
    return PatternFile(
        copy or member.path,
        offset=0 if copy else _data_start(member),
        shape=(member.shape[2], *member.shape[:2]) if member.has_patterns_last else member.shape,
        dtype=member.dtype,
        pixels_transposed=member.is_fortran,
        scan_path=member.path,
        key=member.key,
    )


def _data_start(member: _Member) -> int:
    """Where an uncompressed array's numbers begin: after the local header, whose name and extra
    field have their own lengths, and NPY's."""
    with member.path.open("rb") as stream:
        stream.seek(member.info.header_offset)
        header = stream.read(_ZIP_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return (
        member.info.header_offset
        + _ZIP_LOCAL_HEADER_BYTES
        + name_bytes
        + extra_bytes
        + member.header_bytes
    )


def _fingerprint(members: dict[str, _Member]) -> str:
    checksums = [
        (key, member.info.file_size, member.info.CRC) for key, member in sorted(members.items())
    ]
    return hashlib.sha256(repr(checksums).encode()).hexdigest()


def _coordinates(member: _Member) -> np.ndarray:
    if len(member.shape) != 1 or member.dtype.kind not in "fiu":
        raise member.refused(
            f"shape {member.shape} of {member.dtype}", "one real number a pattern, (n,)"
        )
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
        raise member.refused(
            f"shape {member.shape}, {member.info.file_size} bytes", "one JSON text of at most 1 MiB"
        )
    if member.dtype.hasobject:
        return _json_in_pickle(member)
    text = _read_array(member).item()
    if member.dtype.kind not in "US":
        raise member.refused(f"type {member.dtype}", "JSON text")
    return _parse_json(member, text)


def _json_in_pickle(member: _Member) -> dict[str, Any]:
    """The JSON text in a pickled 0-d object array, found by listing the pickle's strings: none of
    it is executed."""

    def read_strings(stream: IO[bytes]) -> list[str]:
        stream.read(member.header_bytes)
        return [
            str(value)
            for opcode, value, _ in pickletools.genops(stream.read())
            if "UNICODE" in opcode.name
        ]

    try:
        texts = [
            text for text in _with_stream(member, read_strings) if text.lstrip().startswith("{")
        ]
    except ValueError as error:
        raise member.refused(f"an object that can't be read ({error})", "JSON text") from error
    if len(texts) != 1:
        raise member.refused(
            "a pickled object that is no JSON text",
            "JSON text, as json.dumps gives it (pickles are not executed)",
        )
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
        raise ScanError(
            path, "_metadata physics_parameters", type(parameters).__name__, "a JSON object"
        )
    return parameters.get("nphotons")


def _geometry(path: Path, metadata: dict[str, Any]) -> Geometry | None:
    said = metadata.get("geometry")
    if said is None:
        return None
    names = {field.name for field in fields(Geometry)}
    if (
        not isinstance(said, dict)
        or set(said) != names
        or not all(_is_number(value) and value > 0 for value in said.values())
    ):
        raise ScanError(
            path, "_metadata geometry", said, f"{', '.join(sorted(names))}, positive numbers"
        )
    return Geometry(**said)


def _origin_m(path: Path, metadata: dict[str, Any]) -> tuple[float, float] | None:
    said = metadata.get("origin_m")
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != 2 or not all(map(_is_number, said)):
        raise ScanError(path, "_metadata origin_m", said, "(y, x) in metres, two finite numbers")
    return float(said[0]), float(said[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_npz_object(path: Path) -> np.ndarray:
    """The `objectGuess` of a file, complex64 (H, W): the reference that a reconstruction is
    compared with."""
    members = _read_headers(path)
    if "objectGuess" not in members:
        raise ScanError(
            path,
            "objectGuess",
            f"only the keys {sorted(members)}",
            "this key: without a reference there is nothing to compare with",
        )
    return _object_guess(members["objectGuess"])
