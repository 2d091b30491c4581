"""How probe, positions, object and patterns fit together: step against beam, far field against mean
pattern, object against patterns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from ptycho_dist.data.scan import Scan
from ptycho_dist.physics.patches import extract_patches
from ptycho_dist.physics.probe import whole_pixel_and_rest
from ptycho_dist.physics.propagation import diffracted_intensity

_COMPARED_PATTERNS = 24
_FEWEST_COMPARED = 8


def nearest_distances_px(positions_px: np.ndarray) -> np.ndarray:
    """Distance of each position from its nearest neighbour, (n,); none of a single position."""
    if len(positions_px) < 2:
        return np.empty(0)
    return cKDTree(positions_px).query(positions_px, k=2)[0][:, 1]


def far_field_correlation(
    probe: np.ndarray, mean_pattern: np.ndarray, mask: np.ndarray | None
) -> float:
    """Pearson's r of the amplitudes of the probe's far field and of the mean pattern: the object
    blurs one into the other.

    Parameters
    ----------
    probe
        Complex (modes, N, N), with light in it.
    mean_pattern
        (N, N) mean counts.
    mask
        Bool (N, N): pixels that are compared, or None.
    """
    one = torch.ones(probe.shape[-2:], dtype=torch.complex64)
    far_field = diffracted_intensity(one, torch.from_numpy(probe)).numpy()
    compared = np.ones(far_field.shape, dtype=bool) if mask is None else mask
    amplitudes = np.sqrt(far_field[compared]), np.sqrt(mean_pattern[compared])
    if min(np.ptp(amplitude) for amplitude in amplitudes) == 0:
        return 0.0
    return float(np.corrcoef(*amplitudes)[0, 1])


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFit:
    """How well object and probe of a file explain some of its patterns.

    Attributes
    ----------
    residual
        Sum of abs(predicted amplitude, scaled to fit - measured amplitude) over the sum of the
        measured ones.
    residual_exchanged
        The same where each pattern has another one's position: what the positions have nothing to
        do with.
    residual_turned
        The same by what was done to the positions, for the seven other orientations of the axes, as
        far as they lie on the object.
    """

    residual: float
    residual_exchanged: float
    residual_turned: dict[str, float]


def fit_object(scan: Scan) -> ObjectFit | None:
    """Compare some patterns with what object and probe predict; None where one of them is missing,
    or too few patches lie on the object."""
    if scan.object_guess is None or len(scan.probe) == 0:
        return None
    height, width = scan.object_guess.shape
    inside = np.flatnonzero(_lies_on(scan.positions_px, (height, width), scan.pattern_size))
    if len(inside) < _FEWEST_COMPARED or not np.isfinite(scan.object_guess).all():
        return None
    chosen = np.unique(inside[np.linspace(0, len(inside) - 1, _COMPARED_PATTERNS).astype(np.int64)])
    measured = scan.amplitude(chosen).astype(np.float64)
    if not measured.any():
        return None
    positions = scan.positions_px[chosen]
    turned = {}
    for words, (swap, flip_y, flip_x) in _ORIENTATIONS.items():
        other = positions[:, ::-1].copy() if swap else positions.copy()
        if flip_y:
            other[:, 0] = height - other[:, 0]
        if flip_x:
            other[:, 1] = width - other[:, 1]
        lies_on = _lies_on(other, (height, width), scan.pattern_size)
        if lies_on.sum() >= _FEWEST_COMPARED:
            turned[words] = _residual(scan, other[lies_on], measured[lies_on])
    return ObjectFit(
        residual=_residual(scan, positions, measured),
        residual_exchanged=_residual(
            scan, np.roll(positions, len(positions) // 2, axis=0), measured
        ),
        residual_turned=turned,
    )


_ORIENTATIONS = {
    "x and y exchanged": (True, False, False),
    "y reversed": (False, True, False),
    "x reversed": (False, False, True),
    "x and y reversed": (False, True, True),
    "x and y exchanged, then y reversed": (True, True, False),
    "x and y exchanged, then x reversed": (True, False, True),
    "x and y exchanged and reversed": (True, True, True),
}


def lies_on_object(scan: Scan) -> np.ndarray:
    """Whether the patch of each pattern lies wholly on the file's object: bool (n,); the scan has
    one."""
    assert scan.object_guess is not None
    return _lies_on(scan.positions_px, scan.object_guess.shape, scan.pattern_size)


def _corners(positions_px: np.ndarray, size: int) -> np.ndarray:
    return (
        whole_pixel_and_rest(torch.from_numpy(np.ascontiguousarray(positions_px)))[0].numpy()
        - size // 2
    )


def _lies_on(positions_px: np.ndarray, shape: tuple[int, ...], size: int) -> np.ndarray:
    corners = _corners(positions_px, size)
    return np.all((corners >= 0) & (corners + size <= np.array(shape)), axis=1)


def _residual(scan: Scan, positions_px: np.ndarray, measured: np.ndarray) -> float:
    assert scan.object_guess is not None
    corners = torch.from_numpy(_corners(positions_px, scan.pattern_size))
    patches = extract_patches(
        torch.from_numpy(scan.object_guess)[None], corners[None], scan.pattern_size
    )[0]
    predicted = (
        diffracted_intensity(patches, torch.from_numpy(scan.probe))
        .sqrt()
        .numpy()
        .astype(np.float64)
    )
    if scan.mask is not None:
        predicted *= scan.mask
    scale = (predicted * measured).sum() / max((predicted**2).sum(), 1e-300)
    return float(np.abs(scale * predicted - measured).sum() / measured.sum())
