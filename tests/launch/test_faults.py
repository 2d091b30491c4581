"""Faults of a running job: ranks that are killed, told to stop, or fail; and what is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ptycho_dist.distributed import FailedTogether, Interrupted
from ptycho_dist.model.lightning_module import PtychographyModule
from tests.launch import faults
from tests.ranks import run_on_ranks
from tests.scans import small_scan_arrays
from tests.scripts import ROOT, torchrun
from tests.training.runs import (
    assert_same_result,
    column,
    settings,
    told_by,
    train_one,
    train_streamed,
)

SMALL: dict[str, Any] = {"train__epochs": 3, "train__global_batch_size": 2}
"""33 groups, two a step: 17 steps an epoch."""


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "scan.npz"
    np.savez(path, **small_scan_arrays())
    return path


@pytest.fixture(scope="module")
def uninterrupted(scan: Path) -> Path:
    """Run directory of a run that nothing happened to."""
    run_on_ranks(2, train_one, settings(scan, scan.parent / "uninterrupted", **SMALL))
    return scan.parent / "uninterrupted"


@pytest.fixture
def concerns(scan: Path, tmp_path: Path) -> dict[str, Any]:
    return settings(scan, tmp_path / "run", **SMALL)


def job_with(
    fault: Callable[[], None],
    concerns: dict[str, Any],
    tmp_path: Path,
    *options: str,
    nproc: int = 2,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a torchrun job that meets a fault; return once all its processes are gone, agent and
    ranks: they share the pipe that is read to its end."""
    (tmp_path / "sitecustomize.py").write_text(faults.SITECUSTOMIZE)
    environment |= {
        "FAULT": fault.__name__,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }
    return subprocess.run(
        [*torchrun(nproc), *options, str(ROOT / "launch" / "train.py"), *told_by(concerns)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def checkpoint(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "fault",
    [
        faults.terminate_agent,
        *(
            pytest.param(fault, marks=pytest.mark.slow)
            for fault in (faults.kill_one_rank, faults.kill_agent, faults.ctrl_c)
        ),
    ],
)
def test_resumed_job_ends_with_the_bits_of_the_uninterrupted_run(
    concerns: dict[str, Any], uninterrupted: Path, tmp_path: Path, fault: Callable[[], None]
) -> None:
    """It also streams its patterns; the uninterrupted run held them in memory."""
    job = job_with(fault, concerns, tmp_path)
    assert job.returncode != 0
    assert not (tmp_path / "run" / "bundle.zip").exists(), job.stdout
    # a killed rank leaves the checkpoint of its last epoch, everything else one after the step
    reached = 17 if fault is faults.kill_one_rank else faults.STEP
    assert checkpoint(tmp_path / "run")["global_step"] >= reached, job.stdout
    concerns["train"]["resume"] = "auto"
    run_on_ranks(2, train_streamed, concerns)
    assert_same_result(tmp_path / "run", uninterrupted)


def signalled(concerns: dict[str, Any], number: int, ranks: tuple[int, ...]) -> str:
    """What a rank is told by a run of which some ranks get a signal."""
    if dist.get_rank() in ranks:
        faults.before_step(faults.STEP, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as stopped:
        train_one(concerns)
    assert stopped.value.exit_status == 128 + number
    return str(stopped.value)


@pytest.mark.parametrize(
    ("name", "ranks"), [("SIGTERM", (0, 1)), ("SIGUSR1", (1,)), ("SIGINT", (0,))]
)
def test_signal_of_any_rank_stops_all_with_a_checkpoint_within_the_epoch(
    concerns: dict[str, Any], uninterrupted: Path, tmp_path: Path, name: str, ranks: tuple[int, ...]
) -> None:
    said = run_on_ranks(2, signalled, concerns, int(signal.Signals[name]), ranks)
    assert said[0] == said[1]
    assert f"stopped by {name} after step 25; go on with --train.resume auto" in said[0]
    stopped = checkpoint(tmp_path / "run")
    assert (stopped["epoch"], stopped["global_step"]) == (1, 25)
    concerns["train"]["resume"] = "auto"
    run_on_ranks(2, train_one, concerns)
    assert_same_result(tmp_path / "run", uninterrupted)


def test_at_another_world_size_it_goes_on_with_the_same_scale_and_batches(
    concerns: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    run_on_ranks(2, signalled, concerns, int(signal.SIGTERM), (0,))
    concerns["train"]["resume"] = "auto"
    run_on_ranks(3, train_one, concerns)
    for name in ("step", "train_deviance_per_pixel", "val_deviance_per_pixel"):
        found, expected = (column(run_dir, name) for run_dir in (tmp_path / "run", uninterrupted))
        # float32 convolutions of other batch sizes
        assert found == pytest.approx(expected, rel=0 if name == "step" else 1e-3)


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_by_itself(
    concerns: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    concerns["train"]["resume"] = "auto"
    job = job_with(
        faults.kill_one_rank,
        concerns,
        tmp_path,
        "--max-restarts=2",
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
    )
    assert job.returncode == 0, job.stdout
    assert_same_result(tmp_path / "run", uninterrupted)


def assert_one_cause(job: subprocess.CompletedProcess[str], run_dir: Path) -> str:
    """Whoever says something says the same, and it is in the log; no bundle is left."""
    assert job.returncode == 1
    causes = {line.partition("error: ")[2] for line in job.stdout.splitlines() if "error: " in line}
    assert len(causes) == 1, job.stdout
    assert not (run_dir / "bundle.zip").exists()
    (cause,) = causes
    assert (run_dir / "train.log").read_text().count(cause) == 1
    return cause


@pytest.mark.slow
def test_scan_that_is_cut_short_while_it_is_read_stops_all_ranks(
    concerns: dict[str, Any], tmp_path: Path
) -> None:
    np.savez(scan := tmp_path / "cut.npz", **small_scan_arrays())
    concerns["data"]["path"] = str(scan)
    streamed = {"SLURM_MEM_PER_NODE": "1"}  # no memory is left to hold patterns in
    job = job_with(faults.truncate_scan, concerns, tmp_path, SCAN=str(scan), **streamed)
    assert re.fullmatch(
        rf"rank [01]: {scan}: diffraction: found 5000 bytes, which end within patterns \d+ to \d+, expected 37 patterns.*",
        assert_one_cause(job, tmp_path / "run"),
    )


@pytest.mark.slow
def test_error_of_one_rank_stops_all_with_one_message(
    concerns: dict[str, Any], tmp_path: Path
) -> None:
    job = job_with(faults.raise_error, concerns, tmp_path, nproc=3)
    message = "rank 1: RuntimeError: the detector is on fire"
    assert message in assert_one_cause(job, tmp_path / "run")


def train_with_bad_numbers(concerns: dict[str, Any], what: str) -> str:
    """What a rank is told of a loss or a gradient that is not finite on rank 1, at step 20."""
    step = PtychographyModule.training_step

    def sabotaged(self: PtychographyModule, samples: Any, batch_idx: int) -> Any:
        if dist.get_rank() == 1 and self.global_step == 20:
            if what == "loss":
                samples = samples._replace(x_norm=samples.x_norm * float("nan"))
            else:
                self.network.head[1].bias.register_hook(lambda gradient: gradient * float("inf"))
        return step(self, samples, batch_idx)

    PtychographyModule.training_step = sabotaged  # type: ignore[method-assign]
    with pytest.raises(FailedTogether) as failed:
        train_one(concerns)
    return str(failed.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", "rank 1: the loss is nan at step 20"),
        (
            "gradient",
            "the gradient of network.head.1.bias is not finite at step 20; the step was not taken",
        ),
    ],
)
def test_numbers_that_are_not_finite_stop_all_ranks_and_spoil_no_weight(
    concerns: dict[str, Any], tmp_path: Path, what: str, message: str
) -> None:
    said = run_on_ranks(3, train_with_bad_numbers, concerns, what)
    assert len(set(said)) == 1
    assert message in said[0]
    assert not (tmp_path / "run" / "bundle.zip").exists()
    weights = checkpoint(tmp_path / "run")["state_dict"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())
