"""The command as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[2]


def simulate(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "launch" / "simulate.py"), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_writes_the_scan_and_says_so(tmp_path):
    (tmp_path / "scan.yaml").write_text(
        "simulation:\n  scan_shape: [3, 4]\n  nphotons: 5.0e+4\n  seed: 11\n"
    )
    done = simulate(
        "--config", "scan.yaml", "--out", "new/scan.npz", "--simulation.seed", "12", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "new" / "scan.npz", allow_pickle=False) as archive:
        assert archive["diffraction"].shape == (12, 64, 64)
        metadata = json.loads(archive["_metadata"].item())
    assert metadata["simulation"]["scan_shape"] == [3, 4]
    assert metadata["simulation"]["seed"] == 12
    assert metadata["physics_parameters"]["nphotons"] == 5e4
    for said in (
        "12 patterns of 64 x 64 px",
        "object of",
        "before the noise",
        "overlap 82 %",
        "MB",
    ):
        assert said in done.stderr


def test_mistake_gives_one_line_and_status_1(tmp_path):
    done = simulate("--out", "scan.npz", "--simulation.probe", "dsk", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "error: probe: 'dsk' is neither 'disk' nor 'defocused' nor a file that exists"
    )
    assert not (tmp_path / "scan.npz").exists()
