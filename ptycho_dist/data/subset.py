"""The finalised subset: which patterns are trained on, which validate, and how they are grouped.
The same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ptycho_dist.config import DataConfig
from ptycho_dist.data.sampling import SubsetError, draw_patterns
from ptycho_dist.data.scan import Scan


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """Patterns by number, counted through all scans in their order.

    Attributes
    ----------
    train, validation
        (k,) int64, ascending: the patterns of each side. None is on both.
    train_groups, validation_groups
        (groups, C) int64. Every training pattern begins one training group, followed by its nearest
        neighbours among the training patterns; every validation pattern is in exactly one
        validation group.
    fingerprint
        SHA-256 of the scans' contents and positions and of the groups of both sides.
    description
        How many patterns of how many were drawn, and how.
    """

    train: np.ndarray
    validation: np.ndarray
    train_groups: np.ndarray
    validation_groups: np.ndarray
    fingerprint: str
    description: str


def select_subset(scans: Sequence[Scan], config: DataConfig) -> Subset:
    """Draw, split and group the patterns of `scans`.

    Validation takes whole groups, a random pattern and its nearest neighbours that are still free,
    so that with C > 1 its patches overlap and no pattern is on both sides.

    Raises
    ------
    SubsetError
        There are fewer patterns than asked for or than a group needs, or the patches of a group
        don't overlap.
    """
    positions_px = np.concatenate([scan.positions_px for scan in scans])
    scan_of_pattern = np.repeat(np.arange(len(scans)), [scan.num_patterns for scan in scans])
    draw = draw_patterns(scans, config, np.random.default_rng(config.subset_seed))
    size = len(draw.patterns)
    is_free = np.zeros(len(positions_px), dtype=bool)
    is_free[draw.patterns] = True
    drawn_of_scan = [
        np.flatnonzero(is_free & (scan_of_pattern == number)) for number in range(len(scans))
    ]
    find_free = [_FreeNeighbours(positions_px, drawn, is_free) for drawn in drawn_of_scan]
    num_validation_groups = round(config.val_fraction * size / config.group_size)
    validation_groups = np.empty((num_validation_groups, config.group_size), dtype=np.int64)
    next_anchor = iter(draw.patterns)
    for group in range(num_validation_groups):
        anchor = next((pattern for pattern in next_anchor if is_free[pattern]), None)
        nearest = (
            None
            if anchor is None
            else find_free[scan_of_pattern[anchor]].nearest(anchor, config.group_size)
        )
        if nearest is None:
            raise SubsetError(
                f"data.val_fraction {config.val_fraction} of {size} patterns leaves too few for "
                f"groups of {config.group_size}"
            )
        validation_groups[group] = nearest
        is_free[nearest] = False

    train = np.flatnonzero(is_free)
    if len(train) == 0:
        raise SubsetError(
            f"data.val_fraction {config.val_fraction} of {size} patterns leaves none to train on"
        )
    train_groups = np.concatenate(
        [
            _nearest_neighbour_groups(
                positions_px, train[scan_of_pattern[train] == number], config.group_size, scan
            )
            for number, scan in enumerate(scans)
        ]
    )
    for groups in (train_groups, validation_groups):
        _require_overlap(positions_px, groups, scans[0].pattern_size)
    validation = np.sort(validation_groups.reshape(-1))
    fingerprint = _sha256(
        [scan.fingerprint for scan in scans],
        positions_px,
        scan_of_pattern,
        train_groups,
        validation_groups,
    )
    return Subset(
        train=train,
        validation=validation,
        train_groups=train_groups,
        validation_groups=validation_groups,
        fingerprint=fingerprint,
        description=draw.description,
    )


class _FreeNeighbours:
    """Of the patterns drawn from one scan, those nearest to one of them that are still free."""

    def __init__(self, positions_px: np.ndarray, drawn: np.ndarray, is_free: np.ndarray) -> None:
        self.positions_px = positions_px
        self.drawn = drawn
        self.is_free = is_free  # what its owner changes is seen here
        self.tree = cKDTree(positions_px[drawn])

    def nearest(self, anchor: int, count: int) -> np.ndarray | None:
        """(count,): `anchor` first, then by distance, at equal distances by number; None where
        fewer are free."""
        position = self.positions_px[anchor]
        num_asked = count
        while True:
            distance, found = self.tree.query(
                position, k=range(1, min(num_asked, len(self.drawn)) + 1)
            )
            free_distance = distance[self.is_free[self.drawn[found]]]
            if len(free_distance) >= count:
                break
            if num_asked >= len(self.drawn):
                return None
            num_asked *= 2
        # All that may be among them, as the tree rounds distances in its own way and tells equal
        # ones apart in any.
        candidates = self.drawn[
            np.sort(self.tree.query_ball_point(position, free_distance[count - 1] * (1 + 1e-9)))
        ]
        candidates = candidates[self.is_free[candidates]]
        squared_distance = np.square(self.positions_px[candidates] - position).sum(axis=1)
        squared_distance[candidates == anchor] = -1  # before another pattern at the same position
        return candidates[np.argsort(squared_distance, kind="stable")[:count]]


def _nearest_neighbour_groups(
    positions_px: np.ndarray, patterns: np.ndarray, group_size: int, scan: Scan
) -> np.ndarray:
    """(len(patterns), C): each pattern, then its C - 1 nearest."""
    if len(patterns) == 0:
        return np.empty((0, group_size), dtype=np.int64)
    if len(patterns) < group_size:
        raise SubsetError(
            f"{scan.path}: found {len(patterns)} training patterns, expected at least "
            f"data.group_size = {group_size}"
        )
    return patterns[nearest_neighbours(positions_px[patterns], group_size)]


def nearest_neighbours(positions_px: np.ndarray, count: int) -> np.ndarray:
    """Numbers (n, count) of the positions nearest to each of n, itself first; n is at least
    `count`."""
    itself = np.arange(len(positions_px))[:, None]
    if count == 1:
        return itself
    _, neighbours = cKDTree(positions_px).query(positions_px, k=count)
    # Where several patterns share a position the tree may put another one first, or leave the
    # pattern itself out.
    neighbours = np.take_along_axis(
        neighbours, np.argsort(neighbours != itself, axis=1, kind="stable"), axis=1
    )
    neighbours[:, 0] = itself[:, 0]
    return neighbours


def _require_overlap(positions_px: np.ndarray, groups: np.ndarray, pattern_size: int) -> None:
    if len(groups) == 0:
        return
    offset = np.abs(positions_px[groups] - positions_px[groups[:, :1]]).max(axis=(1, 2))
    if offset.max() >= pattern_size:
        anchor = groups[int(offset.argmax()), 0]
        raise SubsetError(
            f"pattern {anchor} and its {groups.shape[1] - 1} nearest neighbours are up to "
            f"{offset.max():.1f} px apart, so that patches of "
            f"{pattern_size} px don't overlap; draw more patterns (data.sampling) or use "
            "data.group_size 1"
        )


def _sha256(contents: Sequence[str], *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(" ".join(contents).encode())
    for array in arrays:
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{little_endian.dtype.str}{little_endian.shape}".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
