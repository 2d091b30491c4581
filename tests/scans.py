"""Small scans to test with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_dist.config import SimulationConfig
from ptycho_dist.data.npz_writer import write_npz_scan
from ptycho_dist.physics.simulation import simulate_scan

MASKED_HDF5 = {
    "diffraction": "diffraction",
    "positions": "positions",
    "positions_unit": "px",
    "probe": "probe",
    "mask": "mask",
}
"""`data.hdf5` for the files that the fixture `write_masked_scan` writes."""


def write_simulated_scan(path: Path, **settings: Any) -> Path:
    """A simulated scan as `launch/simulate.py` writes it; keys of `SimulationConfig`."""
    told = dataclasses.asdict(SimulationConfig(**settings))
    simulation = simulate_scan(**told)
    write_npz_scan(
        path,
        diffraction=simulation.diffraction,
        positions_px=simulation.positions_px,
        probe=simulation.probe,
        transmission=simulation.object,
        nphotons=simulation.nphotons,
        settings=told,
    )
    return path


def small_scan_arrays(
    *, num_patterns: int = 37, pattern_size: int = 16, modes: int = 1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Arrays of a small NPZ scan: Poisson counts of a random object, about 5000 photons a pattern,
    stored as amplitude."""
    random = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(num_patterns)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(
        -1, 2
    )[:num_patterns]
    positions = pattern_size // 2 + 3.0 * grid + random.uniform(0, 0.9, (num_patterns, 2))
    extent = int(positions.max()) + pattern_size
    object_guess = random.uniform(0.7, 1, (extent, extent)) * np.exp(
        1j * random.uniform(-0.5, 0.5, (extent, extent))
    )
    y, x = np.indices((pattern_size, pattern_size)) - pattern_size / 2
    envelope = np.exp(-(y**2 + x**2) / (2 * (pattern_size / 6) ** 2))
    probe = np.stack(
        [
            envelope * np.exp(0.05j * (mode + 1) * (y**2 + x**2)) / (mode + 1)
            for mode in range(modes)
        ]
    )
    counts = np.empty((num_patterns, pattern_size, pattern_size))
    for number, (row, column) in enumerate(np.floor(positions).astype(int) - pattern_size // 2):
        exit_wave = probe * object_guess[row : row + pattern_size, column : column + pattern_size]
        far_field = np.fft.fftshift(np.fft.fft2(exit_wave, norm="ortho"), axes=(-2, -1))
        counts[number] = random.poisson(
            5000 * (np.abs(far_field) ** 2).sum(0) / (np.abs(probe) ** 2).sum()
        )
    return {
        "diffraction": np.sqrt(counts).astype(np.float32),
        "xcoords": positions[:, 1],
        "ycoords": positions[:, 0],
        "probeGuess": (probe if modes > 1 else probe[0]).astype(np.complex64),
        "objectGuess": object_guess.astype(np.complex64),
    }


def dead_pixels(seed: int, part: float = 0.1, pattern_size: int = 16) -> np.ndarray:
    """A mask (N, N) with dead pixels, a gap of two columns and a beam stop that hides the brightest
    pixel."""
    mask = np.random.default_rng(seed).uniform(size=(pattern_size, pattern_size)) > part
    mask[:, seed % 5 + 1 : seed % 5 + 3] = False
    mask[pattern_size // 2, pattern_size // 2] = False
    return mask
