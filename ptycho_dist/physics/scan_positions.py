"""Neighbourhoods of scan positions, (n, 2) as (y, x) in pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.spatial import cKDTree


def central_positions(
    positions_px: np.ndarray, count: int, *, middle: Literal["centroid", "extent"] = "centroid"
) -> np.ndarray:
    """Return the numbers, ascending, of the `count` positions nearest to the middle of a scan (all,
    if there are fewer): its centroid, or the middle of its bounding box."""
    # Each formula rounds ties on a raster in its own way: exchanging them would change selections.
    if middle == "extent":
        box_middle = (positions_px.min(axis=0) + positions_px.max(axis=0)) / 2
        distance = np.hypot(*(positions_px - box_middle).T)
    else:
        distance = np.square(positions_px - positions_px.mean(axis=0)).sum(axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:count])


def nearest_distances_px(positions_px: np.ndarray) -> np.ndarray:
    """Return the distance (n,) of each position to its nearest neighbour; empty for one."""
    if len(positions_px) < 2:
        return np.empty(0)
    return cKDTree(positions_px).query(positions_px, k=2)[0][:, 1]


def nearest_neighbours(positions_px: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers (n, count) of the positions nearest to each of n >= `count`, itself
    first."""
    itself = np.arange(len(positions_px))[:, None]
    if count == 1:
        return itself
    _, neighbours = cKDTree(positions_px).query(positions_px, k=count)
    # Where patterns share a position, the tree may put another one first, or leave this one out.
    neighbours = np.take_along_axis(
        neighbours, np.argsort(neighbours != itself, axis=1, kind="stable"), axis=1
    )
    neighbours[:, 0] = itself[:, 0]
    return neighbours
