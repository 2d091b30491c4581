"""The RMS factor r, which brings measured amplitudes to the network's range. Nothing else scales
the network's input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ptycho_dist.scale.exact_sum import ExactSum, exact_energy_sum
from ptycho_dist.scale.intensity_scale import scale_to_mean_energy


@dataclass(frozen=True, kw_only=True, slots=True)
class RmsNormalization:
    """The record of a derivation.

    Attributes
    ----------
    factor
        r = (N / 2) / sqrt(mean_energy).
    mean_energy
        Mean over patterns of sum X**2, in the file's units: mean counts, where the file holds
        counts or their square root.
    num_patterns
        How many patterns were counted, over all ranks.
    """

    factor: float
    mean_energy: float
    num_patterns: int


def normalize(amplitude: np.ndarray, rms_factor: float) -> np.ndarray:
    """X_norm = float32(r * X): the product in float64, rounded once."""
    return np.multiply(
        amplitude,
        rms_factor,
        dtype=np.float64,
        casting="same_kind",
        out=np.empty(amplitude.shape, np.float32),
    )


def derive_rms_normalization(
    local_amplitudes: Iterable[np.ndarray], pattern_size: int
) -> RmsNormalization:
    """r from every rank's shard of measured amplitudes, chunks of shape (k, N, N). A collective
    where a process group is up.

    Raises
    ------
    ValueError
        There is no pattern, or no light, in any shard.
    """
    return rms_normalization(exact_energy_sum(local_amplitudes), pattern_size)


def rms_normalization(energy: ExactSum, pattern_size: int) -> RmsNormalization:
    """r from the energy of all amplitudes."""
    return RmsNormalization(
        factor=scale_to_mean_energy(energy, Fraction(pattern_size, 2) ** 2),
        mean_energy=float(energy.mean),
        num_patterns=energy.count,
    )
