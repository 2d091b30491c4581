"""Arrays as files hold them, checked and brought into the form that a `Scan` has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ptycho_dist.data.scan import ScanError


def as_complex64(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the scan refuses infinity
        return array.astype(np.complex64)


def modes_first(path: Path, key: str, probe: np.ndarray) -> np.ndarray:
    """Return a probe (N, N), (N, N, 1), (modes, N, N), or (variations, modes, N, N), whose first
    variation is the mean probe, as (modes, N, N)."""
    if probe.ndim == 3 and probe.shape[2] == 1:
        probe = probe[..., 0]
    if probe.ndim == 4:
        probe = probe[0]
    if probe.ndim not in (2, 3) or probe.shape[-1] != probe.shape[-2]:
        found = f"shape {probe.shape} of {probe.dtype}"
        raise ScanError(path, key, found, "a complex probe, (N, N) or (modes, N, N)")
    return probe.reshape(-1, *probe.shape[-2:])


def as_modes(path: Path, key: str, probe: np.ndarray | None) -> np.ndarray | None:
    """Return a probe as complex64 (modes, N, N)."""
    return None if probe is None else as_complex64(modes_first(path, key, probe))


def as_mask(path: Path, key: str, mask: np.ndarray | None) -> np.ndarray | None:
    """Return a mask of booleans, or of 0 at masked pixels and 1 elsewhere, as bool (rows,
    columns)."""
    if mask is None:
        return None
    if mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
        found = f"shape {mask.shape} of {mask.dtype}, values {np.unique(mask)[:5].tolist()}"
        raise ScanError(
            path, key, found, "(rows, columns) of 1 where a pixel counts and 0 where not"
        )
    return mask.astype(bool)


def as_object(path: Path, key: str, array: np.ndarray | None) -> np.ndarray | None:
    """Return an object (rows, columns), or (layers, rows, columns) whose layers multiply, as
    complex64 (rows, columns)."""
    if array is None:
        return None
    if array.ndim not in (2, 3) or array.dtype.kind != "c":
        found = f"shape {array.shape} of {array.dtype}"
        raise ScanError(path, key, found, "a complex object, (layers, rows, columns)")
    with np.errstate(over="ignore"):
        return as_complex64(array if array.ndim == 2 else np.prod(array, axis=0))


def object_corner_m(
    centre_m: tuple[float, float], stored: np.ndarray, pixel_m: float
) -> tuple[float, float]:
    """Return the place (y, x) of an object's pixel [0, 0] as ptychodus counts: half the extent
    before the centre."""
    (y, x), (rows, columns) = centre_m, stored.shape
    return y - rows / 2 * pixel_m, x - columns / 2 * pixel_m


def as_positions(path: Path, keys: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return two arrays of coordinates as float64 (n, 2); `keys` names y and x."""
    if y.size != x.size:
        found = f"{y.size} and {x.size} values"
        raise ScanError(path, keys, found, "as many of one as of the other")
    return np.stack([y.reshape(-1), x.reshape(-1)], axis=1).astype(np.float64)
