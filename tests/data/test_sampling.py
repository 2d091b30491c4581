"""Which patterns are drawn, against brute-force loops; every way alike for one scan and for
several."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_dist.config import DataConfig
from ptycho_dist.data.sampling import Draw, draw_patterns
from ptycho_dist.data.subset import SubsetError, select_subset
from tests.data.positions import random_positions, raster_with_repeats, scan_at, select

SEEDS = range(4)
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "random": {"subset_size": 70},
    "central_block": {"subset_size": 70},
    "every": {"every": 2},
    "poisson_disc": {"subset_size": 70},
    "poisson_disc by distance": {"min_distance_px": 4.0},
    "index_file": {"index_file": "keep.npy"},
}


@pytest.fixture(autouse=True)
def index_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("keep.npy", np.arange(10, 80)[::-1])


def config(mode: str, **changes: Any) -> DataConfig:
    return DataConfig(sampling=mode.split()[0], **MODES[mode] | changes)  # type: ignore[arg-type]


def draw(settings: DataConfig, *positions: np.ndarray) -> Draw:
    scans = [scan_at(one, f"scan{number}.npz") for number, one in enumerate(positions)]
    return draw_patterns(scans, settings, np.random.default_rng(settings.subset_seed))


def distances(positions_px: np.ndarray) -> np.ndarray:
    """Between all pairs, infinite between a position and itself."""
    offsets = positions_px[:, None] - positions_px[None]
    return np.hypot(offsets[..., 0], offsets[..., 1]) + np.diag(np.full(len(positions_px), np.inf))


# --- All ways


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("positions", [[120], [50, 30, 40], [1, 119]], ids=str)
def test_patterns_are_there_and_none_is_drawn_twice(mode: str, positions: list[int]) -> None:
    found = draw(
        config(mode), *(random_positions(count, seed) for seed, count in enumerate(positions))
    ).patterns
    assert found.dtype == np.int64
    assert len(found) == len(set(found.tolist())) > 0
    assert 0 <= found.min() <= found.max() < 120
    if "subset_size" in MODES[mode]:
        assert len(found) == 70


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group_size", [1, 4])
def test_no_pattern_is_on_both_sides_and_every_drawn_one_is_used(
    mode: str, group_size: int
) -> None:
    """By position, in an area small enough for any group to overlap."""
    scans = [0.5 * random_positions(70, 1), 0.5 * random_positions(50, 2)]
    settings = config(
        mode,
        val_fraction=0.3,
        group_size=group_size,
        **({"min_distance_px": 2.0} if mode.endswith("distance") else {}),
    )
    subset = select_subset([scan_at(one) for one in scans], settings)
    train, validation = set(subset.train.tolist()), set(subset.validation.tolist())
    assert not train & validation
    assert len(validation) > 0
    assert train | validation == set(draw(settings, *scans).patterns.tolist())
    for group in [*subset.train_groups.tolist(), *subset.validation_groups.tolist()]:
        assert len({number < 70 for number in group}) == 1


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_draws_the_same_another_seed_another_split(mode: str) -> None:
    first, again, other = (
        select(0.5 * random_positions(120), **told(mode, seed)) for seed in (3, 3, 4)
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint
    seeded = mode.split()[0] in ("random", "poisson_disc")
    assert (
        sorted([*first.train, *first.validation]) == sorted([*other.train, *other.validation])
    ) is not seeded


def told(mode: str, seed: int) -> dict[str, Any]:
    return {"sampling": mode.split()[0], "subset_seed": seed, "val_fraction": 0.2, **MODES[mode]}


def test_ways_draw_different_patterns() -> None:
    found = {
        mode: tuple(sorted(draw(config(mode), random_positions(120)).patterns)) for mode in MODES
    }
    assert len(set(found.values())) == len(MODES)


@pytest.mark.parametrize("mode", ["random", "central_block", "poisson_disc"])
def test_more_than_there_are_is_refused(mode: str) -> None:
    with pytest.raises(
        SubsetError, match=r"data\.subset_size is 91, but scan0\.npz, scan1\.npz has 90 patterns"
    ):
        draw(config(mode, subset_size=91), random_positions(50), random_positions(40))


@pytest.mark.parametrize("mode", ["random", "central_block", "poisson_disc"])
def test_as_many_as_there_are_is_all(mode: str) -> None:
    found = draw(config(mode, subset_size=90), raster_with_repeats(), random_positions(42))
    assert sorted(found.patterns) == list(range(90))


DESCRIPTIONS = {
    "full": "120 of 120 patterns, full",
    "random": "70 of 120 patterns, random",
    "central_block": "70 of 120 patterns, central_block",
    "every": "60 of 120 patterns, every 2 in scan order",
    "poisson_disc": "70 of 120 patterns, poisson_disc, nearest two 6.9 px apart",
    "index_file": "70 of 120 patterns, index_file keep.npy",
}


@pytest.mark.parametrize("mode", DESCRIPTIONS)
def test_description_says_how_many_and_how(mode: str) -> None:
    assert (
        select(random_positions(120), sampling=mode, group_size=1, **MODES[mode]).description
        == DESCRIPTIONS[mode]
    )


# --- What is drawn stays what it was: checkpoints name it by its fingerprint


KEPT: list[tuple[list[np.ndarray], dict[str, Any], str]] = [
    ([random_positions(90)], {}, "4f049cb3"),
    (
        [random_positions(90)],
        {"subset_size": 60, "subset_seed": 7, "val_fraction": 0.2},
        "b91fbcc9",
    ),
    ([raster_with_repeats()], {"val_fraction": 0.4}, "207cd2e8"),
    (
        [random_positions(40, 1), random_positions(55, 2)],
        {"subset_size": 80, "val_fraction": 0.3, "group_size": 3},
        "6c2ae943",
    ),
    ([raster_with_repeats()], {"val_fraction": 0.5, "group_size": 6, "subset_seed": 3}, "46bf37fc"),
]


@pytest.mark.parametrize(("positions", "settings", "fingerprint"), KEPT)
def test_full_and_random_draw_what_they_always_drew(
    positions: list[np.ndarray], settings: dict[str, Any], fingerprint: str
) -> None:
    assert select(*positions, **settings).fingerprint.startswith(fingerprint)
    named = "random" if "subset_size" in settings else "full"
    assert select(*positions, sampling=named, **settings).fingerprint.startswith(fingerprint)


# --- Central block


@pytest.mark.parametrize("size", [1, 10, 70])
def test_central_block_is_what_lies_nearest_to_the_middle(size: int) -> None:
    positions_px = random_positions(120)
    found = draw(config("central_block", subset_size=size), positions_px).patterns
    middle = (positions_px.min(axis=0) + positions_px.max(axis=0)) / 2
    assert sorted(found) == sorted(
        sorted(range(120), key=lambda number: np.hypot(*(positions_px[number] - middle)))[:size]
    )


def test_central_block_is_as_dense_as_the_scan_where_a_random_draw_is_not() -> None:
    """On a raster of 5 px, in any scan order, a neighbour is 5 px away; of a quarter drawn at
    random, mostly farther."""
    grid = 5.0 * np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2)
    grid = np.random.default_rng(0).permutation(grid)
    block, scattered = (
        grid[draw(config(mode, subset_size=100), grid).patterns]
        for mode in ("central_block", "random")
    )
    assert (distances(block).min(axis=1) == 5.0).all()
    assert (distances(scattered).min(axis=1) > 5.0).mean() > 0.2


@pytest.mark.parametrize("mode", ["central_block", "poisson_disc"])
@pytest.mark.parametrize(
    ("counts", "size", "shares"),
    [
        ([60, 30, 30], 40, [20, 10, 10]),
        ([50, 50, 20], 7, [3, 3, 1]),  # 2.92, 2.92, 1.17
        ([100, 1, 1], 50, [49, 1, 0]),  # 49.02, 0.49, 0.49: the first of equals
        ([3, 5], 8, [3, 5]),
    ],
)
def test_scans_give_the_same_fraction_of_their_patterns(
    mode: str, counts: list[int], size: int, shares: list[int]
) -> None:
    found = draw(
        config(mode, subset_size=size),
        *(random_positions(count, seed) for seed, count in enumerate(counts)),
    ).patterns
    assert (
        np.bincount(
            np.repeat(np.arange(len(counts)), counts)[found], minlength=len(counts)
        ).tolist()
        == shares
    )


# --- Every k-th


@pytest.mark.parametrize("every", [1, 2, 3, 7, 1000, 2**70])
def test_every_kth_begins_anew_in_each_scan(every: int) -> None:
    found = draw(
        config("every", every=every),
        random_positions(20),
        random_positions(11),
        random_positions(9),
    ).patterns
    expected = [
        first + number
        for first, count in ((0, 20), (20, 11), (31, 9))
        for number in range(count)
        if number % every == 0
    ]
    assert sorted(found) == expected


# --- Poisson disc

JITTERED = 5.0 * np.stack(np.meshgrid(np.arange(18), np.arange(18)), -1).reshape(
    -1, 2
) + np.random.default_rng(5).uniform(-1, 1, (324, 2))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("distance_px", [4.0, 6.0, 13.5])
@pytest.mark.parametrize(
    "positions_px",
    [random_positions(300), JITTERED, raster_with_repeats()],
    ids=["random", "raster", "repeats"],
)
def test_no_two_are_nearer_than_asked_and_no_other_one_would_fit(
    positions_px: np.ndarray, distance_px: float, seed: int
) -> None:
    found = draw(
        config("poisson_disc by distance", min_distance_px=distance_px, subset_seed=seed),
        positions_px,
    ).patterns
    assert distances(positions_px[found]).min() >= distance_px
    for number in set(range(len(positions_px))) - set(found.tolist()):
        assert np.hypot(*(positions_px[found] - positions_px[number]).T).min() < distance_px


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [20, 80, 200])
@pytest.mark.parametrize(
    "positions_px", [random_positions(300), JITTERED], ids=["random", "raster"]
)
def test_size_is_met_by_nearly_the_largest_distance(
    positions_px: np.ndarray, size: int, seed: int
) -> None:
    """What is left out is at most a step of the radius farther from all drawn than the nearest two
    are from each other."""
    found = draw(config("poisson_disc", subset_size=size, subset_seed=seed), positions_px).patterns
    left_out = np.setdiff1d(np.arange(len(positions_px)), found)
    apart_px = distances(positions_px[found]).min()
    offsets = positions_px[left_out, None] - positions_px[found][None]
    assert np.hypot(offsets[..., 0], offsets[..., 1]).min(axis=1).max() < apart_px / 0.99
    scattered = draw(config("random", subset_size=size, subset_seed=seed), positions_px).patterns
    assert apart_px > 1.2 * distances(positions_px[scattered]).min()


def test_half_of_a_checkerboard_is_found_as_far_as_chance_allows() -> None:
    """On a plain raster nothing but whole steps is possible: no two of a third of it are neighbours
    in a row or column."""
    grid = 5.0 * np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2)
    found = draw(config("poisson_disc", subset_size=130), grid).patterns
    # float64 rounding
    assert distances(grid[found]).min() == pytest.approx(5 * np.sqrt(2), rel=1e-12)


def test_repeated_positions_come_last() -> None:
    positions_px = raster_with_repeats()
    distinct = len(np.unique(positions_px, axis=0))
    for size in (distinct - 1, distinct, distinct + 3):
        found = draw(config("poisson_disc", subset_size=size), positions_px).patterns
        assert len(found) == size
        assert len(np.unique(positions_px[found], axis=0)) == min(size, distinct)


def test_one_pattern_and_one_position() -> None:
    assert len(draw(config("poisson_disc", subset_size=1), random_positions(9)).patterns) == 1
    assert len(draw(config("poisson_disc", subset_size=5), np.zeros((9, 2))).patterns) == 5
    assert (
        len(
            draw(
                config("poisson_disc by distance", min_distance_px=1e9), random_positions(9)
            ).patterns
        )
        == 1
    )


def test_scans_are_thinned_each_on_its_own() -> None:
    """Two scans of one area: a pattern of one is no obstacle to the other's."""
    both = random_positions(60)
    alone = len(draw(config("poisson_disc by distance"), both).patterns)
    together = draw(config("poisson_disc by distance"), both, both).patterns
    assert min((together < 60).sum(), (together >= 60).sum()) > 0.8 * alone


def test_hundred_thousand_positions_take_seconds() -> None:
    positions_px = np.random.default_rng(0).uniform(0, 2000, (100_000, 2))
    started = time.process_time()
    subset = select(positions_px, sampling="poisson_disc", subset_size=50_000)
    assert len(subset.train) + len(subset.validation) == 50_000
    assert time.process_time() - started < 20  # 2.3 s on one core


# --- Index file


def test_index_file_counts_through_all_scans() -> None:
    found = draw(config("index_file"), random_positions(50), random_positions(70)).patterns
    assert sorted(found) == list(range(10, 80))


def test_order_of_the_index_file_means_nothing() -> None:
    backwards = select(
        0.5 * random_positions(120), sampling="index_file", index_file="keep.npy"
    ).fingerprint
    np.save("keep.npy", np.arange(10, 80))
    assert (
        select(
            0.5 * random_positions(120), sampling="index_file", index_file="keep.npy"
        ).fingerprint
        == backwards
    )
