"""The batch scripts on a real Slurm: two nodes of two tasks, time limits, requeues, lost nodes."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ptycho_dist import load_bundle
from tests.ranks import run_on_ranks
from tests.scans import small_scan_arrays
from tests.slurm.cluster import SlurmCluster
from tests.training.runs import assert_same_result, last_step, train_one

ROOT = Path(__file__).parents[2]
SMALL = (
    "--data.measurement=amplitude",
    "--data.nphotons=1000000",
    "--data.val_fraction=0.1",
    "--model.base_width=4",
    "--train.precision=32",
)
SMALL += ("--train.global_batch_size=2",)
EPOCHS = 4
STEPS_AN_EPOCH = 17  # 33 groups, two a step
SITECUSTOMIZE = """
import os, time
if "SLURM_PROCID" in os.environ:
    from tests import figures
    figures.skip_drawing()
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and "SLURM_STEP_NUM_TASKS" in os.environ and {seconds}:
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    register_optimizer_step_pre_hook(lambda *_: time.sleep({seconds}))
"""
"""Nothing is drawn, and each step of a first attempt takes some seconds longer."""

TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2")
TWO_NODES = ("--nodes=2", "--cpus-per-task=2")
TRAINING_SCRIPTS = ("train.sbatch", "train_torchrun.sbatch")


@pytest.fixture
def submit(
    cluster: SlurmCluster, edit: Callable[..., Path], scan: Path, tmp_path: Path
) -> Callable[..., int]:
    """`submit(script, *options of train.py, options=of sbatch)` submits a training job whose run
    directory is tmp_path / "run".

    With `seconds_a_step` its first attempt is slow, so that it is interrupted before its end.
    """

    def submit_job(
        script: str,
        *arguments: str,
        options: tuple[str, ...] = TWO_NODES,
        seconds_a_step: float = 0,
    ) -> int:
        (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE.format(seconds=seconds_a_step))
        variables = {
            "SCANS": f"({scan})",
            "CONFIG": ROOT / "configs" / "default.yaml",
            "RUN_DIR": tmp_path / "run",
        }
        variables["PROCESSES_A_NODE"] = 2
        return cluster.submit(
            edit(script, **variables),
            *SMALL,
            *arguments,
            options=options,
            PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
        )

    return submit_job


@pytest.fixture
def said(cluster: SlurmCluster, tmp_path: Path) -> Callable[[int], str]:
    """What a job printed, and then what the controller said of it."""

    def read(job: int) -> str:
        path = tmp_path / f"{job}.log"
        return (path.read_text() if path.exists() else "") + cluster.said_of(job)

    return read


def train_alone(scan: Path, run_dir: Path, epochs: int, num_ranks: int) -> Path:
    """The same without Slurm, on this machine."""
    concerns = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())
    concerns["data"] |= {"path": str(scan)}
    concerns["train"] |= {"run_dir": str(run_dir), "epochs": epochs}
    for option in SMALL:
        key, value = option.removeprefix("--").split("=")
        concern, name = key.split(".")
        concerns.setdefault(concern, {})[name] = yaml.safe_load(value)
    run_on_ranks(num_ranks, train_one, concerns)
    return run_dir


@pytest.fixture(scope="module")
def uninterrupted(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a run on four ranks that nothing happened to."""
    return train_alone(scan, tmp_path_factory.mktemp("uninterrupted") / "run", EPOCHS, 4)


@pytest.fixture(scope="module")
def trained(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of one epoch on one rank."""
    return train_alone(scan, tmp_path_factory.mktemp("trained") / "run", 1, 1)


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_two_nodes_of_two_tasks(
    cluster: SlurmCluster,
    submit: Callable[..., int],
    said: Callable[[int], str],
    scan: Path,
    trained: Path,
    tmp_path: Path,
    script: str,
) -> None:
    for copy in cluster.root.glob("disk.*/*"):
        copy.unlink()
    job = submit(script, "--train.epochs=1")
    assert cluster.wait_for_end(job) == "COMPLETED", said(job)
    bundles = [load_bundle(run_dir / "bundle.zip") for run_dir in (trained, tmp_path / "run")]
    assert bundles[0].calibration == bundles[1].calibration
    hparams = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    assert hparams["world_size"] == 4
    assert hparams["intensity_scale"] == bundles[0].intensity_scale
    assert f"job {job}, attempt 0" in (tmp_path / "run" / ".lock").read_text()
    assert (tmp_path / "run" / ".lock").read_text().endswith("on node1")  # global rank 0 is there
    assert (tmp_path / "run" / "train.log").read_text().count("intensity_scale: ") == 1
    assert said(job).count("wrote " + str(tmp_path / "run" / "bundle.zip")) == 1
    assert list(tmp_path.rglob("bundle.zip")) == [tmp_path / "run" / "bundle.zip"]
    assert all(f"{node}: {cluster.node_disk}/scan.npz" in said(job) for node in cluster.nodes)
    assert [disk.read_bytes() for disk in cluster.root.glob("disk.*/scan.npz")] == [
        scan.read_bytes()
    ] * 2


def test_time_limit_is_survived_to_the_same_bits(
    cluster: SlurmCluster,
    submit: Callable[..., int],
    said: Callable[[int], str],
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    """Slurm's own notice, which with these options comes 90 to 120 s after the job's start."""
    options = (*TWO_NODES, "--time=3", "--signal=B:USR1@60")
    job = submit("train.sbatch", f"--train.epochs={EPOCHS}", options=options, seconds_a_step=3)
    assert cluster.wait_for_end(job) == "COMPLETED", said(job)
    assert said(job).count("stopped by SIGUSR1 after step") == 1
    assert said(job).count("requeueing: the next attempt goes on with") == 1
    assert_same_result(tmp_path / "run", uninterrupted)


def test_notice_under_torchrun(
    cluster: SlurmCluster,
    submit: Callable[..., int],
    said: Callable[[int], str],
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    job = submit("train_torchrun.sbatch", f"--train.epochs={EPOCHS}", seconds_a_step=0.4)
    cluster.wait_until(lambda: last_step(tmp_path / "run") >= STEPS_AN_EPOCH, "the second epoch")
    # as Slurm sends it before the limit
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    cluster.wait_until(
        lambda: "requeueing: the next attempt goes on with" in said(job),
        "a requeued job",
        timeout=60,
    )
    assert cluster.wait_for_end(job) == "COMPLETED", said(job)
    assert_same_result(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_requeued_by_hand(
    cluster: SlurmCluster,
    submit: Callable[..., int],
    said: Callable[[int], str],
    tmp_path: Path,
    script: str,
) -> None:
    job = submit(script, f"--train.epochs={EPOCHS}", seconds_a_step=0.4)
    cluster.wait_until(lambda: last_step(tmp_path / "run") >= STEPS_AN_EPOCH, "the second epoch")
    cluster.run("scontrol", "requeue", str(job))
    assert cluster.wait_for_end(job) == "COMPLETED", said(job)
    assert "attempt 1: on 2 node(s)" in said(job)
    assert rows_are_complete(tmp_path / "run")


@pytest.mark.parametrize(
    ("script", "lost"),
    [("train.sbatch", "node2"), ("train.sbatch", "node1"), ("train_torchrun.sbatch", "node2")],
)
def test_lost_node(
    cluster: SlurmCluster,
    submit: Callable[..., int],
    said: Callable[[int], str],
    tmp_path: Path,
    script: str,
    lost: str,
) -> None:
    """On node1 is rank 0, which lives on, cut off, and still holds the run directory."""
    options = ("--nodes=1-2", "--cpus-per-task=2")
    job = submit(script, f"--train.epochs={EPOCHS}", options=options, seconds_a_step=0.4)
    cluster.wait_until(lambda: last_step(tmp_path / "run") >= STEPS_AN_EPOCH, "the second epoch")
    scale = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())["intensity_scale"]
    cluster.cut_off(lost)
    try:
        assert cluster.wait_for_end(job) == "COMPLETED", said(job)
    finally:
        cluster.put_back(lost)
    assert "attempt 1: on 1 node(s)" in said(job)
    assert ("taking over from an earlier attempt of this job" in said(job)) == (lost == "node1"), (
        said(job)
    )
    assert rows_are_complete(tmp_path / "run")
    assert load_bundle(tmp_path / "run" / "bundle.zip").intensity_scale == scale
    assert yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())["world_size"] == 2


def rows_are_complete(run_dir: Path) -> bool:
    """Whether metrics.csv ends with the last step, and nothing is missing or twice."""
    with (run_dir / "metrics.csv").open(newline="") as stream:
        steps = [
            int(row["step"]) for row in csv.DictReader(stream) if row["train_deviance_per_pixel"]
        ]
    return steps == [STEPS_AN_EPOCH * (epoch + 1) - 1 for epoch in range(EPOCHS)]


def test_array_of_reconstructions(
    cluster: SlurmCluster,
    edit: Callable[..., Path],
    said: Callable[[int], str],
    trained: Path,
    tmp_path: Path,
) -> None:
    """Three scans, two array tasks, one bundle; and again on a part of an allocation that somebody
    holds."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(3):
        np.savez(scans / f"scan{number}.npz", **small_scan_arrays(seed=number))
    variables = {"BUNDLE": trained / "bundle.zip", "SCANS": f"({scans}/*.npz)", "GPU": "()"}
    script = edit("infer.sbatch", **variables, OUT=tmp_path / "array")
    job = cluster.submit(script, options=("--array=0-1", f"--output={tmp_path}/%a.log"))
    cluster.wait_until(
        lambda: not cluster.run("squeue", "-h", "-j", str(job), check=False).stdout.strip(),
        "end of the array",
    )
    printed = [(tmp_path / f"{task}.log").read_text() for task in (0, 1)]
    assert [text.count("wrote reconstruction.npz") for text in printed] == [2, 1], printed
    script = edit("infer.sbatch", **variables, OUT=tmp_path / "inside")
    inside = cluster.run("salloc", "--partition=all", *TWO_BY_TWO, "bash", script, check=False)
    assert inside.returncode == 0, inside.stdout
    scale = load_bundle(trained / "bundle.zip").intensity_scale
    for out in ("array", "inside"):
        for number in range(3):
            summary = json.loads((tmp_path / out / f"scan{number}" / "summary.json").read_text())
            assert summary["intensity_scale"] == scale
    arrays = [
        np.load(tmp_path / out / "scan1" / "reconstruction.npz")["object"]
        for out in ("array", "inside")
    ]
    np.testing.assert_array_equal(*arrays)


def test_a_scan_that_fails_does_not_stop_the_others(
    cluster: SlurmCluster, edit: Callable[..., Path], scan: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    variables = {
        "BUNDLE": trained / "bundle.zip",
        "SCANS": f"({tmp_path}/broken.npz {scan})",
        "GPU": "()",
        "OUT": tmp_path / "out",
    }
    ended = cluster.run(
        "salloc", "--partition=all", "bash", edit("infer.sbatch", **variables), check=False
    )
    assert ended.returncode == 1
    assert f"error: not reconstructed: {tmp_path}/broken.npz" in ended.stdout
    assert (tmp_path / "out" / "scan" / "summary.json").exists()


def train(
    cluster: SlurmCluster, scan: Path, run_dir: Path, *srun: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """`srun ... python launch/train.py`; the test fails where it takes longer than a minute, half
    of it for a slow machine."""
    command = (
        sys.executable,
        ROOT / "launch" / "train.py",
        f"--data.path={scan}",
        f"--train.run_dir={run_dir}",
        *SMALL,
    )
    return cluster.run(*srun, *command, check=False, timeout=60, **env)


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        (
            ("salloc", "--partition=all", *TWO_BY_TWO),
            r"has 4 task\(s\) on 2 node\(s\), but srun did not start this process",
        ),
        (
            ("srun", "--partition=all", "--nodes=2", "--ntasks=3"),
            "the nodes have 2,1 tasks, expected as many on each: set --ntasks",
        ),
        (
            ("srun", "--partition=all", *TWO_BY_TWO, "--gpus-per-node=2", "--kill-on-bad-exit=1"),
            r"node1: Slurm gave 2 GPU\(s\), but PyTorch sees none",
        ),
    ],
    ids=["no srun", "uneven tasks", "devices"],
)
def test_wrong_environment_is_refused(
    cluster: SlurmCluster, scan: Path, tmp_path: Path, launcher: tuple[str, ...], message: str
) -> None:
    if torch.cuda.is_available() and "--gpus-per-node=2" in launcher:
        pytest.skip(
            "the cluster's GPUs are no real ones, so a machine that has some can't disagree with it"
        )
    failed = train(cluster, scan, tmp_path / "run", *launcher)
    # 1, or what srun makes of the tasks that it ended after the first
    assert failed.returncode != 0, failed.stdout
    assert re.search(message, failed.stdout), failed.stdout
    assert "Traceback" not in failed.stdout
    assert not (tmp_path / "run").exists()


def test_without_srun_on_the_path_the_script_says_so(
    cluster: SlurmCluster, submit: Callable[..., int], said: Callable[[int], str]
) -> None:
    commands = cluster.root / "without_srun"
    commands.mkdir()
    for command in ("bash", "date", "scancel", "scontrol", "stat"):
        (commands / command).symlink_to(f"/usr/bin/{command}")
    job = submit("train.sbatch", options=(*TWO_NODES, f"--export=PATH={commands}:/bin/nowhere"))
    assert cluster.wait_for_end(job, timeout=30) == "FAILED"
    assert "srun: command not found" in said(job)


def test_task_that_fails_at_its_start_ends_the_others(
    cluster: SlurmCluster, scan: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('SLURM_PROCID') == '3': raise SystemExit('the disk is "
        "gone')\n"
    )
    launcher = ("srun", "--partition=all", *TWO_BY_TWO, "--kill-on-bad-exit=1")
    failed = train(cluster, scan, tmp_path / "run", *launcher, PYTHONPATH=str(tmp_path))
    assert failed.returncode != 0
    assert "the disk is gone" in failed.stdout
    assert re.search(r"node2: task 3: Exited with exit code 1", failed.stdout), failed.stdout
