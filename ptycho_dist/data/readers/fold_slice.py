"""The HDF5 files of PtychoShelves and fold_slice: `dp`, `ppX`, `ppY` in one file, or in the pair
`x_dp.hdf5`, `x_para.hdf5`.

Facts from fold_slice's position and data readers, from ptychodus' readers of them, and from scripts
of the APS that write them: `dp` intensities; `ppX` (along columns) and `ppY` (along rows) in
metres, negated twice on their way into fold_slice, so that they grow with the object's columns and
rows; `energy` in keV, `lambda` in metres, `detector_distance` in metres, `dx` the pixel of the
object in the unit of ppX; `det_pixel_mask`, 1 where a pixel counts. Python writes `dp` as (n, rows,
columns), MATLAB, whose first axis varies fastest, as (n, columns, rows): its .mat files (v7.3) bear
a header that says so, its plain HDF5 files do not, and `data.transpose` must.
"""

from __future__ import annotations

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.geometry import PLANCK_TIMES_LIGHT_EV_M
from ptycho_dist.data.readers.array_file import as_mask, as_modes
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File
from ptycho_dist.data.readers.hdf5_patterns import open_patterns
from ptycho_dist.data.readers.ptychodus import companion

NEEDS = "fold_slice: dp, ppX and ppY, in one file or in x_dp.hdf5 and x_para.hdf5"


def is_fold_slice(file: Hdf5File) -> bool:
    beside = companion(file.path)
    names = set(file.names())
    if beside is not None and not {"dp", "ppX"} <= names:
        with Hdf5File(beside) as other:
            names |= set(other.names())
    return {"dp", "ppX", "ppY"} <= names


def read_fold_slice(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read one file or a pair, whichever of it was named."""
    beside = companion(file.path)
    if beside is None or {"dp", "ppX"} <= set(file.names()):
        return _read(file, file, file, options)
    with Hdf5File(beside) as other:
        patterns, positions = (file, other) if file.has("dp") else (other, file)
        return _read(file, patterns, positions, options)


def _read(
    named: Hdf5File, patterns: Hdf5File, positions: Hdf5File, options: ScanConfig
) -> ScanContent:
    is_transposed = _is_of_matlab(patterns) if options.transpose is None else options.transpose
    diffraction = open_patterns(patterns, "dp", is_transposed=is_transposed)
    y, x = _column(positions, "ppY"), _column(positions, "ppX")
    if len(y) != len(x):
        raise named.refused(
            "ppX, ppY", f"{len(x)} and {len(y)} values", "as many of one as of the other"
        )
    files = dict.fromkeys((named, patterns, positions))

    def number(*keys: str) -> float | None:
        """Of whichever file has it; 0 is said of what is not known."""
        return next((value for key in keys for file in files if (value := file.number(key))), None)

    energy_keV, wavelength_m = number("energy"), number("lambda")
    mask = next(
        (
            found
            for file in files
            if (found := file.array("det_pixel_mask", kinds="biufc")) is not None
        ),
        None,
    )
    probe = next(
        (
            found
            for file in files
            if (found := file.array("probe", kinds="c", largest_bytes=LARGEST_IMAGE_BYTES))
            is not None
        ),
        None,
    )
    energy_eV = (
        1e3 * energy_keV
        if energy_keV
        else PLANCK_TIMES_LIGHT_EV_M / wavelength_m
        if wavelength_m
        else None
    )
    return ScanContent(
        path=named.path,
        key="dp",
        diffraction=diffraction,
        positions_m=np.stack([y, x], axis=1),
        where={
            "energy_eV": "energy, lambda",
            "distance_m": "detector_distance, distance",
            "detector_pixel_m": "detector_pixel_size",
        },
        energy_eV=energy_eV,
        distance_m=number("detector_distance", "distance"),
        detector_pixel_m=number("detector_pixel_size"),
        object_pixel_m=number("dx"),
        probe=None
        if probe is None
        else as_modes(named.path, "probe", probe.swapaxes(-1, -2) if is_transposed else probe),
        mask=None
        if mask is None
        else as_mask(named.path, "det_pixel_mask", mask.T if is_transposed else mask),
        files=tuple(dict.fromkeys(path for file in files for path in file.files)),
    )


def _is_of_matlab(file: Hdf5File) -> bool:
    with file.path.open("rb") as stream:
        return stream.read(20).startswith(b"MATLAB 7.3 MAT-file")


def _column(file: Hdf5File, key: str) -> np.ndarray:
    array = file.array(key, kinds="fiu")
    if array is None:
        raise file.refused(key, f"only {file.names()[:12]}", "positions, one number a pattern")
    return array.reshape(-1).astype(np.float64)
