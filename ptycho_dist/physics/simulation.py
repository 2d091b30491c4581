"""Synthetic scans: object, probe, raster, far-field intensities in photons, Poisson noise.

A patch centred at y covers rows y - N/2 ... y + N/2 - 1 of the object. For a fractional y the patch
is read at the nearest whole pixel and the *probe* is Fourier-shifted by the rest. The probe is
smooth and dark at the border of its window, so the shift is exact and keeps every photon;
interpolating the object would blur it differently at every position, and shifting it in Fourier
space would ring at its edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ptycho_dist.physics.simulated_objects import make_object
from ptycho_dist.physics.simulated_probes import make_probe

# 16 MiB per complex128 array, a few of them at a time, for any number of patterns
CHUNK_PIXELS = 2**20
LARGEST_PHOTONS = 1e18
"""Limit per pixel: NumPy's Poisson numbers are int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """A synthetic scan and the truth behind it.

    Attributes
    ----------
    diffraction
        float32 (n, N, N): sqrt of Poisson counts, DC at [N//2, N//2].
    positions_px
        float64 (n, 2): (y, x) of the patch centres in the object's pixels.
    probe
        complex128 (modes, N, N), in sqrt(photons): with an object of 1, a pattern has
        sum(abs(probe)^2) photons.
    object
        complex128 (rows, columns): transmission.
    nphotons
        Mean photons per pattern before the noise.
    """

    diffraction: NDArray[np.float32]
    positions_px: NDArray[np.float64]
    probe: NDArray[np.complex128]
    object: NDArray[np.complex128]
    nphotons: float


def simulate_scan(
    *,
    object: str,
    amplitude_range: tuple[float, float],
    phase_range_rad: tuple[float, float],
    probe: str | NDArray,
    probe_diameter_px: float,
    probe_defocus_rad: float,
    pattern_size: int,
    scan_shape: tuple[int, int],
    step_px: float,
    jitter_px: float,
    nphotons: float,
    seed: int,
    report_progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Simulate a raster scan.

    Parameters
    ----------
    object, amplitude_range, phase_range_rad
        See `make_object`.
    probe, probe_diameter_px, probe_defocus_rad
        See `make_probe`.
    pattern_size
        N, even.
    scan_shape, step_px, jitter_px
        See `raster_positions`.
    nphotons
        Mean photons per pattern before the noise.
    seed
        Seed of object, jitter and noise, each with a stream of its own: nphotons changes neither
        object nor positions.
    report_progress
        Called with (patterns done, patterns in all) after every chunk.

    Raises
    ------
    ValueError
        A value can't be simulated.
    """
    object_rng, jitter_rng, noise_rng = np.random.default_rng(seed).spawn(3)
    modes = make_probe(probe, pattern_size, probe_diameter_px, probe_defocus_rad)
    positions_px = raster_positions(scan_shape, step_px, jitter_px, pattern_size, jitter_rng)
    canvas = canvas_shape(positions_px, pattern_size)
    transmission = make_object(object, canvas, amplitude_range, phase_range_rad, object_rng)
    modes = scale_probe(modes, transmission, positions_px, nphotons)
    diffraction = noisy_diffraction(modes, transmission, positions_px, noise_rng, report_progress)
    return Simulation(
        diffraction=diffraction,
        positions_px=positions_px,
        probe=modes,
        object=transmission,
        nphotons=nphotons,
    )


def raster_positions(
    scan_shape: tuple[int, int],
    step_px: float,
    jitter_px: float,
    pattern_size: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the positions of a raster, row by row, each moved by up to `jitter_px` along y and x.

    Returns
    -------
    NDArray
        float64 (n, 2) as (y, x), pixels, shifted by whole pixels such that the first patches start
        in the canvas's first row and column.

    Raises
    ------
    ValueError
        N is odd, or a length is negative, zero or not finite.
    """
    if pattern_size < 2 or pattern_size % 2:
        raise ValueError(f"scan: pattern size is {pattern_size}, expected an even number")
    if min(scan_shape) < 1:
        raise ValueError(
            f"scan: shape is {tuple(scan_shape)}, expected at least one row and one column"
        )
    if not (math.isfinite(step_px) and step_px > 0):
        raise ValueError(f"scan: step is {step_px} px, expected a positive number")
    if not (math.isfinite(jitter_px) and jitter_px >= 0):
        raise ValueError(f"scan: jitter is {jitter_px} px, expected a number of at least 0")
    grid = step_px * np.indices(scan_shape).reshape(2, -1).T
    positions = grid + rng.uniform(-jitter_px, jitter_px, size=grid.shape)
    return positions - np.floor(positions.min(axis=0)) + pattern_size // 2


def canvas_shape(positions_px: NDArray[np.float64], pattern_size: int) -> tuple[int, int]:
    """Return rows and columns of the smallest canvas that holds every patch, with the neighbours
    that interpolation between pixels would read."""
    rows, columns = np.ceil(positions_px.max(axis=0)).astype(int) + pattern_size // 2
    return int(rows), int(columns)


def shift_probe(
    probe: NDArray[np.complex128], shift_px: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Move a probe (modes, N, N) by each of the shifts (n, 2), (y, x) towards larger rows and
    columns, by the Fourier shift theorem, which keeps its energy: complex128 (n, modes, N, N)."""
    ramp = np.exp(-2j * np.pi * shift_px[:, :, None] * fft.fftfreq(probe.shape[-1]))
    spectrum = fft.fft2(probe) * (ramp[:, 0, :, None] * ramp[:, 1, None, :])[:, None]
    return fft.ifft2(spectrum, overwrite_x=True)


def exit_waves(
    probe: NDArray[np.complex128],
    transmission: NDArray[np.complex128],
    positions_px: NDArray[np.float64],
) -> NDArray[np.complex128]:
    """Return the waves behind the object, complex128 (n, modes, N, N): its patches times the probe.

    Parameters
    ----------
    probe
        complex128 (modes, N, N).
    transmission
        complex128 (rows, columns).
    positions_px
        float64 (n, 2) as (y, x), patch centres.

    Raises
    ------
    ValueError
        A patch reaches beyond the object.
    """
    size = probe.shape[-1]
    centre = np.floor(positions_px + 0.5).astype(np.intp)
    corner = centre - size // 2
    outside = np.any((corner < 0) | (corner + size > transmission.shape), axis=1)
    if outside.any():
        worst = positions_px[np.argmax(outside)]
        raise ValueError(
            f"scan: {outside.sum()} of {len(positions_px)} patches of {size} px reach beyond the "
            f"object of {transmission.shape} px, the first one at (y, x) = ({worst[0]:.1f}, "
            f"{worst[1]:.1f})"
        )
    windows = np.lib.stride_tricks.sliding_window_view(transmission, (size, size))
    return shift_probe(probe, positions_px - centre) * windows[corner[:, 0], corner[:, 1]][:, None]


def expected_intensity(
    probe: NDArray[np.complex128],
    transmission: NDArray[np.complex128],
    positions_px: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the far-field intensity of `exit_waves`: the sum over modes of abs(FFT2(exit wave))^2.

    The FFT norm "ortho" keeps the number of photons.

    Returns
    -------
    NDArray
        float64 (n, N, N), photons per pixel if the probe is in sqrt(photons), DC at [N//2, N//2].
    """
    waves = fft.fft2(exit_waves(probe, transmission, positions_px), norm="ortho", overwrite_x=True)
    return fft.fftshift(np.sum(waves.real**2 + waves.imag**2, axis=1), axes=(-2, -1))


def scale_probe(
    probe: NDArray[np.complex128],
    transmission: NDArray[np.complex128],
    positions_px: NDArray[np.float64],
    nphotons: float,
) -> NDArray[np.complex128]:
    """Scale the probe to sqrt(photons), such that patterns have `nphotons` in the mean.

    Raises
    ------
    ValueError
        `nphotons` is not a positive number, or no light passes the object.
    """
    if not (math.isfinite(nphotons) and nphotons > 0):
        raise ValueError(f"scan: nphotons is {nphotons}, expected a positive number")
    # by Parseval's theorem, the photons behind the object are those on the detector
    total = sum(
        float(np.sum(np.abs(exit_waves(probe, transmission, positions_px[chunk])) ** 2))
        for chunk in _chunks(len(positions_px), probe.size)
    )
    if not total > 0:
        raise ValueError("scan: no light passes the object, so no scale gives the patterns photons")
    return probe * math.sqrt(nphotons * len(positions_px) / total)


def noisy_diffraction(
    probe: NDArray[np.complex128],
    transmission: NDArray[np.complex128],
    positions_px: NDArray[np.float64],
    rng: np.random.Generator,
    report_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Return measured amplitudes, float32 (n, N, N): square roots of Poisson counts.

    The means are those of `expected_intensity`, for a probe in sqrt(photons). Works in chunks, on
    which the noise does not depend. Squaring and rounding restores the counts up to about 4e6
    photons per pixel (float32 has 24 bits), and beyond that within 2e-7.

    Parameters
    ----------
    probe, transmission, positions_px
        See `exit_waves`.
    rng
        Draws the noise.
    report_progress
        Called with (patterns done, patterns in all) after every chunk.
    """
    count, size = len(positions_px), probe.shape[-1]
    diffraction = np.empty((count, size, size), dtype=np.float32)
    for chunk in _chunks(count, probe.size):
        intensity = expected_intensity(probe, transmission, positions_px[chunk])
        if intensity.max() > LARGEST_PHOTONS:
            raise ValueError(
                f"scan: {intensity.max():.3g} photons in a pixel, expected at most "
                f"{LARGEST_PHOTONS:.0e}: lower nphotons"
            )
        diffraction[chunk] = np.sqrt(rng.poisson(intensity))
        if report_progress is not None:
            report_progress(min(chunk.stop, count), count)
    return diffraction


def _chunks(count: int, pixels_each: int) -> Iterator[slice]:
    step = max(CHUNK_PIXELS // pixels_each, 1)
    return (slice(start, start + step) for start in range(0, count, step))
