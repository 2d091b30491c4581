"""HDF5 files of no format: the configuration (`data.hdf5`) names the datasets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.arrays import as_mask, as_modes, as_object, as_positions
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File, hdf5_reader
from ptycho_dist.data.readers.hdf5_patterns import open_patterns

_METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
_NAMED = "the dataset that data.hdf5 names"


def _recognises(path: Path, options: ScanConfig) -> bool:
    return options.hdf5.diffraction is not None and h5py.is_hdf5(path)


def _read(file: Hdf5File, options: ScanConfig) -> ScanContent:
    names, is_transposed = options.hdf5, bool(options.transpose)
    assert names.diffraction is not None
    if names.positions_unit is None:
        raise file.refused("data.hdf5.positions_unit", "none", f"px, {', '.join(_METRES)}")
    positions = _positions(file, options)
    in_metres = None if names.positions_unit == "px" else positions * _METRES[names.positions_unit]
    probe, mask, stored = (
        _array(file, key, kinds) if key else None
        for key, kinds in ((names.probe, "c"), (names.mask, "biu"), (names.object, "c"))
    )
    mask = as_mask(file.path, str(names.mask), mask)
    where = {
        name: getattr(names, name) or f"nothing: no data.hdf5.{name}"
        for name in ("energy_eV", "distance_m", "detector_pixel_m")
    }
    return ScanContent(
        path=file.path,
        key=names.diffraction,
        diffraction=open_patterns(file, names.diffraction, is_transposed=is_transposed),
        measurement=None,
        positions_m=in_metres,
        positions_px=positions if in_metres is None else None,
        where={**where, "probe": names.probe or "data.hdf5.probe"},
        energy_eV=_number(file, names.energy_eV),
        distance_m=_number(file, names.distance_m),
        detector_pixel_m=_number(file, names.detector_pixel_m),
        probe=as_modes(file.path, str(names.probe), probe),
        mask=mask.T if mask is not None and is_transposed else mask,
        object_guess=as_object(file.path, str(names.object), stored),
        files=file.files,
    )


def _positions(file: Hdf5File, options: ScanConfig) -> np.ndarray:
    """Return float64 (n, 2) as (y, x), in the file's unit."""
    names = options.hdf5
    both, y, x = names.positions, names.positions_y, names.positions_x
    if both is not None and y is None and x is None:
        array = _array(file, both, "fiu")
        if array.ndim != 2 or array.shape[1] != 2:
            raise file.refused(both, f"shape {array.shape}", "(n, 2) as (y, x) = (row, column)")
        return array.astype(np.float64)
    if both is None and y is not None and x is not None:
        return as_positions(file.path, f"{y}, {x}", _array(file, y, "fiu"), _array(file, x, "fiu"))
    raise file.refused(
        "data.hdf5",
        {"positions": both, "positions_y": y, "positions_x": x},
        "either data.hdf5.positions, or data.hdf5.positions_y and data.hdf5.positions_x",
    )


def _array(file: Hdf5File, key: str, kinds: str) -> np.ndarray:
    array = file.array(key, kinds=kinds, largest_bytes=LARGEST_IMAGE_BYTES)
    if array is None:
        raise file.missing(key, _NAMED)
    return array


def _number(file: Hdf5File, key: str | None) -> float | None:
    number = file.number(key) if key else None
    if key and number is None:
        raise file.missing(key, _NAMED)
    return number


READER = replace(
    hdf5_reader(
        "datasets named by data.hdf5",
        needs="--data.hdf5.diffraction, --data.hdf5.positions (or positions_y and positions_x), "
        "--data.hdf5.positions_unit",
        recognises=lambda file: True,
        read=_read,
        accepts=("transpose", "hdf5"),
    ),
    recognises=_recognises,
)
