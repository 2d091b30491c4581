"""Write PtychoPINN's NPZ, uncompressed: its users and ours exchange files, and patterns are read in
place."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ptycho_dist.atomic_file import replacing
from ptycho_dist.data.pieces import stored_pieces
from ptycho_dist.data.scan import Scan, ScanError


def write_npz_scan(
    path: str | Path,
    *,
    diffraction: ArrayLike,
    positions_px: ArrayLike,
    probe: ArrayLike,
    transmission: ArrayLike,
    nphotons: float,
    settings: Mapping[str, Any],
) -> None:
    """Write a simulated scan, whole or not at all.

    Parameters
    ----------
    path
        Name of the file, which ends in `.npz`; its directory is made if missing.
    diffraction
        (n, N, N): amplitudes, sqrt(counts), DC at [N//2, N//2]. Stored as float32 `diffraction`.
    positions_px
        (n, 2): (y, x) of the patch centres in the object's pixels. Stored as float64 `ycoords`,
        `xcoords`, and again as their `_start`.
    probe
        (N, N) or (modes, N, N), in sqrt(photons). Stored as complex64 `probeGuess`, (N, N) where
        there is one mode.
    transmission
        (rows, columns): the object. Stored as complex64 `objectGuess`.
    nphotons
        Mean photons per pattern, in `_metadata` under `physics_parameters`.
    settings
        Settings of the simulation, as JSON can write them, in `_metadata` under `simulation`.

    Raises
    ------
    ValueError
        The arrays don't belong together, hold NaN or infinite values, or `path` doesn't end in
        `.npz`.
    OSError
        The file can't be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"scan file: {path} ends in {path.suffix!r}, expected .npz")
    stored = np.asarray(transmission).astype(np.complex64)
    if stored.ndim != 2:
        raise ScanError(path, "object", f"shape {stored.shape}", "(rows, columns)")
    modes = np.asarray(probe).astype(np.complex64)
    amplitude = np.asarray(diffraction).astype(np.float32, copy=False)
    scan = Scan(
        path=path,
        key="diffraction",
        diffraction=amplitude,
        measurement="amplitude",
        positions_px=np.array(positions_px, dtype=np.float64),
        probe=modes[None] if modes.ndim == 2 else modes,
        object_guess=stored,
        nphotons=float(nphotons),
        fingerprint="",
    )
    for key, array in (("diffraction", amplitude), ("object", stored)):
        if not np.isfinite(array).all():
            raise ScanError(path, key, "NaN or infinite values", "finite ones")
    metadata = {
        "physics_parameters": {"nphotons": scan.nphotons},
        "measurement": scan.measurement,
        "software": _software(),
        "simulation": dict(settings),
    }
    with replacing(path) as temporary:
        _write(scan, temporary, json.dumps(metadata, allow_nan=False))


def write_npz(scan: Scan, path: Path) -> None:
    """Write a scan that was read, in pieces, in its own type. The patterns are not looked at: the
    copy has the faults of the original. A scan without a probe has a `probeGuess` of no mode."""
    metadata: dict[str, Any] = {"measurement": scan.measurement, "software": _software()}
    if scan.nphotons is not None:
        metadata["physics_parameters"] = {"nphotons": scan.nphotons}
    if scan.geometry is not None:
        metadata["geometry"] = asdict(scan.geometry)
    if scan.origin_m is not None:
        metadata["origin_m"] = scan.origin_m
    _write(scan, path, json.dumps(metadata))


def _software() -> str:
    return f"ptycho_dist {version('ptycho_dist')}"


def _write(scan: Scan, path: Path, metadata: str) -> None:
    rows, columns = scan.positions_px.T
    arrays = {
        "xcoords": columns,
        "ycoords": rows,
        # PtychoPINN's planned positions: the same here
        "xcoords_start": columns,
        "ycoords_start": rows,
        "scan_index": np.zeros(len(rows), dtype=np.int64),
        "probeGuess": scan.probe[0] if len(scan.probe) == 1 else scan.probe,
        "objectGuess": scan.object_guess,
        "mask": scan.mask,
        # text, not an object array: that would be a pickle, which no careful reader opens
        "_metadata": np.array(metadata),
    }
    header = {
        "descr": np.lib.format.dtype_to_descr(scan.diffraction.dtype),
        "fortran_order": False,
        "shape": scan.diffraction.shape,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("diffraction.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for _, patterns in stored_pieces(scan):
                stream.write(patterns.data.cast("B"))
        for name, array in arrays.items():
            if array is not None:
                with archive.open(f"{name}.npy", "w") as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)
