"""A small far-field scan in SI units, and the rule that a reader must keep: what is read explains
the patterns that are read.

Written in NumPy float64 without the package's physics. Object, probe and positions have no
symmetry, so rows and columns, signs and transpositions that a reader mixes up show as counts that
do not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptycho_dist.data.scan import Scan

H_C_EV_M = 1.2398419843320026e-06


@dataclass(frozen=True, kw_only=True)
class FarField:
    """What an experiment would know.

    counts (n, N, N) with the direct beam at [N // 2, N // 2]; positions in metres (y, x), where y
    grows with the object's rows, of the pixel N // 2 of a patch; corner_m is the place of the
    object's pixel [0, 0].
    """

    energy_eV: float
    distance_m: float
    detector_pixel_m: float
    counts: np.ndarray
    corners_px: np.ndarray
    positions_m: np.ndarray
    corner_m: np.ndarray
    probe: np.ndarray
    object: np.ndarray

    @property
    def object_pixel_m(self) -> float:
        return (
            H_C_EV_M
            / self.energy_eV
            * self.distance_m
            / (self.counts.shape[-1] * self.detector_pixel_m)
        )

    @property
    def object_centre_m(self) -> np.ndarray:
        """As ptychodus has it: half the extent after the corner."""
        return self.corner_m + np.array(self.object.shape) / 2 * self.object_pixel_m


def simulate(
    *,
    size: int = 16,
    num_patterns: int = 30,
    energy_eV: float = 8765.0,
    distance_m: float = 1.9,
    modes: int = 1,
) -> FarField:
    random = np.random.default_rng(7)
    detector_pixel_m = 75e-6
    pixel_m = H_C_EV_M / energy_eV * distance_m / (size * detector_pixel_m)
    rows, columns = size + 25, size + 11
    transmission = random.uniform(0.4, 1, (rows, columns)) * np.exp(
        1j * random.uniform(-1, 1, (rows, columns))
    )
    y, x = np.indices((size, size)) - size // 2
    probe = np.stack(
        [
            np.exp(-((y - 1) ** 2) / 18 - (x + mode) ** 2 / 7 + 0.2j * y - 0.05j * x * y)
            / (1 + mode)
            for mode in range(modes)
        ]
    )
    corners = np.stack(
        [
            random.integers(0, rows - size, num_patterns),
            random.integers(0, columns - size, num_patterns),
        ],
        axis=1,
    )
    corner_m = np.array([-3.1e-6, 8.4e-6])
    wave = np.stack(
        [probe * transmission[row : row + size, column : column + size] for row, column in corners]
    )
    far_field = np.fft.fftshift(np.fft.fft2(wave), axes=(-2, -1))
    return FarField(
        energy_eV=energy_eV,
        distance_m=distance_m,
        detector_pixel_m=detector_pixel_m,
        counts=np.round(1e3 * (np.abs(far_field) ** 2).sum(axis=1)).astype(np.uint32),
        corners_px=corners,
        positions_m=corner_m + (corners + size // 2) * pixel_m,
        corner_m=corner_m,
        probe=probe,
        object=transmission,
    )


def require_read(
    scan: Scan, truth: FarField, *, numbers: np.ndarray | None = None, has_object: bool = False
) -> None:
    """The scan is that one: its patterns by any number, its pixels, and counts that probe and
    object predict at the positions read."""
    numbers = np.arange(len(truth.counts)) if numbers is None else numbers
    counts = truth.counts[numbers]
    assert scan.diffraction.shape == counts.shape
    some = np.array([len(counts) - 1, 0, 3, 3, 2, 11 % len(counts), 0])
    assert np.array_equal(scan.diffraction[some], counts[some])
    # float32 of the root of an integer: squared, good to 2e-7.
    assert np.allclose(scan.amplitude(some).astype(np.float64) ** 2, counts[some], rtol=1e-6)
    moved = (scan.positions_px - scan.positions_px[0]) - (
        truth.corners_px[numbers] - truth.corners_px[numbers][0]
    )
    # energies and pixels are stored in float32 or four digits here and there
    assert np.abs(moved).max() < 1e-3
    if has_object:
        assert scan.object_guess is not None
        assert np.allclose(scan.object_guess, truth.object, atol=1e-6)
        assert (
            np.abs(
                scan.positions_px - truth.corners_px[numbers] - truth.counts.shape[-1] // 2
            ).max()
            < 1e-3
        )
    _require_explains(scan, truth, numbers)


def _require_explains(scan: Scan, truth: FarField, numbers: np.ndarray) -> None:
    """|FFT2(probe * patch)|^2 at the positions read, from the object known, counted from the first
    one's corner."""
    size = scan.pattern_size
    offset = (
        np.round(scan.positions_px - scan.positions_px[0]).astype(int)
        + truth.corners_px[numbers[0]]
    )
    wave = np.stack(
        [
            scan.probe.astype(complex) * truth.object[row : row + size, column : column + size]
            for row, column in offset
        ]
    )
    predicted = 1e3 * (np.abs(np.fft.fftshift(np.fft.fft2(wave), axes=(-2, -1))) ** 2).sum(axis=1)
    # Counts are rounded to whole numbers, the probe to complex64.
    assert (
        np.abs(predicted - scan.diffraction[np.arange(scan.num_patterns)]).max()
        < 0.5 + 1e-5 * predicted.max()
    )
