"""Preparation: one r, one s and one nphotons whatever the number of ranks, from the training
patterns and nothing else."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_dist.config import DataConfig, Hdf5Config, TrainConfig
from ptycho_dist.data.batches import make_batches
from ptycho_dist.data.prepare import STAGES, PreparedData, Stage, prepare
from ptycho_dist.data.scan import ScanError
from ptycho_dist.distributed import FailedTogether, rank
from ptycho_dist.scale.intensity_scale import derive_intensity_scale
from tests.scans import MASKED_HDF5, dead_pixels, small_scan_arrays

WriteScan = Callable[..., Path]
OnRanks = Callable[..., list[Any]]
NPHOTONS = 12345.678
N = 16


def uneven_arrays(seed: int = 0, **settings: Any) -> dict[str, np.ndarray]:
    """A scan whose patterns differ in brightness up to a hundredfold, so that every change of the
    patterns counted shows in r and s."""
    arrays = small_scan_arrays(num_patterns=60, seed=seed, **settings)
    brightness = 10 ** np.random.default_rng(seed).uniform(-1, 1, (60, 1, 1))
    return {**arrays, "diffraction": (brightness * arrays["diffraction"]).astype(np.float32)}


def prepared(path: Path | list[Path], **settings: Any) -> PreparedData:
    defaults = {
        "measurement": "amplitude",
        "nphotons": NPHOTONS,
        "val_fraction": 0.2,
        "subset_size": 50,
    }
    paths = [str(one) for one in path] if isinstance(path, list) else str(path)
    return prepare(DataConfig(path=paths, **defaults | settings))


def batches(data: PreparedData, **settings: Any) -> tuple[Any, Any]:
    return make_batches(data, TrainConfig(**{"global_batch_size": 8, **settings}))


def energies(patterns: np.ndarray) -> np.ndarray:
    """sum(x**2) of each pattern in float64."""
    return (patterns.astype(np.float64) ** 2).sum(axis=(1, 2))


def times(factor: float, amplitude: np.ndarray) -> np.ndarray:
    """float32(factor * amplitude): the product in float64."""
    return (np.float64(factor) * amplitude.astype(np.float64)).astype(np.float32)


@pytest.fixture
def path(write_scan: WriteScan) -> Path:
    return write_scan(arrays=uneven_arrays())


# --- The numbers


def test_rms_factor_equals_numpy_in_float64(path: Path) -> None:
    data = prepared(path)
    train = uneven_arrays()["diffraction"][data.subset.train]
    # 40 additions, a division and a root in float64, each rounded to 1.1e-16.
    assert data.calibration.rms_factor == pytest.approx(
        (N / 2) / np.sqrt(energies(train).mean()), rel=1e-12
    )
    assert data.calibration.num_patterns == len(train)


@pytest.mark.parametrize("group_size", [1, 4])
def test_intensity_scale_equals_numpy_in_float64(path: Path, group_size: int) -> None:
    data = prepared(path, group_size=group_size)
    x_norm = times(data.calibration.rms_factor, uneven_arrays()["diffraction"][data.subset.train])
    # As above: the float32 inputs are the same ones, only the float64 sums round.
    assert data.calibration.intensity_scale == pytest.approx(
        np.sqrt(NPHOTONS / energies(x_norm).mean()), rel=1e-12
    )
    assert data.calibration.nphotons == NPHOTONS


def test_mean_photons_of_the_scaled_patterns_are_nphotons(path: Path) -> None:
    data = prepared(path)
    x_norm = times(data.calibration.rms_factor, uneven_arrays()["diffraction"][data.subset.train])
    photons = energies(data.calibration.intensity_scale * x_norm.astype(np.float64))
    assert photons.mean() == pytest.approx(NPHOTONS, rel=1e-12)  # float64 rounding


def closed_form(nphotons: float) -> float:
    return math.sqrt(nphotons) / (N / 2)


FLOAT32_ROUNDING = 2.0**-24
"""X_norm is rounded to float32, each pixel by up to 2**-24 of itself, so the energy by up to 2**-23
and s, its root, by up to 2**-24."""


@pytest.mark.parametrize("nphotons", [1.0, NPHOTONS, 1e9])
def test_closed_form_holds_where_normalisation_and_scale_see_the_same_patterns(
    path: Path, nphotons: float
) -> None:
    assert prepared(path, nphotons=nphotons).calibration.intensity_scale == pytest.approx(
        closed_form(nphotons), rel=1.001 * FLOAT32_ROUNDING
    )


def test_closed_form_does_not_hold_for_other_patterns(path: Path) -> None:
    """So the scale is computed from the patterns, not by the shortcut."""
    data = prepared(path)
    patterns = uneven_arrays()["diffraction"]
    for other in (data.subset.validation, data.subset.train[: len(data.subset.train) // 2]):
        x_norm = times(data.calibration.rms_factor, patterns[other])
        scale = derive_intensity_scale(x_norm, NPHOTONS).value
        # float64 rounding
        assert scale == pytest.approx(np.sqrt(NPHOTONS / energies(x_norm).mean()), rel=1e-12)
        assert abs(scale / closed_form(NPHOTONS) - 1) > 0.01


def test_each_training_pattern_is_counted_once_however_often_groups_repeat_it(path: Path) -> None:
    data = prepared(path, group_size=4, nphotons="measured")
    train, groups = data.subset.train, data.subset.train_groups
    assert data.calibration.num_patterns == len(train) == len(set(train.tolist()))
    assert groups.size == 4 * len(train)
    energy = energies(uneven_arrays()["diffraction"])
    # counted as the groups repeat them, another number would come out
    assert abs(energy[groups].mean() / energy[train].mean() - 1) > 0.01
    # float64 rounding
    assert data.calibration.nphotons == pytest.approx(energy[train].mean(), rel=1e-12)


def scale_bits(data: PreparedData) -> tuple[str, ...]:
    calibration = data.calibration
    numbers = (calibration.rms_factor, calibration.intensity_scale, calibration.mean_energy)
    return tuple(number.hex() for number in numbers)


def changed_at(pattern: int) -> dict[str, np.ndarray]:
    arrays = uneven_arrays()
    arrays["diffraction"][pattern] *= 3
    return arrays


def test_validation_patterns_do_not_enter_the_scale(path: Path, write_scan: WriteScan) -> None:
    before = prepared(path)
    for pattern in before.subset.validation:
        assert scale_bits(
            prepared(write_scan("changed.npz", arrays=changed_at(pattern)))
        ) == scale_bits(before)


def test_patterns_outside_the_subset_do_not_enter_the_scale(
    path: Path, write_scan: WriteScan
) -> None:
    before = prepared(path)
    unused = sorted(
        set(range(60)) - set(before.subset.train.tolist()) - set(before.subset.validation.tolist())
    )
    assert len(unused) == 10
    assert scale_bits(
        prepared(write_scan("changed.npz", arrays=changed_at(unused[0])))
    ) == scale_bits(before)


def test_every_training_pattern_enters_the_scale(path: Path, write_scan: WriteScan) -> None:
    before = prepared(path)
    for pattern in before.subset.train:
        after = prepared(write_scan("changed.npz", arrays=changed_at(pattern)))
        assert after.calibration.rms_factor != before.calibration.rms_factor


def test_nothing_is_written_to_the_scan(path: Path) -> None:
    before = path.read_bytes()
    list(batches(prepared(path))[0])
    assert path.read_bytes() == before


# --- Ranks


def _numbers_on_a_rank(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    record = prepared(path, **settings).calibration.to_dict()
    bright = record.pop("scan_brightness")
    numbers = {**record, **{f"brightness {number}": value for number, value in enumerate(bright)}}
    return {
        name: value.hex() if isinstance(value, float) else value for name, value in numbers.items()
    }


@pytest.mark.parametrize(
    "settings",
    [{}, {"nphotons": "measured"}, {"subset_size": 2, "val_fraction": 0.0, "group_size": 1}],
    ids=["config", "measured", "a rank without patterns"],
)
def test_numbers_have_the_same_bits_on_every_rank_and_number_of_ranks(
    on_ranks: OnRanks, path: Path, settings: dict[str, Any]
) -> None:
    alone = _numbers_on_a_rank(path, settings)
    for world_size in (1, 2, 3):
        assert on_ranks(world_size, _numbers_on_a_rank, path, settings) == [alone] * world_size


def _batches_on_a_rank(path: Path, global_batch_size: int, epoch: int) -> dict[str, Any]:
    loader, validation = batches(prepared(path), global_batch_size=global_batch_size)
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return {
        "shapes": [tuple(batch.x_norm.shape) for batch in loader],
        "train": [
            [
                (positions.tolist(), x.numpy().tobytes())
                for x, positions in zip(*batch[:2], strict=True)
            ]
            for batch in loader
        ],
        "validation": [batch.positions_px.tolist() for batch in validation],
    }


@pytest.mark.parametrize(("world_size", "global_batch_size"), [(2, 7), (3, 2)])
def test_ranks_together_see_the_batches_of_one_process(
    on_ranks: OnRanks, path: Path, world_size: int, global_batch_size: int
) -> None:
    alone = _batches_on_a_rank(path, global_batch_size, 1)
    ranks = on_ranks(world_size, _batches_on_a_rank, path, global_batch_size, 1)
    for step, expected in enumerate(alone["train"]):
        assert sorted(sample for one in ranks for sample in one["train"][step]) == sorted(expected)
    for step, expected in enumerate(alone["validation"]):
        assert sorted(sample for one in ranks for sample in one["validation"][step]) == sorted(
            expected
        )
    if global_batch_size < world_size:
        assert ranks[-1]["shapes"] == [(0, 4, N, N)] * len(alone["train"])


def _refusal_on_a_rank(paths: list[Path], settings: dict[str, Any]) -> str:
    try:
        prepared(paths[rank()], **settings)
    except FailedTogether as error:
        return str(error)
    return "no error"


def with_nan_at(pattern: int) -> dict[str, np.ndarray]:
    arrays = uneven_arrays()
    arrays["diffraction"][pattern, 2, 3] = np.nan
    return arrays


@pytest.mark.parametrize("side", ["train", "validation"])
def test_nan_in_a_pattern_that_is_used_is_met_in_setup(
    path: Path, write_scan: WriteScan, side: str
) -> None:
    for pattern in getattr(prepared(path).subset, side)[:3]:
        bad = write_scan("bad.npz", arrays=with_nan_at(pattern))
        with pytest.raises(
            ScanError,
            match=rf"{bad}: diffraction: found nan at pixel \[2, 3\] of pattern {pattern}, expected finite",
        ):
            prepared(bad)


@pytest.mark.parametrize("side", ["train", "validation"])
def test_nan_that_one_rank_meets_fails_every_rank_in_setup(
    on_ranks: OnRanks, path: Path, write_scan: WriteScan, side: str
) -> None:
    pattern = int(getattr(prepared(path).subset, side)[0])
    bad = write_scan("bad.npz", arrays=with_nan_at(pattern))
    first, second = on_ranks(2, _refusal_on_a_rank, [bad, bad], {})
    assert first == second
    assert first.startswith(
        f"rank 0: {bad}: diffraction: found nan at pixel [2, 3] of pattern {pattern}, expected "
        "finite amplitude"
    )


def test_ranks_without_nphotons_fail_together(on_ranks: OnRanks, path: Path) -> None:
    first, second = on_ranks(2, _refusal_on_a_rank, [path, path], {"nphotons": None})
    assert first == second
    assert "set data.nphotons" in first


# --- Batches


def test_batches_hold_the_normalised_patterns_and_their_positions(path: Path) -> None:
    data = prepared(path)
    arrays = uneven_arrays()
    positions_px = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    seen = []
    for loader in batches(data):
        for batch in loader:
            assert (batch.x_norm.dtype, batch.positions_px.dtype, batch.scan.dtype) == (
                torch.float32,
                torch.float64,
                torch.int64,
            )
            assert batch.scan.tolist() == [0] * len(batch.x_norm)
            for x_norm, positions in zip(
                batch.x_norm.numpy(), batch.positions_px.numpy(), strict=True
            ):
                group = [
                    int(np.flatnonzero((positions_px == position).all(axis=1)).item())
                    for position in positions
                ]
                assert np.array_equal(
                    x_norm, times(data.calibration.rms_factor, arrays["diffraction"][group])
                )
                seen.append(group)
    assert sorted(seen) == sorted(
        [*data.subset.train_groups.tolist(), *data.subset.validation_groups.tolist()]
    )


def test_normalised_patterns_have_a_mean_energy_of_n_over_two_squared(path: Path) -> None:
    data = prepared(path, group_size=1)
    x_norm = np.concatenate([batch.x_norm.numpy()[:, 0] for batch in batches(data)[0]])
    # the energy's share of the rounding above
    assert energies(x_norm).mean() == pytest.approx((N / 2) ** 2, rel=2.002 * FLOAT32_ROUNDING)


def test_training_order_changes_with_seed_and_epoch_but_validation_keeps_its_own(
    path: Path,
) -> None:
    def order(loader: Any, epoch: int = 0) -> list[list[float]]:
        if epoch:
            loader.batch_sampler.set_epoch(epoch)
        return [position for batch in loader for position in batch.positions_px[:, 0].tolist()]

    data = prepared(path)
    train, validation = batches(data)
    other_train, other_validation = batches(data, seed=1)
    first = order(train)
    assert order(train, epoch=1) != first
    assert order(other_train) != first
    assert order(batches(prepared(path))[0]) == first
    assert order(validation) == order(other_validation)


def test_no_validation_gives_no_batches(path: Path) -> None:
    assert batches(prepared(path, val_fraction=0.0))[1] == []


def test_chunks_of_any_size_give_the_same_bits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scale_bits(prepared(path))
    for chunk_pixels in (1, N**2 * 7):
        monkeypatch.setattr("ptycho_dist.data.pattern_source.CHUNK_PIXELS", chunk_pixels)
        assert scale_bits(prepared(path)) == whole


# --- nphotons


def saying(nphotons: float | None) -> dict[str, np.ndarray]:
    return {"_metadata": np.array(json.dumps({"physics_parameters": {"nphotons": nphotons}}))}


@pytest.mark.parametrize(
    ("in_file", "configured", "value", "source"),
    [
        (5e5, 1e3, 5e5, "metadata"),
        (5e5, "measured", 5e5, "metadata"),
        (5e5, None, 5e5, "metadata"),
        (None, 1e3, 1e3, "config"),
    ],
)
def test_nphotons_is_the_metadatas_then_the_configs(
    write_scan: WriteScan, in_file: float | None, configured: Any, value: float, source: str
) -> None:
    data = prepared(write_scan(arrays={**uneven_arrays(), **saying(in_file)}), nphotons=configured)
    assert (data.calibration.nphotons, data.calibration.nphotons_source) == (value, source)
    assert data.calibration.nphotons == value


def test_measured_nphotons_are_the_mean_counts_of_the_training_patterns(
    write_scan: WriteScan,
) -> None:
    counts = (
        np.random.default_rng(0)
        .poisson(uneven_arrays()["diffraction"].astype(np.float64) ** 2)
        .astype(np.uint16)
    )
    data = prepared(
        write_scan(arrays={**uneven_arrays(), "diffraction": counts}),
        nphotons="measured",
        measurement="counts",
    )
    expected = counts[data.subset.train].astype(np.float64).sum(axis=(1, 2)).mean()
    assert data.calibration.nphotons_source == "measured"
    # The amplitude, the root of the counts, is rounded to float32: 2**-24 of it, 2**-23 of the
    # counts.
    assert data.calibration.nphotons == pytest.approx(expected, rel=2.002 * FLOAT32_ROUNDING)


def test_nobody_says_nphotons_is_refused(path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"nphotons: {path} has no _metadata .*data\.nphotons is None"
    ):
        prepared(path, nphotons=None)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [(5e5, None, r"but .*two\.npz says nothing"), (None, 5e5, r"but .*one\.npz says nothing")],
)
def test_scans_of_which_one_is_silent_on_nphotons_are_refused(
    write_scan: WriteScan, first: float | None, second: float | None, message: str
) -> None:
    paths = [
        write_scan(f"{name}.npz", arrays={**uneven_arrays(seed), **saying(nphotons)})
        for seed, (name, nphotons) in enumerate((("one", first), ("two", second)))
    ]
    with pytest.raises(ValueError, match=message):
        prepared(paths)


# --- Several scans


@pytest.fixture
def two_scans(write_scan: WriteScan) -> tuple[list[Path], list[dict[str, np.ndarray]]]:
    """Another probe, other positions, and counts in place of amplitudes in the second."""
    first, second = uneven_arrays(), uneven_arrays(seed=1)
    second["probeGuess"] = 2j * second["probeGuess"]
    second["ycoords"] = second["ycoords"] + 1000
    stored = {**second, "diffraction": second["diffraction"].astype(np.float64) ** 2}
    paths = [
        write_scan(
            name, arrays=arrays, _metadata=np.array(json.dumps({"measurement": measurement}))
        )
        for name, arrays, measurement in (
            ("one.npz", first, "amplitude"),
            ("two.npz", stored, "counts"),
        )
    ]
    second["diffraction"] = np.sqrt(stored["diffraction"]).astype(np.float32)
    return paths, [first, second]


def test_groups_of_two_scans_know_their_scan(
    two_scans: tuple[list[Path], list[dict[str, np.ndarray]]],
) -> None:
    paths, arrays = two_scans
    data = prepared(paths, measurement=None, subset_size=None)
    positions_px = [np.stack([one["ycoords"], one["xcoords"]], axis=1) for one in arrays]
    groups_of_scan = [0, 0]
    for batch in batches(data)[0]:
        for x_norm, positions, scan in zip(
            batch.x_norm.numpy(), batch.positions_px.numpy(), batch.scan.tolist(), strict=True
        ):
            group = [
                int(np.flatnonzero((positions_px[scan] == position).all(axis=1)).item())
                for position in positions
            ]
            assert np.array_equal(
                x_norm, times(data.calibration.rms_factor, arrays[scan]["diffraction"][group])
            )
            groups_of_scan[scan] += 1
    assert sum(groups_of_scan) == len(data.subset.train)
    assert min(groups_of_scan) > 0
    for scan, one in zip(data.scans, arrays, strict=True):
        assert np.array_equal(scan.probe[0], one["probeGuess"])


def test_two_scans_have_one_scale(
    two_scans: tuple[list[Path], list[dict[str, np.ndarray]]],
) -> None:
    paths, arrays = two_scans
    data = prepared(paths, measurement=None, subset_size=None)
    train = np.concatenate([one["diffraction"] for one in arrays])[data.subset.train]
    factor = (N / 2) / np.sqrt(energies(train).mean())
    assert data.calibration.rms_factor == pytest.approx(factor, rel=1e-12)  # float64 rounding
    scale = np.sqrt(NPHOTONS / energies(times(data.calibration.rms_factor, train)).mean())
    assert data.calibration.intensity_scale == pytest.approx(scale, rel=1e-12)  # float64 rounding


def test_each_scan_has_the_brightness_of_its_training_patterns(
    two_scans: tuple[list[Path], list[dict[str, np.ndarray]]],
) -> None:
    paths, arrays = two_scans
    data = prepared(paths, measurement=None, subset_size=None)
    train = np.concatenate([one["diffraction"] for one in arrays])[data.subset.train]
    is_second = data.subset.train >= len(arrays[0]["diffraction"])
    expected = [
        np.sqrt(energies(train[belongs]).mean() / energies(train).mean())
        for belongs in (~is_second, is_second)
    ]
    assert list(data.calibration.scan_brightness) == pytest.approx(
        expected, rel=1e-12
    )  # float64 rounding
    assert abs(expected[0] - expected[1]) > 0.01
    assert prepared(paths[0], measurement=None, subset_size=None).calibration.scan_brightness == (
        1.0,
    )


def test_scan_without_training_patterns_is_as_bright_as_the_mean(
    two_scans: tuple[list[Path], list[dict[str, np.ndarray]]],
) -> None:
    paths, arrays = two_scans
    first = len(arrays[0]["diffraction"])
    (chosen := paths[0].with_name("chosen.txt")).write_text("\n".join(map(str, range(first))))
    data = prepared(
        paths, measurement=None, subset_size=None, sampling="index_file", index_file=str(chosen)
    )
    assert list(data.calibration.scan_brightness) == [1.0, 1.0]


def _refusal_of_dark_scan(paths: list[Path]) -> str:
    with pytest.raises(FailedTogether) as refusal:
        prepared(paths, subset_size=None)
    return str(refusal.value)


def test_dark_scan_among_others_is_refused_by_name_on_every_rank(
    on_ranks: OnRanks, write_scan: WriteScan
) -> None:
    dark = np.zeros_like(uneven_arrays(seed=1)["diffraction"])
    paths = [
        write_scan("one.npz"),
        write_scan("dark.npz", arrays=uneven_arrays(seed=1), diffraction=dark),
    ]
    (found,) = set(on_ranks(2, _refusal_of_dark_scan, paths))
    assert re.fullmatch(
        rf"{paths[1]}: diffraction: found \d+ training patterns, all zero, expected some light",
        found,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern_size": 32},
            "diffraction: found patterns of 32 x 32, expected 16 x 16, as {} has",
        ),
        ({"modes": 2}, r"probe: found 2 mode\(s\), expected 1, as {} has"),
    ],
)
def test_scans_that_one_network_can_not_take_are_refused_by_name(
    write_scan: WriteScan, settings: dict[str, int], message: str
) -> None:
    paths = [write_scan("one.npz"), write_scan("two.npz", arrays=small_scan_arrays(**settings))]
    with pytest.raises(ScanError, match=f"{paths[1]}: {message.format(paths[0])}"):
        prepared(paths, subset_size=None)


@pytest.mark.parametrize("compressed", [False, True])
def test_scan_that_is_there_twice_is_refused(write_scan: WriteScan, compressed: bool) -> None:
    """By its content: under another name, or the same name twice."""
    paths = [
        write_scan("one.npz"),
        write_scan("other.npz", arrays=small_scan_arrays(seed=1)),
        write_scan("copy.npz", compressed=compressed),
    ]
    for last in (paths[2], paths[0]):
        with pytest.raises(
            ScanError,
            match=f"{last}: content: found the same as that of {paths[0]}, expected each scan "
            "once in data.path",
        ):
            prepared([paths[0], paths[1], last], subset_size=None)


THREE_DOSES = (1e6, 1e4, 3e6)


@pytest.fixture
def three_scans(write_scan: WriteScan) -> list[Path]:
    """Of different size, probe and dose."""
    paths = []
    for seed, (nphotons, num_patterns) in enumerate(zip(THREE_DOSES, (60, 30, 45), strict=True)):
        arrays = small_scan_arrays(num_patterns=num_patterns, seed=seed)
        arrays["diffraction"] = (np.sqrt(nphotons / 5000) * arrays["diffraction"]).astype(
            np.float32
        )
        arrays["probeGuess"] = (seed + 1j) * arrays["probeGuess"]
        paths.append(write_scan(f"scan{seed}.npz", arrays={**arrays, **saying(nphotons)}))
    return paths


@pytest.mark.parametrize(
    "settings",
    [{}, {"subset_size": 70}, {"sampling": "poisson_disc", "min_distance_px": 5.0}],
    ids=str,
)
def test_scans_of_different_dose_have_the_mean_nphotons_of_their_training_patterns(
    three_scans: list[Path], settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ptycho_dist")
    data = prepared(three_scans, **{"nphotons": None, "subset_size": None, **settings})
    train = np.repeat([0, 1, 2], [60, 30, 45])[data.subset.train]
    # float64 rounding
    assert data.calibration.nphotons == pytest.approx(
        np.mean(np.take(THREE_DOSES, train)), rel=1e-12
    )
    assert (
        data.calibration.nphotons_source == "metadata, mean over the training patterns of all scans"
    )
    for number, (path, nphotons) in enumerate(zip(three_scans, THREE_DOSES, strict=True)):
        count = int((train == number).sum())
        assert f"scan: {path}: {count} training patterns, " in caplog.text
        assert f"its metadata give nphotons {nphotons!r}" in caplog.text


def test_three_scans_have_the_same_bits_on_any_number_of_ranks(
    on_ranks: OnRanks, three_scans: list[Path]
) -> None:
    settings = {"nphotons": None, "sampling": "poisson_disc", "subset_size": 100}
    alone = _numbers_on_a_rank(three_scans, settings)  # type: ignore[arg-type]
    for world_size in (2, 3):
        assert (
            on_ranks(world_size, _numbers_on_a_rank, three_scans, settings) == [alone] * world_size
        )


# --- Sampling


def chosen(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "keep.txt").write_text("".join(f"{number}\n" for number in range(5, 45)))
    return {"sampling": "index_file", "index_file": str(tmp_path / "keep.txt")}


SAMPLED: dict[str, dict[str, Any]] = {
    "full": {"sampling": "full"},
    "central_block": {"sampling": "central_block", "subset_size": 40},
    "every": {"sampling": "every", "every": 2},
    "poisson_disc": {"sampling": "poisson_disc", "subset_size": 40},
}


@pytest.mark.parametrize("mode", [*SAMPLED, "index_file"])
def test_scale_follows_the_sampled_training_patterns_on_any_number_of_ranks(
    on_ranks: OnRanks, path: Path, tmp_path: Path, mode: str
) -> None:
    settings = {
        "subset_size": None,
        "nphotons": "measured",
        **(SAMPLED[mode] if mode in SAMPLED else chosen(tmp_path)),
    }
    data = prepared(path, **settings)
    train = uneven_arrays()["diffraction"][data.subset.train]
    # Sums and a root in float64.
    assert data.calibration.rms_factor == pytest.approx(
        (N / 2) / np.sqrt(energies(train).mean()), rel=1e-12
    )
    assert data.calibration.nphotons == pytest.approx(energies(train).mean(), rel=1e-12)
    x_norm = times(data.calibration.rms_factor, train)
    assert data.calibration.intensity_scale == pytest.approx(
        np.sqrt(data.calibration.nphotons / energies(x_norm).mean()), rel=1e-12
    )
    assert (
        on_ranks(2, _numbers_on_a_rank, path, settings) == [_numbers_on_a_rank(path, settings)] * 2
    )


def _refusal_of_own_index_file(path: Path, contents: list[str]) -> str:
    """Each rank on a node of its own, as far as the index file goes."""
    folder = path.parent / f"node{rank()}"
    folder.mkdir()
    (folder / "keep.txt").write_text(contents[rank()])
    os.chdir(folder)
    try:
        prepared(
            path,
            subset_size=None,
            sampling="index_file",
            index_file="keep.txt",
            val_fraction=0.0,
            group_size=1,
        )
    except FailedTogether as error:
        return str(error)
    return "no error"


def test_bad_index_file_of_one_rank_fails_every_rank(on_ranks: OnRanks, path: Path) -> None:
    first, second = on_ranks(2, _refusal_of_own_index_file, path, ["1\n2\n", "1\n60\n"])
    assert (
        first
        == second
        == "rank 1: keep.txt: line 2: found 60, expected a pattern's number, 0 to 59"
    )


def test_index_files_that_differ_between_ranks_fail_every_rank(
    on_ranks: OnRanks, path: Path
) -> None:
    first, second = on_ranks(2, _refusal_of_own_index_file, path, ["1\n2\n", "1\n3\n"])
    assert first == second
    assert first.startswith("ranks differ: the subset drawn by index_file is ")


# --- The log


def _log_of_a_rank(path: Path) -> list[str]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ptycho_dist")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        prepared(path)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return lines


def require_audit(lines: list[str], data: PreparedData, *, num_ranks: int) -> None:
    num_patterns = len(data.subset.train)
    for words in (
        f"fingerprint {data.subset.fingerprint}",
        f"normalization: rms, factor r = {data.calibration.rms_factor!r} from {num_patterns} "
        "patterns",
        f"nphotons: {NPHOTONS!r} (source: config)",
        f"intensity_scale: {data.calibration.intensity_scale!r} from {num_patterns} patterns on "
        f"{num_ranks} rank(s)",
        str(data.config.path),
    ):
        assert sum(words in line for line in lines) == 1, words


def test_log_holds_what_an_audit_needs_once(path: Path) -> None:
    require_audit(_log_of_a_rank(path), prepared(path), num_ranks=1)


def test_log_is_rank_zeros_alone(on_ranks: OnRanks, path: Path) -> None:
    first, second, third = on_ranks(3, _log_of_a_rank, path)
    require_audit(first, prepared(path), num_ranks=3)
    assert second == third == []


# --- Masks


def test_masked_pixels_count_in_no_energy(write_masked_scan: WriteScan) -> None:
    """r, s and measured photons of two scans with masks of their own: NumPy in float64, over the
    pixels that count alone."""
    masks = [dead_pixels(0), dead_pixels(1, part=0.5)]
    arrays = [uneven_arrays(seed) for seed in range(2)]
    paths = [
        write_masked_scan(f"scan{number}.h5", masks[number], 4e9, arrays[number])
        for number in range(2)
    ]
    data = prepared(paths, hdf5=Hdf5Config(**MASKED_HDF5), nphotons="measured", subset_size=None)
    counted = [
        np.where(mask, array["diffraction"], 0) for array, mask in zip(arrays, masks, strict=True)
    ]
    train = np.concatenate(counted)[data.subset.train]
    assert data.calibration.nphotons == pytest.approx(energies(train).mean(), rel=1e-12)
    assert data.calibration.rms_factor == pytest.approx(
        (N / 2) / np.sqrt(energies(train).mean()), rel=1e-12
    )
    x_norm = times(data.calibration.rms_factor, train)
    assert data.calibration.intensity_scale == pytest.approx(
        np.sqrt(data.calibration.nphotons / energies(x_norm).mean()), rel=1e-12
    )


@pytest.mark.parametrize("garbage", [math.nan, -1.0, 4e9])
def test_what_masked_pixels_hold_changes_no_bit(
    write_masked_scan: WriteScan, garbage: float
) -> None:
    dark, spoilt = (
        prepared(
            write_masked_scan(f"{hidden}.h5", dead_pixels(0), hidden),
            hdf5=Hdf5Config(**MASKED_HDF5),
            subset_size=None,
        )
        for hidden in (0.0, garbage)
    )
    assert scale_bits(spoilt) == scale_bits(dark)
    for one, other in zip(batches(dark)[0], batches(spoilt)[0], strict=True):
        assert torch.equal(one.x_norm, other.x_norm)


def test_samples_weigh_as_many_pixels_as_count_where_scans_differ_in_that(
    write_masked_scan: WriteScan,
) -> None:
    masks = [dead_pixels(0), dead_pixels(1, part=0.5)]
    paths = [write_masked_scan(f"scan{number}.h5", mask) for number, mask in enumerate(masks)]
    data = prepared(paths, hdf5=Hdf5Config(**MASKED_HDF5), subset_size=None)
    weights = batches(data)[0].batch_sampler.weights
    scan_of_group = data.source.scan_of(data.subset.train_groups[:, 0])
    assert weights.tolist() == [int(masks[number].sum()) for number in scan_of_group]
    alone = prepared(paths[:1], hdf5=Hdf5Config(**MASKED_HDF5), subset_size=None)
    assert batches(alone)[0].batch_sampler.weights is None


# --- Stages


def test_stages_run_in_their_order_and_hand_on_what_they_found(path: Path) -> None:
    found: dict[Stage, Any] = {}

    def watch(stage: Stage, action: Callable[[], Any]) -> Any:
        found[stage] = action()
        return found[stage]

    data = prepare(DataConfig(path=str(path), measurement="amplitude", nphotons=NPHOTONS), watch)
    assert tuple(found) == STAGES
    assert [found[stage] for stage in STAGES if stage.name in ("data file", "subset")] == [
        data.scans,
        data.subset,
    ]
    assert found[STAGES[-2]] == data.calibration
