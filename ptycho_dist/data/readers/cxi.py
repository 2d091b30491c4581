"""CXI files, of the Coherent X-ray Imaging Data Bank, versions 1.3 to 1.6.

Facts from the CXI file format (cxidb.org: SI units, so energies in joules; a mask of bits, 0 where
a pixel is good) and from how cdtools and ptychodus read and write such files: data, translation and
basis vectors have several places, (3, 2) or (2, 3); `translation` moves the sample, so that the
light goes the other way over it; without basis vectors the rows of the detector run along -y and
its columns along -x (x to the left, seen along the beam), which undoes that sign; ptychodus keeps
probe, object and photon count in places of its own.
"""

from __future__ import annotations

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.geometry import photon_energy_eV
from ptycho_dist.data.readers.arrays import as_modes, as_object, object_corner_m
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File, hdf5_reader
from ptycho_dist.data.readers.hdf5_patterns import frame_of_all, open_patterns
from ptycho_dist.data.readers.pairs import open_diffraction, patterns_of_positions

_DETECTOR = "entry_1/instrument_1/detector_1"
_SOURCE = "entry_1/instrument_1/source_1"
_EXTRAS = "entry_1/ptychodus"
_DATA = ("entry_1/data_1/data", f"{_DETECTOR}/data")
_TRANSLATION = (
    "entry_1/data_1/translation",
    "entry_1/sample_1/geometry_1/translation",
    "entry_1/sample_1/geometry/translation",
    f"{_DETECTOR}/translation",
)
_PROBE = (f"{_SOURCE}/probe", f"{_SOURCE}/illumination")
_JOULES_AN_EV = 1.602176634e-19
_LARGEST_ENERGY_J = 1e-12  # 6 MeV: what is larger was not written in joules
_HAS_SIGNAL = 0x1000  # the one bit of a mask that says nothing bad of its pixel


def _recognises(file: Hdf5File) -> bool:
    return file.first((*_DATA, *_TRANSLATION)) is not None


def _read(file: Hdf5File, options: ScanConfig) -> ScanContent:
    data_key = file.first(_DATA)
    if data_key is None and options.diffraction is None:
        raise file.refused(
            _DATA[0],
            f"entry_1 with {file.names('entry_1')}",
            "the patterns; or name their file: --data.diffraction",
        )
    is_transposed = bool(options.transpose)
    patterns = (
        open_patterns(file, data_key, is_transposed=is_transposed)
        if data_key
        else open_diffraction(file.path, options)
    )
    axes, pixel_m = _axes(file)
    positions_m = _positions_m(file, axes)
    indexes_key = f"{_EXTRAS}/probe_position_indexes"
    indexes = file.array(indexes_key, kinds="iu")
    probe_key = next((key for key in _PROBE if _is_complex(file, key)), None)
    probe = file.image(probe_key) if probe_key else None
    object_guess, object_corner_m = _object(file)
    bits = frame_of_all(file, f"{_DETECTOR}/mask", is_transposed=is_transposed)
    return ScanContent(
        path=file.path,
        key=data_key or str(options.diffraction),
        diffraction=patterns_of_positions(file.path, indexes_key, patterns, indexes),
        positions_m=positions_m,
        where={
            "energy_eV": f"{_SOURCE}/energy",
            "distance_m": f"{_DETECTOR}/distance",
            "detector_pixel_m": f"{_DETECTOR}/x_pixel_size",
            "probe": probe_key or _PROBE[0],
        },
        energy_eV=_energy_eV(file),
        distance_m=_distance_m(file),
        detector_pixel_m=pixel_m,
        probe=as_modes(file.path, str(probe_key), probe),
        mask=None if bits is None else (bits == 0) | (bits == _HAS_SIGNAL),
        object_guess=object_guess,
        object_corner_m=object_corner_m,
        nphotons=file.number(f"{_EXTRAS}/probe_photon_count") or None,
        files=file.files,
    )


def _object(file: Hdf5File) -> tuple[np.ndarray | None, tuple[float, float] | None]:
    """Return the object as ptychodus writes it, and the place of its corner."""
    y_m, x_m = (file.number(f"{_EXTRAS}/object_center_{axis}_m") for axis in "yx")
    pixel_m = file.number(f"{_EXTRAS}/object_pixel_height_m")
    if y_m is None or x_m is None or not pixel_m:
        return None, None
    key = "entry_1/image_2/data"
    stored = as_object(file.path, key, file.image(key))
    return stored, None if stored is None else object_corner_m((y_m, x_m), stored, pixel_m)


def _energy_eV(file: Hdf5File) -> float | None:
    key = f"{_SOURCE}/energy"
    energy_j = file.number(key)
    if energy_j is not None:
        if energy_j > _LARGEST_ENERGY_J:
            raise file.refused(key, energy_j, "joules, as CXI has them: 8 keV is 1.28e-15")
        return energy_j / _JOULES_AN_EV
    return photon_energy_eV(file.number(f"{_SOURCE}/wavelength"))


def _distance_m(file: Hdf5File) -> float | None:
    distance_m = file.number(f"{_DETECTOR}/distance")
    if distance_m is not None:
        return abs(distance_m)
    corner = file.array(f"{_DETECTOR}/corner_position", kinds="fiu")
    return None if corner is None or corner.shape != (3,) else abs(float(corner[2]))


def _axes(file: Hdf5File) -> tuple[np.ndarray, float | None]:
    """Return the directions (2, 2) of the detector's rows and columns as (x, y), and its pixel."""
    vectors = file.array(f"{_DETECTOR}/basis_vectors", kinds="f")
    sizes = [file.number(f"{_DETECTOR}/{axis}_pixel_size") for axis in "yx"]
    if vectors is None:
        axes = np.array([[0.0, -1.0], [-1.0, 0.0]])
        lengths = [size for size in sizes if size is not None]
    else:
        if vectors.ndim == 3 and (vectors == vectors[0]).all():  # one a pattern
            vectors = vectors[0]
        vectors = vectors.T if vectors.shape == (3, 2) else vectors
        if vectors.shape != (2, 3) or not np.isfinite(vectors).all():
            raise file.refused(
                f"{_DETECTOR}/basis_vectors",
                f"shape {vectors.shape}",
                "two vectors of three numbers, the same for all patterns",
            )
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1).tolist()
        if min(lengths) == 0:
            raise file.refused(
                f"{_DETECTOR}/basis_vectors",
                "a vector of length 0",
                "the way from one pixel to the next",
            )
        axes = vectors[:, :2] / np.array(lengths)[:, None]
        # cos of 5 degrees: a detector that leans more than that is not the plane that an FFT leads
        # to.
        if np.linalg.norm(axes, axis=1).min() < 0.996 or abs(axes[0] @ axes[1]) > 0.087:
            raise file.refused(
                f"{_DETECTOR}/basis_vectors",
                vectors.tolist(),
                "rows and columns at right angles, across the beam",
            )
    if lengths and max(lengths) > 1.001 * min(lengths):
        raise file.refused(f"{_DETECTOR}/x_pixel_size, y_pixel_size", lengths, "square pixels")
    return axes, lengths[0] if lengths else None


def _positions_m(file: Hdf5File, axes: np.ndarray) -> np.ndarray:
    """Return where the light was on the object, along the detector's rows and columns."""
    key = file.first(_TRANSLATION)
    translation = file.array(key, kinds="fiu") if key else None
    if key is None or translation is None:
        raise file.refused(
            _TRANSLATION[1],
            f"entry_1 with {file.names('entry_1')}",
            "where the sample was, (n, 3), metres",
        )
    if translation.ndim != 2 or translation.shape[1] not in (2, 3):
        raise file.refused(key, f"shape {translation.shape}", "(x, y, z) of each pattern, (n, 3)")
    return -(translation[:, :2].astype(np.float64) @ axes.T)


def _is_complex(file: Hdf5File, key: str) -> bool:
    dataset = file.dataset(key)
    return dataset is not None and dataset.dtype.kind == "c"


READER = hdf5_reader(
    "CXI",
    needs="entry_1 with data_1/data and data_1/translation (or instrument_1/detector_1/data and "
    "sample_1/geometry_1/translation)",
    recognises=_recognises,
    read=_read,
)
