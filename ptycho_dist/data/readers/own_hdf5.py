"""HDF5 files that `data.hdf5_writer` wrote, which documents the layout."""

from __future__ import annotations

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.hdf5_writer import FORMAT, VERSION
from ptycho_dist.data.readers.arrays import as_mask, as_modes, as_object
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File, hdf5_reader
from ptycho_dist.data.readers.hdf5_patterns import open_patterns


def _recognises(file: Hdf5File) -> bool:
    return _text(file, "format") == FORMAT


def _read(file: Hdf5File, options: ScanConfig) -> ScanContent:
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
        raise file.refused(
            "positions",
            f"shape {None if positions is None else positions.shape}",
            f"({diffraction.num_patterns}, 2): (y, x) of each pattern, pixels of the object",
        )
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
        probe=as_modes(file.path, "probe", file.image("probe")),
        mask=as_mask(file.path, "mask", file.array("mask", kinds="biu")),
        object_guess=as_object(file.path, "object", file.image("object")),
        nphotons=file.attribute("/", "nphotons"),
        files=file.files,
    )


def _text(file: Hdf5File, name: str) -> str | None:
    value = file.root.attrs.get(name)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


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


READER = hdf5_reader(
    "our own",
    needs=f'the attribute format = "{FORMAT}", as ptycho-inspect --convert writes it',
    recognises=_recognises,
    read=_read,
    accepts=(),
)
