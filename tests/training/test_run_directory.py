"""metrics.csv and hparams.yaml, also of a run that is taken up again."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import yaml

from ptycho_dist.training import run_directory
from ptycho_dist.training.metrics import metric_columns
from ptycho_dist.training.run_directory import Claim, RunDirectoryLogger, claim_run_directory


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_run(
    run_dir: Path, steps: list[int], *, resumed: bool, learning_rate: float = 0.1
) -> None:
    logger = RunDirectoryLogger(run_dir, resumed=resumed)
    for step in steps:
        logger.log_metrics({"learning_rate": learning_rate}, step=step)
        logger.log_metrics({"val_nll": 2.0 * step}, step=step)
        logger.save()
    logger.finalize("success")


def test_what_is_logged_at_one_step_is_one_row(tmp_path: Path) -> None:
    write_run(tmp_path, [3, 7], resumed=False)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == ["3", "7"]
    assert [(row["learning_rate"], row["val_nll"], row["gain"]) for row in rows] == [
        ("0.1", "6.0", ""),
        ("0.1", "14.0", ""),
    ]
    assert tuple(rows[0]) == metric_columns("deviance_per_pixel")


def test_columns_have_the_name_of_what_the_loss_reports(tmp_path: Path) -> None:
    logger = RunDirectoryLogger(tmp_path, resumed=False, loss_metric="amplitude_error")
    logger.log_metrics({"train_amplitude_error": 0.5, "val_deviance_per_pixel": 2.0}, step=1)
    logger.save()
    assert [row["train_amplitude_error"] for row in rows_of(tmp_path)] == ["0.5"]


def test_rows_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = RunDirectoryLogger(tmp_path, resumed=False)
    logger.log_metrics({"learning_rate": 0.1}, step=1)
    logger.log_metrics({"learning_rate": 0.2}, step=2)
    logger.save()
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "2"]
    logger.log_metrics({"val_nll": 0.5}, step=2)
    logger.log_metrics({"learning_rate": 0.3}, step=3)
    logger.save()
    assert [(row["step"], row["val_nll"]) for row in rows_of(tmp_path)] == [
        ("1", ""),
        ("2", "0.5"),
        ("3", ""),
    ]


def test_resumed_run_keeps_its_rows_up_to_the_step_it_is_taken_up_at(tmp_path: Path) -> None:
    write_run(tmp_path, [1, 2, 3, 4], resumed=False)
    write_run(tmp_path, [3, 4, 5], resumed=True, learning_rate=0.5)
    assert [(row["step"], row["learning_rate"]) for row in rows_of(tmp_path)] == [
        ("1", "0.1"), ("2", "0.1"), ("3", "0.5"), ("4", "0.5"), ("5", "0.5")
    ]  # fmt: skip


def test_new_run_starts_a_new_file(tmp_path: Path) -> None:
    write_run(tmp_path, [1, 2, 3], resumed=False)
    write_run(tmp_path, [1], resumed=False)
    assert [row["step"] for row in rows_of(tmp_path)] == ["1"]


def test_hparams_keep_every_bit(tmp_path: Path) -> None:
    scale = 20.741162320055597
    RunDirectoryLogger(tmp_path, resumed=False).log_hyperparams(
        {"intensity_scale": scale, "nphotons": 1e-7, "config": {"a": [1, 2]}}
    )
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == {
        "intensity_scale": scale,
        "nphotons": 1e-7,
        "config": {"a": [1, 2]},
    }


def claim_as(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, job: str, attempt: str, *, resuming: bool = True
) -> Claim:
    monkeypatch.setattr(run_directory, "SECONDS_TO_WAIT_FOR_AN_ENDING_RUN", 0.1)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", attempt)
    return claim_run_directory(run_dir, resuming=resuming)


def test_second_run_is_told_who_writes(tmp_path: Path) -> None:
    with (
        claim_run_directory(tmp_path, resuming=False),
        pytest.raises(
            ValueError, match=rf"another run is writing here \(process {os.getpid()} on .+\)"
        ),
    ):
        claim_run_directory(tmp_path, resuming=False)
    claim_run_directory(tmp_path, resuming=False).__exit__()  # it was left


def test_later_attempt_of_a_slurm_job_takes_over_from_one_that_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim_as(monkeypatch, tmp_path, "7", "0") as cut_off:
        cut_off.require_ours()
        with claim_as(monkeypatch, tmp_path, "7", "1") as present:
            present.require_ours()
            with pytest.raises(
                ValueError,
                match="a later attempt of this job has taken over; this one writes nothing more",
            ):
                cut_off.require_ours()


@pytest.mark.parametrize(("job", "attempt"), [("8", "1"), ("7", "0"), ("7", "1")])
def test_nobody_else_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, attempt: str
) -> None:
    """Another job, and an attempt that is not later."""
    with claim_as(monkeypatch, tmp_path, "7", "1") as holder:
        with pytest.raises(ValueError, match="another run is writing here"):
            claim_as(monkeypatch, tmp_path, job, attempt)
        holder.require_ours()


def test_ranks_that_write_nothing_hold_no_lock() -> None:
    with Claim() as claim:
        claim.require_ours()
