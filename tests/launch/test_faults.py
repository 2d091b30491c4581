"""Faults of a running job: what is killed, told to stop, or fails on one rank; and what is left of
it."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_dist import load_bundle
from tests.scans import small_scan_arrays
from tests.training.test_tracking import assert_hold_metrics_csv

ROOT = Path(__file__).parents[2]
EPOCHS = 40
STEPS_AN_EPOCH = 17  # 33 groups, two a step

STREAMED = {"SLURM_MEM_PER_NODE": "1"}
"""Environment in which there is no memory to hold patterns in."""

pytestmark = pytest.mark.slow


class Job:
    """A torchrun job of `launch/train.py` in a process group of its own."""

    def __init__(
        self,
        scan: Path,
        run_dir: Path,
        *arguments: str,
        nproc: int = 2,
        torchrun: tuple[str, ...] = (),
        **env: str,
    ) -> None:
        self.run_dir = run_dir
        self.output = run_dir.with_suffix(f".{time.monotonic_ns()}.txt")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={nproc}",
            *torchrun,
        ]
        command += [
            str(ROOT / "launch" / "train.py"),
            f"--data.path={scan}",
            "--data.measurement=amplitude",
            "--data.nphotons=1e6",
        ]
        command += [
            "--data.val_fraction=0.1",
            "--model.base_width=4",
            "--train.precision=32",
            "--train.global_batch_size=2",
        ]
        command += [f"--train.epochs={EPOCHS}", f"--train.run_dir={run_dir}", *arguments]
        with self.output.open("w") as output:
            self.agent = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            )

    def ranks(self) -> list[int]:
        """Process numbers of the ranks, in their order."""
        children = (
            Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text().split()
        )
        return sorted(map(int, children))

    def said(self) -> str:
        return self.output.read_text()

    def wait_for_step(self, step: int) -> None:
        """Wait until training is past a step and a checkpoint was written."""
        self.wait_until(
            lambda: (
                (self.run_dir / "checkpoints" / "last.ckpt").exists()
                and last_step(self.run_dir) >= step
            ),
            f"step {step}",
        )

    def wait_for_end(self, timeout: float = 300) -> int:
        return self.agent.wait(timeout)

    def wait_for_ranks_to_end(self, ranks: list[int], timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            assert time.monotonic() < deadline, (
                f"ranks still there after {timeout} s:\n{self.said()}"
            )
            time.sleep(0.1)

    def wait_until(
        self,
        condition: Callable[[], bool],
        what: str,
        timeout: float = 300,
        *,
        may_end: bool = False,
    ) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert may_end or self.agent.poll() is None, f"ended before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"no {what} within {timeout} s:\n{self.said()}"
            time.sleep(0.05)


def last_step(run_dir: Path) -> int:
    metrics = run_dir / "metrics.csv"
    if not metrics.exists():
        return -1
    with metrics.open(newline="") as stream:
        return max((int(row["step"]) for row in csv.DictReader(stream) if row["step"]), default=-1)


def rows(run_dir: Path) -> list[dict[str, str]]:
    """All of metrics.csv but the times."""
    with (run_dir / "metrics.csv").open(newline="") as stream:
        return [
            {name: value for name, value in row.items() if not name.endswith("_ms")}
            for row in csv.DictReader(stream)
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    np.savez(folder / "scan.npz", **small_scan_arrays())
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    """Run directory of the same job that nothing happened to."""
    job = Job(folder / "scan.npz", folder / "uninterrupted")
    assert job.wait_for_end() == 0, job.said()
    return job.run_dir


@pytest.fixture
def start(folder: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Job]]:
    """`start(*arguments, **options)` starts a job in this test's run directory; what is left of it
    is killed at the end."""
    jobs: list[Job] = []

    def start_job(*arguments: str, **options: Any) -> Job:
        run_dir = folder / "".join(
            character if character.isalnum() else "_" for character in request.node.name
        )
        jobs.append(Job(folder / "scan.npz", run_dir, *arguments, **options))
        return jobs[-1]

    yield start_job
    for job in jobs:
        for number in {*job.ranks(), job.agent.pid} if job.agent.poll() is None else ():
            os.kill(number, signal.SIGKILL)
        job.agent.wait()


def assert_same_result(run_dir: Path, uninterrupted: Path) -> None:
    expected, found = load_bundle(uninterrupted / "bundle.zip"), load_bundle(run_dir / "bundle.zip")
    assert found.scale == expected.scale
    for name, weight in expected.weights.items():
        assert torch.equal(found.weights[name], weight), name
    assert rows(run_dir) == rows(uninterrupted)


def kill_one_rank(job: Job) -> None:
    os.kill(job.ranks()[1], signal.SIGKILL)


def kill_agent(job: Job) -> None:
    job.agent.kill()


def terminate_agent(job: Job) -> None:
    job.agent.terminate()  # torchrun passes it on to its ranks


def terminate_all(job: Job) -> None:
    os.killpg(job.agent.pid, signal.SIGTERM)


def ctrl_c(job: Job) -> None:
    os.killpg(job.agent.pid, signal.SIGINT)  # as a terminal does


def user_signal_to_all(job: Job) -> None:
    for number in [*job.ranks(), job.agent.pid]:
        os.kill(number, signal.SIGUSR1)


@pytest.mark.parametrize(
    "fault", [kill_one_rank, kill_agent, terminate_agent, terminate_all, ctrl_c, user_signal_to_all]
)
def test_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(
    start: Callable[..., Job], uninterrupted: Path, fault: Callable[[Job], None]
) -> None:
    job = start()
    job.wait_for_step(5 * STEPS_AN_EPOCH)
    ranks = job.ranks()
    fault(job)
    assert job.wait_for_end(timeout=20) != 0
    job.wait_for_ranks_to_end(ranks)
    assert not (job.run_dir / "bundle.zip").exists(), "it ended before the fault"
    # the uninterrupted run held its patterns in memory
    resumed = start("--train.resume=auto", **STREAMED)
    assert resumed.wait_for_end() == 0, resumed.said()
    assert_same_result(job.run_dir, uninterrupted)


def test_scan_that_is_cut_short_while_it_is_read_stops_all_ranks(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    np.savez(scan := tmp_path / "cut.npz", **small_scan_arrays())
    job = start(f"--data.path={scan}", "--train.epochs=100000", **STREAMED)
    job.wait_for_step(STEPS_AN_EPOCH)
    ranks = job.ranks()
    os.truncate(scan, 5000)
    assert job.wait_for_end(timeout=20) == 1
    job.wait_for_ranks_to_end(ranks)
    # whoever says it says the same
    (cause,) = {
        line.partition("error: ")[2] for line in job.said().splitlines() if "error: " in line
    }
    assert re.fullmatch(
        rf"rank [01]: {scan}: diffraction: found 5000 bytes, which end within patterns \d+ to \d+, expected 37 patterns.*",
        cause,
    )
    assert cause in (job.run_dir / "train.log").read_text()
    assert not (job.run_dir / "bundle.zip").exists()


def test_signal_is_answered_with_a_checkpoint_within_the_epoch(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    np.savez(tmp_path / "long.npz", **small_scan_arrays(num_patterns=900))
    job = start(f"--data.path={tmp_path / 'long.npz'}", "--train.global_batch_size=1")
    job.wait_until(lambda: last_step(job.run_dir) > 0, "the first row of metrics")
    job.agent.terminate()
    assert job.wait_for_end(timeout=20) != 0
    checkpoint = torch.load(job.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert 0 < checkpoint["global_step"] < 810  # 810 training patterns: an epoch has as many steps
    assert (
        f"stopped by SIGTERM after step {checkpoint['global_step']}; go on with --train.resume auto"
        in job.said()
    )


def test_torchrun_restarts_a_killed_rank_by_itself(
    start: Callable[..., Job], uninterrupted: Path
) -> None:
    """Watched by TensorBoard and MLflow, which changes no bit, and which hold each row once in the
    end."""
    loggers = "--train.logger=[tensorboard,mlflow]"
    job = start(loggers, torchrun=("--max-restarts=2",), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    job.wait_for_step(5 * STEPS_AN_EPOCH)
    kill_one_rank(job)
    assert job.wait_for_end() == 0, job.said()
    assert_same_result(job.run_dir, uninterrupted)
    assert_hold_metrics_csv(job.run_dir)


def test_at_another_world_size_it_goes_on_with_the_same_scale_and_batches(
    start: Callable[..., Job], uninterrupted: Path
) -> None:
    job = start()
    job.wait_for_step(5 * STEPS_AN_EPOCH)
    terminate_agent(job)
    job.wait_for_end(timeout=20)
    resumed = start("--train.resume=auto", nproc=3)
    assert resumed.wait_for_end() == 0, resumed.said()
    assert (
        load_bundle(job.run_dir / "bundle.zip").scale
        == load_bundle(uninterrupted / "bundle.zip").scale
    )
    found, expected = rows(job.run_dir), rows(uninterrupted)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    deviances = [
        [
            float(row["train_deviance_per_pixel"])
            for row in of_run
            if row["train_deviance_per_pixel"]
        ]
        for of_run in (found, expected)
    ]
    # The same batches, in float32 convolutions of other sizes: what differs by 1e-8 at first grows
    # a hundredfold an epoch ...
    np.testing.assert_allclose(*(of_run[:7] for of_run in deviances), rtol=1e-4)
    # ... and training ends at about the same place all the same.
    np.testing.assert_allclose(*(of_run[-5:] for of_run in deviances), rtol=5e-2)


def test_second_run_in_a_run_directory_is_refused(start: Callable[..., Job]) -> None:
    first = start("--train.epochs=100000")
    first.wait_for_step(1)
    second = start()
    assert second.wait_for_end(timeout=60) == 1
    assert second.said().count("another run is writing here") == 1
    first.agent.terminate()
    assert first.wait_for_end(timeout=20) != 0
    checkpoint = (first.run_dir / "checkpoints" / "last.ckpt").read_bytes()
    third = start()
    assert third.wait_for_end(timeout=60) == 1
    assert third.said().count("found the checkpoint of an earlier run") == 1
    assert (first.run_dir / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


SABOTAGE = """
import os
if os.environ.get("RANK") == "1":
    import ptycho_dist.model.lightning_module as module
    step = module.PtychographyModule.training_step
    def sabotaged(self, samples, batch_idx):
        if self.global_step == 30:
            {fault}
        return step(self, samples, batch_idx)
    module.PtychographyModule.training_step = sabotaged
if os.environ.get("RANK") == "0":  # which the launcher ends before it can say anything
    import time
    import ptycho_dist.distributed as distributed
    distributed.first_failure = lambda own: time.sleep(60)
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "raise RuntimeError('the detector is on fire')",
            "rank 1: RuntimeError: the detector is on fire",
        ),
        (
            "samples = samples._replace(x_norm=samples.x_norm * float('nan'))",
            "rank 1: the loss is nan at step 30",
        ),
        (
            "self.network.head[1].bias.register_hook(lambda gradient: gradient * float('inf'))",
            "the gradient of network.head.1.bias is not finite at step 30; the step was not taken",
        ),
    ],
    ids=["exception", "loss", "gradient"],
)
def test_fault_of_one_rank_stops_all_with_one_message(
    start: Callable[..., Job], tmp_path: Path, fault: str, message: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(fault=fault))
    job = start(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", nproc=3)
    job.wait_for_step(STEPS_AN_EPOCH - 1)
    ranks = job.ranks()
    job.wait_until(lambda: "error: " in job.said(), "an error", may_end=True)
    assert job.wait_for_end(timeout=20) == 1
    job.wait_for_ranks_to_end(ranks)
    said = job.said()
    assert message in said
    causes = {line.partition("error: ")[2] for line in said.splitlines() if "error: " in line}
    assert len(causes) == 1, said  # whoever says something says the same
    assert (job.run_dir / "train.log").read_text().count(message) == 1
    assert not (job.run_dir / "bundle.zip").exists()
    checkpoint = torch.load(job.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())
