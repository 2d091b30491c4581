"""The main job as a user runs it: torchrun, bundle, inference, evaluation; on a real scan where
there is one."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from ptycho_dist import load_bundle, read_scan
from ptycho_dist.config import DataConfig
from ptycho_dist.data.subset import select_subset

Launch = Callable[..., subprocess.CompletedProcess[str]]
SHORT = (
    "--data.measurement=amplitude",
    "--data.subset_size=61",
    "--model.base_width=4",
    "--train.epochs=1",
    "--train.global_batch_size=7",
)


def add_metadata(source: Path, target: Path, nphotons: float) -> Path:
    with np.load(source) as arrays:
        np.savez(
            target,
            **arrays,
            _metadata=np.array(json.dumps({"physics_parameters": {"nphotons": nphotons}})),
        )
    return target


def scale_in_float64(scan_path: Path, nphotons: float) -> float:
    """NumPy's float64 over the float32 inputs that the model is given, read without the package's
    reader."""
    scan = read_scan(scan_path, "amplitude")
    train = select_subset([scan], DataConfig(measurement="amplitude", subset_size=61)).train
    with np.load(scan_path) as arrays:
        amplitude = arrays["diffraction"][train].astype(np.float64)
    half_size = amplitude.shape[-1] / 2
    x_norm = (half_size / np.sqrt(np.mean(np.sum(amplitude**2, axis=(1, 2)))) * amplitude).astype(
        np.float32
    )
    return math.sqrt(nphotons / np.mean(np.sum(x_norm.astype(np.float64) ** 2, axis=(1, 2))))


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(
    ("in_metadata", "nphotons", "source"), [(None, 1e6, "config"), (440557.0, 440557.0, "metadata")]
)
def test_one_scale_everywhere_on_any_number_of_ranks(
    launch: Launch,
    realdata: Path,
    tmp_path: Path,
    in_metadata: float | None,
    nphotons: float,
    source: str,
) -> None:
    scan = realdata / "siemens_velociprobe_N64.npz"
    if in_metadata is not None:
        scan = add_metadata(scan, tmp_path / "with_metadata.npz", in_metadata)
    digest = hashlib.sha256(scan.read_bytes()).digest()
    scales = set()
    for nproc in (1, 2, 3, 4) if in_metadata is None else (None, 3):
        run_dir = tmp_path / f"run{nproc}"
        trained = launch(
            "train.py",
            f"--data.path={scan}",
            "--data.nphotons=1e6",
            f"--train.run_dir={run_dir}",
            *SHORT,
            nproc=nproc,
        )
        assert trained.returncode == 0, trained.stdout
        hparams = yaml.safe_load((run_dir / "hparams.yaml").read_text())
        assert (hparams["nphotons"], hparams["nphotons_source"]) == (nphotons, source)
        log = (run_dir / "train.log").read_text()
        assert f"nphotons: {nphotons!r} (source: {source})" in log
        inferred = launch(
            "infer.py", f"--bundle={run_dir / 'bundle.zip'}", scan, f"--out={run_dir / 'out'}"
        )
        assert inferred.returncode == 0, inferred.stdout
        scales |= {
            hparams["intensity_scale"],
            load_bundle(run_dir / "bundle.zip").intensity_scale,
            float(re.search(r"intensity_scale: (\S+) from", log).group(1)),
            json.loads((run_dir / "out" / "summary.json").read_text())["intensity_scale"],
        }
    assert len(scales) == 1
    assert scales.pop() == pytest.approx(scale_in_float64(scan, nphotons), rel=1e-12)
    assert hashlib.sha256(scan.read_bytes()).digest() == digest


@pytest.mark.realdata
@pytest.mark.slow
def test_phase_of_the_reconstruction_shows_the_star(
    launch: Launch, realdata: Path, tmp_path: Path
) -> None:
    scan = realdata / "siemens_velociprobe_N64.npz"
    config = Path(__file__).parents[2] / "configs" / "default.yaml"
    told = ("--data.measurement=amplitude", "--data.nphotons=measured", "--train.max_minutes=1.5")
    trained = launch(
        "train.py",
        f"--config={config}",
        f"--data.path={scan}",
        f"--train.run_dir={tmp_path}",
        *told,
        nproc=2,
    )
    assert trained.returncode == 0, trained.stdout
    out = tmp_path / "out"
    assert (
        launch("infer.py", f"--bundle={tmp_path / 'bundle.zip'}", scan, f"--out={out}").returncode
        == 0
    )
    evaluated = launch(
        "evaluate.py",
        f"--reconstruction={out / 'reconstruction.npz'}",
        f"--reference={scan}",
        f"--out={out}",
    )
    assert evaluated.returncode == 0, evaluated.stdout
    numbers, summary = (
        json.loads((out / name).read_text()) for name in ("metrics.json", "summary.json")
    )
    # The recipe reaches .95 in 25 s of one undisturbed core; a flat object has a deviance of 24.7,
    # ePIE's own one of 5.44.
    assert numbers["phase_correlation"] > 0.9
    assert summary["deviance_per_pixel"] < 8
    assert summary["mean_measured_photons"] == pytest.approx(440557, rel=1e-3)
    assert summary["mean_predicted_photons"] == pytest.approx(440557, rel=0.05)
    assert {path.name for path in out.iterdir()} >= {
        "amplitude.png",
        "phase.png",
        "comparison.png",
        "reconstruction.npz",
    }


def test_simulated_scan_to_reconstruction(launch: Launch, tmp_path: Path) -> None:
    """The whole way once, small: simulate, train on 2 processes, infer, evaluate."""
    scan, run_dir, out = tmp_path / "scan.npz", tmp_path / "run", tmp_path / "out"
    simulated = launch(
        "simulate.py",
        "--simulation.scan_shape=[6, 7]",
        "--simulation.nphotons=1e5",
        f"--out={scan}",
    )
    assert simulated.returncode == 0, simulated.stdout
    trained = launch(
        "train.py",
        f"--data.path={scan}",
        "--model.base_width=4",
        "--train.epochs=1",
        f"--train.run_dir={run_dir}",
        nproc=2,
    )
    assert trained.returncode == 0, trained.stdout
    assert "nphotons: 100000.0 (source: metadata)" in (run_dir / "train.log").read_text()
    inferred = launch(
        "infer.py",
        f"--bundle={run_dir / 'bundle.zip'}",
        scan,
        f"--out={out}",
        "--normalization=scan",
    )
    assert inferred.returncode == 0, inferred.stdout
    evaluated = launch(
        "evaluate.py",
        f"--reconstruction={out / 'reconstruction.npz'}",
        f"--reference={scan}",
        f"--out={out}",
    )
    assert evaluated.returncode == 0, evaluated.stdout
    assert json.loads((out / "metrics.json").read_text())["num_pixels"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.pth=x.npz",), "data.pth"),
        (("--train.epochs=many",), "train.epochs"),
        (
            ("--data.val_fraction=1.5", "--data.path=x.npz"),
            "config: data.val_fraction is 1.5, expected a number in [0, 1)",
        ),
        (
            ("--data.path=missing.npz", "--data.measurement=amplitude"),
            "missing.npz: file: found no such file, expected a scan file",
        ),
        ((), "data.path"),
    ],
)
def test_bad_configuration_is_one_message_and_status_1(
    launch: Launch, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    failed = launch("train.py", *arguments, f"--train.run_dir={tmp_path / 'run'}")
    assert failed.returncode == 1
    assert message in failed.stdout
    assert "Traceback" not in failed.stdout


def test_bad_scan_stops_all_ranks_with_one_message(
    launch: Launch, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    diffraction = np.ones((37, 16, 16), dtype=np.float32)
    diffraction[20, 1, 2] = -1
    scan = write_scan(diffraction=diffraction)
    failed = launch(
        "train.py",
        f"--data.path={scan}",
        "--data.measurement=counts",
        "--data.nphotons=measured",
        f"--train.run_dir={tmp_path / 'run'}",
        nproc=2,
    )
    assert failed.returncode == 1
    assert (
        failed.stdout.count(
            "found -1.0 at pixel [1, 2] of pattern 20, expected finite counts of at least 0"
        )
        == 1
    )
    assert not (tmp_path / "run" / "bundle.zip").exists()


def test_debug_shows_the_traceback(launch: Launch, tmp_path: Path) -> None:
    failed = launch(
        "train.py",
        "--debug",
        "--data.path=missing.npz",
        "--data.measurement=amplitude",
        f"--train.run_dir={tmp_path / 'run'}",
    )
    assert failed.returncode == 1
    assert "Traceback" in failed.stdout
