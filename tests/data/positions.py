"""Scans of blank patterns at given positions, and subsets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ptycho_dist.config import DataConfig
from ptycho_dist.data.scan import Scan
from ptycho_dist.data.subset import Subset, select_subset

N = 64


def scan_at(positions_px: np.ndarray, name: str = "scan.npz", fingerprint: str = "blank") -> Scan:
    """A scan of blank patterns at these positions."""
    return Scan(
        path=Path(name),
        key="diffraction",
        diffraction=np.broadcast_to(np.float32(1), (len(positions_px), N, N)),
        measurement="amplitude",
        positions_px=np.asarray(positions_px, dtype=np.float64),
        probe=np.ones((1, N, N), dtype=np.complex64),
        object_guess=None,
        nphotons=None,
        fingerprint=fingerprint,
    )


def random_positions(num_patterns: int, seed: int = 0) -> np.ndarray:
    """No two distances are equal, so a nearest neighbour is always one pattern."""
    return np.random.default_rng(seed).uniform(0, 100, (num_patterns, 2))


def raster_with_repeats() -> np.ndarray:
    """A 6 x 6 raster whose distances tie, with one point visited 7 times (more often than C) and
    others twice."""
    grid = 5.0 * np.stack(np.meshgrid(np.arange(6), np.arange(6), indexing="ij"), -1).reshape(-1, 2)
    return np.concatenate([grid, np.repeat(grid[14:15], 6, axis=0), grid[3:9]])


def select(*positions: np.ndarray, **config: Any) -> Subset:
    return select_subset(
        [scan_at(one, f"scan{number}.npz") for number, one in enumerate(positions)],
        DataConfig(**config),
    )
