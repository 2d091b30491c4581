"""Runs in TensorBoard and MLflow: what they hold is what metrics.csv holds, once, and the training
is the same with and without them."""

from __future__ import annotations

import io
import itertools
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ptycho_dist import load_bundle, read_scan
from ptycho_dist.config import flat_keys
from ptycho_dist.distributed import FailedTogether, Interrupted
from ptycho_dist.training import report, tracking
from ptycho_dist.training.checkpointing import Checkpointing
from ptycho_dist.training.report import draw_object
from ptycho_dist.training.tensorboard_tracker import TensorBoardTracker
from tests import figures
from tests.training.runs import metrics, settings, train_one

for package in ("mlflow", "sqlalchemy", "alembic", "tensorboard"):
    pytest.importorskip(package)

from mlflow import MlflowClient
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

BOTH = ["csv", "tensorboard", "mlflow"]
NOBODY = "http://127.0.0.1:9"
"""The port that discards all; nobody listens there."""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run in it: to make its tables takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def new_run_dir(empty_store: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str = "run") -> Path:
        (tmp_path / name).mkdir()
        shutil.copy(empty_store, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def levels_of_logs() -> Iterator[None]:
    """MLflow is told to say less."""
    levels = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def in_metrics_csv(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """By metric: step and value of each row that has it."""
    names = [name for name in metrics(run_dir)[0] if name != "step"]
    found = {
        name: [(int(row["step"]), float(row[name])) for row in metrics(run_dir) if row[name]]
        for name in names
    }
    return {name: values for name, values in found.items() if values}


def event_files(run_dir: Path) -> list[Path]:
    return sorted(path for path in run_dir.rglob("*tfevents*"))


def in_tensorboard(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    events.Reload()
    return events


def scalars(events: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def in_mlflow(run_dir: Path) -> tuple[MlflowClient, Run]:
    """The one run of the one experiment that there is."""
    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name != "Default")
    assert experiment.name == "ptycho_dist"
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def history(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [
            (value.step, value.value) for value in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }


def pictures(client: MlflowClient, run: Run, name: str) -> list[str]:
    return [
        Path(item.path).name for item in client.list_artifacts(run.info.run_id, f"object/{name}")
    ]


def assert_hold_metrics_csv(run_dir: Path) -> None:
    """Each metric of each step once. TensorBoard's values are float32; MLflow keeps the first of
    the times that a step took."""
    expected = in_metrics_csv(run_dir)
    assert len(expected) >= 4
    found = history(*in_mlflow(run_dir))
    assert {name: [step for step, _ in values] for name, values in found.items()} == {
        name: [step for step, _ in values] for name, values in expected.items()
    }
    assert {name: values for name, values in found.items() if not name.endswith("_ms")} == {
        name: values for name, values in expected.items() if not name.endswith("_ms")
    }
    rounded = {
        name: [(step, float(np.float32(value))) for step, value in values]
        for name, values in expected.items()
    }
    assert scalars(in_tensorboard(run_dir)) == rounded


def train_with_pictures(concerns: dict[str, Any]) -> None:
    with figures.drawing():
        train_one(concerns)


@pytest.mark.slow
def test_two_ranks_write_once(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], new_run_dir: Callable[..., Path]
) -> None:
    run_dir = new_run_dir()
    concerns = settings(
        write_scan(),
        run_dir,
        train__epochs=5,
        train__logger=BOTH,
        model__intensity_scale_trainable=True,
    )
    on_ranks(2, train_with_pictures, concerns)
    assert len(event_files(run_dir)) == 1
    assert_hold_metrics_csv(run_dir)
    client, run = in_mlflow(run_dir)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")

    # The audit of the scale, to the last digit.
    hparams = flat_keys(yaml.safe_load((run_dir / "hparams.yaml").read_text()))
    expected = {key: str(value) for key, value in hparams.items()}
    assert run.data.params == expected
    audit = {
        key: value
        for key, value in expected.items()
        if not key.startswith(("config.", "versions."))
    }
    assert {"nphotons", "nphotons_source", "intensity_scale"} < set(audit)
    assert (run.data.params["world_size"], run.data.params["config.data.path"]) == (
        "2",
        concerns["data"]["path"],
    )
    events = in_tensorboard(run_dir)
    (text,) = events.Tensors("scale/text_summary")
    rows = [
        line.strip("| ").split(" | ")
        for line in text.tensor_proto.string_val[0].decode().splitlines()[2:]
    ]
    assert dict(rows) == audit
    stored = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"config.train.global_batch_size" in stored

    # 33 groups in batches of 8 make 5 steps an epoch; pictures after epochs 1, 2 and 4, and at the
    # end.
    steps = [4, 9, 19, 24]
    for name in ("amplitude", "phase"):
        shown = events.Images(f"object/{name}")
        assert [image.step for image in shown] == steps
        assert pictures(client, run, name) == [f"step_{step:07d}.png" for step in steps]
        in_artifact = Image.open(
            client.download_artifacts(run.info.run_id, f"object/{name}/step_0000024.png")
        )
        assert np.array_equal(
            np.asarray(in_artifact.convert("RGB")),
            np.asarray(Image.open(io.BytesIO(shown[-1].encoded_image_string))),
        )
        assert len({image.encoded_image_string for image in shown}) == 4, "the object should change"


def test_training_is_the_same_with_and_without(
    write_scan: Callable[..., Path], new_run_dir: Callable[..., Path], tmp_path: Path
) -> None:
    scan = write_scan()
    train_one(settings(scan, tmp_path / "plain", train__epochs=3))
    train_one(settings(scan, new_run_dir("watched"), train__epochs=3, train__logger=BOTH))
    assert metrics(tmp_path / "watched") == metrics(tmp_path / "plain")
    plain, watched = (load_bundle(tmp_path / name / "bundle.zip") for name in ("plain", "watched"))
    for name, weight in plain.weights.items():
        assert torch.equal(watched.weights[name], weight), name
    assert (
        sorted(
            path.name
            for path in (tmp_path / "plain").iterdir()
            if "tensorboard" in path.name or "mlflow" in path.name
        )
        == []
    )


def test_a_picture_draws_no_random_number_and_leaves_the_weights(
    write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scan = write_scan()
    train_one(settings(scan, tmp_path / "run", train__epochs=1))
    bundle = load_bundle(tmp_path / "run" / "bundle.zip")
    weights = {name: weight.clone() for name, weight in bundle.weights.items()}
    state = torch.get_rng_state()
    drawn = draw_object(bundle, read_scan(scan, "amplitude"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(bundle.weights[name], weight) for name, weight in weights.items())
    assert sorted(drawn) == ["object/amplitude", "object/phase"]


def interrupt_after_step(step: int) -> None:
    """This process's next run gets SIGTERM there."""
    on_train_batch_end = Checkpointing.on_train_batch_end

    def signalled(self: Checkpointing, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            self._received = signal.SIGTERM
        on_train_batch_end(self, trainer, *rest)

    Checkpointing.on_train_batch_end = signalled  # type: ignore[method-assign]


def stop_after_step(step: int, concerns: dict[str, Any]) -> None:
    interrupt_after_step(step)
    with pytest.raises(Interrupted):
        train_one(concerns)


@pytest.mark.slow
def test_resumed_run_goes_on_where_it_wrote(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], new_run_dir: Callable[..., Path]
) -> None:
    """Stopped in the third epoch; then the checkpoint of the second one is put back: its rows and
    pictures come again."""
    run_dir = new_run_dir()
    concerns = settings(write_scan(), run_dir, train__epochs=4, train__logger=BOTH)
    on_ranks(2, stop_after_step, 8, concerns)
    _, first = in_mlflow(run_dir)
    assert first.info.status == "FAILED"
    last = run_dir / "checkpoints" / "last.ckpt"
    early = last.read_bytes()
    concerns["train"]["resume"] = "auto"
    on_ranks(2, stop_after_step, 18, concerns)
    last.write_bytes(early)
    concerns["train"]["resume"] = "auto"
    on_ranks(2, train_one, concerns)
    assert len(event_files(run_dir)) == 3
    assert_hold_metrics_csv(run_dir)
    client, run = in_mlflow(run_dir)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    assert [image.step for image in in_tensorboard(run_dir).Images("object/phase")] == [4, 9, 19]
    assert pictures(client, run, "phase") == [
        "step_0000004.png",
        "step_0000009.png",
        "step_0000019.png",
    ]
    assert len(in_tensorboard(run_dir).Tensors("scale/text_summary")) == 1


def test_rows_from_before_a_logger_was_asked_for_come_too(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], new_run_dir: Callable[..., Path]
) -> None:
    run_dir = new_run_dir()
    concerns = settings(write_scan(), run_dir, train__epochs=3)
    on_ranks(1, stop_after_step, 8, concerns)
    concerns["train"] |= {"resume": "auto", "logger": BOTH}
    on_ranks(1, train_one, concerns)
    assert len(in_metrics_csv(run_dir)["val_nll"]) == 3
    assert_hold_metrics_csv(run_dir)


def test_attempt_that_left_no_checkpoint_leaves_nothing(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], new_run_dir: Callable[..., Path]
) -> None:
    run_dir = new_run_dir()
    concerns = settings(write_scan(), run_dir, train__epochs=2, train__logger="tensorboard")
    on_ranks(1, train_one, concerns)
    (earlier,) = event_files(run_dir)
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    concerns["train"] |= {"epochs": 1, "learning_rate": 1e-4}
    on_ranks(1, train_one, concerns)
    assert event_files(run_dir) != [earlier]
    assert [step for step, _ in scalars(in_tensorboard(run_dir))["val_nll"]] == [4]


def fail_together(
    concerns: dict[str, Any], environment: dict[str, str], missing: str | None
) -> str:
    """What every rank is told."""
    import os

    os.environ.update(environment)
    find_spec = tracking.importlib.util.find_spec
    tracking.importlib.util.find_spec = lambda name, *rest: (
        None if name == missing else find_spec(name, *rest)
    )
    with pytest.raises(FailedTogether) as caught:
        train_one(concerns)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        (
            "tensorboard",
            "tensorboard",
            "train.logger: tensorboard needs tensorboard, not installed here: pip install "
            "'ptycho_dist[tensorboard]'",
        ),
        (
            "mlflow",
            "sqlalchemy",
            "train.logger: mlflow needs sqlalchemy, not installed here: pip install "
            "'ptycho_dist[mlflow]'",
        ),
        ("mlflow", None, f"train.logger: mlflow: MlflowException: API request to {NOBODY}"),
    ],
    ids=["no TensorBoard", "no database", "no server"],
)
def test_what_cannot_be_written_stops_all_ranks_before_training(
    on_ranks: Callable[..., Any],
    write_scan: Callable[..., Path],
    tmp_path: Path,
    name: str,
    missing: str | None,
    message: str,
) -> None:
    environment = (
        {} if missing else {"MLFLOW_TRACKING_URI": NOBODY, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    )
    concerns = settings(write_scan(), tmp_path / "run", train__logger=name)
    first, second = on_ranks(2, fail_together, concerns, environment, missing)
    assert first == second
    assert message in first
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_resumed_run_goes_on_without_a_server(
    on_ranks: Callable[..., Any],
    write_scan: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A requeued job is not lost with it."""
    concerns = settings(write_scan(), tmp_path / "run", train__epochs=2)
    on_ranks(1, stop_after_step, 3, concerns)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    concerns["train"] |= {"resume": "auto", "logger": "mlflow"}
    train_one(concerns)
    assert load_bundle(tmp_path / "run" / "bundle.zip").pattern_size == 16
    log = (tmp_path / "run" / "train.log").read_text()
    assert (
        log.count(
            "WARNING mlflow: this part of the run is not written to it: MlflowException: API "
            "request to"
        )
        == 1
    )


def test_tracker_that_fails_ends_with_one_warning(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_rows = TensorBoardTracker.log_rows

    def fail(self: TensorBoardTracker, rows: Any) -> None:
        if any(step > 4 for step, _ in rows):
            raise OSError(28, "No space left on device")
        log_rows(self, rows)

    monkeypatch.setattr(TensorBoardTracker, "log_rows", fail)
    train_one(
        settings(write_scan(), tmp_path / "run", train__epochs=4, train__logger="tensorboard")
    )
    assert load_bundle(tmp_path / "run" / "bundle.zip").pattern_size == 16
    assert len(in_metrics_csv(tmp_path / "run")["val_nll"]) == 4
    assert [step for step, _ in scalars(in_tensorboard(tmp_path / "run"))["val_nll"]] == [4]
    log = (tmp_path / "run" / "train.log").read_text()
    assert (
        log.count("WARNING")
        == log.count(
            "WARNING tensorboard: this run writes no more to it: [Errno 28] No space left on device"
        )
        == 1
    )


def test_tracker_that_hangs_holds_nothing_up(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(tracking, "SECONDS_TO_END", 0.2)
    monkeypatch.setattr(TensorBoardTracker, "log_rows", lambda self, rows: answered.wait(60))
    train_one(
        settings(write_scan(), tmp_path / "run", train__epochs=2, train__logger="tensorboard")
    )
    answered.set()
    assert len(in_metrics_csv(tmp_path / "run")["val_nll"]) == 2
    log = (tmp_path / "run" / "train.log").read_text()
    assert (
        log.count("WARNING")
        == log.count("WARNING tensorboard: not all was written within 0 s; the run is not affected")
        == 1
    )


def test_picture_that_fails_ends_with_one_warning(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def fail(*arguments: Any) -> dict[str, bytes]:
        next(calls)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(report, "draw_object", fail)
    train_one(
        settings(write_scan(), tmp_path / "run", train__epochs=4, train__logger="tensorboard")
    )
    assert next(calls) == 1
    assert len(scalars(in_tensorboard(tmp_path / "run"))["val_nll"]) == 4
    log = (tmp_path / "run" / "train.log").read_text()
    assert (
        log.count("WARNING")
        == log.count(
            "no more pictures of the object: RuntimeError: out of memory. The run is not affected"
        )
        == 1
    )
