"""Small training runs, and what they leave."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ptycho_dist import train
from ptycho_dist.config import parse_mapping
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
    """As one process of a torchrun job would, whose process group is there already."""
    if dist.is_initialized():
        rank, size = str(dist.get_rank()), str(dist.get_world_size())
        launcher = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "GROUP_RANK": "0",
        }
        os.environ.update(
            launcher, TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
        )
    train(parse_mapping(concerns))


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
