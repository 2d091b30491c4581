"""What a run leaves in its directory while it trains: `train.log`, `hparams.yaml` and `metrics.csv`, written by rank 0."""

from __future__ import annotations

import csv
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from ptycho_dist.atomic_file import replacing

METRICS = (
    "epoch",
    "step",
    "learning_rate",
    "step_deviance_per_pixel",
    "train_deviance_per_pixel",
    "val_deviance_per_pixel",
    "val_nll",
    "gain",
)


def start_log_file(run_dir: Path) -> None:
    """Write the package's log to `train.log` too, after what an earlier part of the run wrote there."""
    run_dir.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(run_dir / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    package_logger = logging.getLogger("ptycho_dist")
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv`; a value that a row does not have is empty."""
    with (run_dir / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


class RunDirectoryLogger(Logger):
    """`hparams.yaml` and `metrics.csv`, one row a step that has something to say.

    Parameters
    ----------
    run_dir
        Directory of the run.
    resumed
        Keep the rows that an earlier part of the run wrote, up to the step that it is taken up at.
    """

    def __init__(self, run_dir: Path, *, resumed: bool) -> None:
        super().__init__()
        self.run_dir = run_dir
        self._resumed = resumed
        self._is_file_begun = False
        self._rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def _metrics_path(self) -> Path:
        return self.run_dir / "metrics.csv"

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        values = dict(vars(params) if isinstance(params, Namespace) else params)
        with replacing(self.run_dir / "hparams.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(metrics)
        else:
            self._rows.append({"step": step, **metrics})

    @rank_zero_only
    def save(self) -> None:
        """Append the finished rows; the last one stays open, for validation adds to it."""
        self._append(self._rows[:-1])
        self._rows = self._rows[-1:]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._append(self._rows)
        self._rows = []

    def _append(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        if not self._is_file_begun:
            self._begin_file(first_step=rows[0]["step"])
            self._is_file_begun = True
        with self._metrics_path.open("a", newline="") as stream:
            csv.DictWriter(stream, METRICS).writerows(rows)

    def _begin_file(self, first_step: int) -> None:
        kept: list[dict[str, Any]] = []
        if self._resumed and self._metrics_path.exists():
            kept = [row for row in read_metrics(self.run_dir) if int(row["step"]) < first_step]
        with replacing(self._metrics_path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, METRICS)
            writer.writeheader()
            writer.writerows(kept)
