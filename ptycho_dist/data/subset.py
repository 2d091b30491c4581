"""The finalised subset: which patterns are trained on, which validate, and how they are grouped. The same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ptycho_dist.config import DataConfig
from ptycho_dist.data.scan import Scan


class SubsetError(ValueError):
    """The scans can't give the subset that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """Patterns by number, counted through all scans in their order.

    Attributes
    ----------
    train, validation
        (k,) int64, ascending: the patterns of each side. None is on both.
    train_groups, validation_groups
        (groups, C) int64. Every training pattern begins one training group, followed by its nearest neighbours among the training
        patterns; every validation pattern is in exactly one validation group.
    fingerprint
        SHA-256 of the scans' contents and positions and of the groups of both sides.
    """

    train: np.ndarray
    validation: np.ndarray
    train_groups: np.ndarray
    validation_groups: np.ndarray
    fingerprint: str


def select_subset(scans: Sequence[Scan], config: DataConfig) -> Subset:
    """Draw, split and group the patterns of `scans`.

    Validation takes whole groups, a random pattern and its nearest neighbours that are still free, so that with C > 1 its patches overlap
    and no pattern is on both sides.

    Raises
    ------
    SubsetError
        There are fewer patterns than asked for or than a group needs, or the patches of a group don't overlap.
    """
    positions_px = np.concatenate([scan.positions_px for scan in scans])
    scan_of_pattern = np.repeat(np.arange(len(scans)), [scan.num_patterns for scan in scans])
    num_patterns = len(positions_px)
    size = num_patterns if config.subset_size is None else config.subset_size
    if size > num_patterns:
        raise SubsetError(f"data.subset_size is {size}, but {_names(scans)} has {num_patterns} patterns")

    random = np.random.default_rng(config.subset_seed)
    drawn = random.permutation(num_patterns)[:size]
    is_free = np.zeros(num_patterns, dtype=bool)
    is_free[drawn] = True
    num_validation_groups = round(config.val_fraction * size / config.group_size)
    validation_groups = np.empty((num_validation_groups, config.group_size), dtype=np.int64)
    next_anchor = iter(drawn)
    for group in range(num_validation_groups):
        anchor = next((pattern for pattern in next_anchor if is_free[pattern]), None)
        free = np.flatnonzero(is_free & (scan_of_pattern == scan_of_pattern[anchor])) if anchor is not None else np.empty(0, dtype=np.int64)
        if len(free) < config.group_size:
            raise SubsetError(
                f"data.val_fraction {config.val_fraction} of {size} patterns leaves too few for groups of {config.group_size}"
            )
        distance = np.square(positions_px[free] - positions_px[anchor]).sum(axis=1)
        distance[free == anchor] = -1  # before another pattern at the same position
        validation_groups[group] = free[np.argsort(distance, kind="stable")[: config.group_size]]
        is_free[validation_groups[group]] = False

    train = np.flatnonzero(is_free)
    if len(train) == 0:
        raise SubsetError(f"data.val_fraction {config.val_fraction} of {size} patterns leaves none to train on")
    train_groups = np.concatenate(
        [
            _nearest_neighbour_groups(positions_px, train[scan_of_pattern[train] == number], config.group_size, scan)
            for number, scan in enumerate(scans)
        ]
    )
    for groups in (train_groups, validation_groups):
        _require_overlap(positions_px, groups, scans[0].pattern_size)
    validation = np.sort(validation_groups.reshape(-1))
    fingerprint = _sha256([scan.fingerprint for scan in scans], positions_px, scan_of_pattern, train_groups, validation_groups)
    return Subset(
        train=train, validation=validation, train_groups=train_groups, validation_groups=validation_groups, fingerprint=fingerprint
    )


def _nearest_neighbour_groups(positions_px: np.ndarray, patterns: np.ndarray, group_size: int, scan: Scan) -> np.ndarray:
    """(len(patterns), C): each pattern, then its C - 1 nearest."""
    if len(patterns) == 0:
        return np.empty((0, group_size), dtype=np.int64)
    if len(patterns) < group_size:
        raise SubsetError(f"{scan.path}: found {len(patterns)} training patterns, expected at least data.group_size = {group_size}")
    return patterns[nearest_neighbours(positions_px[patterns], group_size)]


def nearest_neighbours(positions_px: np.ndarray, count: int) -> np.ndarray:
    """Numbers (n, count) of the positions nearest to each of n, itself first; n is at least `count`."""
    itself = np.arange(len(positions_px))[:, None]
    if count == 1:
        return itself
    _, neighbours = cKDTree(positions_px).query(positions_px, k=count)
    # Where several patterns share a position the tree may put another one first, or leave the pattern itself out.
    neighbours = np.take_along_axis(neighbours, np.argsort(neighbours != itself, axis=1, kind="stable"), axis=1)
    neighbours[:, 0] = itself[:, 0]
    return neighbours


def _require_overlap(positions_px: np.ndarray, groups: np.ndarray, pattern_size: int) -> None:
    if len(groups) == 0:
        return
    offset = np.abs(positions_px[groups] - positions_px[groups[:, :1]]).max(axis=(1, 2))
    if offset.max() >= pattern_size:
        anchor = groups[int(offset.argmax()), 0]
        raise SubsetError(
            f"pattern {anchor} and its {groups.shape[1] - 1} nearest neighbours are up to {offset.max():.1f} px apart, so that patches of "
            f"{pattern_size} px don't overlap; use a larger data.subset_size or data.group_size 1"
        )


def _sha256(contents: Sequence[str], *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(" ".join(contents).encode())
    for array in arrays:
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{little_endian.dtype.str}{little_endian.shape}".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()


def _names(scans: Sequence[Scan]) -> str:
    return ", ".join(str(scan.path) for scan in scans)
