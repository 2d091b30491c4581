"""ptychodus products (HDF5 or NPZ), each with the file of its patterns.

Facts from ptychodus' product readers and writers and its object geometry: positions in metres, x
along columns and y along rows of the object; `probe_position_indexes` are the numbers of the
patterns; the object's pixel [0, 0] lies half its extent before its centre, and the patch at a
position covers the half pattern before it onward; `probe` (variations, modes, N, N); `object`
(layers, rows, columns); `probe_photon_count`, `photon_energy_eV` (`probe_energy_eV` in older ones)
and distance as attributes of the file (keys of the NPZ), 0 where not known. The patterns lie in a
file of their own that the product does not name: `data.diffraction` does, or the pair is named
`x_para.hdf5`, `x_dp.hdf5`.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.array_file import as_modes, split_dataset
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File
from ptycho_dist.data.readers.hdf5_patterns import Hdf5Patterns, SomePatterns, open_patterns
from ptycho_dist.data.scan import Patterns, ScanError

NEEDS = (
    "ptychodus: probe_position_x_m, probe_position_y_m, probe and object, with the patterns "
    "in --data.diffraction FILE"
)

_DIFFRACTION_KEYS = (
    "dp",
    "entry/data/data",
    "exchange/data",
    "entry_1/data_1/data",
    "entry_1/instrument_1/detector_1/data",
)
_ARRAYS = ("probe_position_indexes", "probe_position_x_m", "probe_position_y_m", "probe", "object")


def is_product(file: Hdf5File) -> bool:
    return file.has("probe_position_x_m") and file.has("probe_position_y_m")


def read_product(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read an HDF5 product and open its patterns."""
    return _with_patterns(
        file, _product(file), file.array("probe_position_indexes", kinds="iuf"), options
    )


def read_product_object(file: Hdf5File) -> np.ndarray | None:
    """The object of an HDF5 product, which needs no patterns; None where there is none."""
    return _product(file)["object_guess"]


def _product(file: Hdf5File) -> dict[str, Any]:
    key = "object" if file.has("object") else "probe"
    return _of_arrays(
        file.path,
        {
            name: file.array(
                name,
                kinds="c" if name in ("probe", "object") else "fiu",
                largest_bytes=LARGEST_IMAGE_BYTES,
            )
            for name in _ARRAYS
        },
        object_pixel_m=[file.attribute(key, f"pixel_{side}_m") for side in ("height", "width")],
        object_centre_m=[file.attribute("object", f"center_{axis}_m") for axis in "yx"],
        energy_eV=file.attribute("/", "photon_energy_eV") or file.attribute("/", "probe_energy_eV"),
        distance_m=file.attribute("/", "detector_object_distance_m"),
        photons=file.attribute("/", "probe_photon_count"),
    )


def is_npz_product(path: Path) -> bool:
    """Whether a zip archive holds the arrays of a product."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"probe_position_x_m.npy", "probe_position_y_m.npy"} <= set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def read_npz_product(path: Path, options: ScanConfig) -> ScanContent:
    """Read an NPZ product and open its patterns."""
    product, indexes = _npz_product(path)
    if options.diffraction is None:
        raise ScanError(
            path,
            "diffraction",
            "a product without patterns",
            "their HDF5 file: --data.diffraction FILE",
        )
    with Hdf5File(split_dataset(options.diffraction)[0]) as file:
        whole = _with_patterns(file, product, indexes, options)
    return replace(whole, path=path, files=(path, *whole.files))


def read_npz_product_object(path: Path) -> np.ndarray | None:
    """The object of an NPZ product, which needs no patterns; None where there is none."""
    return _npz_product(path)[0]["object_guess"]


def _npz_product(path: Path) -> tuple[dict[str, Any], np.ndarray | None]:
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.file_size > LARGEST_IMAGE_BYTES or info.file_size > 1000 * max(
                    info.compress_size, 1
                ):
                    raise ScanError(
                        path,
                        info.filename,
                        f"{info.file_size} bytes once unpacked",
                        f"at most {LARGEST_IMAGE_BYTES}",
                    )
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                if key in _ARRAYS or key.endswith(("_m", "_eV", "_count")):
                    arrays[key] = stored[key]
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
    except ScanError:
        raise
    except ValueError as error:  # a pickle, or a header that lies
        raise ScanError(
            path, "file", f"no plain arrays ({error})", "arrays as numpy.savez writes them"
        ) from error

    def number(key: str) -> float | None:
        value = arrays.get(key)
        if value is None:
            return None
        if value.size != 1 or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise ScanError(path, key, f"{value.dtype} {value.shape}", "one finite number")
        return float(value.reshape(-1)[0])

    product = _of_arrays(
        path,
        {name: arrays.get(name) for name in _ARRAYS},
        object_pixel_m=[number(f"object_pixel_{side}_m") for side in ("height", "width")],
        object_centre_m=[number(f"object_center_{axis}_m") for axis in "yx"],
        energy_eV=number("photon_energy_eV") or number("probe_energy_eV"),
        distance_m=number("detector_object_distance_m"),
        photons=number("probe_photon_count"),
    )
    indexes = arrays.get("probe_position_indexes")
    if indexes is not None and indexes.dtype.kind not in "iuf":
        raise ScanError(path, "probe_position_indexes", f"type {indexes.dtype}", "numbers")
    return product, indexes


def companion(path: Path) -> Path | None:
    """The other file of a pair: `x_para.hdf5` of `x_dp.hdf5` and the other way; None where there is
    none."""
    for own, other in (("_dp", "_para"), ("_para", "_dp")):
        if path.stem.endswith(own):
            beside = path.with_name(path.stem.removesuffix(own) + other + path.suffix)
            return beside if beside.is_file() else None
    return None


def open_diffraction(file: Hdf5File, options: ScanConfig) -> Hdf5Patterns:
    """The patterns of a product: of `data.diffraction`, of the other file of the pair, or in the
    product itself."""
    if options.diffraction is not None:
        path, key = split_dataset(options.diffraction)
    else:
        beside = companion(file.path)
        path, key = beside or file.path, None
    with Hdf5File(path) as other:
        key = key or other.first(_DIFFRACTION_KEYS)
        if key is None:
            raise ScanError(
                path,
                "diffraction",
                f"only {other.names()[:12]}",
                "the patterns: --data.diffraction FILE, or FILE:/dataset",
            )
        return open_patterns(other, key, is_transposed=bool(options.transpose))


def of_positions(file: Hdf5File, patterns: Patterns, indexes: np.ndarray | None) -> Patterns:
    """The patterns that the positions are of, in their order: a product may have left some out."""
    if indexes is None:
        return patterns
    numbers = indexes.reshape(-1).astype(np.int64)
    count = patterns.shape[0]
    if (
        len(numbers) == 0
        or (numbers != indexes.reshape(-1)).any()
        or not 0 <= numbers.min() <= numbers.max() < count
    ):
        found = f"numbers from {indexes.min()} to {indexes.max()}" if len(numbers) else "no numbers"
        raise file.refused(
            "probe_position_indexes",
            found,
            f"numbers of the {count} patterns, from 0 to {count - 1}",
        )
    if np.array_equal(numbers, np.arange(count)):
        return patterns
    return SomePatterns(
        sources=[patterns], source=np.zeros(len(numbers), dtype=np.int64), number=numbers
    )


def flat_object(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    """(rows, columns) or (layers, rows, columns), whose layers multiply, to complex64 (rows,
    columns)."""
    if array.ndim not in (2, 3) or array.dtype.kind != "c":
        raise ScanError(
            path,
            key,
            f"shape {array.shape} of {array.dtype}",
            "a complex object, (layers, rows, columns)",
        )
    with np.errstate(over="ignore"):
        return (array if array.ndim == 2 else np.prod(array, axis=0)).astype(np.complex64)


def _of_arrays(
    path: Path,
    arrays: dict[str, np.ndarray | None],
    *,
    object_pixel_m: list[float | None],
    object_centre_m: list[float | None],
    energy_eV: float | None,
    distance_m: float | None,
    photons: float | None,
) -> dict[str, Any]:
    """A product without its patterns, as fields of `ScanContent`."""
    y, x, probe, stored = (
        arrays[name] for name in ("probe_position_y_m", "probe_position_x_m", "probe", "object")
    )
    if (
        y is None
        or x is None
        or y.shape != x.shape
        or y.ndim != 1
        or {x.dtype.kind, y.dtype.kind} - set("fiu")
    ):
        found = [None if one is None else (one.shape, str(one.dtype)) for one in (x, y)]
        raise ScanError(
            path,
            "probe_position_x_m, probe_position_y_m",
            f"{found}",
            "one real number a pattern each",
        )
    pixel_m, other_m = object_pixel_m
    if pixel_m and other_m and abs(pixel_m / other_m - 1) > 1e-3:
        raise ScanError(path, "pixel_height_m, pixel_width_m", object_pixel_m, "square pixels")
    object_guess = None if stored is None else flat_object(path, "object", stored)
    corner_m = None
    if object_guess is not None and pixel_m:
        # pairs without centres count from the middle of the object
        centre_m = [centre or 0.0 for centre in object_centre_m]
        corner_m = (
            centre_m[0] - object_guess.shape[0] / 2 * pixel_m,
            centre_m[1] - object_guess.shape[1] / 2 * pixel_m,
        )
    modes = None if probe is None else as_modes(path, "probe", probe)
    return {
        "path": path,
        "positions_m": np.stack([y, x], axis=1).astype(np.float64),
        "where": {
            "energy_eV": "photon_energy_eV",
            "distance_m": "detector_object_distance_m",
            "probe": "probe",
        },
        "energy_eV": energy_eV or None,
        "distance_m": distance_m or None,
        "object_pixel_m": pixel_m or None,
        "object_pixel_of": modes.shape[-1] if modes is not None and pixel_m else None,
        "probe": modes,
        "object_guess": object_guess if corner_m is not None else None,
        "object_corner_m": corner_m,
        "nphotons": photons or None,
    }


def _with_patterns(
    file: Hdf5File, product: dict[str, Any], indexes: np.ndarray | None, options: ScanConfig
) -> ScanContent:
    patterns = open_diffraction(file, options)
    files = tuple(dict.fromkeys((*file.files, patterns.path.resolve())))
    return ScanContent(
        **product, key=patterns.key, diffraction=of_positions(file, patterns, indexes), files=files
    )
