"""Calibrations for tests: derived from amplitudes, or made up around an intensity scale."""

from __future__ import annotations

import numpy as np

from ptycho_dist.scale.calibration import Calibration
from ptycho_dist.scale.exact_sum import exact_energy_sum
from ptycho_dist.scale.intensity_scale import derive_intensity_scale
from ptycho_dist.scale.normalization import normalize, rms_factor


def calibration_of(amplitude: np.ndarray, nphotons: float) -> Calibration:
    """Return the calibration that measured amplitudes (n, N, N) give in one process."""
    factor = rms_factor(exact_energy_sum([amplitude]), amplitude.shape[-1])
    return Calibration.of(
        derive_intensity_scale(normalize(amplitude, factor), nphotons),
        nphotons_source="config",
        rms_factor=factor,
        pattern_size=amplitude.shape[-1],
        subset_fingerprint="0" * 64,
    )


def made_up_calibration(intensity_scale: float = 10.0, pattern_size: int = 16) -> Calibration:
    """Return a calibration of patterns with the mean energy (N/2)**2."""
    energy = (pattern_size / 2) ** 2
    return Calibration(
        intensity_scale=intensity_scale,
        nphotons=intensity_scale**2 * energy,
        nphotons_source="config",
        rms_factor=1.0,
        mean_energy=energy,
        num_patterns=1,
        pattern_size=pattern_size,
    )
