"""Neighbourhoods of scan positions."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_dist.physics.scan_positions import (
    central_positions,
    nearest_distances_px,
    nearest_neighbours,
)

RASTER = np.indices((40, 40)).reshape(2, -1).T.astype(float)


def test_central_positions_are_connected_and_bounded() -> None:
    chosen = central_positions(RASTER, 256)
    assert len(chosen) == 256
    assert np.all(np.diff(chosen) > 0)
    assert np.abs(RASTER[chosen] - 19.5).max() < 10
    assert central_positions(RASTER[:7], 256).tolist() == list(range(7))


def test_middle_is_the_centroid_or_that_of_the_bounding_box() -> None:
    line = np.array([[0.0, x] for x in (0, 1, 2, 3, 10)])
    assert central_positions(line, 1).tolist() == [3]  # 3.2
    assert central_positions(line, 2, middle="extent").tolist() == [2, 3]  # 5


def test_nearest_distances() -> None:
    assert nearest_distances_px(np.array([[0.0, 0], [0, 3], [4, 3]])).tolist() == [3, 3, 4]
    assert nearest_distances_px(RASTER[:1]).tolist() == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_position_is_its_own_first_neighbour(count: int) -> None:
    """Also where several share a place: a tree may put another one first, or leave it out."""
    positions = np.repeat(RASTER[:3], 4, axis=0)
    neighbours = nearest_neighbours(positions, count)
    assert neighbours[:, 0].tolist() == list(range(12))
    assert all(len(set(row)) == count for row in neighbours.tolist())
