"""The RMS factor r, which brings measured amplitudes to the network's range.

Nothing else scales the network's input.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ptycho_dist.scale.exact_sum import ExactSum
from ptycho_dist.scale.intensity_scale import scale_to_mean_energy


def rms_factor(energy: ExactSum, pattern_size: int) -> float:
    """Return r = (N/2) / sqrt(mean sum X**2) for the energy of measured amplitudes X.

    Raises
    ------
    FailedTogether
        There is no pattern, or no light in any.
    """
    return scale_to_mean_energy(energy, Fraction(pattern_size, 2) ** 2)


def normalize(amplitude: np.ndarray, factor: float) -> np.ndarray:
    """Return X_norm = float32(r X): the product in float64, rounded once."""
    out = np.empty(amplitude.shape, np.float32)
    return np.multiply(amplitude, factor, dtype=np.float64, casting="same_kind", out=out)
