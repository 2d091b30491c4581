"""One network from several scans: each keeps its probe, and inference finds it again."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml

from ptycho_dist import load_bundle, read_scan, reconstruct
from ptycho_dist.distributed import FailedTogether
from ptycho_dist.physics.probe import normalize_probe
from tests.scans import small_scan_arrays
from tests.training.runs import column, settings, train_one

NPHOTONS = (5e5, 5e3, 2e6)
MEASUREMENTS = ("amplitude", "counts", "amplitude")


@pytest.fixture
def three_scans(write_scan: Callable[..., Path]) -> list[Path]:
    """Of different probe, dose, size and measurement."""
    paths = []
    for seed, (nphotons, measurement) in enumerate(zip(NPHOTONS, MEASUREMENTS, strict=True)):
        arrays = small_scan_arrays(num_patterns=(25, 12, 20)[seed], seed=seed)
        amplitude = np.sqrt(nphotons / 5000) * arrays["diffraction"].astype(np.float64)
        arrays["diffraction"] = (amplitude if measurement == "amplitude" else amplitude**2).astype(
            np.float32
        )
        y, x = np.indices((16, 16)) - 8
        arrays["probeGuess"] = (arrays["probeGuess"] * np.exp(0.02j * seed * (y**2 + x**2))).astype(
            np.complex64
        )
        metadata = {"measurement": measurement, "physics_parameters": {"nphotons": nphotons}}
        paths.append(
            write_scan(
                f"scan{seed}.npz", arrays={**arrays, "_metadata": np.array(json.dumps(metadata))}
            )
        )
    return paths


def concerns(paths: list[Path], run_dir: Path, **changes: Any) -> dict[str, Any]:
    told = {
        "data__path": [str(path) for path in paths],
        "data__measurement": None,
        "data__nphotons": None,
        "train__epochs": 1,
    }
    return settings(paths[0], run_dir, **told | changes)


@pytest.mark.parametrize("probe_trainable", [False, True])
def test_each_scan_is_reconstructed_with_its_own_probe(
    on_ranks: Callable[..., Any], three_scans: list[Path], tmp_path: Path, probe_trainable: bool
) -> None:
    bundles = []
    for world_size in (1, 2):
        run_dir = tmp_path / f"run{world_size}"
        on_ranks(
            world_size,
            train_one,
            concerns(three_scans, run_dir, model__probe_trainable=probe_trainable),
        )
        bundles.append(load_bundle(run_dir / "bundle.zip"))
        assert "57 of 57 patterns, full" in (run_dir / "train.log").read_text()
    alone, together = bundles
    assert alone.calibration == together.calibration
    assert len(alone.calibration.scan_brightness) == len(three_scans)
    # float32 convolutions of other batch sizes, through seven steps of Adam
    losses = [
        column(tmp_path / f"run{world_size}", "train_deviance_per_pixel") for world_size in (1, 2)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)

    scans = [read_scan(path) for path in three_scans]
    assert list(alone.refined_probes) == (
        [scan.fingerprint for scan in scans] if probe_trainable else []
    )
    for scan in scans:
        found = reconstruct(alone, scan)
        own = (
            alone.refined_probes[scan.fingerprint]
            if probe_trainable
            else normalize_probe_of(scan.probe)
        )
        np.testing.assert_array_equal(found.probe, normalize_probe_of(own))
        assert found.summary.probe.of_this_scan
        assert np.isfinite(found.object).all()
        # However weak its light: one epoch is enough for about as many photons as were measured.
        assert found.summary.mean_predicted_photons == pytest.approx(
            found.summary.mean_measured_photons, rel=0.2
        )
    if probe_trainable:
        probes = list(alone.refined_probes.values())
        assert all(np.abs(one - other).max() > 0.01 for one, other in itertools.pairwise(probes))


def normalize_probe_of(modes: np.ndarray) -> np.ndarray:
    return normalize_probe(torch.from_numpy(modes)).numpy()


def test_sampling_is_kept_with_the_run(
    on_ranks: Callable[..., Any], three_scans: list[Path], tmp_path: Path
) -> None:
    told = concerns(
        three_scans, tmp_path / "run", data__sampling="poisson_disc", data__min_distance_px=3.5
    )
    on_ranks(2, train_one, told)
    hparams = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    bundle = load_bundle(tmp_path / "run" / "bundle.zip")
    for data in (hparams["config"]["data"], bundle.config.to_dict()["data"]):
        assert (data["sampling"], data["min_distance_px"], data["subset_size"]) == (
            "poisson_disc",
            3.5,
            None,
        )
    assert (
        hparams["subset"]
        .split(" of 57 patterns, poisson_disc, nearest two ")[1]
        .endswith(" px apart")
    )
    assert hparams["calibration"] == bundle.calibration.to_dict()
    assert bundle.calibration.num_patterns < 57
    assert f"subset: {hparams['subset']}; " in (tmp_path / "run" / "train.log").read_text()
    assert (
        hparams["nphotons_source"]
        == bundle.calibration.nphotons_source
        == "metadata, mean over the training patterns of all scans"
    )
    assert min(NPHOTONS) < hparams["nphotons"] < max(NPHOTONS)


def refusal(told: dict[str, Any]) -> str:
    logging.disable(logging.CRITICAL)
    try:
        train_one(told)
    except FailedTogether as error:
        return str(error)
    finally:
        logging.disable(logging.NOTSET)
    return f"no error on rank {dist.get_rank()}"


@pytest.mark.parametrize(
    "change",
    [{"every": 2, "subset_size": None, "sampling": "every"}, {"sampling": "central_block"}],
    ids=str,
)
def test_checkpoint_of_patterns_drawn_otherwise_is_refused(
    on_ranks: Callable[..., Any], three_scans: list[Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    told = concerns(
        three_scans,
        tmp_path / "run",
        data__sampling="random",
        data__subset_size=29,
        data__group_size=1,
    )
    on_ranks(1, train_one, told)
    told["data"].update(change)
    told["train"]["resume"] = "auto"
    messages = on_ranks(2, refusal, told)
    assert messages[0] == messages[1]
    assert "subset_fingerprint" in messages[0] or "intensity_scale" in messages[0]


def test_same_scan_twice_stops_every_rank_before_anything_is_trained(
    on_ranks: Callable[..., Any], three_scans: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.npz"
    copy.write_bytes(three_scans[0].read_bytes())
    messages = on_ranks(2, refusal, concerns([*three_scans, copy], tmp_path / "run"))
    assert messages[0] == messages[1]
    assert (
        f"{copy}: content: found the same as that of {three_scans[0]}, expected each scan once in "
        "data.path" in messages[0]
    )
