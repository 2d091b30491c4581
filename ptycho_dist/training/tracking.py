"""Where a run can be watched beside `metrics.csv`: TensorBoard and MLflow. Rank 0 alone writes
there.

What they get is what `metrics.csv` gets, row by row, the hyperparameters, and now and then a
picture of the object. Nothing that happens to them touches the training: threads of their own
write, and an error is a warning and the last that is heard of them.
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
"""What an extra of this package installs; a database on this disk is written by the last two."""


class Tracker(Protocol):
    """What keeps the numbers and pictures of runs. One thread calls it, in the order of the run."""

    def log_hyperparams(self, values: Mapping[str, Any]) -> None:
        """Values by dotted key; those that a resumed run has there already stay."""
        ...

    def go_on_at(self, first_step: int) -> Mapping[str, int]:
        """Get ready for rows from this step on, which may come for the second time; give the last
        step of each metric that stays."""
        ...

    def log_rows(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Metrics by step. No step of a metric comes twice."""
        ...

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """A picture of a step; it replaces one of the same name and step."""
        ...

    def close(self, *, succeeded: bool) -> None: ...


class Tracking:
    """A tracker and the thread that writes to it, which nobody waits for before the end of the run.

    Parameters
    ----------
    name
        Of the tracker, for messages.
    tracker
        Open.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self._tracker = tracker
        self._last_steps: dict[str, int] = {}
        self._actions: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=f"writes to {name}", daemon=True)
        self._thread.start()

    def log_hyperparams(self, values: Mapping[str, Any]) -> None:
        self._do(lambda: self._tracker.log_hyperparams(values))

    def go_on_at(self, first_step: int) -> None:
        """Called once, before the first row."""
        self._do(lambda: self._last_steps.update(self._tracker.go_on_at(first_step)))

    def log_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows as `metrics.csv` has them. Of a row that comes again with more in it, as the last
        one may, what is new is written."""
        copies = [
            {key: float(value) for key, value in row.items() if value not in ("", None)}
            for row in rows
        ]
        self._do(lambda: self._log_new(copies))

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        self._do(lambda: self._tracker.log_picture(name, png, step))

    def close(self, *, succeeded: bool) -> None:
        """Wait, but not for long, until all is written."""
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
        # else it met an error, and nobody would ever take what is put there
        if self._thread.is_alive():
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
    """Raise where `train.logger` names what is not installed here.

    Raises
    ------
    ValueError
        It says what to install.
    """
    for name in names:
        needed = (
            _PACKAGES[name]
            if name != "mlflow" or "MLFLOW_TRACKING_URI" not in os.environ
            else ("mlflow",)
        )
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            raise ValueError(
                f"train.logger: {name} needs {', '.join(missing)}, not installed here: pip "
                f"install 'ptycho_dist[{name}]'"
            )


def require_usable(names: Sequence[str]) -> None:
    """Raise where a new run could not write to what `train.logger` names, as far as that shows
    without writing anything.

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
    """Open what `train.logger` names, on rank 0.

    Parameters
    ----------
    names
        `tensorboard`, `mlflow`.
    run_dir
        Directory of the run.
    resumed
        Go on where an earlier part of the run wrote.

    Raises
    ------
    ValueError
        A new run can't write to one of them. A resumed run goes on without it, with a warning.
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
    if name == "tensorboard":
        from ptycho_dist.training.tensorboard_tracker import TensorBoardTracker

        return TensorBoardTracker(run_dir, resumed=resumed)
    from ptycho_dist.training.mlflow_tracker import MlflowTracker

    return MlflowTracker(run_dir, resumed=resumed)
