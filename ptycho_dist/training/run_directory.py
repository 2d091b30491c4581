"""What a run leaves in its directory while it trains: `train.log`, `hparams.yaml` and
`metrics.csv`, written by rank 0; and the lock that keeps other runs out."""

from __future__ import annotations

import csv
import fcntl
import logging
import os
import re
import socket
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from ptycho_dist.atomic_file import replacing
from ptycho_dist.config import flat_keys
from ptycho_dist.distributed import rank
from ptycho_dist.model.loss import ScaledPoissonLoss
from ptycho_dist.training.checkpointing import last_checkpoint
from ptycho_dist.training.metrics import metric_columns
from ptycho_dist.training.tracking import Tracking

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT_FOR_AN_ENDING_RUN = 15.0
_LOG_FILE = "train.log of this process's run"


@dataclass(frozen=True, slots=True)
class Claim:
    """A context in which this run may write to its run directory, and no other run may.

    Attributes
    ----------
    lock
        The lock file, open and locked with `flock`: the kernel releases the lock however the
        process ends. None on the ranks that write nothing.
    """

    lock: IO[str] | None = None

    def require_ours(self) -> None:
        """Stop an attempt of a Slurm job that was requeued meanwhile: on a node that Slurm lost, it
        may still be alive.

        Raises
        ------
        ValueError
            Another lock file has taken the place of this one.
        """
        if self.lock is None:
            return
        path = Path(self.lock.name)
        if not path.exists() or not os.path.samestat(os.fstat(self.lock.fileno()), path.stat()):
            raise ValueError(
                f"{path.parent}: a later attempt of this job has taken over; this one writes "
                "nothing more"
            )

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *args: object) -> None:
        if self.lock is not None:
            self.lock.close()


def claim_run_directory(run_dir: Path, *, resuming: bool) -> Claim:
    """Make a run directory, or take it over to resume, and lock other runs out.

    Raises
    ------
    ValueError
        Another run is writing there, or a new run would replace the checkpoint of an earlier one.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = _locked(run_dir, SECONDS_TO_WAIT_FOR_AN_ENDING_RUN if resuming else 0)
    try:
        _require_no_checkpoint(run_dir, resuming=resuming)
    except ValueError:
        lock.close()
        raise
    lock.truncate(0)
    lock.write(_this_process())
    lock.flush()
    return Claim(lock)


def _locked(run_dir: Path, max_seconds: float) -> IO[str]:
    path = run_dir / ".lock"
    lock = path.open("a+")
    give_up_at = time.monotonic() + max_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read()
            if _is_earlier_attempt(holder):
                logger.warning(
                    "%s: taking over from an earlier attempt of this job, which Slurm has ended "
                    "(%s)",
                    run_dir,
                    holder,
                )
                lock.close()
                path.unlink()
                lock = path.open("a+")
            elif time.monotonic() > give_up_at:
                lock.close()
                raise _occupied(run_dir, holder) from error
            else:
                time.sleep(0.2)
        except OSError:
            logger.warning(
                "%s: this file system has no locks, so a second run here would not be noticed",
                run_dir,
            )
            return lock


def require_claimable(run_dir: Path, *, resuming: bool) -> None:
    """Raise what `claim_run_directory` would raise at once, without making or changing anything.

    Raises
    ------
    ValueError
        Another run is writing there; a new run would replace a checkpoint; or the directory, or a
        file in it that a run writes to, is not writable.
    """
    nearest = nearest_directory(run_dir)
    if not nearest.is_dir():
        raise ValueError(f"{run_dir}: {nearest} is a file, expected a directory")
    written = (run_dir / name for name in (".lock", "train.log", "metrics.csv", "checkpoints"))
    for path in (nearest, *(path for path in written if path.exists())):
        if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            raise ValueError(
                f"{path}: may not be written by this user, or its file system is read-only"
            )
    lock_path = run_dir / ".lock"
    if lock_path.exists():
        with lock_path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _occupied(run_dir, lock.read()) from error
            except OSError:  # a file system without locks
                pass
    _require_no_checkpoint(run_dir, resuming=resuming)


def nearest_directory(run_dir: Path) -> Path:
    """Return the directory itself, or its nearest parent that exists."""
    return next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())


def _occupied(run_dir: Path, holder: str) -> ValueError:
    return ValueError(
        f"{run_dir}: another run is writing here ({holder}); choose another train.run_dir, or "
        "wait for its end"
    )


def _require_no_checkpoint(run_dir: Path, *, resuming: bool) -> None:
    if not resuming and last_checkpoint(run_dir).exists():
        raise ValueError(
            f"{run_dir}: found the checkpoint of an earlier run, expected a new directory; "
            "--train.resume auto goes on with it, another --train.run_dir starts anew"
        )


def _this_process() -> str:
    host_and_process = f"process {os.getpid()} on {socket.gethostname()}"
    job = os.environ.get("SLURM_JOB_ID")
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    return host_and_process if job is None else f"job {job}, attempt {attempt}, {host_and_process}"


def _is_earlier_attempt(holder: str) -> bool:
    """Return True if an earlier attempt of this Slurm job holds the lock: Slurm gives an attempt up
    before it starts the next."""
    found = re.match(r"job (\d+), attempt (\d+)", holder)
    if found is None or found[1] != os.environ.get("SLURM_JOB_ID"):
        return False
    return int(found[2]) < int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def start_log_file(run_dir: Path) -> None:
    """Append the package's log to the run's `train.log`, and no longer to that of an earlier run.

    Rank 0 writes it; any other rank opens it only to say what stopped it.
    """
    stop_log_file()
    if rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(run_dir / "train.log", delay=rank() > 0)
    handler.set_name(_LOG_FILE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    package_logger = logging.getLogger("ptycho_dist")
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)


def stop_log_file() -> None:
    """Stop writing to the `train.log` of this process's run."""
    package_logger = logging.getLogger("ptycho_dist")
    for handler in [handler for handler in package_logger.handlers if handler.name == _LOG_FILE]:
        package_logger.removeHandler(handler)
        handler.close()


def read_metrics(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv`; a value that a row lacks is empty."""
    with (run_dir / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


class RunDirectoryLogger(Logger):
    """Lightning logger of `hparams.yaml`, `metrics.csv` (one row per logged step), and the trackers
    that `train.logger` adds.

    Parameters
    ----------
    run_dir
        Directory of the run.
    resumed
        Keep the rows of an earlier part of the run, up to the step at which it is resumed.
    trackers
        Get the same rows; on rank 0 alone.
    loss_metric
        What the loss reports; it names columns.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resumed: bool,
        trackers: Sequence[Tracking] = (),
        loss_metric: str = ScaledPoissonLoss.metric,
    ) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.trackers = trackers
        self._columns = metric_columns(loss_metric)
        self._path = run_dir / "metrics.csv"
        self._resumed = resumed
        self._end_of_finished: int | None = None
        self._rows: list[dict[str, Any]] = []
        self._pictures: list[tuple[str, bytes, int]] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        values = dict(vars(params) if isinstance(params, Namespace) else params)
        with replacing(self.run_dir / "hparams.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False))
        for tracker in self.trackers:
            tracker.log_hyperparams(flat_keys(values))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(metrics)
        else:
            self._rows.append({"step": step, **metrics})

    @rank_zero_only
    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Give a picture to the trackers, after the rows that are there."""
        self._pictures.append((name, png, step))

    @rank_zero_only
    def save(self) -> None:
        """Write all rows. The last may still grow (validation), and is then written again."""
        if not self._rows:
            return
        if self._end_of_finished is None:
            self._end_of_finished = self._begin_file(first_step=self._rows[0]["step"])
        with self._path.open("r+", newline="") as stream:
            writer = csv.DictWriter(stream, self._columns)
            stream.seek(self._end_of_finished)
            writer.writerows(self._rows[:-1])
            self._end_of_finished = stream.tell()
            writer.writerow(self._rows[-1])
            stream.truncate()
        for tracker in self.trackers:
            tracker.log_rows(self._rows)
            for name, png, step in self._pictures:
                tracker.log_picture(name, png, step)
        self._rows, self._pictures = self._rows[-1:], []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        # a run that fails may have been taken over; its rows were saved with its checkpoints
        if status == "success":
            self.save()
        for tracker in self.trackers:
            tracker.close(succeeded=status == "success")

    def _begin_file(self, first_step: int) -> int:
        kept: list[dict[str, str]] = []
        if self._resumed and self._path.exists():
            kept = [row for row in read_metrics(self.run_dir) if int(row["step"]) < first_step]
        with replacing(self._path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(kept)
        for tracker in self.trackers:
            tracker.resume_at(first_step, self._columns)
            tracker.log_rows(kept)  # a tracker that was asked for later has not had them
        return self._path.stat().st_size
