"""Fourier ring correlation: the spatial frequencies up to which two images agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

TAPER_FRACTION = 0.25
"""Width of the edge that is faded out, as a fraction of the shorter side."""

RINGS_BELOW = 3
"""Rings below a threshold that end the resolution. One may fall below by chance, and a scan
determines the longest periods, a few waves across the image, worst."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FourierRingCorrelation:
    """A curve and the threshold that goes with it.

    Attributes
    ----------
    frequency_cycles_per_px : ndarray, float64, (rings,)
        Up to 0.5, the Nyquist frequency. Zero frequency is left out.
    correlation : ndarray, float64, (rings,)
        -1 to 1; 0 in a ring where either image has nothing.
    half_bit : ndarray, float64, (rings,)
        The 1/2-bit threshold.
    """

    frequency_cycles_per_px: NDArray[np.float64]
    correlation: NDArray[np.float64]
    half_bit: NDArray[np.float64]

    def resolution_px(self, threshold: float | NDArray[np.float64]) -> float:
        """Return the full period, pixels, at which the curve falls below a threshold and stays
        there for `RINGS_BELOW`; linear between rings.

        It is 2, the shortest period, if the curve never does, and infinite if it starts so: the
        images share nothing.
        """
        above = self.correlation - threshold
        # Nothing is known beyond the last ring: a run up to the end counts, however short.
        below = np.append(above < 0, np.ones(RINGS_BELOW - 1, dtype=bool))
        run_starts = np.flatnonzero(
            np.lib.stride_tricks.sliding_window_view(below, RINGS_BELOW).all(axis=1)
        )
        if len(run_starts) == 0:
            return 2.0
        ring = run_starts[0]
        if ring == 0:
            return np.inf
        frequency = np.interp(
            0, above[[ring, ring - 1]], self.frequency_cycles_per_px[[ring, ring - 1]]
        )
        return float(1 / frequency)


def fourier_ring_correlation(
    image: NDArray, reference: NDArray, mask: NDArray[np.bool_]
) -> FourierRingCorrelation:
    """Return the correlation of two images in each ring of their Fourier transforms, ``Re sum F G*
    / sqrt(sum |F|^2 sum |G|^2)``.

    The mean is subtracted and both are faded out towards the edge of the region, which would be a
    detail that they share. The 1/2-bit threshold (van Heel and Schatz, J. Struct. Biol. 151, 250,
    2005) is for two images with equal noise. For a reference without noise it is strict, and 0.5 is
    usual. It depends on the number of independent values in a ring: half of them for real images,
    whose transforms are symmetric, times what the fading leaves, ``(mean w^2)^2 / mean w^4``.

    Parameters
    ----------
    image, reference : ndarray, real or complex, (H, W)
        Aligned.
    mask : ndarray, bool, (H, W)
        Pixels to look at; the others may hold anything.
    """
    shape = mask.shape
    inside_px = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    taper = np.sin(np.pi / 2 * np.minimum(inside_px / max(TAPER_FRACTION * min(shape), 1), 1)) ** 2
    spectra = []
    for values in (image, reference):
        values = np.where(mask, values, 0)
        spectra.append(fft.fft2(taper * (values - (taper * values).sum() / taper.sum())))

    frequency = np.hypot(fft.fftfreq(shape[0])[:, None], fft.fftfreq(shape[1]))
    ring = np.rint(frequency * min(shape)).astype(np.int64).ravel()
    rings = slice(1, min(shape) // 2 + 1)

    def over_rings(values: NDArray[np.floating]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(ring, weights=values.ravel())[rings].astype(
            np.float64
        )
        return sums

    cross = over_rings((spectra[0] * spectra[1].conj()).real)
    energies = over_rings(np.abs(spectra[0]) ** 2) * over_rings(np.abs(spectra[1]) ** 2)
    is_real = np.isrealobj(image) and np.isrealobj(reference)
    left_by_taper = np.mean(taper**2) ** 2 / np.mean(taper**4)
    independent = over_rings(np.ones(shape)) * left_by_taper * (0.5 if is_real else 1.0)
    root = np.sqrt(np.maximum(independent, 1.0))
    return FourierRingCorrelation(
        frequency_cycles_per_px=np.arange(rings.start, rings.stop) / min(shape),
        correlation=np.divide(
            cross, np.sqrt(energies), out=np.zeros_like(cross), where=energies > 0
        ),
        half_bit=(0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root),
    )
