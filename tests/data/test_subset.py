"""The finalised subset, against brute-force loops."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ptycho_dist.config import DataConfig
from ptycho_dist.data.subset import Subset, SubsetError, select_subset
from tests.data.positions import N, random_positions, raster_with_repeats, scan_at, select

SEEDS = range(6)


def squared_distance(positions_px: np.ndarray, one: int, other: int) -> float:
    return float(((positions_px[one] - positions_px[other]) ** 2).sum())


def nearest_distances(
    positions_px: np.ndarray, anchor: int, candidates: Sequence[int], count: int
) -> list[float]:
    """Squared distances from `anchor` to the `count` candidates that are nearest to it, smallest
    first."""
    return sorted(squared_distance(positions_px, anchor, candidate) for candidate in candidates)[
        :count
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("subset_size", [40, 77, 120])
def test_subset_has_the_size_asked_for(subset_size: int, group_size: int, seed: int) -> None:
    subset = select(
        random_positions(120),
        subset_size=subset_size,
        subset_seed=seed,
        group_size=group_size,
        val_fraction=0.2,
    )
    used = np.concatenate([subset.train, subset.validation])
    assert len(used) == len(set(used.tolist())) == subset_size
    assert used.min() >= 0
    assert used.max() < 120


def test_no_size_takes_every_pattern() -> None:
    subset = select(random_positions(50))
    assert sorted([*subset.train, *subset.validation]) == list(range(50))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("group_size", [1, 4])
def test_no_pattern_is_on_both_sides_also_through_groups(group_size: int, seed: int) -> None:
    subset = select(
        random_positions(90),
        subset_size=80,
        subset_seed=seed,
        group_size=group_size,
        val_fraction=0.3,
    )
    train, validation = set(subset.train.tolist()), set(subset.validation.tolist())
    assert not train & validation
    assert set(subset.train_groups.ravel().tolist()) == train
    assert set(subset.validation_groups.ravel().tolist()) == validation


@pytest.mark.parametrize("val_fraction", [0.0, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("group_size", [1, 4])
def test_val_fraction_counts_patterns(group_size: int, val_fraction: float) -> None:
    subset = select(random_positions(200), group_size=group_size, val_fraction=val_fraction)
    # Whole groups only: the fraction is met to within half a group.
    assert abs(len(subset.validation) - val_fraction * 200) <= group_size / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_every_validation_pattern_is_in_one_validation_group(seed: int) -> None:
    subset = select(random_positions(90), subset_seed=seed, val_fraction=0.4)
    assert sorted(subset.validation_groups.ravel().tolist()) == subset.validation.tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "positions_px", [random_positions(90), raster_with_repeats()], ids=["random", "repeats"]
)
def test_every_training_pattern_begins_one_training_group(
    positions_px: np.ndarray, seed: int
) -> None:
    subset = select(positions_px, subset_seed=seed, val_fraction=0.2)
    assert subset.train_groups[:, 0].tolist() == subset.train.tolist()
    assert subset.train.tolist() == sorted(set(subset.train.tolist()))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("group_size", [2, 4, 6])
@pytest.mark.parametrize(
    "positions_px",
    [random_positions(90), raster_with_repeats(), np.zeros((40, 2))],
    ids=["random", "repeats", "point"],
)
def test_training_groups_are_the_nearest_training_patterns(
    positions_px: np.ndarray, group_size: int, seed: int
) -> None:
    subset = select(positions_px, subset_seed=seed, val_fraction=0.2, group_size=group_size)
    train = subset.train.tolist()
    for group in subset.train_groups.tolist():
        assert len(set(group)) == group_size
        assert set(group) <= set(train)
        found = [squared_distance(positions_px, group[0], member) for member in group]
        # Equal distances may be told apart either way, so distances are compared, not numbers. One
        # expression gives both: no tolerance.
        assert sorted(found) == nearest_distances(positions_px, group[0], train, group_size)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "positions_px", [random_positions(90), raster_with_repeats()], ids=["random", "repeats"]
)
def test_validation_groups_are_the_nearest_patterns_still_free(
    positions_px: np.ndarray, seed: int
) -> None:
    subset = select(positions_px, subset_seed=seed, val_fraction=0.4)
    free = set(subset.train.tolist()) | set(subset.validation.tolist())
    for group in subset.validation_groups.tolist():
        assert len(set(group)) == 4
        assert set(group) <= free
        found = [squared_distance(positions_px, group[0], member) for member in group]
        assert found == nearest_distances(positions_px, group[0], sorted(free), 4)
        free -= set(group)
    assert free == set(subset.train.tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_never_cross_scans(seed: int) -> None:
    """Three scans of the same area, so that the nearest pattern is often another scan's."""
    scans = [
        0.5 * random_positions(40, seed=1),
        0.5 * random_positions(55, seed=2),
        0.5 * random_positions(25, seed=3),
    ]
    scan_of_pattern = np.repeat([0, 1, 2], [40, 55, 25])
    subset = select(*scans, subset_seed=seed, subset_size=100, val_fraction=0.3)
    positions_px = np.concatenate(scans)
    for group in [*subset.train_groups.tolist(), *subset.validation_groups.tolist()]:
        assert len(set(scan_of_pattern[group])) == 1
    for group in subset.train_groups.tolist():
        own = [
            pattern
            for pattern in subset.train.tolist()
            if scan_of_pattern[pattern] == scan_of_pattern[group[0]]
        ]
        found = [squared_distance(positions_px, group[0], member) for member in group]
        assert sorted(found) == nearest_distances(positions_px, group[0], own, 4)


def test_groups_of_one_are_the_patterns() -> None:
    subset = select(random_positions(30), group_size=1, val_fraction=0.2)
    assert subset.train_groups.tolist() == [[pattern] for pattern in subset.train.tolist()]
    assert sorted(subset.validation_groups.tolist()) == [
        [pattern] for pattern in subset.validation.tolist()
    ]


def test_draw_is_not_the_beginning_of_the_scan() -> None:
    subset = select(random_positions(200), subset_size=50, val_fraction=0, group_size=1)
    assert subset.train.max() >= 100
    assert subset.train.tolist() != list(range(50))


def arrays_of(subset: Subset) -> list[list[Any]]:
    return [
        subset.train.tolist(),
        subset.validation.tolist(),
        subset.train_groups.tolist(),
        subset.validation_groups.tolist(),
    ]


def test_same_seed_gives_the_same_subset() -> None:
    one, other = (
        select(random_positions(90), subset_size=60, subset_seed=7, val_fraction=0.2)
        for _ in range(2)
    )
    assert arrays_of(one) == arrays_of(other)
    assert one.fingerprint == other.fingerprint


def test_other_seed_gives_another_subset() -> None:
    subsets = [
        select(random_positions(90), subset_size=60, subset_seed=seed, val_fraction=0.2)
        for seed in SEEDS
    ]
    assert len({tuple(subset.train.tolist()) for subset in subsets}) == len(SEEDS)
    assert len({subset.fingerprint for subset in subsets}) == len(SEEDS)


@pytest.mark.parametrize(
    "changed",
    [{"subset_size": 59}, {"subset_seed": 8}, {"val_fraction": 0.3}, {"group_size": 3}],
    ids=lambda changed: next(iter(changed)),
)
def test_fingerprint_changes_with_every_setting(changed: dict[str, Any]) -> None:
    settings = {"subset_size": 60, "subset_seed": 7, "val_fraction": 0.2, "group_size": 4}
    assert (
        select(random_positions(90), **settings).fingerprint
        != select(random_positions(90), **settings | changed).fingerprint
    )


def test_fingerprint_changes_with_the_last_bit_of_a_position() -> None:
    positions_px = random_positions(90)
    moved = positions_px.copy()
    moved[89, 1] = np.nextafter(moved[89, 1], np.inf)
    assert select(positions_px).fingerprint != select(moved).fingerprint


def test_fingerprint_tells_two_scans_from_one() -> None:
    positions_px = random_positions(40)
    together = select(positions_px, val_fraction=0, group_size=1)
    apart = select(positions_px[:20], positions_px[20:], val_fraction=0, group_size=1)
    assert arrays_of(together) == arrays_of(apart)
    assert together.fingerprint != apart.fingerprint


def test_fingerprint_does_not_depend_on_where_the_file_is() -> None:
    config = DataConfig()
    one, other = (
        select_subset([scan_at(random_positions(40), name)], config)
        for name in ("a/scan.npz", "b/scan.npz")
    )
    assert one.fingerprint == other.fingerprint


def test_fingerprint_is_a_sha256() -> None:
    assert (
        len(bytes.fromhex(select(random_positions(40)).fingerprint)) == hashlib.sha256().digest_size
    )


def _select_on_a_rank(positions_px: np.ndarray) -> tuple[str, list[list[Any]]]:
    subset = select(positions_px, subset_size=60, subset_seed=7, val_fraction=0.2)
    return subset.fingerprint, arrays_of(subset)


def test_subset_is_the_same_on_every_rank(on_ranks: Callable[..., list[Any]]) -> None:
    alone = _select_on_a_rank(random_positions(90))
    assert on_ranks(3, _select_on_a_rank, random_positions(90)) == [alone] * 3


REFUSED = {
    "more than there are": (
        90,
        {"subset_size": 91},
        r"data\.subset_size is 91, but scan0\.npz has 90 patterns",
    ),
    "fewer than a group": (
        90,
        {"subset_size": 3, "val_fraction": 0.0},
        r"scan0\.npz: found 3 training patterns, .* data\.group_size = 4",
    ),
    "none left to train": (
        90,
        {"subset_size": 4, "group_size": 1, "val_fraction": 0.99},
        r"data\.val_fraction 0\.99 .* none to train on",
    ),
    "too few left to train": (
        10,
        {"val_fraction": 0.8},
        r"scan0\.npz: found 2 training patterns, .* at least data\.group_size = 4",
    ),
    "too few for validation": (
        10,
        {"group_size": 6, "val_fraction": 0.95},
        r"data\.val_fraction 0\.95 of 10 patterns leaves too few",
    ),
}


@pytest.mark.parametrize(("num_patterns", "config", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_subset_is_refused(
    num_patterns: int, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(SubsetError, match=message):
        select(random_positions(num_patterns), **config)


def test_scan_too_small_for_a_group_is_named() -> None:
    with pytest.raises(SubsetError, match=r"scan1\.npz: found 3 training patterns"):
        select(random_positions(40), random_positions(3), val_fraction=0)


@pytest.mark.parametrize("apart_px", [N, 3 * N])
def test_groups_that_do_not_overlap_are_refused(apart_px: float) -> None:
    positions_px = np.concatenate([random_positions(40), [[0.0, 100.0 + apart_px]]])
    with pytest.raises(
        SubsetError,
        match=r"pattern 40 and its 3 nearest neighbours are up to .* px apart.*64 px.*data\.group_size 1",
    ):
        select(positions_px, val_fraction=0)


def test_groups_that_only_touch_are_refused() -> None:
    line = np.stack([np.zeros(4), N / 4 * np.array([0, 1, 2, 4])], axis=1)
    with pytest.raises(SubsetError, match=r"up to 64\.0 px apart"):
        select(line, val_fraction=0)


def test_groups_may_lie_just_under_a_patch_apart_and_single_patterns_anywhere() -> None:
    line = np.stack([np.zeros(4), (N - 0.5) / 3 * np.arange(4)], axis=1)
    assert len(select(line, val_fraction=0).train_groups) == 4
    assert len(select(100 * line, val_fraction=0, group_size=1).train_groups) == 4


def test_fingerprint_tells_other_content_at_the_same_positions() -> None:
    positions = random_positions(40)
    first, second = (
        select_subset([scan_at(positions, fingerprint=content)], DataConfig()).fingerprint
        for content in ("a", "b")
    )
    assert first != second
