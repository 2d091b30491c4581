"""Draw the patterns that are used at all (`data.sampling`), before the split and the grouping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ptycho_dist.config import DataConfig
from ptycho_dist.data.index_file import read_index_file
from ptycho_dist.data.scan import Scan
from ptycho_dist.physics.scan_positions import central_positions, nearest_distances_px

RADIUS_STEP = 0.99
"""Ratio of consecutive radii in Poisson-disc sampling."""


class SubsetError(ValueError):
    """The scans can't provide the requested subset."""


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

    `central_block` and `poisson_disc` take the same fraction of each scan.

    Raises
    ------
    SubsetError
        There are fewer patterns than asked for.
    IndexFileError
        `data.index_file` can't be used.
    """
    num_patterns = sum(scan.num_patterns for scan in scans)
    size = num_patterns if config.subset_size is None else config.subset_size
    if size > num_patterns:
        raise SubsetError(
            f"data.subset_size is {size}, but {', '.join(str(scan.path) for scan in scans)} has "
            f"{num_patterns} patterns"
        )
    how = ""
    match config.sampling_mode:
        case "full":
            patterns = random.permutation(num_patterns)
        case "random":
            patterns = random.permutation(num_patterns)[:size]
        case "index_file":
            assert config.index_file is not None
            patterns = random.permutation(read_index_file(config.index_file, num_patterns))
            how = f" {config.index_file}"
        case _:
            of_scans = _draw_from_each(scans, config, size, random)
            first = np.cumsum([0, *(scan.num_patterns for scan in scans)])
            # the order decides the split, so it must not tell how the patterns were found
            patterns = random.permutation(
                np.concatenate(
                    [
                        start + np.sort(drawn)
                        for start, drawn in zip(first[:-1], of_scans, strict=True)
                    ]
                )
            )
            if config.sampling_mode == "every":
                how = f" {config.every} in scan order"
            elif config.sampling_mode == "poisson_disc":
                apart_px = min(
                    nearest_distances_px(scan.positions_px[drawn]).min(initial=np.inf)
                    for scan, drawn in zip(scans, of_scans, strict=True)
                )
                how = f", nearest two {apart_px:.1f} px apart"
    return Draw(
        patterns=patterns,
        description=f"{len(patterns)} of {num_patterns} patterns, {config.sampling_mode}{how}",
    )


def _draw_from_each(
    scans: Sequence[Scan], config: DataConfig, size: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Return the numbers drawn from each scan, counted within it."""
    if config.sampling_mode == "every":
        return [np.arange(scan.num_patterns)[:: config.every] for scan in scans]
    # Shares in proportion to the scans' sizes: the largest remainders are rounded up.
    counts = np.array([scan.num_patterns for scan in scans])
    shares, remainders = np.divmod(size * counts, counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: size - shares.sum()]] += 1
    return [
        central_positions(scan.positions_px, share, middle="extent")
        if config.sampling_mode == "central_block"
        else poisson_disc(scan.positions_px, share, config.min_distance_px or 0.0, random)
        for scan, share in zip(scans, shares, strict=True)
    ]


def poisson_disc(
    positions_px: np.ndarray, size: int, min_distance_px: float, random: np.random.Generator
) -> np.ndarray:
    """Return the numbers of positions that are as far apart as possible, in the order taken.

    Dart throwing with a shrinking radius (McCool and Fiume, "Hierarchical Poisson disk sampling
    distributions", Graphics Interface 1992): in random order, take every position that lies at
    least a radius from all taken before; then shrink the radius.

    Parameters
    ----------
    positions_px
        (n, 2) float64.
    size
        Stop after so many, at most n. Repeated positions are taken again only after all others.
    min_distance_px
        Stop where every position is taken or nearer than this to one that is.

    Returns
    -------
    np.ndarray
        (k,) int64.
    """
    tree = cKDTree(positions_px)
    taken: list[int] = []
    # distance to the nearest taken position; exact where it is less than the radius
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
