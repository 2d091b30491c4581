"""slurm/time_limit.sh without a cluster: what the batch shell does when the notice comes. Slurm's
commands are played by small scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TIME_LIMIT = Path(__file__).parents[2] / "slurm" / "time_limit.sh"
STEP_THAT_STOPS = """
trap 'mkdir -p RUN/checkpoints; {checkpoint} exit 138' USR1
touch started; for i in $(seq 100); do sleep 0.1; done
"""


@pytest.fixture
def batch_shell(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`batch_shell(step, requeue=status)` runs a step (a script) under until_time_limit; scancel
    signals it as Slurm would."""

    def start(step: str, requeue: int = 0) -> subprocess.Popen[str]:
        commands = tmp_path / "commands"
        commands.mkdir()
        for name, body in {
            "scancel": f'echo "scancel $*" >> {tmp_path}/called; kill -USR1 $(cat {tmp_path}/step)',
            # Slurm ends the batch shell of a requeued job
            "scontrol": f'echo "scontrol $*" >> {tmp_path}/called; [ {requeue} = 0 ] && kill '
            f"-KILL $PPID; exit {requeue}",
            "step": f"echo $$ > {tmp_path}/step\n{step}",
        }.items():
            (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (commands / name).chmod(0o755)
        script = f"set -euo pipefail; source {TIME_LIMIT}; RUN_DIR=RUN; until_time_limit step"
        environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
        }
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**environment, "SLURM_JOB_NODELIST": "n[1-2]"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def notify(shell: subprocess.Popen[str], tmp_path: Path) -> str:
    """Send the notice once the step runs; gives what the shell printed."""
    deadline = time.monotonic() + 10
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shell.send_signal(signal.SIGUSR1)
    return shell.communicate(timeout=20)[0]


def called(tmp_path: Path) -> list[str]:
    path = tmp_path / "called"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("status", [0, 1, 3])
def test_exit_status_of_the_step_is_the_jobs(
    batch_shell: Callable[..., subprocess.Popen[str]], tmp_path: Path, status: int
) -> None:
    shell = batch_shell(f"exit {status}")
    printed, _ = shell.communicate(timeout=20)
    assert shell.returncode == status
    assert f"slurm job 7, attempt 0: ended with exit status {status}" in printed
    assert called(tmp_path) == []


def test_notice_is_passed_on_and_the_job_requeued(
    batch_shell: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    shell = batch_shell(STEP_THAT_STOPS.format(checkpoint="touch RUN/checkpoints/last.ckpt;"))
    printed = notify(shell, tmp_path)
    assert called(tmp_path) == ["scancel --signal=USR1 7", "scontrol requeue 7"]
    assert "requeueing: the next attempt goes on with RUN/checkpoints/last.ckpt" in printed


def test_without_a_new_checkpoint_it_is_not_requeued_for_ever(
    batch_shell: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    (tmp_path / "RUN" / "checkpoints" / "last.ckpt").touch()  # of an earlier attempt
    shell = batch_shell(STEP_THAT_STOPS.format(checkpoint=""))
    printed = notify(shell, tmp_path)
    assert shell.returncode == 1
    assert called(tmp_path) == ["scancel --signal=USR1 7"]
    assert "no checkpoint was written in this attempt" in printed


def test_refused_requeue_says_how_to_go_on(
    batch_shell: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    shell = batch_shell(
        STEP_THAT_STOPS.format(checkpoint="touch RUN/checkpoints/last.ckpt;"), requeue=1
    )
    printed = notify(shell, tmp_path)
    assert shell.returncode == 1
    assert (
        "requeue refused: submit the same script again, with --train.run_dir RUN --train.resume "
        "auto" in printed
    )


def test_run_that_ends_just_then_is_done(
    batch_shell: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    shell = batch_shell(
        "trap 'sleep 0.3; exit 0' USR1; touch started; for i in $(seq 100); do sleep 0.1; done"
    )
    printed = notify(shell, tmp_path)
    assert shell.returncode == 0
    assert called(tmp_path) == ["scancel --signal=USR1 7"]
    assert "ended with exit status 0" in printed
