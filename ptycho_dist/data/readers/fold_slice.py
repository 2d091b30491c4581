"""The HDF5 files of PtychoShelves and fold_slice: `dp`, `ppX`, `ppY` in one file, or in the pair
`x_dp.hdf5`, `x_para.hdf5`.

Facts from fold_slice's position and data readers, from ptychodus' readers of them, and from scripts
of the APS that write them: `dp` intensities; `ppX` (along columns) and `ppY` (along rows) in
metres, negated twice on their way into fold_slice, so that they grow with the object's columns and
rows; `energy` in keV, `lambda` in metres, `detector_distance` in metres, `dx` the pixel of the
object in the unit of ppX; `det_pixel_mask`, 0 at masked pixels. Python writes `dp` as (n, rows,
columns), MATLAB, whose first axis varies fastest, as (n, columns, rows): its .mat files (v7.3) bear
a header that says so; its plain HDF5 files do not, and need `data.transpose`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.geometry import photon_energy_eV
from ptycho_dist.data.readers.arrays import as_mask, as_modes, as_positions
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File, hdf5_reader
from ptycho_dist.data.readers.hdf5_patterns import open_patterns
from ptycho_dist.data.readers.pairs import companion

T = TypeVar("T")


def _recognises(file: Hdf5File) -> bool:
    beside = companion(file.path)
    names = set(file.names())
    if beside is not None and not {"dp", "ppX"} <= names:
        with Hdf5File(beside) as other:
            names |= set(other.names())
    return {"dp", "ppX", "ppY"} <= names


def _read(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read one file or a pair, whichever of it was named."""
    beside = companion(file.path)
    if beside is None or {"dp", "ppX"} <= set(file.names()):
        return _read_files([file], file, file, options)
    with Hdf5File(beside) as other:
        patterns, positions = (file, other) if file.has("dp") else (other, file)
        return _read_files([file, other], patterns, positions, options)


def _read_files(
    files: Sequence[Hdf5File], patterns: Hdf5File, positions: Hdf5File, options: ScanConfig
) -> ScanContent:
    is_transposed = _is_of_matlab(patterns) if options.transpose is None else options.transpose

    def number(*keys: str) -> float | None:
        return _first(files, keys, lambda file, key: file.number(key))

    path = files[0].path
    diffraction = open_patterns(patterns, "dp", is_transposed=is_transposed)
    positions_m = as_positions(
        path, "ppY, ppX", _column(positions, "ppY"), _column(positions, "ppX")
    )
    energy_keV, wavelength_m = number("energy"), number("lambda")
    mask = as_mask(
        path,
        "det_pixel_mask",
        _first(files, ["det_pixel_mask"], lambda file, key: file.array(key, kinds="biufc")),
    )
    probe = as_modes(path, "probe", _first(files, ["probe"], lambda file, key: file.image(key)))
    if is_transposed:
        mask, probe = (None if one is None else one.swapaxes(-1, -2) for one in (mask, probe))
    return ScanContent(
        path=path,
        key="dp",
        diffraction=diffraction,
        positions_m=positions_m,
        where={
            "energy_eV": "energy, lambda",
            "distance_m": "detector_distance, distance",
            "detector_pixel_m": "detector_pixel_size",
        },
        # 0 is written where the energy is not known
        energy_eV=1e3 * energy_keV if energy_keV else photon_energy_eV(wavelength_m),
        distance_m=number("detector_distance", "distance"),
        detector_pixel_m=number("detector_pixel_size"),
        object_pixel_m=number("dx"),
        probe=probe,
        mask=mask,
        files=tuple(dict.fromkeys(path for file in files for path in file.files)),
    )


def _first(
    files: Sequence[Hdf5File], keys: Sequence[str], read: Callable[[Hdf5File, str], T | None]
) -> T | None:
    """Return what the first of the keys, in the first file that has it, holds."""
    found = (read(file, key) for key in keys for file in files)
    return next((value for value in found if value is not None), None)


def _is_of_matlab(file: Hdf5File) -> bool:
    with file.path.open("rb") as stream:
        return stream.read(20).startswith(b"MATLAB 7.3 MAT-file")


def _column(file: Hdf5File, key: str) -> np.ndarray:
    array = file.array(key, kinds="fiu")
    if array is None:
        raise file.refused(key, f"only {file.names()[:12]}", "positions, one number per pattern")
    return array


READER = hdf5_reader(
    "fold_slice",
    needs="dp, ppX and ppY, in one file or in x_dp.hdf5 and x_para.hdf5",
    recognises=_recognises,
    read=_read,
)
