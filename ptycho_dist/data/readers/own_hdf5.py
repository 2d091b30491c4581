"""HDF5 files that `data.hdf5_writer` wrote; the layout stands there."""

from __future__ import annotations

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.hdf5_writer import FORMAT, VERSION
from ptycho_dist.data.readers.array_file import as_mask, as_modes
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File
from ptycho_dist.data.readers.hdf5_patterns import open_patterns
from ptycho_dist.data.readers.ptychodus import flat_object

NEEDS = f'our own: the attribute format = "{FORMAT}", as ptycho-inspect --convert writes it'


def is_own(file: Hdf5File) -> bool:
    return _text(file, "format") == FORMAT


def read_own(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read everything but the patterns."""
    if options.transpose is not None:
        raise file.refused(
            "format", FORMAT, "another one for data.transpose: this one has rows before columns"
        )
    version = file.attribute("/", "version")
    if version != VERSION:
        raise file.refused(
            "version",
            version,
            f"{VERSION}: written by another release of ptycho_dist, which can read it",
        )
    measurement = _text(file, "measurement")
    if measurement not in ("amplitude", "counts"):
        raise file.refused("measurement", repr(measurement), "amplitude or counts")
    diffraction = open_patterns(file, "diffraction")
    positions = file.array("positions", kinds="f")
    if positions is None or positions.shape != (diffraction.num_patterns, 2):
        found = None if positions is None else positions.shape
        raise file.refused(
            "positions",
            f"shape {found}",
            f"({diffraction.num_patterns}, 2): (y, x) of each pattern, pixels of the object",
        )
    probe, stored = (
        file.array(key, kinds="c", largest_bytes=LARGEST_IMAGE_BYTES) for key in ("probe", "object")
    )
    mask = file.array("mask", kinds="biu")
    return ScanContent(
        path=file.path,
        key="diffraction",
        diffraction=diffraction,
        measurement=measurement,  # type: ignore[arg-type]  # one of the two, as was just seen
        positions_px=positions.astype(np.float64),
        origin_m=_origin_m(file),
        energy_eV=file.number("energy_eV"),
        distance_m=file.number("distance_m"),
        detector_pixel_m=file.number("detector_pixel_m"),
        object_pixel_of=diffraction.shape[1],
        probe=None if probe is None else as_modes(file.path, "probe", probe),
        mask=None if mask is None else as_mask(file.path, "mask", mask),
        object_guess=None if stored is None else flat_object(file.path, "object", stored),
        nphotons=file.attribute("/", "nphotons"),
        files=file.files,
    )


def _text(file: Hdf5File, name: str) -> str | None:
    value = file.root.attrs.get(name)
    return (
        value.decode(errors="replace")
        if isinstance(value, bytes)
        else value
        if isinstance(value, str)
        else None
    )


def _origin_m(file: Hdf5File) -> tuple[float, float] | None:
    dataset = file.dataset("positions")
    if dataset is None or "origin_m" not in dataset.attrs:
        return None
    origin = np.asarray(dataset.attrs["origin_m"])
    if origin.shape != (2,) or origin.dtype.kind != "f" or not np.isfinite(origin).all():
        raise file.refused(
            "positions origin_m", origin.tolist(), "(y, x) in metres, two finite numbers"
        )
    return float(origin[0]), float(origin[1])
