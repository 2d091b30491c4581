"""PtychoPINN's NPZ files.

Patterns are read in place where the file holds them uncompressed and one after the other. Others
are unpacked, or brought into that order, once a node: into a temporary file that every rank of the
node opens and whose name is then removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickletools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.geometry import Geometry
from ptycho_dist.data.pattern_file import PatternFile, bring_patterns_first
from ptycho_dist.data.readers.arrays import as_complex64, as_mask, as_modes, as_positions
from ptycho_dist.data.readers.content import PackedPatterns, Reader, ScanContent
from ptycho_dist.data.readers.npz_file import NpzArray, read_npz_headers
from ptycho_dist.data.scan import ScanError

logger = logging.getLogger(__name__)

_DIFFRACTION_KEYS = ("diffraction", "diff3d")
_KEYS = (*_DIFFRACTION_KEYS, "xcoords", "ycoords", "probeGuess", "objectGuess", "mask", "_metadata")
_LARGEST_METADATA_BYTES = 1 << 20
_LARGEST_SMALL_BYTES = 1 << 26
_READ_IN_PLACE = "with numpy.savez as (n, N, N) in C order"


class NpzPatterns(PackedPatterns):
    """The diffraction array of an archive, in any order of its axes."""

    def __init__(self, array: NpzArray) -> None:
        self._array = array
        first, second, third = array.shape
        # a cube has its patterns first
        self._has_patterns_last = first == second != third
        self.shape = (third, first, second) if self._has_patterns_last else array.shape
        self.dtype = array.dtype

    def copy_in_order(self) -> Path | None:
        """Write a temporary file that holds the patterns one after the other; return None where the
        scan file itself does."""
        array, unpacked = self._array, None
        if array.info.compress_type:
            unpacked = self._write_temporary(
                "unpacking",
                lambda target: array.with_stream(lambda source: _unpack(array, source, target)),
            )
        if self._has_patterns_last == array.is_fortran:
            return unpacked
        # interleaved: the first pixel of all patterns, then the second of all
        try:
            return self._write_temporary(
                "bringing into order", lambda target: self._bring_into_order(unpacked, target)
            )
        finally:
            if unpacked:
                unpacked.unlink()

    def open(self, copy: Path | None) -> PatternFile:
        array = self._array
        return PatternFile(
            copy or array.path,
            offset=0 if copy else array.data_start(),
            shape=self.shape,
            dtype=array.dtype,
            pixels_transposed=array.is_fortran,
            scan_path=array.path,
            key=array.key,
        )

    def _write_temporary(self, what: str, write: Callable[[IO[bytes]], None]) -> Path:
        array, folder = self._array, tempfile.gettempdir()
        free_bytes = shutil.disk_usage(folder).free
        if array.num_bytes > free_bytes:
            raise array.refused(
                f"{array.num_bytes} bytes to copy for {what} and {free_bytes} free in {folder}",
                f"room for them: set TMPDIR, or save the scan {_READ_IN_PLACE}, which is read in "
                "place",
            )
        logger.info(
            "%s: %s %s (%.0f MB) in %s; saved %s it would be read in place",
            array.path, what, array.key, array.num_bytes / 1e6, folder, _READ_IN_PLACE,
        )  # fmt: skip
        with tempfile.NamedTemporaryFile(prefix="ptycho_dist_", delete=False) as temporary:
            try:
                write(temporary)
            except BaseException:
                Path(temporary.name).unlink()
                raise
        return Path(temporary.name)

    def _bring_into_order(self, unpacked: Path | None, target: IO[bytes]) -> None:
        array = self._array
        first, second, third = array.shape
        shape = (first, second, third) if self._has_patterns_last else (third, second, first)
        start = 0 if unpacked else array.data_start()
        what = f"bringing {array.key} into order"
        try:
            with (unpacked or array.path).open("rb", buffering=0) as source:
                bring_patterns_first(source, start, shape, array.dtype, target, what)
        except EOFError as error:
            raise array.refused(f"damaged data ({error})", "an intact archive") from error


def _unpack(array: NpzArray, source: IO[bytes], target: IO[bytes]) -> None:
    source.read(array.header_bytes)
    shutil.copyfileobj(source, target, 1 << 22)


def _is_zip(path: Path, options: ScanConfig) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


def _read(path: Path, options: ScanConfig) -> ScanContent:
    arrays = read_npz_headers(path, _KEYS)
    diffraction = _require(
        path, arrays, next((key for key in _DIFFRACTION_KEYS if key in arrays), "diffraction")
    )
    if len(diffraction.shape) != 3 or 0 in diffraction.shape or diffraction.dtype.kind not in "fiu":
        raise diffraction.refused(
            f"shape {diffraction.shape}, type {diffraction.dtype}",
            "diffraction patterns, (n, N, N), of real numbers",
        )
    # read whole: what is compressed may be far larger than the file
    largest_bytes = max(diffraction.num_bytes, _LARGEST_SMALL_BYTES)
    rows, columns = (
        _coordinates(_require(path, arrays, key), largest_bytes) for key in ("ycoords", "xcoords")
    )
    metadata = _read_metadata(arrays["_metadata"]) if "_metadata" in arrays else {}
    geometry, patterns = _geometry(path, metadata), NpzPatterns(diffraction)
    return ScanContent(
        path=path,
        key=diffraction.key,
        diffraction=patterns,
        measurement=metadata.get("measurement"),
        positions_px=as_positions(path, "ycoords, xcoords", rows, columns),
        object_pixel_of=patterns.shape[1] if patterns.shape[1] == patterns.shape[2] else None,
        # where data.probe replaces the file's own, the file needs none
        probe=as_modes(
            path,
            "probeGuess",
            _require(path, arrays, "probeGuess").read("cf", largest_bytes, "complex numbers"),
        )
        if options.probe is None
        else None,
        object_guess=_object(arrays["objectGuess"]) if "objectGuess" in arrays else None,
        mask=as_mask(path, "mask", arrays["mask"].read("biuf", largest_bytes))
        if "mask" in arrays
        else None,
        nphotons=_nphotons(path, metadata),
        origin_m=_origin_m(path, metadata),
        fingerprint=_fingerprint(arrays),
        files=(path,),
        energy_eV=geometry.get("energy_eV"),
        distance_m=geometry.get("distance_m"),
        detector_pixel_m=geometry.get("detector_pixel_m"),
    )


def _coordinates(array: NpzArray, largest_bytes: int) -> np.ndarray:
    expected = "one real number per pattern, (n,)"
    if len(array.shape) != 1:
        raise array.refused(f"shape {array.shape} of {array.dtype}", expected)
    return array.read("fiu", largest_bytes, expected)


def _require(path: Path, arrays: dict[str, NpzArray], key: str) -> NpzArray:
    if key not in arrays:
        raise ScanError(
            path, key, f"only the keys {sorted(arrays)}", f"this key (of {', '.join(_KEYS)})"
        )
    return arrays[key]


def _fingerprint(arrays: dict[str, NpzArray]) -> str:
    checksums = [
        (key, array.info.file_size, array.info.CRC) for key, array in sorted(arrays.items())
    ]
    return hashlib.sha256(repr(checksums).encode()).hexdigest()


def _object(array: NpzArray) -> np.ndarray:
    if len(array.shape) != 2:
        raise array.refused(f"shape {array.shape} of {array.dtype}", "a complex object, (H, W)")
    return as_complex64(array.read("cf", 1 << 62, "a complex object, (H, W)"))


def _read_object(path: Path, options: ScanConfig) -> np.ndarray | None:
    """Return the object of a file, which may lack everything else."""
    arrays = read_npz_headers(path, _KEYS)
    return _object(arrays["objectGuess"]) if "objectGuess" in arrays else None


def _read_metadata(array: NpzArray) -> dict[str, Any]:
    if math.prod(array.shape) != 1 or array.info.file_size > _LARGEST_METADATA_BYTES:
        raise array.refused(
            f"shape {array.shape}, {array.info.file_size} bytes", "one JSON text of at most 1 MiB"
        )
    text = (
        _json_in_pickle(array)
        if array.dtype.hasobject
        else array.read("US", _LARGEST_METADATA_BYTES, "JSON text").item()
    )
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise array.refused(f"{str(text)[:40]!r} ({error})", "JSON text") from error
    if not isinstance(metadata, dict):
        raise array.refused(f"{type(metadata).__name__}", "a JSON object")
    return metadata


def _json_in_pickle(array: NpzArray) -> str:
    """Return the JSON text in a pickled 0-d object array, found by listing the pickle's strings:
    none of it is executed."""

    def read_strings(stream: IO[bytes]) -> list[str]:
        stream.read(array.header_bytes)
        found = pickletools.genops(stream.read())
        return [str(value) for opcode, value, _ in found if "UNICODE" in opcode.name]

    try:
        strings = array.with_stream(read_strings)
    except ValueError as error:
        raise array.refused(f"an object that can't be read ({error})", "JSON text") from error
    texts = [text for text in strings if text.lstrip().startswith("{")]
    if len(texts) != 1:
        raise array.refused(
            "a pickled object that is no JSON text",
            "JSON text, as json.dumps gives it (pickles are not executed)",
        )
    return texts[0]


def _nphotons(path: Path, metadata: dict[str, Any]) -> float | None:
    parameters = metadata.get("physics_parameters", {})
    if not isinstance(parameters, dict):
        raise ScanError(
            path, "_metadata physics_parameters", type(parameters).__name__, "a JSON object"
        )
    return parameters.get("nphotons")


def _geometry(path: Path, metadata: dict[str, Any]) -> dict[str, float]:
    said = metadata.get("geometry")
    if said is None:
        return {}
    names = {field.name for field in fields(Geometry)}
    if (
        not isinstance(said, dict)
        or set(said) != names
        or not all(_is_number(value) and value > 0 for value in said.values())
    ):
        raise ScanError(
            path, "_metadata geometry", said, f"{', '.join(sorted(names))}, positive numbers"
        )
    return said


def _origin_m(path: Path, metadata: dict[str, Any]) -> tuple[float, float] | None:
    said = metadata.get("origin_m")
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != 2 or not all(map(_is_number, said)):
        raise ScanError(path, "_metadata origin_m", said, "(y, x) in metres, two finite numbers")
    return float(said[0]), float(said[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


READER = Reader(
    name="NPZ, PtychoPINN's keys",
    needs="PtychoPINN: an NPZ archive with diffraction, xcoords, ycoords and probeGuess",
    recognises=_is_zip,
    read=_read,
    read_object=_read_object,
    accepts=frozenset(),
)
