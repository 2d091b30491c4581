"""The commands for a cluster that README and docs show, on a real Slurm."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.blocks import Command
from tests.docs.commands import all_commands, is_exempt, is_of_a_cluster
from tests.docs.reader import Reader, make_project
from tests.slurm.cluster import SlurmCluster

COMMANDS = {
    " ".join(command.words): command
    for command in all_commands()
    if is_of_a_cluster(command) and not is_exempt(command)
}


@pytest.fixture
def project(tmp_path: Path, scan: Path, edit: Callable[..., Path]) -> Path:
    """The project's directory, its batch scripts edited as their user would."""
    folder = tmp_path / "project"
    folder.mkdir()
    make_project(folder)
    shutil.copy(scan, folder / "scan.npz")
    (folder / "bundle.zip").touch()
    for name in ("train.sbatch", "train_torchrun.sbatch"):
        shutil.copy(edit(name, SCANS="(scan.npz)", PROCESSES_A_NODE=2), folder / "slurm" / name)
    shutil.copy(
        edit("infer.sbatch", SCANS="(scan.npz)", BUNDLE="bundle.zip", GPU="()"),
        folder / "slurm/infer.sbatch",
    )
    return folder


@pytest.mark.parametrize("text", sorted(COMMANDS))
def test_command(text: str, project: Path, cluster: SlurmCluster) -> None:
    """What is submitted could start at once, and its options are those of launch/train.py;
    tests/slurm/test_jobs.py runs the scripts.

    `srun` runs here, with two processes a node, and without GPUs, which the test's cluster only
    pretends to have.
    """
    command = COMMANDS[text]
    program, *rest = command.words
    if program == "sbatch":
        tested = run(cluster, project, ["sbatch", "--test-only", "--partition=all", *rest])
        assert re.search(r"sbatch: Job \d+ to start at", tested), tested
        script = next(number for number, word in enumerate(rest) if word.endswith(".sbatch"))
        Reader(project).parse(
            Command(
                place=command.place,
                variables={},
                words=("python", "launch/train.py", *rest[script + 1 :]),
            )
        )
    elif program == "srun":
        small = re.sub(
            r"--partition=\S+",
            "--partition=all",
            re.sub(r"--ntasks-per-node=\d+", "--ntasks-per-node=2", text),
        )
        small = (
            re.sub(r" --gpus-per-node=\d+", "", small)
            + " --data.measurement amplitude --data.nphotons 1e6"
        )
        assert "ok       srun; world size 4, 2 node(s)" in run(cluster, project, shlex.split(small))
    else:
        assert command.words == ("bash", "slurm/infer.sbatch"), command
        alone = run(
            cluster, project, ["salloc", "--partition=all", "--nodes=1", *command.words], expect=1
        )
        # it came as far as the bundle, which is empty here
        assert "bundle.zip: truncated, altered or not a bundle" in alone, alone


def run(cluster: SlurmCluster, folder: Path, words: list[str], *, expect: int = 0) -> str:
    """A command of Slurm from the project's directory; gives what it printed."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    ended = cluster.run("env", f"--chdir={folder}", *words, check=False, **environment)
    assert ended.returncode == expect, ended.stdout
    return ended.stdout
