"""metrics.csv and hparams.yaml, also of a run that is taken up again."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from ptycho_dist.training.run_directory import METRICS, RunDirectoryLogger


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_run(run_dir: Path, steps: list[int], *, resumed: bool, learning_rate: float = 0.1) -> None:
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
    assert [(row["learning_rate"], row["val_nll"], row["gain"]) for row in rows] == [("0.1", "6.0", ""), ("0.1", "14.0", "")]
    assert tuple(rows[0]) == METRICS


def test_rows_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = RunDirectoryLogger(tmp_path, resumed=False)
    logger.log_metrics({"learning_rate": 0.1}, step=1)
    logger.log_metrics({"learning_rate": 0.2}, step=2)
    logger.save()
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "2"]
    logger.log_metrics({"val_nll": 0.5}, step=2)
    logger.log_metrics({"learning_rate": 0.3}, step=3)
    logger.save()
    assert [(row["step"], row["val_nll"]) for row in rows_of(tmp_path)] == [("1", ""), ("2", "0.5"), ("3", "")]


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
    RunDirectoryLogger(tmp_path, resumed=False).log_hyperparams({"intensity_scale": scale, "nphotons": 1e-7, "config": {"a": [1, 2]}})
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == {"intensity_scale": scale, "nphotons": 1e-7, "config": {"a": [1, 2]}}
