"""What a launcher's environment means, and which are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from ptycho_dist.training.processes import LauncherError, Processes

SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "3",
}
BATCH_SHELL = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


def seen(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)


@pytest.mark.parametrize(
    ("environment", "num_gpus", "expected"),
    [
        ({}, 0, Processes()),
        ({}, 8, Processes()),
        (BATCH_SHELL, 0, Processes()),
        (TORCHRUN, 0, Processes(per_node=4, num_nodes=2, local_rank=3)),
        (TORCHRUN, 4, Processes(per_node=4, num_nodes=2, local_rank=3)),
        # the others are somebody else's
        (TORCHRUN, 8, Processes(per_node=4, num_nodes=2, local_rank=3)),
        (SRUN, 0, Processes(per_node=2, num_nodes=2, local_rank=1)),
        (SRUN, 2, Processes(per_node=2, num_nodes=2, local_rank=1)),
        (SRUN | {"SLURM_GPUS_PER_TASK": "1"}, 1, Processes(per_node=1, num_nodes=4, local_rank=0)),
        (SRUN | {"SLURM_GPUS_PER_TASK": "1"}, 2, Processes(per_node=2, num_nodes=2, local_rank=1)),
        (
            SRUN
            | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_LOCALID": "0"},
            1,
            Processes(),
        ),
    ],
)
def test_processes_of_a_launcher(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], num_gpus: int, expected: Processes
) -> None:
    seen(monkeypatch, num_gpus)
    os.environ.update(environment)
    assert Processes.of_launcher() == expected


def test_srun_gives_what_torchrun_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, 0)
    os.environ.update(SRUN)
    Processes.of_launcher()
    found = {
        name: os.environ[name]
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    assert found == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "19711",
    }


@pytest.mark.parametrize(
    ("environment", "num_gpus", "message"),
    [
        (
            BATCH_SHELL | {"SLURM_NTASKS": "4"},
            0,
            r"4 task\(s\) on 1 node\(s\), but srun did not start this process",
        ),
        (
            BATCH_SHELL | {"SLURM_JOB_NUM_NODES": "2"},
            0,
            r"1 task\(s\) on 2 node\(s\), but srun did not start this process",
        ),
        (
            SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2,1"},
            0,
            "the nodes have 2,1 tasks, expected as many on each: set --ntasks-per-node",
        ),
        (
            SRUN,
            1,
            r"2 process\(es\) but 1 GPU\(s\), expected one GPU a process: make srun --ntasks-per-node 1",
        ),
        (
            SRUN,
            8,
            r"2 process\(es\) but 8 GPU\(s\), expected one GPU a process: make srun --ntasks-per-node 8",
        ),
        (SRUN | {"SLURM_STEP_GPUS": "0,1"}, 0, r"Slurm gave 2 GPU\(s\), but PyTorch sees none"),
        (
            TORCHRUN,
            2,
            r"4 process\(es\) but 2 GPU\(s\), expected one GPU a process: make torchrun --nproc_per_node 2",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], num_gpus: int, message: str
) -> None:
    seen(monkeypatch, num_gpus)
    os.environ.update(environment)
    with pytest.raises(LauncherError, match=message):
        Processes.of_launcher()
