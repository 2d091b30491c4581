"""Write a scan as PtychoPINN's NPZ, so that its users and ours can exchange files, and patterns can
be read in place."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.atomic_file import replacing
from ptycho_dist.data.pieces import COPIED_PIXELS, pieces
from ptycho_dist.data.scan import Scan


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
    """Write a simulated scan to one uncompressed `.npz` (which is read in place), whole or not at
    all.

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
        Mean photons a pattern; stands in `_metadata` under `physics_parameters`.
    settings
        What the simulation was told, as JSON can write it; stands in `_metadata` under
        `simulation`.

    Raises
    ------
    ValueError
        The arrays don't belong together, hold values that are not finite, or `path` doesn't end in
        `.npz`.
    OSError
        The file can't be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"scan file: {path} ends in {path.suffix!r}, expected .npz")
    arrays = _arrays(
        np.asarray(diffraction),
        np.asarray(positions_px),
        np.asarray(probe),
        np.asarray(transmission),
    )
    described = {
        "physics_parameters": {"nphotons": float(nphotons)},
        "measurement": "amplitude",
        "software": f"ptycho_dist {version('ptycho_dist')}",
        "simulation": dict(settings),
    }
    # A str array, not an object array: that would be a pickle, which no careful reader opens.
    arrays["_metadata"] = np.array(json.dumps(described, allow_nan=False))
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle


def rewrite_scan(scan: Scan, path: Path) -> None:
    """Write a scan that was read to an NPZ file that needs no unpacking: the patterns uncompressed,
    one after the other, in their own type.

    They are read and written in pieces, in their order. What they hold is not looked at, so the
    copy has the faults of the original. What `_metadata` says, `measurement`,
    `physics_parameters.nphotons`, `geometry` and `origin_m`, is there as far as the scan has it. A
    scan without a probe has a `probeGuess` of no mode.
    """
    shape, dtype = scan.diffraction.shape, scan.diffraction.dtype
    rows, columns = scan.positions_px.T
    metadata: dict[str, Any] = {
        "measurement": scan.measurement,
        "software": f"ptycho_dist {version('ptycho_dist')}",
    }
    if scan.nphotons is not None:
        metadata["physics_parameters"] = {"nphotons": scan.nphotons}
    if scan.geometry is not None:
        metadata["geometry"] = asdict(scan.geometry)
    if scan.origin_m is not None:
        metadata["origin_m"] = scan.origin_m
    arrays = {
        **_coordinates(rows, columns),
        "probeGuess": scan.probe[0] if len(scan.probe) == 1 else scan.probe,
        "_metadata": np.array(json.dumps(metadata)),
    }
    if scan.object_guess is not None:
        arrays["objectGuess"] = scan.object_guess
    if scan.mask is not None:
        arrays["mask"] = scan.mask
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("diffraction.npy", "w", force_zip64=True) as stream:
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(stream, header)
            for patterns in pieces(
                np.arange(shape[0]), shape[-1], COPIED_PIXELS, f"rewriting {scan.path.name}"
            ):
                stream.write(
                    np.ascontiguousarray(scan.diffraction[patterns], dtype=dtype).data.cast("B")
                )
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _arrays(
    diffraction: NDArray, positions_px: NDArray, probe: NDArray, transmission: NDArray
) -> dict[str, NDArray]:
    if (
        diffraction.ndim != 3
        or diffraction.shape[1] != diffraction.shape[2]
        or len(diffraction) == 0
    ):
        raise ValueError(
            f"scan file: diffraction has shape {diffraction.shape}, expected (n, N, N) with n of "
            "at least 1"
        )
    count, size = diffraction.shape[:2]
    if positions_px.shape != (count, 2):
        raise ValueError(
            f"scan file: positions have shape {positions_px.shape}, expected ({count}, 2) for "
            f"{count} patterns"
        )
    if probe.ndim not in (2, 3) or probe.shape[-2:] != (size, size) or len(probe) == 0:
        raise ValueError(
            f"scan file: probe has shape {probe.shape}, expected ({size}, {size}) or (modes, "
            f"{size}, {size})"
        )
    if transmission.ndim != 2:
        raise ValueError(
            f"scan file: object has shape {transmission.shape}, expected (rows, columns)"
        )
    arrays = {
        "diffraction": diffraction.astype(np.float32, copy=False),
        **_coordinates(*np.array(positions_px.T, dtype=np.float64)),
        "probeGuess": (probe[0] if probe.shape[:-2] == (1,) else probe).astype(np.complex64),
        "objectGuess": transmission.astype(np.complex64),
    }
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"scan file: {name} holds values that are not finite")
    return arrays


def _coordinates(rows: NDArray, columns: NDArray) -> dict[str, NDArray]:
    # PtychoPINN's files name the planned positions too; here there is one answer, and nothing to
    # tell apart.
    return {
        "xcoords": columns,
        "ycoords": rows,
        "xcoords_start": columns,
        "ycoords_start": rows,
        "scan_index": np.zeros(len(rows), dtype=np.int64),
    }
