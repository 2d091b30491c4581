"""The wheel in a new environment, far from the checkout: a tiny job, from a simulated scan to a
comparison with the truth."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]

TINY = ("--data.path=scan.npz", "--model.base_width=4", "--train.epochs=1", "--train.run_dir=run")


def call(environment: Path, folder: Path, *command: str) -> str:
    """Run an installed program in `folder`; what the checkout's environment has does not reach
    it."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables |= {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [environment / "bin" / command[0], *command[1:]],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


def test_tiny_job(new_environment: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        return call(new_environment, tmp_path, *command)

    imported = run("python", "-c", "import ptycho_dist; print(ptycho_dist.__file__)")
    assert Path(imported.strip()).is_relative_to(new_environment)
    run(
        "ptycho-simulate",
        "--simulation.scan_shape=[6, 7]",
        "--simulation.nphotons=1e5",
        "--out=scan.npz",
    )
    assert "scan.npz" in run("ptycho-inspect", "scan.npz")
    assert (tmp_path / "scan.npz.inspect.png").is_file()
    run("ptycho-stage", "scan.npz", "--to", "staged")
    assert (tmp_path / "staged" / "scan.npz").read_bytes() == (tmp_path / "scan.npz").read_bytes()
    torchrun = ("torchrun", "--standalone", "--nproc_per_node=2")
    assert "world size 2" in run(*torchrun, "-m", "ptycho_dist.commands.train", *TINY, "--check")
    assert "on 2 rank(s)" in run(*torchrun, "--no-python", "ptycho-train", *TINY)
    run("ptycho-infer", "scan.npz", "--bundle=run/bundle.zip", "--out=out")
    run(
        "ptycho-evaluate",
        "--reconstruction=out/reconstruction.npz",
        "--reference=scan.npz",
        "--out=out",
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["num_pixels"] > 0
    assert (tmp_path / "out" / "report.html").is_file()
