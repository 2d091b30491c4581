"""Small training runs, and what they leave."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ptycho_dist import load_bundle, train
from ptycho_dist.config import parse_mapping
from ptycho_dist.data import placement
from ptycho_dist.distributed import Interrupted
from ptycho_dist.training.checkpointing import Checkpointing


def settings(scan: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    concerns: dict[str, dict[str, Any]] = {
        "data": {
            "path": str(scan),
            "measurement": "amplitude",
            "nphotons": 1e6,
            "val_fraction": 0.1,
        },
        "model": {"base_width": 4},
        # 33 groups in batches of 8: the last batch has one, so with 2 or 3 ranks some rank has
        # none.
        "train": {
            "run_dir": str(run_dir),
            "epochs": 2,
            "global_batch_size": 8,
            "learning_rate": 1e-3,
            "precision": 32,
        },
    }
    for key, value in changes.items():
        concern, name = key.split("__")
        concerns[concern][name] = value
    return concerns


def train_one(concerns: dict[str, Any]) -> None:
    """Train as a process of a torchrun job whose process group is there already, or alone."""
    if dist.is_initialized():
        act_as_torchrun()
    train(parse_mapping(concerns))


def act_as_torchrun() -> None:
    """Set the variables that torchrun sets for a rank of this process group."""
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(
        RANK=rank,
        LOCAL_RANK=rank,
        WORLD_SIZE=size,
        LOCAL_WORLD_SIZE=size,
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="test",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
    )


def train_streamed(concerns: dict[str, Any]) -> None:
    """With patterns that are read from the file; for a process that ends with the run."""
    placement.LARGEST_PART = 0.0
    train_one(concerns)


def told_by(concerns: dict[str, Any]) -> list[str]:
    """The same settings as command-line arguments."""
    return [
        f"--{concern}.{key}={value}"
        for concern, keys in concerns.items()
        for key, value in keys.items()
    ]


def assert_same_result(run_dir: Path, expected_run_dir: Path) -> None:
    """Scale, weights and metrics are the same bits."""
    found, expected = (load_bundle(path / "bundle.zip") for path in (run_dir, expected_run_dir))
    assert found.calibration == expected.calibration
    for name, weight in expected.weights.items():
        assert torch.equal(found.weights[name], weight), name
    untimed = [
        [{name: row[name] for name in row if not name.endswith("_ms")} for row in metrics(path)]
        for path in (run_dir, expected_run_dir)
    ]
    assert untimed[0] == untimed[1]


def last_step(run_dir: Path) -> int:
    """The last step that has a row of metrics, or -1."""
    steps = column(run_dir, "step") if (run_dir / "metrics.csv").exists() else []
    return int(max(steps, default=-1))


def metrics(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def column(run_dir: Path, name: str) -> list[float]:
    return [float(row[name]) for row in metrics(run_dir) if row[name]]


def stop_after_the_first_epoch(concerns: dict[str, Any]) -> None:
    from ptycho_dist.training.callbacks import ProgressLog

    def interrupt(self: ProgressLog, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    ProgressLog.on_train_epoch_start = interrupt  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_one(concerns)


def stop_after_three_steps(concerns: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is asked to stop, within its first epoch, and does."""
    on_train_batch_end = Checkpointing.on_train_batch_end

    def signalled_after_three_steps(self: Checkpointing, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            self._received = signal.SIGTERM
        on_train_batch_end(self, trainer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, "on_train_batch_end", signalled_after_three_steps)
        with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3"):
            train_one(concerns)
