"""HDF5 files of no format: the configuration (`data.hdf5`) names the datasets."""

from __future__ import annotations

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.array_file import as_mask, as_modes
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File
from ptycho_dist.data.readers.hdf5_patterns import open_patterns
from ptycho_dist.data.readers.ptychodus import flat_object

NEEDS = (
    "any other: --data.hdf5.diffraction, --data.hdf5.positions (or positions_y and "
    "positions_x), --data.hdf5.positions_unit"
)

_METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}


def read_plain_hdf5(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read the datasets that `data.hdf5` names."""
    names = options.hdf5
    assert names.diffraction is not None
    if names.positions_unit is None:
        raise file.refused("data.hdf5.positions_unit", "none", f"px, {', '.join(_METRES)}")
    positions = _positions(file, options)
    in_metres = None if names.positions_unit == "px" else positions * _METRES[names.positions_unit]
    probe, mask, stored = (
        _required(file, key, kinds) if key else None
        for key, kinds in ((names.probe, "c"), (names.mask, "biu"), (names.object, "c"))
    )
    where = {
        name: getattr(names, name) or f"nothing: no data.hdf5.{name}"
        for name in ("energy_eV", "distance_m", "detector_pixel_m")
    }
    return ScanContent(
        path=file.path,
        key=names.diffraction,
        diffraction=open_patterns(file, names.diffraction, is_transposed=bool(options.transpose)),
        measurement=None,
        positions_m=in_metres,
        positions_px=positions if in_metres is None else None,
        where={**where, "probe": names.probe or "data.hdf5.probe"},
        energy_eV=_number(file, names.energy_eV),
        distance_m=_number(file, names.distance_m),
        detector_pixel_m=_number(file, names.detector_pixel_m),
        probe=None
        if probe is None or names.probe is None
        else as_modes(file.path, names.probe, probe),
        mask=None
        if mask is None or names.mask is None
        else as_mask(file.path, names.mask, mask.T if options.transpose else mask),
        object_guess=None
        if stored is None or names.object is None
        else flat_object(file.path, names.object, stored),
        files=file.files,
    )


def _positions(file: Hdf5File, options: ScanConfig) -> np.ndarray:
    """float64 (n, 2) as (y, x), in the file's unit."""
    names = options.hdf5
    if names.positions is not None and names.positions_y is None and names.positions_x is None:
        both = _required(file, names.positions, "fiu")
        if both.ndim != 2 or both.shape[1] != 2:
            raise file.refused(
                names.positions, f"shape {both.shape}", "(n, 2) as (y, x) = (row, column)"
            )
        return both.astype(np.float64)
    if names.positions is None and names.positions_y is not None and names.positions_x is not None:
        y, x = (
            _required(file, key, "fiu").reshape(-1).astype(np.float64)
            for key in (names.positions_y, names.positions_x)
        )
        if len(y) != len(x):
            raise file.refused(
                f"{names.positions_y}, {names.positions_x}",
                f"{len(y)} and {len(x)} values",
                "as many of one as of the other",
            )
        return np.stack([y, x], axis=1)
    found = {name: getattr(names, name) for name in ("positions", "positions_y", "positions_x")}
    raise file.refused(
        "data.hdf5",
        found,
        "either data.hdf5.positions, or data.hdf5.positions_y and data.hdf5.positions_x",
    )


def _required(file: Hdf5File, key: str, kinds: str) -> np.ndarray:
    array = file.array(key, kinds=kinds, largest_bytes=LARGEST_IMAGE_BYTES)
    if array is None:
        raise file.refused(
            key,
            f"no such dataset; the file has {file.names()[:12]}",
            "the dataset that data.hdf5 names",
        )
    return array


def _number(file: Hdf5File, key: str | None) -> float | None:
    if key is None:
        return None
    number = file.number(key)
    if number is None:
        raise file.refused(
            key,
            f"no such dataset; the file has {file.names()[:12]}",
            "the dataset that data.hdf5 names",
        )
    return number
