"""A Slurm cluster for the tests of slurm/, and jobs on it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.scans import small_scan_arrays
from tests.slurm.cluster import COMMANDS, SlurmCluster

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("slurm"))  # one cluster, so one worker


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """Two nodes. Slurm's sockets and node names want a short path, so not pytest's own
    directory."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        pytest.skip(
            f"no {', '.join(missing)} on this machine: bash tests/slurm/install.sh installs Slurm "
            "on Debian"
        )
    if os.getuid() != 0:
        pytest.skip("only root can start a Slurm cluster with a network of its own")
    root = Path(tempfile.mkdtemp(prefix="slurm_"))
    started = SlurmCluster(root)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    np.savez(path, **small_scan_arrays())
    return path


@pytest.fixture
def edit(tmp_path: Path, cluster: SlurmCluster) -> Callable[..., Path]:
    """`edit("train.sbatch", SCANS="(a.npz)", ...)` edits a copy of a batch script as its user
    would: partition, output and variables."""

    def edit_script(name: str, **variables: Any) -> Path:
        text = (ROOT / "slurm" / name).read_text()
        directives = {
            r"#SBATCH --partition=.*": "#SBATCH --partition=all",
            r"#SBATCH --output=.*": f"#SBATCH --output={tmp_path}/%j.log",
        }
        directives |= {r"#SBATCH --(account|gpus.*|cpus-per-task)=.*\n": ""}
        values = {"PYTHON": sys.executable, "NODE_DISK": cluster.node_disk, **variables}
        for pattern, line in directives.items():
            text, found = re.subn(pattern, line, text)
            assert found, pattern
        for variable, value in values.items():
            if re.search(rf"^{variable}=", text, flags=re.MULTILINE) or variable in variables:
                text, found = re.subn(
                    rf"^{variable}=.*$", f"{variable}={value}", text, flags=re.MULTILINE
                )
                assert found == 1, variable
        edited = tmp_path / name
        edited.write_text(text)
        return edited

    return edit_script
