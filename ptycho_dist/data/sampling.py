"""Which patterns of the scans are used at all, before the split and the grouping
(`data.sampling`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ptycho_dist.config import DataConfig
from ptycho_dist.data.index_file import read_index_file
from ptycho_dist.data.scan import Scan

RADIUS_STEP = 0.99
"""From one radius that Poisson-disc sampling tries to the next."""


class SubsetError(ValueError):
    """The scans can't give the subset that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """The patterns that are used, training and validation together.

    Attributes
    ----------
    patterns
        (k,) int64, counted through all scans, none twice, in random order.
    description
        How many of how many, and how they were drawn.
    """

    patterns: np.ndarray
    description: str


def draw_patterns(scans: Sequence[Scan], config: DataConfig, random: np.random.Generator) -> Draw:
    """Draw the patterns of `scans` that `config` asks for.

    Where a size is shared out among several scans, by `central_block` and `poisson_disc`, each
    gives the same fraction of its patterns.

    Raises
    ------
    SubsetError
        There are fewer patterns than asked for.
    IndexFileError
        `data.index_file` can't be used.
    """
    first_pattern = np.cumsum([0, *(scan.num_patterns for scan in scans)])
    num_patterns = int(first_pattern[-1])
    size = config.subset_size
    if size is not None and size > num_patterns:
        raise SubsetError(
            f"data.subset_size is {size}, but {', '.join(str(scan.path) for scan in scans)} has "
            f"{num_patterns} patterns"
        )
    of_each_scan: list[np.ndarray]
    how = ""
    match config.sampling_mode:
        case "full":
            patterns = random.permutation(num_patterns)
        case "random":
            patterns = random.permutation(num_patterns)[:size]
        case "central_block":
            of_each_scan = [
                _nearest_to_middle(scan.positions_px, share)
                for scan, share in zip(scans, _shares(scans, size), strict=True)
            ]
            patterns = _shuffled(of_each_scan, first_pattern, random)
        case "every":
            of_each_scan = [np.arange(scan.num_patterns)[:: config.every] for scan in scans]
            patterns = _shuffled(of_each_scan, first_pattern, random)
            how = f" {config.every} in scan order"
        case "poisson_disc":
            shares = _shares(scans, num_patterns if size is None else size)
            min_distance_px = config.min_distance_px or 0.0
            of_each_scan = [
                poisson_disc(scan.positions_px, share, min_distance_px, random)
                for scan, share in zip(scans, shares, strict=True)
            ]
            patterns = _shuffled(of_each_scan, first_pattern, random)
            apart_px = min(
                _smallest_distance(scan.positions_px[chosen])
                for scan, chosen in zip(scans, of_each_scan, strict=True)
            )
            how = f", nearest two {apart_px:.1f} px apart"
        case "index_file":
            assert config.index_file is not None
            patterns = random.permutation(read_index_file(config.index_file, num_patterns))
            how = f" {config.index_file}"
    return Draw(
        patterns=patterns,
        description=f"{len(patterns)} of {num_patterns} patterns, {config.sampling_mode}{how}",
    )


def _shares(scans: Sequence[Scan], size: int | None) -> np.ndarray:
    """How many of `size` patterns each scan gives, in proportion to its own: the largest remainders
    are rounded up."""
    assert size is not None
    counts = np.array([scan.num_patterns for scan in scans])
    shares, remainders = np.divmod(size * counts, counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: size - shares.sum()]] += 1
    return shares


def _shuffled(
    of_each_scan: Sequence[np.ndarray], first_pattern: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Counted through all scans. The order goes into the split, so it must not tell how they were
    found."""
    return random.permutation(
        np.concatenate(
            [
                first + np.sort(chosen)
                for first, chosen in zip(first_pattern, of_each_scan, strict=False)
            ]
        )
    )


def _nearest_to_middle(positions_px: np.ndarray, size: int) -> np.ndarray:
    middle = (positions_px.min(axis=0) + positions_px.max(axis=0)) / 2
    return np.argsort(np.hypot(*(positions_px - middle).T), kind="stable")[:size]


def poisson_disc(
    positions_px: np.ndarray, size: int, min_distance_px: float, random: np.random.Generator
) -> np.ndarray:
    """Positions as far from each other as they can be thinned to, by number.

    Dart throwing with a shrinking radius (McCool and Fiume, "Hierarchical Poisson disk sampling
    distributions", Graphics Interface 1992): in random order, every position is taken that lies at
    least a radius from all taken before; then the radius shrinks.

    Parameters
    ----------
    positions_px
        (n, 2) float64.
    size
        At most n: ends where so many are taken. Positions that repeat are taken twice only after
        all others.
    min_distance_px
        Ends where every position is taken or nearer than this to one that is.

    Returns
    -------
    np.ndarray
        (k,) int64, in the order in which they were taken.
    """
    tree = cKDTree(positions_px)
    taken: list[int] = []
    # to the nearest that is taken; right where it is less than the radius
    distance = np.full(len(positions_px), np.inf)
    radius = np.inf
    while len(taken) < size and radius > min_distance_px:
        radius = max(min(RADIUS_STEP * radius, distance.max()), min_distance_px)
        for number in random.permutation(np.flatnonzero(distance >= radius)):
            if distance[number] < radius or len(taken) == size:
                continue
            taken.append(number)
            near = tree.query_ball_point(positions_px[number], radius)
            distance[near] = np.minimum(
                distance[near], np.hypot(*(positions_px[near] - positions_px[number]).T)
            )
            distance[number] = -1
    return np.array(taken, dtype=np.int64)


def _smallest_distance(positions_px: np.ndarray) -> float:
    """Of any two; infinite where there are no two."""
    if len(positions_px) < 2:
        return np.inf
    distance, _ = cKDTree(positions_px).query(positions_px, k=2)
    return float(distance[:, 1].min())
