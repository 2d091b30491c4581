"""A plain ePIE with a known probe, in NumPy alone: the baseline to compare networks and refinements
with.

Maiden & Rodenburg 2009, doi:10.1016/j.ultramic.2009.05.012, equation 6, without the update of the
probe.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import fft


def epie(
    amplitude: np.ndarray,
    positions_px: np.ndarray,
    probe: np.ndarray,
    *,
    step_size: float = 1.0,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Reconstruct from an empty object; each `next` is one iteration, which visits every pattern
    once, in random order.

    Parameters
    ----------
    amplitude
        float32 (n, N, N), sqrt(counts), zero frequency at [N // 2, N // 2].
    positions_px
        float64 (n, 2) as (y, x): patch centres. What is left below a pixel moves the probe.
    probe
        complex64 (N, N), in any units: it is given the mean energy of the patterns, so that a
        transparent object has amplitude 1.
    step_size
        Called alpha in the paper.
    seed
        Of the order of the patterns.

    Yields ------ The object, complex64 (H, W), on the smallest canvas that covers the patches. The
    next iteration changes it in place.
    """
    size = probe.shape[-1]
    measured = fft.ifftshift(amplitude, axes=(-2, -1))
    probe = probe * np.sqrt(
        np.sum(measured.astype(np.float64) ** 2) / len(measured) / np.sum(np.abs(probe) ** 2)
    )
    whole_px = np.floor(positions_px + 0.5).astype(int)
    shifts = np.exp(-2j * np.pi * (positions_px - whole_px)[:, :, None] * fft.fftfreq(size))
    probes = fft.ifft2(fft.fft2(probe) * shifts[:, 0, :, None] * shifts[:, 1, None, :]).astype(
        np.complex64
    )
    updates = step_size * probes.conj() / np.max(np.abs(probes) ** 2, axis=(1, 2), keepdims=True)
    corners = whole_px - whole_px.min(axis=0)
    object_ = np.ones(corners.max(axis=0) + size, np.complex64)
    random = np.random.default_rng(seed)
    while True:
        for pattern in random.permutation(len(measured)):
            y, x = corners[pattern]
            patch = object_[y : y + size, x : x + size]
            exit_wave = probes[pattern] * patch
            far_field = fft.fft2(exit_wave, norm="ortho")
            magnitude = np.abs(far_field)
            far_field *= measured[pattern] / np.maximum(magnitude, 1e-6)
            patch += updates[pattern] * (fft.ifft2(far_field, norm="ortho") - exit_wave)
        yield object_
