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
from typing import Any

import numpy as np
import pytest
import yaml

from ptycho_dist import load_bundle, read_scan
from ptycho_dist.config import DataConfig
from ptycho_dist.data.subset import select_subset
from tests.scripts import ROOT

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
@pytest.mark.parametrize("in_metadata", [None, 440557.0])
def test_one_scale_everywhere_on_any_number_of_ranks(
    launch: Launch, realdata: Path, tmp_path: Path, in_metadata: float | None
) -> None:
    scan, nphotons, source = realdata / "siemens_velociprobe_N64.npz", 1e6, "config"
    if in_metadata is not None:
        scan = add_metadata(scan, tmp_path / "with_metadata.npz", in_metadata)
        nphotons, source = in_metadata, "metadata"
    digest = hashlib.sha256(scan.read_bytes()).digest()
    scales = set()
    for nproc in (1, 2, 3) if in_metadata is None else (None,):
        run_dir = tmp_path / f"run{nproc}"
        told = (f"--data.path={scan}", "--data.nphotons=1e6", f"--train.run_dir={run_dir}")
        trained = launch("train.py", *told, *SHORT, nproc=nproc)
        assert trained.returncode == 0, trained.stdout
        hparams = yaml.safe_load((run_dir / "hparams.yaml").read_text())
        assert (hparams["nphotons"], hparams["nphotons_source"]) == (nphotons, source)
        log = (run_dir / "train.log").read_text()
        assert f"nphotons: {nphotons!r} (source: {source})" in log
        scales |= {
            hparams["intensity_scale"],
            load_bundle(run_dir / "bundle.zip").intensity_scale,
            float(re.search(r"intensity_scale: (\S+) from", log).group(1)),
        }
    scales.add(infer(launch, run_dir, scan)["intensity_scale"])
    assert len(scales) == 1
    assert scales.pop() == pytest.approx(scale_in_float64(scan, nphotons), rel=1e-12)
    assert hashlib.sha256(scan.read_bytes()).digest() == digest


def infer(launch: Launch, run_dir: Path, scan: Path, *options: str) -> dict[str, Any]:
    """Reconstruct into `run_dir / "out"`; return the summary."""
    out = run_dir / "out"
    bundle = f"--bundle={run_dir / 'bundle.zip'}"
    inferred = launch("infer.py", scan, bundle, f"--out={out}", *options)
    assert inferred.returncode == 0, inferred.stdout
    return json.loads((out / "summary.json").read_text())


def evaluate(launch: Launch, run_dir: Path, reference: Path) -> dict[str, Any]:
    """Compare with the reference; return the metrics."""
    out = run_dir / "out"
    reconstruction = f"--reconstruction={out / 'reconstruction.npz'}"
    evaluated = launch("evaluate.py", reconstruction, f"--reference={reference}", f"--out={out}")
    assert evaluated.returncode == 0, evaluated.stdout
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.realdata
@pytest.mark.slow
def test_phase_of_the_reconstruction_shows_the_star(
    launch: Launch, realdata: Path, tmp_path: Path
) -> None:
    scan = realdata / "siemens_velociprobe_N64.npz"
    trained = launch(
        "train.py",
        f"--config={ROOT / 'configs' / 'default.yaml'}",
        f"--data.path={scan}",
        f"--train.run_dir={tmp_path}",
        "--data.measurement=amplitude",
        "--data.nphotons=measured",
        "--train.epochs=2",
        nproc=2,
    )
    assert trained.returncode == 0, trained.stdout
    summary, numbers = infer(launch, tmp_path, scan), evaluate(launch, tmp_path, scan)
    # A flat object has a deviance of 24.7, ePIE's own one of 5.44.
    assert numbers["phase_correlation"] > 0.9
    assert summary["deviance_per_pixel"] < 8
    assert summary["mean_measured_photons"] == pytest.approx(440557, rel=1e-3)
    assert summary["mean_predicted_photons"] == pytest.approx(440557, rel=0.05)


def test_simulated_scan_to_reconstruction(launch: Launch, tmp_path: Path) -> None:
    """The whole way once, small: simulate, train on 2 processes, infer, evaluate."""
    scan, run_dir = tmp_path / "scan.npz", tmp_path / "run"
    shape = ("--simulation.scan_shape=[6, 7]", "--simulation.nphotons=1e5")
    simulated = launch("simulate.py", *shape, f"--out={scan}")
    assert simulated.returncode == 0, simulated.stdout
    small = ("--model.base_width=4", "--train.epochs=1", f"--train.run_dir={run_dir}")
    trained = launch("train.py", f"--data.path={scan}", *small, nproc=2)
    assert trained.returncode == 0, trained.stdout
    assert "nphotons: 100000.0 (source: metadata)" in (run_dir / "train.log").read_text()
    infer(launch, run_dir, scan, "--normalization=scan")
    assert evaluate(launch, run_dir, scan)["num_pixels"] > 0
    names = {path.name for path in (run_dir / "out").iterdir()}
    assert names >= {"amplitude.png", "phase.png", "comparison.png", "reconstruction.npz"}


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
