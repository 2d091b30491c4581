"""The final subset: which patterns train, which validate, and how they are grouped. The same on
every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ptycho_dist.config import DataConfig
from ptycho_dist.data.sampling import SubsetError, draw_patterns
from ptycho_dist.data.scan import Scan
from ptycho_dist.physics.scan_positions import nearest_neighbours


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """Patterns by number, counted through all scans in their order.

    Attributes
    ----------
    train, validation
        (k,) int64, ascending: the patterns of each side. None is on both.
    train_groups, validation_groups
        (groups, C) int64. Each training pattern starts one training group and is followed by its
        nearest training neighbours. Each validation pattern is in exactly one validation group.
    fingerprint
        SHA-256 of the scans' contents and positions, and of both sides' groups.
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

    Raises
    ------
    SubsetError
        There are fewer patterns than asked for or than a group needs, or the patches of a group
        don't overlap.
    """
    positions_px = np.concatenate([scan.positions_px for scan in scans])
    scan_of_pattern = np.repeat(np.arange(len(scans)), [scan.num_patterns for scan in scans])
    draw = draw_patterns(scans, config, np.random.default_rng(config.subset_seed))
    validation_groups = _split_off_validation(draw.patterns, positions_px, scan_of_pattern, config)
    train = np.setdiff1d(draw.patterns, validation_groups)
    if len(train) == 0:
        raise SubsetError(
            f"data.val_fraction {config.val_fraction} of {len(draw.patterns)} patterns leaves none "
            "to train on"
        )
    train_groups = np.concatenate(
        [
            _groups_of_neighbours(
                positions_px, train[scan_of_pattern[train] == number], config, scan
            )
            for number, scan in enumerate(scans)
        ]
    )
    for groups in (train_groups, validation_groups):
        _require_overlap(positions_px, groups, scans[0].pattern_size)
    return Subset(
        train=train,
        validation=np.sort(validation_groups.reshape(-1)),
        train_groups=train_groups,
        validation_groups=validation_groups,
        fingerprint=_sha256(
            [scan.fingerprint for scan in scans],
            positions_px,
            scan_of_pattern,
            train_groups,
            validation_groups,
        ),
        description=draw.description,
    )


def _split_off_validation(
    drawn: np.ndarray, positions_px: np.ndarray, scan_of_pattern: np.ndarray, config: DataConfig
) -> np.ndarray:
    """Return validation groups (groups, C): a random pattern and its nearest free neighbours.

    Whole groups are taken, so that with C > 1 their patches overlap and no pattern is on both
    sides.
    """
    is_free = np.zeros(len(positions_px), dtype=bool)
    is_free[drawn] = True
    find_free = [
        _FreeNeighbours(
            positions_px, np.flatnonzero(is_free & (scan_of_pattern == number)), is_free
        )
        for number in range(scan_of_pattern[-1] + 1)
    ]
    num_groups = round(config.val_fraction * len(drawn) / config.group_size)
    groups = np.empty((num_groups, config.group_size), dtype=np.int64)
    anchors = iter(drawn)
    for group in groups:
        anchor = next((pattern for pattern in anchors if is_free[pattern]), None)
        if anchor is not None:
            nearest = find_free[scan_of_pattern[anchor]].nearest(anchor, config.group_size)
        if anchor is None or nearest is None:
            raise SubsetError(
                f"data.val_fraction {config.val_fraction} of {len(drawn)} patterns leaves too few "
                f"for groups of {config.group_size}"
            )
        group[:] = nearest
        is_free[nearest] = False
    return groups


class _FreeNeighbours:
    """Finds the nearest free patterns among those drawn from one scan.

    `is_free` (of all patterns) stays the caller's: changes to it take effect here.
    """

    def __init__(self, positions_px: np.ndarray, drawn: np.ndarray, is_free: np.ndarray) -> None:
        self.positions_px = positions_px
        self.drawn = drawn
        self.is_free = is_free
        self.tree = cKDTree(positions_px[drawn])

    def nearest(self, anchor: int, count: int) -> np.ndarray | None:
        """Return (count,) patterns: `anchor`, then the others by distance, ties by number; None if
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
        # The tree rounds distances in its own way and orders ties arbitrarily: sort again all that
        # may be among the nearest.
        candidates = self.drawn[
            np.sort(self.tree.query_ball_point(position, free_distance[count - 1] * (1 + 1e-9)))
        ]
        candidates = candidates[self.is_free[candidates]]
        squared_distance = np.square(self.positions_px[candidates] - position).sum(axis=1)
        squared_distance[candidates == anchor] = -1  # before another pattern at the same position
        return candidates[np.argsort(squared_distance, kind="stable")[:count]]


def _groups_of_neighbours(
    positions_px: np.ndarray, patterns: np.ndarray, config: DataConfig, scan: Scan
) -> np.ndarray:
    """Return (len(patterns), C): each pattern, then its C - 1 nearest."""
    if len(patterns) == 0:
        return np.empty((0, config.group_size), dtype=np.int64)
    if len(patterns) < config.group_size:
        raise SubsetError(
            f"{scan.path}: found {len(patterns)} training patterns, expected at least "
            f"data.group_size = {config.group_size}"
        )
    return patterns[nearest_neighbours(positions_px[patterns], config.group_size)]


def _require_overlap(positions_px: np.ndarray, groups: np.ndarray, pattern_size: int) -> None:
    if len(groups) == 0:
        return
    offset = np.abs(positions_px[groups] - positions_px[groups[:, :1]]).max(axis=(1, 2))
    if offset.max() >= pattern_size:
        raise SubsetError(
            f"pattern {groups[int(offset.argmax()), 0]} and its {groups.shape[1] - 1} nearest "
            f"neighbours are up to {offset.max():.1f} px apart, so that patches of "
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
