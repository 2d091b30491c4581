"""The protocol of arXiv 2602.21361 for simulated lines: objects, probes, scans, and how a
reconstruction is scored.

Where the text leaves something open, the authors' published code (PtychoPINN, `evaluation.py`,
`diffsim.py`, `stitching.py`) decides.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal.windows import gaussian

from ptycho_dist.data.npz_writer import write_npz_scan
from ptycho_dist.inference.records import Reconstruction
from ptycho_dist.physics.simulated_objects import blurred_lines
from ptycho_dist.physics.simulation import noisy_diffraction, scale_probe
from ptycho_dist.report.metrics import (
    mean_absolute_error,
    peak_signal_noise_ratio,
    structural_similarity,
)

PATTERN_SIZE = 64
OBJECT_SIDE_PX = 392
NPHOTONS = 1e9
TRAINING_STEP_PX = 4
TEST_STEP_PX = 10
NEIGHBOUR_PX = 4
"""Between the four patterns of a test group: 2 x 2."""

SSIM_WINDOW_PX = 7
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the multi-scale similarity, finest first."""


def ideal_probe() -> NDArray[np.complex128]:
    """Disk of radius 10.9 px with a soft edge: where a Gaussian window's outer product is above one
    half, blurred by 1 px; (1, N, N)."""
    window = gaussian(PATTERN_SIZE, PATTERN_SIZE / (0.7 * math.pi**2))
    disk = (np.outer(window, window) > 0.5).astype(np.float64)
    return (gaussian_filter(disk, 1.0) + 1e-9).astype(np.complex128)[None]


def experimental_probe(file: Path) -> NDArray[np.complex128]:
    """`probeGuess` of a reconstructed scan, blurred by half a pixel; (1, N, N)."""
    with np.load(file, allow_pickle=False) as archive:
        probe = archive["probeGuess"].astype(np.complex128)
    return gaussian_filter(probe, 0.5)[None]


def positions_of_training(side_px: int) -> NDArray[np.float64]:
    """(n, 2) as (y, x): the patch centres of a raster that covers a square object."""
    return _raster(side_px, TRAINING_STEP_PX)


def positions_of_test(side_px: int, group_size: int) -> NDArray[np.float64]:
    """(n, 2) as (y, x): a raster of single patterns, or of groups of 2 x 2."""
    raster = _raster(side_px - NEIGHBOUR_PX, TEST_STEP_PX)
    if group_size == 1:
        return raster
    square = NEIGHBOUR_PX * np.indices((2, 2)).reshape(2, -1).T
    return (raster[:, None] + square).reshape(-1, 2)


def simulate(
    file: Path,
    *,
    object_seed: int,
    side_px: int,
    positions_px: NDArray[np.float64],
    probe: NDArray[np.complex128],
) -> None:
    """Write one scan of one random object. Object and noise have streams of their own, so every
    scan of a seed shows the same object."""
    object_rng, noise_rng = np.random.default_rng(object_seed).spawn(2)
    image = blurred_lines(
        (side_px, side_px),
        object_rng.integers(2 * side_px, size=(round(400 * side_px / OBJECT_SIDE_PX), 2, 2)),
    )
    corners = positions_px.astype(int) - PATTERN_SIZE // 2
    patches = np.lib.stride_tricks.sliding_window_view(image, (PATTERN_SIZE, PATTERN_SIZE))[
        corners[:, 0], corners[:, 1]
    ]
    transmission = (image / patches.max(axis=(1, 2)).mean()).astype(np.complex128)
    probe = scale_probe(probe, transmission, positions_px, NPHOTONS)
    write_npz_scan(
        file,
        diffraction=noisy_diffraction(probe, transmission, positions_px, noise_rng),
        positions_px=positions_px,
        probe=probe,
        transmission=transmission,
        nphotons=NPHOTONS,
        settings={"object": "lines", "seed": object_seed},
    )


def compared(
    reconstruction: Reconstruction, truth: NDArray[np.complexfloating]
) -> tuple[NDArray, NDArray, NDArray]:
    """What is scored: amplitude, rescaled to the truth's mean; phase less its plane; the truth's
    amplitude. On the published tiles' area.

    The published stitching keeps half a test step on every side of a patch's centre, which makes
    the area.
    """
    half = TEST_STEP_PX // 2
    first = reconstruction.positions_px.min(axis=0).astype(int) - half
    last = reconstruction.positions_px.max(axis=0).astype(int) + half
    y, x = first - reconstruction.origin_px.astype(int)
    height, width = last - first
    object_ = reconstruction.object[y : y + height, x : x + width].astype(np.complex128)
    true_amplitude = np.abs(truth[first[0] : last[0], first[1] : last[1]]).astype(np.float64)
    amplitude = np.abs(object_)
    # The mean phase comes off before the angle is taken, lest it wrap.
    phase = np.angle(object_ * np.conj(object_.sum()))
    return (
        amplitude * (true_amplitude.mean() / amplitude.mean()),
        without_plane(phase),
        true_amplitude,
    )


def without_plane(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """A phase less the plane that fits it best in the least-squares sense."""
    rows, columns = np.indices(phase.shape)
    plane = np.stack([rows.ravel(), columns.ravel(), np.ones(phase.size)], axis=1)
    coefficients, *_ = np.linalg.lstsq(plane, phase.ravel(), rcond=None)
    return phase - (plane @ coefficients).reshape(phase.shape)


def scores(
    amplitude: NDArray[np.float64], phase: NDArray[np.float64], true_amplitude: NDArray[np.float64]
) -> dict[str, float]:
    """The columns of the table. The truth's phase is zero everywhere, which the phase's similarity
    maps to one half."""
    data_range = float(np.ptp(true_amplitude))
    window = {"uniform_window_px": SSIM_WINDOW_PX}
    return {
        "amplitude_ssim": structural_similarity(amplitude, true_amplitude, data_range, **window),
        "ms_ssim": published_multiscale_similarity(amplitude, true_amplitude),
        "mae": mean_absolute_error(amplitude, true_amplitude),
        "psnr": peak_signal_noise_ratio(amplitude, true_amplitude, 255.0),
        "phase_ssim": structural_similarity(
            (phase + math.pi) / (2 * math.pi), np.full_like(phase, 0.5), 1.0, **window
        ),
    }


def published_multiscale_similarity(
    image: NDArray[np.float64], reference: NDArray[np.float64]
) -> float:
    """The published table's MS-SSIM, which is not Wang's: whole SSIMs of every second pixel at each
    scale, after a blur of 1 px."""
    image, reference = gaussian_filter(image, 1.0), gaussian_filter(reference, 1.0)
    data_range = float(max(np.ptp(image), np.ptp(reference)))
    product = 1.0
    for weight in SCALE_WEIGHTS:
        if min(image.shape) < SSIM_WINDOW_PX:
            break
        similarity = structural_similarity(
            image, reference, data_range, uniform_window_px=SSIM_WINDOW_PX
        )
        product *= max(similarity, 1e-4) ** weight
        image, reference = image[::2, ::2], reference[::2, ::2]
    return product


def _raster(side_px: int, step_px: int) -> NDArray[np.float64]:
    count = (side_px - PATTERN_SIZE) // step_px + 1
    return (
        step_px * np.indices((count, count)).reshape(2, -1).T.astype(np.float64) + PATTERN_SIZE // 2
    )
