"""How probe, positions, object and patterns fit together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ptycho_dist.data.scan import Scan
from ptycho_dist.physics.patches import extract_patches
from ptycho_dist.physics.probe import whole_pixel_and_rest
from ptycho_dist.physics.propagation import diffracted_intensity
from ptycho_dist.physics.simulated_probes import beam_diameter_px

_COMPARED_PATTERNS = 24
_FEWEST_COMPARED = 8


def beam_overlap(distances_px: np.ndarray, probe: np.ndarray) -> tuple[float, float]:
    """Return the mean overlap of neighbouring patterns, 1 - step / beam diameter, and the diameter
    in pixels."""
    diameter_px = beam_diameter_px(probe)
    return float(1 - distances_px.mean() / diameter_px), diameter_px


def far_field_correlation(
    probe: np.ndarray, mean_pattern: np.ndarray, mask: np.ndarray | None
) -> float:
    """Pearson's r of the amplitudes of the probe's far field and of the mean pattern: the object
    blurs one into the other.

    Parameters
    ----------
    probe
        Complex (modes, N, N), not all zero.
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
    """Fit of a file's object and probe to some of its patterns.

    Attributes
    ----------
    residual
        Sum of abs(predicted amplitude, scaled to fit - measured amplitude) over the sum of the
        measured ones.
    residual_exchanged
        The same with another pattern's position for each pattern: a baseline without information.
    residual_turned
        The same for the seven other orientations of the positions' axes, as far as the patches lie
        on the object.
    """

    residual: float
    residual_exchanged: float
    residual_turned: dict[str, float]


_ORIENTATIONS = {
    "x and y exchanged": (True, False, False),
    "y reversed": (False, True, False),
    "x reversed": (False, False, True),
    "x and y reversed": (False, True, True),
    "x and y exchanged, then y reversed": (True, True, False),
    "x and y exchanged, then x reversed": (True, False, True),
    "x and y exchanged and reversed": (True, True, True),
}


def fit_object(scan: Scan) -> ObjectFit | None:
    """Compare some patterns with the prediction from object and probe; None where one of them is
    missing, or too few patches lie on the object."""
    if scan.object_guess is None or len(scan.probe) == 0:
        return None
    inside = np.flatnonzero(lies_on_object(scan, scan.positions_px))
    if len(inside) < _FEWEST_COMPARED or not np.isfinite(scan.object_guess).all():
        return None
    chosen = np.unique(inside[np.linspace(0, len(inside) - 1, _COMPARED_PATTERNS).astype(np.int64)])
    measured = scan.amplitude(chosen).astype(np.float64)
    if not measured.any():
        return None
    positions = scan.positions_px[chosen]
    exchanged = np.roll(positions, len(positions) // 2, axis=0)
    turned = {}
    for words, (swap, *flips) in _ORIENTATIONS.items():
        other = positions[:, ::-1] if swap else positions
        other = np.where(flips, scan.object_guess.shape - other, other)
        lies_on = lies_on_object(scan, other)
        if lies_on.sum() >= _FEWEST_COMPARED:
            turned[words] = _residual(scan, other[lies_on], measured[lies_on])
    return ObjectFit(
        residual=_residual(scan, positions, measured),
        residual_exchanged=_residual(scan, exchanged, measured),
        residual_turned=turned,
    )


def lies_on_object(scan: Scan, positions_px: np.ndarray) -> np.ndarray:
    """Return bool (n,): True where a patch at that position lies wholly on the file's object."""
    assert scan.object_guess is not None
    corners = _corners(positions_px, scan.pattern_size).numpy()
    return np.all((corners >= 0) & (corners + scan.pattern_size <= scan.object_guess.shape), axis=1)


def _corners(positions_px: np.ndarray, size: int) -> torch.Tensor:
    whole_px, _ = whole_pixel_and_rest(torch.from_numpy(np.ascontiguousarray(positions_px)))
    return whole_px - size // 2


def _residual(scan: Scan, positions_px: np.ndarray, measured: np.ndarray) -> float:
    assert scan.object_guess is not None
    corners = _corners(positions_px, scan.pattern_size)
    canvas = torch.from_numpy(scan.object_guess)[None]
    patches = extract_patches(canvas, corners[None], scan.pattern_size)[0]
    intensity = diffracted_intensity(patches, torch.from_numpy(scan.probe))
    predicted = intensity.sqrt().numpy().astype(np.float64)
    if scan.mask is not None:
        predicted *= scan.mask
    scale = (predicted * measured).sum() / max((predicted**2).sum(), 1e-300)
    return float(np.abs(scale * predicted - measured).sum() / measured.sum())
