"""A whole training run on 1 to 3 ranks: one scale, one bundle, the same learning."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ptycho_dist import load_bundle, read_scan, reconstruct
from ptycho_dist.training import callbacks
from ptycho_dist.training.callbacks import learning_rate_factor
from ptycho_dist.training.checkpointing import checkpoint_to_resume
from tests.ranks import run_on_ranks
from tests.scans import MASKED_HDF5, dead_pixels, small_scan_arrays
from tests.training.runs import (
    assert_same_result,
    column,
    metrics,
    settings,
    stop_after_the_first_epoch,
    stop_after_three_steps,
    train_one,
    train_streamed,
)


@pytest.fixture
def runs(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], tmp_path: Path
) -> Callable[..., list[Path]]:
    """Train the same on 1, 2 and 3 ranks; gives the run directories."""

    def train_on(*world_sizes: int, **changes: Any) -> list[Path]:
        scan = write_scan()
        run_dirs = [tmp_path / f"run{world_size}" for world_size in world_sizes]
        for world_size, run_dir in zip(world_sizes, run_dirs, strict=True):
            on_ranks(world_size, train_one, settings(scan, run_dir, **changes))
        return run_dirs

    return train_on


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run directories of the same training on 1, 2 and 3 ranks."""
    folder = tmp_path_factory.mktemp("runs")
    np.savez(folder / "scan.npz", **small_scan_arrays())
    for world_size in (1, 2, 3):
        run_on_ranks(
            world_size, train_one, settings(folder / "scan.npz", folder / f"run{world_size}")
        )
    return [folder / f"run{world_size}" for world_size in (1, 2, 3)]


def test_number_of_ranks_changes_nothing(run_dirs: list[Path]) -> None:
    bundles = [load_bundle(run_dir / "bundle.zip") for run_dir in run_dirs]
    hparams = [yaml.safe_load((run_dir / "hparams.yaml").read_text()) for run_dir in run_dirs]

    assert (
        len(
            {bundle.intensity_scale for bundle in bundles}
            | {record["intensity_scale"] for record in hparams}
        )
        == 1
    )
    assert {(record["nphotons"], record["nphotons_source"]) for record in hparams} == {
        (1e6, "config")
    }
    assert len({bundle.calibration.subset_fingerprint for bundle in bundles}) == 1
    assert len({bundle.calibration.rms_factor for bundle in bundles}) == 1
    for run_dir in run_dirs[1:]:
        # float32 convolutions of other batch sizes, through ten steps of Adam
        assert column(run_dir, "train_deviance_per_pixel") == pytest.approx(
            column(run_dirs[0], "train_deviance_per_pixel"), rel=1e-3
        )
        assert column(run_dir, "val_deviance_per_pixel") == pytest.approx(
            column(run_dirs[0], "val_deviance_per_pixel"), rel=1e-3
        )
        assert column(run_dir, "val_nll") == pytest.approx(column(run_dirs[0], "val_nll"), rel=1e-3)
    with np.load(run_dirs[0].parent / "scan.npz") as arrays:
        assert all(np.array_equal(arrays[key], array) for key, array in small_scan_arrays().items())


@pytest.mark.parametrize("world_size", [1, 2])
def test_held_and_streamed_patterns_give_the_same_bits(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], tmp_path: Path, world_size: int
) -> None:
    scan = write_scan()
    for body, name in ((train_one, "held"), (train_streamed, "streamed")):
        on_ranks(world_size, body, settings(scan, tmp_path / name, model__probe_trainable=True))
        log = (tmp_path / name / "train.log").read_text()
        assert ("patterns: held in memory: " in log, "patterns: streamed from disk: " in log) == (
            name == "held",
            name == "streamed",
        )
    assert_same_result(tmp_path / "streamed", tmp_path / "held")


def test_each_run_of_a_process_writes_its_own_log(
    write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scan = write_scan()
    with pytest.raises(ValueError, match="subset_size"):
        train_one(settings(scan, tmp_path / "refused", data__subset_size=1000))
    for name in ("first", "second"):
        train_one(settings(scan, tmp_path / name, train__epochs=1))
    logging.getLogger("ptycho_dist").info("after the runs")
    for name, bundles in (("refused", 0), ("first", 1), ("second", 1)):
        log = (tmp_path / name / "train.log").read_text()
        assert (log.count("bundle.zip"), log.count(f"wrote {tmp_path / name / 'bundle.zip'}")) == (
            bundles,
            bundles,
        )
        assert "after the runs" not in log


def test_run_directory(run_dirs: list[Path]) -> None:
    run_dir = run_dirs[1]
    assert sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()) == [
        ".lock",
        "bundle.zip", "checkpoints/last.ckpt", "hparams.yaml", "metrics.csv", "report.html", "train.log", "training_curve.png"
    ]  # fmt: skip
    log = (run_dir / "train.log").read_text()
    scale = yaml.safe_load((run_dir / "hparams.yaml").read_text())["intensity_scale"]
    for line in (
        "nphotons: 1000000.0 (source: config)",
        f"intensity_scale: {scale!r} from 33 patterns on 2 rank(s)",
        "normalization: rms",
    ):
        assert log.count(line) == 1
    assert load_bundle(run_dir / "bundle.zip").calibration.subset_fingerprint in log
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["loss.intensity_scale"].item() == scale
    assert checkpoint["hyper_parameters"]["intensity_scale"] == scale


def test_training_learns(runs: Callable[..., list[Path]]) -> None:
    (run_dir,) = runs(1, train__epochs=6, train__learning_rate=5e-3)
    deviance = column(run_dir, "train_deviance_per_pixel")
    assert deviance[-1] < 0.8 * deviance[0]


def test_trainable_gain_moves_and_is_kept(runs: Callable[..., list[Path]]) -> None:
    (run_dir,) = runs(2, model__intensity_scale_trainable=True, train__learning_rate=1e-2)
    gain = load_bundle(run_dir / "bundle.zip").gain
    assert gain != 1
    assert column(run_dir, "gain")[-1] == pytest.approx(gain, rel=1e-6)  # a float32 parameter
    assert (
        load_bundle(run_dir / "bundle.zip").intensity_scale
        == yaml.safe_load((run_dir / "hparams.yaml").read_text())["intensity_scale"]
    )


def test_patterns_without_a_group(runs: Callable[..., list[Path]]) -> None:
    (run_dir,) = runs(1, data__group_size=1, train__epochs=1)
    assert math.isfinite(column(run_dir, "train_deviance_per_pixel")[0])


def test_without_validation(runs: Callable[..., list[Path]]) -> None:
    (run_dir,) = runs(2, data__val_fraction=0, train__epochs=1)
    assert column(run_dir, "val_deviance_per_pixel") == []


def test_resumed_run_ends_as_the_uninterrupted_one(
    runs: Callable[..., list[Path]], on_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    """Three epochs at once, against one that stops after its first: same steps, rows and
    weights."""
    (whole,) = runs(2, train__epochs=3)
    interrupted = tmp_path / "interrupted"
    concerns = settings(tmp_path / "scan.npz", interrupted, train__epochs=3)
    on_ranks(2, stop_after_the_first_epoch, concerns)
    assert not (interrupted / "bundle.zip").exists()
    concerns["train"]["resume"] = "auto"
    on_ranks(2, train_one, concerns)
    assert_same_result(interrupted, whole)


def test_run_stopped_after_a_step_that_has_a_row_keeps_the_row(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = write_scan()
    monkeypatch.setattr(callbacks, "STEPS_BETWEEN_ROWS", 3)
    train_one(settings(scan, tmp_path / "whole"))
    interrupted = settings(scan, tmp_path / "interrupted")
    stop_after_three_steps(interrupted, monkeypatch)
    interrupted["train"]["resume"] = "auto"
    train_one(interrupted)
    assert [row["step"] for row in metrics(tmp_path / "whole")] == ["2", "4", "5", "8", "9"]
    assert metrics(tmp_path / "interrupted") == metrics(tmp_path / "whole")


def test_checkpoint_of_another_scale_is_refused(run_dirs: list[Path], tmp_path: Path) -> None:
    changed = settings(run_dirs[0].parent / "scan.npz", tmp_path / "other", data__nphotons=2e6)
    changed["train"]["resume"] = str(run_dirs[0] / "checkpoints" / "last.ckpt")
    with pytest.raises(
        ValueError,
        match=r"checkpoint was trained with intensity_scale [\d.]+, the data give [\d.]+",
    ):
        train_one(changed)


def test_loss_that_is_not_finite_stops_the_run(
    runs: Callable[..., list[Path]], tmp_path: Path
) -> None:
    with pytest.raises(
        (AssertionError, ValueError),
        match=r"(the loss is|the gradient of) .* at step 0.*; the step was not taken",
    ):
        runs(1, data__nphotons=1e40, train__epochs=1)
    assert not (tmp_path / "run1" / "bundle.zip").exists()


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.resume: found no file missing.ckpt"):
        checkpoint_to_resume("missing.ckpt", tmp_path)


def test_resume_auto_starts_anew_where_there_is_nothing(tmp_path: Path) -> None:
    assert checkpoint_to_resume("auto", tmp_path) is None


def test_learning_rate_rises_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(done) for done in np.linspace(0, 1, 101)]
    assert 0 < factors[0] < 0.05
    assert max(factors) == pytest.approx(1, abs=1e-3)
    assert int(np.argmax(factors)) == 5
    assert np.all(np.diff(factors[5:]) <= 0)
    assert factors[-1] == pytest.approx(0, abs=1e-12)


def test_what_masked_pixels_hold_changes_no_bit_of_a_run(
    write_masked_scan: Callable[..., Path], tmp_path: Path
) -> None:
    """From the file to the reconstruction, a refined probe included: zeros, NaN and four billions
    where no pixel counts."""
    found = []
    for garbage in (0.0, math.nan, 4e9):
        scan_path, run_dir = (
            write_masked_scan(f"{garbage}.h5", dead_pixels(0), garbage),
            tmp_path / f"run{garbage}",
        )
        train_one(
            settings(
                scan_path,
                run_dir,
                data__hdf5=MASKED_HDF5,
                data__nphotons="measured",
                model__probe_trainable=True,
                train__epochs=1,
            )
        )
        bundle = load_bundle(run_dir / "bundle.zip")
        scan = read_scan(scan_path, options=bundle.config.data)
        result = reconstruct(bundle, scan, probe="bundle", refine_iterations=2, refine_probe=True)
        numbers = [
            bundle.calibration.rms_factor,
            bundle.intensity_scale,
            bundle.calibration.nphotons,
            result.summary.deviance_per_pixel,
        ]
        weights = [bundle.weights[name] for name in sorted(bundle.weights)]
        found.append(
            (numbers, metrics(run_dir), bundle.probe, *weights, result.object, result.probe)
        )
    for other in found[1:]:
        assert other[:2] == found[0][:2]
        assert all(
            np.array_equal(one, two) for one, two in zip(found[0][2:], other[2:], strict=True)
        )
    assert np.isfinite(found[0][0]).all()


def test_masked_training_on_ranks(
    on_ranks: Callable[..., Any], write_masked_scan: Callable[..., Path], tmp_path: Path
) -> None:
    """Lightning and DDP with buffers of bool; the report of a masked scan."""
    scan = write_masked_scan("scan.h5", dead_pixels(0))
    curves = []
    for world_size in (1, 2):
        run_dir = tmp_path / f"run{world_size}"
        on_ranks(world_size, train_one, settings(scan, run_dir, data__hdf5=MASKED_HDF5))
        curves.append(
            column(run_dir, "train_deviance_per_pixel") + column(run_dir, "val_deviance_per_pixel")
        )
        assert (
            f"the {int((~dead_pixels(0)).sum())} masked pixels"
            in (run_dir / "report.html").read_text()
        )
    # float32 convolutions of other batch sizes, through ten steps of Adam
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    # zeros where no pixel counts, as data
    train_one(settings(scan, tmp_path / "ignored", data__hdf5={**MASKED_HDF5, "mask": None}))
    assert column(tmp_path / "ignored", "train_deviance_per_pixel")[0] > 1.5 * curves[0][0]
