"""What a run leaves in its directory while it trains: `train.log`, `hparams.yaml` and `metrics.csv`, written by rank 0."""

from __future__ import annotations

import csv
import fcntl
import logging
import time
from argparse import Namespace
from pathlib import Path
from typing import IO, Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from ptycho_dist.atomic_file import replacing
from ptycho_dist.training.checkpointing import last_checkpoint

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT_FOR_AN_ENDING_RUN = 15.0
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


def claim_run_directory(run_dir: Path, *, resuming: bool) -> IO[str]:
    """Make a run directory, or take it over to go on, and keep other runs out of it while the file that is returned stays open.

    Raises
    ------
    ValueError
        Another run is writing there; or there is a checkpoint of an earlier run, which a new one would replace.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = (run_dir / ".lock").open("a")
    give_up_at = time.monotonic() + (SECONDS_TO_WAIT_FOR_AN_ENDING_RUN if resuming else 0)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back however the process ends
            break
        except BlockingIOError as error:
            if time.monotonic() > give_up_at:
                lock.close()
                raise ValueError(f"{run_dir}: another run is writing here; choose another train.run_dir, or wait for its end") from error
            time.sleep(0.2)
        except OSError:  # a file system without locks
            logger.warning("%s: this file system has no locks, so a second run here would not be noticed", run_dir)
            break
    if not resuming and last_checkpoint(run_dir).exists():
        lock.close()
        raise ValueError(
            f"{run_dir}: found the checkpoint of an earlier run, expected a new directory; --train.resume auto goes on with it, "
            "another --train.run_dir starts anew"
        )
    return lock


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
        self._end_of_finished: int | None = None
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
        """Write what there is. The last row may still be added to, by validation say, and is then written again."""
        if not self._rows:
            return
        if self._end_of_finished is None:
            self._end_of_finished = self._begin_file(first_step=self._rows[0]["step"])
        with self._metrics_path.open("r+", newline="") as stream:
            writer = csv.DictWriter(stream, METRICS)
            stream.seek(self._end_of_finished)
            writer.writerows(self._rows[:-1])
            self._end_of_finished = stream.tell()
            writer.writerow(self._rows[-1])
            stream.truncate()
        self._rows = self._rows[-1:]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _begin_file(self, first_step: int) -> int:
        kept: list[dict[str, str]] = []
        if self._resumed and self._metrics_path.exists():
            kept = [row for row in read_metrics(self.run_dir) if int(row["step"]) < first_step]
        with replacing(self._metrics_path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, METRICS)
            writer.writeheader()
            writer.writerows(kept)
        return self._metrics_path.stat().st_size
