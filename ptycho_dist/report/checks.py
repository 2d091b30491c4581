"""Checks of arrays that the caller supplies. Each raises a ValueError that names the array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FARTHEST_PX = 1e9


class CheckedObject(NamedTuple):
    """A complex object (H, W), its valid pixels, which are finite, and the scan coordinate (y, x)
    of its first pixel."""

    field: NDArray[np.complexfloating]
    valid: NDArray[np.bool_]
    origin_px: NDArray[np.float64]


def checked_object(object_: ArrayLike, origin_px: ArrayLike, valid: ArrayLike) -> CheckedObject:
    """Return an object as arrays."""
    field, mask = complex_image("the object", object_), np.asarray(valid)
    if mask.dtype != np.bool_ or mask.shape != field.shape:
        raise ValueError(
            f"the valid mask is {mask.dtype} {mask.shape}; expected bool {field.shape}, the "
            "shape of the object"
        )
    origin = np.asarray(origin_px, dtype=np.float64)
    if origin.shape != (2,) or not np.isfinite(origin).all() or np.abs(origin).max() > _FARTHEST_PX:
        raise ValueError(
            f"origin_px is {origin.tolist()}; expected two finite numbers (y, x), pixels"
        )
    require_finite("the object, where it is valid,", field[mask])
    return CheckedObject(field, mask, origin)


def checked_positions(positions_px: ArrayLike) -> NDArray[np.float64]:
    """Return positions (n, 2), n at least 1."""
    positions = np.asarray(positions_px, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0:
        raise ValueError(
            f"positions_px has shape {positions.shape}; expected (n, 2) with n >= 1, (y, x) a row"
        )
    require_finite("positions_px", positions)
    if np.abs(positions).max() > _FARTHEST_PX:
        raise ValueError(
            f"positions_px reach {np.abs(positions).max():.3g}; expected pixels, at most "
            f"{_FARTHEST_PX:.0e}"
        )
    return positions


def complex_image(name: str, image: ArrayLike) -> NDArray[np.complexfloating]:
    """Return a complex image (H, W)."""
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype.kind != "c":
        raise ValueError(
            f"{name} is {image.dtype} {image.shape}; expected a complex array (rows, columns)"
        )
    return image


def require_finite(name: str, values: NDArray[np.number]) -> None:
    """Raise if values are NaN or infinite."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(
            f"{name} holds NaN or infinity at {bad} of {values.size} values; expected finite "
            "numbers"
        )
