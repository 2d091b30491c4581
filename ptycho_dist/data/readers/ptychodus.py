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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.arrays import as_modes, as_object, object_corner_m
from ptycho_dist.data.readers.content import Reader, ScanContent
from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File, hdf5_reader
from ptycho_dist.data.readers.npz_file import NpzArray, read_npz_headers
from ptycho_dist.data.readers.pairs import open_diffraction, patterns_of_positions
from ptycho_dist.data.scan import ScanError

_COORDINATES = ("probe_position_y_m", "probe_position_x_m")
_INDEXES = "probe_position_indexes"
_KINDS = {
    _INDEXES: "iuf",
    **dict.fromkeys(_COORDINATES, "fiu"),
    **dict.fromkeys(("probe", "object"), "c"),
}
_NPZ_NUMBERS = (
    "object_pixel_height_m",
    "object_pixel_width_m",
    "object_center_y_m",
    "object_center_x_m",
    "photon_energy_eV",
    "probe_energy_eV",
    "detector_object_distance_m",
    "probe_photon_count",
)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A product without its patterns, as either container holds it.

    `number` returns a number by its key in an NPZ product; it and `arrays` give None for what is
    not there.
    """

    path: Path
    arrays: Mapping[str, np.ndarray | None]
    number: Callable[[str], float | None]
    files: tuple[Path, ...]

    def object(self) -> tuple[np.ndarray | None, tuple[float, float] | None]:
        """Return the object and the place of its corner; None for both where either is unknown."""
        stored = as_object(self.path, "object", self.arrays["object"])
        pixel_m = self.pixel_m()
        if stored is None or not pixel_m:
            return None, None
        # pairs without centres count from the middle of the object
        y_m, x_m = (self.number(f"object_center_{axis}_m") or 0.0 for axis in "yx")
        return stored, object_corner_m((y_m, x_m), stored, pixel_m)

    def pixel_m(self) -> float | None:
        sides = [self.number(f"object_pixel_{side}_m") for side in ("height", "width")]
        height_m, width_m = sides
        if height_m and width_m and abs(height_m / width_m - 1) > 1e-3:
            raise ScanError(self.path, "pixel_height_m, pixel_width_m", sides, "square pixels")
        return height_m or None

    def positions_m(self) -> np.ndarray:
        y, x = (self.arrays[key] for key in _COORDINATES)
        if y is None or x is None or y.shape != x.shape or y.ndim != 1:
            found = [None if one is None else (one.shape, str(one.dtype)) for one in (x, y)]
            raise ScanError(
                self.path,
                "probe_position_x_m, probe_position_y_m",
                found,
                "one real number per pattern each",
            )
        return np.stack([y, x], axis=1).astype(np.float64)

    def content(self, options: ScanConfig) -> ScanContent:
        positions_m, pixel_m = self.positions_m(), self.pixel_m()
        modes = as_modes(self.path, "probe", self.arrays["probe"])
        object_guess, corner_m = self.object()
        energy_eV = self.number("photon_energy_eV") or self.number("probe_energy_eV")
        distance_m = self.number("detector_object_distance_m")
        photons = self.number("probe_photon_count")
        patterns = open_diffraction(self.path, options)
        indexes = self.arrays[_INDEXES]
        return ScanContent(
            path=self.path,
            key=patterns.key,
            diffraction=patterns_of_positions(self.path, _INDEXES, patterns, indexes),
            positions_m=positions_m,
            where={
                "energy_eV": "photon_energy_eV",
                "distance_m": "detector_object_distance_m",
                "probe": "probe",
            },
            energy_eV=energy_eV or None,
            distance_m=distance_m or None,
            object_pixel_m=pixel_m,
            object_pixel_of=modes.shape[-1] if modes is not None and pixel_m else None,
            probe=modes,
            object_guess=object_guess,
            object_corner_m=corner_m,
            nphotons=photons or None,
            files=tuple(dict.fromkeys((*self.files, patterns.path.resolve()))),
        )


def _of_hdf5(file: Hdf5File) -> _Product:
    pixel_of = "object" if file.has("object") else "probe"

    def number(key: str) -> float | None:
        if key.startswith("object_"):
            name = key.removeprefix("object_")
            return file.attribute(pixel_of if name.startswith("pixel") else "object", name)
        return file.attribute("/", key)

    arrays = {
        key: file.array(key, kinds=kinds, largest_bytes=LARGEST_IMAGE_BYTES)
        for key, kinds in _KINDS.items()
    }
    return _Product(path=file.path, arrays=arrays, number=number, files=file.files)


def _of_npz(path: Path) -> _Product:
    found = read_npz_headers(path, [*_KINDS, *_NPZ_NUMBERS])

    def read(array: NpzArray, kinds: str) -> np.ndarray:
        # an array that unpacks to more than a thousandfold is an attack, or empty
        return array.read(kinds, min(LARGEST_IMAGE_BYTES, 1000 * array.info.compress_size))

    def number(key: str) -> float | None:
        if key not in found:
            return None
        value = read(found[key], "fiu")
        if value.size != 1 or not np.isfinite(value).all():
            raise ScanError(path, key, f"{value.dtype} {value.shape}", "one finite number")
        return float(value.reshape(-1)[0])

    arrays = {
        key: read(found[key], kinds) if key in found else None for key, kinds in _KINDS.items()
    }
    return _Product(path=path, arrays=arrays, number=number, files=(path,))


def _is_npz_product(path: Path, options: ScanConfig) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{key}.npy" for key in _COORDINATES} <= set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _read_npz(path: Path, options: ScanConfig) -> ScanContent:
    product = _of_npz(path)
    if options.diffraction is None:
        raise ScanError(
            path,
            "diffraction",
            "a product without patterns",
            "their HDF5 file: --data.diffraction FILE",
        )
    return product.content(options)


READER = hdf5_reader(
    "ptychodus",
    needs="probe_position_x_m, probe_position_y_m, probe and object, with the patterns in "
    "--data.diffraction FILE",
    recognises=lambda file: all(map(file.has, _COORDINATES)),
    read=lambda file, options: _of_hdf5(file).content(options),
    read_object=lambda file: _of_hdf5(file).object()[0],
)
NPZ_READER = Reader(
    name="NPZ, a product of ptychodus",
    needs="ptychodus: an NPZ archive with the arrays of a product",
    recognises=_is_npz_product,
    read=_read_npz,
    read_object=lambda path, options: _of_npz(path).object()[0],
)
