"""Probes for synthetic scans: a disk, a defocused beam, or a given one.

Their scale is arbitrary here; the simulation sets it in photons.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

DRAWN_PROBES = ("disk", "defocused")
DISK_EDGE_SIGMA_PX = 1.0
# Relative to the radius of the lens's aperture: soft enough for faint Fresnel fringes instead of
# speckle or a long tail.
APERTURE_EDGE_SIGMA = 0.1
# The outer sixteenth of the window on every side: energy there would come back on the other side
# when the probe moves or an exit wave meets the periodic border.
FRAME_FRACTION = 1 / 16
FRAME_ENERGY_LIMIT = 5e-3


def make_probe(
    source: str | NDArray, pattern_size: int, diameter_px: float, defocus_rad: float
) -> NDArray[np.complex128]:
    """Return a probe, complex128 (modes, N, N); drawn ones are centred on [N//2, N//2].

    Parameters
    ----------
    source
        `disk`, `defocused`, or a probe (modes, N, N), real or complex.
    pattern_size
        N, pixels.
    diameter_px
        Diameter of the disk at half its amplitude, or of the area that the defocused beam
        illuminates (see `beam_diameter_px`); a given probe has its own.
    defocus_rad
        Quadratic phase at the edge of the lens's aperture; for `defocused` only.

    Raises
    ------
    ValueError
        The source is unknown, or the probe does not fit into N x N pixels.
    """
    if isinstance(source, np.ndarray):
        return _given_probe(source, pattern_size)
    if source == "disk":
        return disk_probe(pattern_size, diameter_px)[None]
    if source == "defocused":
        return defocused_probe(pattern_size, diameter_px, defocus_rad)[None]
    raise ValueError(f"probe: found {source!r}, expected 'disk' or 'defocused', or an array")


def disk_probe(pattern_size: int, diameter_px: float) -> NDArray[np.complex128]:
    """Return a flat disk (N, N) of phase zero, its edge blurred by a Gaussian of sigma 1 px."""
    distance = _radius_px(pattern_size) - diameter_px / 2
    probe = _soft_step(distance, DISK_EDGE_SIGMA_PX).astype(np.complex128)
    return _contained(probe, f"a disk of {diameter_px} px")


def defocused_probe(
    pattern_size: int, diameter_px: float, defocus_rad: float
) -> NDArray[np.complex128]:
    """Return the beam (N, N) of a lens out of focus: the Fourier transform of a round aperture with
    a quadratic phase.

    The aperture a(q) exp(i phi (q/R)^2), q in detector pixels, has the radius R that gives the
    diameter. A beam's second moment is that of its aperture's gradient (Parseval's theorem),
    `<r^2> = (N / 2 pi)^2 int |grad A|^2 / int |A|^2`, and the diameter is `D = 2 sqrt(2 <r^2>)`
    (`beam_diameter_px`). Far from focus this becomes ray optics, D / 2 = N phi / (pi R).

    Raises
    ------
    ValueError
        The aperture does not fit on the detector, or the beam not into the window.
    """
    # The moment is proportional to 1 / R^2: integrate over an aperture of radius 1, solve for R.
    q = np.linspace(0, 1 + 6 * APERTURE_EDGE_SIGMA, 1000)
    amplitude = _soft_step(q - 1, APERTURE_EDGE_SIGMA)
    squared_gradient = np.gradient(amplitude, q) ** 2 + (2 * defocus_rad * q * amplitude) ** 2
    mean_squared_gradient = np.sum(squared_gradient * q) / np.sum(amplitude**2 * q)
    aperture_radius = pattern_size / (math.pi * diameter_px) * math.sqrt(2 * mean_squared_gradient)
    asked = f"a defocused beam of {diameter_px} px with {defocus_rad} rad"
    if aperture_radius * (1 + 3 * APERTURE_EDGE_SIGMA) > pattern_size / 2:
        raise ValueError(
            f"probe: {asked} needs an aperture of radius {aperture_radius:.1f} px, more than a "
            f"detector of {pattern_size} px holds; "
            f"expected less defocus, a larger diameter or a larger pattern"
        )
    radius_px = _radius_px(pattern_size)
    aperture = _soft_step(radius_px - aperture_radius, APERTURE_EDGE_SIGMA * aperture_radius)
    lens = aperture * np.exp(1j * defocus_rad * (radius_px / aperture_radius) ** 2)
    return _contained(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(lens), norm="ortho")), asked)


def _given_probe(probe: NDArray, pattern_size: int) -> NDArray[np.complex128]:
    expected = (pattern_size, pattern_size)
    if probe.ndim != 3 or probe.shape[1:] != expected or len(probe) == 0:
        raise ValueError(
            f"probe: found shape {probe.shape}, expected (modes, {pattern_size}, {pattern_size})"
        )
    if not np.isfinite(probe).all() or not np.any(probe):
        raise ValueError("probe: found NaN or infinite values, or nothing but zeros")
    return probe.astype(np.complex128)


def beam_diameter_px(probe: NDArray) -> float:
    """Return the second-moment diameter (D4sigma of ISO 11146), pixels, of a probe (..., N, N): the
    diameter of the uniform disk with the same second moment."""
    size = probe.shape[-1]
    weight = np.sum(np.abs(probe.reshape(-1, size, size)) ** 2, axis=0)
    weight /= weight.sum()
    rows, columns = np.indices(weight.shape)
    variance = sum(np.sum(weight * (axis - np.sum(weight * axis)) ** 2) for axis in (rows, columns))
    return 2 * math.sqrt(2 * variance)


def _radius_px(size: int) -> NDArray[np.float64]:
    axis = np.arange(size) - size // 2
    return np.hypot(axis[:, None], axis)


def _soft_step(distance: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Return a step from 1 to 0 at distance 0, blurred by a Gaussian."""
    return 0.5 * erfc(distance / (math.sqrt(2) * sigma))


def _contained(probe: NDArray[np.complex128], asked: str) -> NDArray[np.complex128]:
    size = probe.shape[-1]
    width = max(round(size * FRAME_FRACTION), 1)
    energy = np.abs(probe) ** 2
    in_frame = 1 - energy[width:-width, width:-width].sum() / energy.sum()
    if in_frame > FRAME_ENERGY_LIMIT:
        raise ValueError(
            f"probe: {asked} has {100 * in_frame:.2g} % of its energy within {width} px of the "
            f"border of {size} x {size} px, "
            f"expected at most {100 * FRAME_ENERGY_LIMIT:.2g} %: less diameter, more defocus or a "
            "larger pattern"
        )
    return probe
