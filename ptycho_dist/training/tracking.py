"""Trackers that show a run beside `metrics.csv`: TensorBoard and MLflow.

Rank 0 alone writes to them: the hyperparameters, the rows of `metrics.csv`, and pictures of the
object. Each tracker has a thread of its own, and its first error is a warning and the end of its
records, so that a tracker can neither stop nor delay the training.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ptycho_dist.distributed import describe

logger = logging.getLogger(__name__)

SECONDS_TO_END = 15.0
"""How long the end of a run waits for what is still to be written."""

_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""What this package's extras install; MLflow needs the last two for a local database."""


class Tracker(Protocol):
    """Keeps the numbers and pictures of a run. One thread calls it, in the order of the run."""

    def log_hyperparams(self, values: Mapping[str, Any]) -> None:
        """Write values by dotted key; a resumed run keeps those that are there."""
        ...

    def resume_at(self, first_step: int, metrics: Sequence[str]) -> Mapping[str, int]:
        """Prepare for rows of these metrics from this step on, some maybe for the second time;
        return the last step of each metric that is kept."""
        ...

    def log_rows(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Write metrics by step. No step of a metric comes twice."""
        ...

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Write a picture; it replaces one of the same name and step."""
        ...

    def close(self, *, succeeded: bool) -> None: ...


class Tracking:
    """A tracker (open) and the thread that writes to it, which is waited for only at the end of the
    run."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self._tracker = tracker
        self._last_steps: dict[str, int] = {}
        self._actions: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=f"writes to {name}", daemon=True)
        self._thread.start()

    def log_hyperparams(self, values: Mapping[str, Any]) -> None:
        self._do(lambda: self._tracker.log_hyperparams(values))

    def resume_at(self, first_step: int, metrics: Sequence[str]) -> None:
        """Called once, before the first row."""
        self._do(lambda: self._last_steps.update(self._tracker.resume_at(first_step, metrics)))

    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of `metrics.csv`. A row that comes again, as the last one may, adds only what
        is new."""
        copies = [
            {key: float(value) for key, value in row.items() if value not in ("", None)}
            for row in rows
        ]
        self._do(lambda: self._log_new(copies))

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        self._do(lambda: self._tracker.log_picture(name, png, step))

    def close(self, *, succeeded: bool) -> None:
        """Wait a limited time until all is written."""
        self._do(lambda: self._tracker.close(succeeded=succeeded))
        self._do(None)
        self._thread.join(SECONDS_TO_END)
        if self._thread.is_alive():
            logger.warning(
                "%s: not all was written within %.0f s; the run is not affected",
                self.name,
                SECONDS_TO_END,
            )

    def _do(self, action: Callable[[], None] | None) -> None:
        if self._thread.is_alive():  # after an error nothing would empty the queue
            self._actions.put(action)

    def _log_new(self, rows: Sequence[Mapping[str, float]]) -> None:
        new: list[tuple[int, dict[str, float]]] = []
        for row in rows:
            step = int(row["step"])
            values = {
                key: value
                for key, value in row.items()
                if key != "step" and step > self._last_steps.get(key, -1)
            }
            self._last_steps.update(dict.fromkeys(values, step))
            if values:
                new.append((step, values))
        self._tracker.log_rows(new)

    def _write(self) -> None:
        try:
            while (action := self._actions.get()) is not None:
                action()
        except Exception as error:
            logger.warning(
                "%s: this run writes no more to it: %s. The run is not affected",
                self.name,
                describe(error),
            )


def require_packages(names: Sequence[str]) -> None:
    """Raise a ValueError that says what to install if `train.logger` needs a missing package."""
    for name in names:
        needed = _PACKAGES[name]
        if name == "mlflow" and "MLFLOW_TRACKING_URI" in os.environ:
            needed = ("mlflow",)
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            raise ValueError(
                f"train.logger: {name} needs {', '.join(missing)}, not installed here: pip "
                f"install 'ptycho_dist[{name}]'"
            )


def require_usable(names: Sequence[str]) -> None:
    """Raise where a new run could not write to the trackers, as far as that shows without writing.

    Raises
    ------
    ValueError
        A package is missing, or the server of MLFLOW_TRACKING_URI does not answer.
    """
    require_packages(names)
    if "mlflow" in names:
        from ptycho_dist.training.mlflow_tracker import require_server

        require_server()


def open_trackers(names: Sequence[str], run_dir: Path, *, resumed: bool) -> tuple[Tracking, ...]:
    """Open the trackers that `train.logger` names, on rank 0.

    Parameters
    ----------
    names
        `tensorboard`, `mlflow`.
    run_dir
        Directory of the run.
    resumed
        Continue where an earlier part of the run wrote.

    Raises
    ------
    ValueError
        A new run can't write to a tracker. A resumed run continues without it, with a warning.
    """
    opened = []
    for name in names:
        try:
            opened.append(Tracking(name, _open(name, run_dir, resumed=resumed)))
        except Exception as error:
            if not resumed:
                raise ValueError(f"train.logger: {name}: {describe(error)}") from error
            logger.warning(
                "%s: this part of the run is not written to it: %s", name, describe(error)
            )
    return tuple(opened)


def _open(name: str, run_dir: Path, *, resumed: bool) -> Tracker:
    # optional packages, imported only for the runs that use them
    if name == "tensorboard":
        from ptycho_dist.training.tensorboard_tracker import TensorBoardTracker

        return TensorBoardTracker(run_dir, resumed=resumed)
    from ptycho_dist.training.mlflow_tracker import MlflowTracker

    return MlflowTracker(run_dir, resumed=resumed)
