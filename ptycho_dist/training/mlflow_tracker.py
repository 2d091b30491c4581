"""A run in MLflow: on the server of `MLFLOW_TRACKING_URI`, else in a database in the run
directory."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

logger = logging.getLogger(__name__)

RUN_ID_FILE = "mlflow_run_id"
"""File in the run directory with the id of the MLflow run that a resumed run continues."""

_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Defaults while the run is opened, which all ranks wait for. No telemetry unless the environment
asks for it."""

_BATCH = {"params": 100, "metrics": 1000}
"""The most that MLflow takes at a time."""


def require_server() -> None:
    """Raise a ValueError with the address and the cause if MLFLOW_TRACKING_URI names a server that
    does not answer."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return
    with _environment(_IMPATIENT):
        from mlflow import MlflowClient

        try:
            MlflowClient(uri).search_experiments(max_results=1)
        except Exception as error:  # whatever the network or the server lead to
            raise ValueError(f"MLFLOW_TRACKING_URI: {uri} does not answer: {error}") from error


class MlflowTracker:
    """See `Tracker`.

    Parameters
    ----------
    run_dir
        Directory of the run, whose name is the MLflow run's name.
    resumed
        Continue the MLflow run that an earlier part of the run wrote to, if it did.

    Raises
    ------
    mlflow.exceptions.MlflowException
        The server can't be reached, or does not know the run.
    """

    def __init__(self, run_dir: Path, *, resumed: bool) -> None:
        with _environment(_IMPATIENT):
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # they log every table that they make
                logging.getLogger(name).setLevel(logging.WARNING)
            run_dir = run_dir.resolve()
            given = os.environ.get("MLFLOW_TRACKING_URI")
            uri = given or f"sqlite:///{run_dir / 'mlflow.db'}"
            self._client = MlflowClient(uri)
            id_file = run_dir / RUN_ID_FILE
            self._continues = resumed and id_file.exists()
            if self._continues:
                self._run_id = id_file.read_text().strip()
                self._client.update_run(self._run_id, status="RUNNING")
            else:
                artifacts = None if given else (run_dir / "mlflow_artifacts").as_uri()
                experiment = self._experiment(artifacts)
                self._run_id = self._client.create_run(
                    experiment, run_name=run_dir.name
                ).info.run_id
                id_file.write_text(self._run_id + "\n")
        logger.info("mlflow: run %s in %s", self._run_id, uri)

    def _experiment(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ptycho_dist")
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return self._client.create_experiment(name, artifact_location=artifacts)
        return found.experiment_id

    def log_hyperparams(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # MLflow allows no change of a parameter
        there = self._client.get_run(self._run_id).data.params if self._continues else {}
        self._log(
            params=[Param(key, str(value)) for key, value in values.items() if key not in there]
        )

    def resume_at(self, first_step: int, metrics: Sequence[str]) -> Mapping[str, int]:
        if not self._continues:
            return {}
        kept = self._client.get_run(self._run_id).data.metrics
        return {
            key: max(value.step for value in self._client.get_metric_history(self._run_id, key))
            for key in kept
        }

    def log_rows(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        self._log(
            metrics=[
                Metric(key, value, now_ms, step)
                for step, values in rows
                for key, value in values.items()
            ]
        )

    def _log(self, **entities: Sequence[Any]) -> None:
        for kind, values in entities.items():
            for first in range(0, len(values), _BATCH[kind]):
                batch: dict[str, Any] = {kind: values[first : first + _BATCH[kind]]}
                self._client.log_batch(self._run_id, **batch)

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        picture = Image.open(io.BytesIO(png))
        self._client.log_image(self._run_id, picture, artifact_file=f"{name}/step_{step:07d}.png")

    def close(self, *, succeeded: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables in the block, except those that are set already."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
