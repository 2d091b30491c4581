"""A real scan whose probe is known only by its width."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Launch = Callable[..., subprocess.CompletedProcess[str]]

KNOWN_PROBE_DEVIANCE = 5.07
"""configs/default.yaml, 20 epochs, with the reference probe of the file."""


@pytest.mark.realdata
@pytest.mark.slow
def test_gaussian_becomes_a_probe_that_explains_the_scan(
    launch: Launch, realdata: Path, tmp_path: Path
) -> None:
    """Two epochs with the probe trained leave less than a fifth of the deviance that they leave
    with the Gaussian."""
    with np.load(realdata / "siemens_velociprobe_N64.npz") as arrays:
        y, x = np.indices((64, 64)) - 32
        # the second moment of the reference probe's intensity, and nothing else of it
        gaussian = np.exp(-(y**2 + x**2) / (4 * 9.84**2))
        np.savez(tmp_path / "scan.npz", **{**arrays, "probeGuess": gaussian.astype(np.complex64)})
    config = Path(__file__).parents[2] / "configs" / "default.yaml"
    told = (
        f"--config={config}",
        f"--data.path={tmp_path / 'scan.npz'}",
        "--data.measurement=amplitude",
        "--data.nphotons=measured",
    )
    deviance = {}
    for trained in ("true", "false"):
        run_dir = tmp_path / trained
        run = launch(
            "train.py",
            *told,
            f"--train.run_dir={run_dir}",
            "--train.epochs=2",
            f"--model.probe_trainable={trained}",
            timeout=600,
        )
        assert run.returncode == 0, run.stdout
        inferred = launch(
            "infer.py",
            f"--bundle={run_dir / 'bundle.zip'}",
            tmp_path / "scan.npz",
            f"--out={run_dir / 'out'}",
        )
        assert inferred.returncode == 0, inferred.stdout
        deviance[trained] = json.loads((run_dir / "out" / "summary.json").read_text())[
            "deviance_per_pixel"
        ]
    assert deviance["true"] < deviance["false"] / 5
    assert deviance["true"] < 1.15 * KNOWN_PROBE_DEVIANCE
    assert (tmp_path / "true" / "probe.png").exists()
