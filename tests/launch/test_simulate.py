"""The command as a user types it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

from tests.scripts import ROOT, run_script


def simulate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script([ROOT / "launch" / "simulate.py", *arguments], folder)


def test_command_writes_the_scan_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "scan.yaml").write_text(
        "simulation:\n  scan_shape: [3, 4]\n  nphotons: 5.0e+4\n  seed: 11\n"
    )
    done = simulate(
        tmp_path, "--config", "scan.yaml", "--out", "new/scan.npz", "--simulation.seed", "12"
    )
    assert done.returncode == 0, done.stdout
    with np.load(tmp_path / "new" / "scan.npz", allow_pickle=False) as archive:
        assert archive["diffraction"].shape == (12, 64, 64)
        metadata = json.loads(archive["_metadata"].item())
    assert metadata["simulation"]["scan_shape"] == [3, 4]
    assert metadata["simulation"]["seed"] == 12
    assert metadata["physics_parameters"]["nphotons"] == 5e4
    for said in ("12 patterns of 64 x 64 px", "object of", "without noise", "overlap 82 %", "MB"):
        assert said in done.stdout


def test_mistake_gives_one_line_and_status_1(tmp_path: Path) -> None:
    done = simulate(tmp_path, "--out", "scan.npz", "--simulation.probe", "dsk")
    assert done.returncode == 1
    assert (
        done.stdout.strip()
        == "error: probe: 'dsk' is neither 'disk' nor 'defocused' nor a file that exists"
    )
    assert not (tmp_path / "scan.npz").exists()
