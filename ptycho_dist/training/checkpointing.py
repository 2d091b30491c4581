"""Checkpoints: when they are written, and how, so that a fault costs minutes and never destroys the
last one."""

from __future__ import annotations

import io
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from ptycho_dist.atomic_file import replacing
from ptycho_dist.distributed import Interrupted, largest, run_together

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_CHECKPOINTS = 600.0
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Checkpointing(Checkpoint):
    """Write `last.ckpt` at the end of each epoch, every ten minutes, and on a signal to stop.

    A signal only sets a flag, on which the ranks agree after each step: a rank that waits in a
    collective runs no handler, and ranks that are signalled at different moments must stop after
    the same step. The death of torchrun's agent counts as SIGTERM: its processes would go on
    unnoticed.

    Parameters
    ----------
    path
        Path of the checkpoint.
    require_ours
        Raises if another run has taken the run directory over; called before anything is written.
    """

    def __init__(self, path: Path, *, require_ours: Callable[[], None]) -> None:
        self.path = path
        self._require_ours = require_ours
        self._received = 0
        self._saved_at = 0.0
        self._handlers: dict[signal.Signals, Any] = {}
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        is_within_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        # an epoch is finished first, with its validation and its row of metrics
        if is_within_step or trainer.is_last_batch:
            return
        received, seconds = largest([self._signal(), time.monotonic() - self._saved_at])
        if received or seconds >= SECONDS_BETWEEN_CHECKPOINTS:
            self._save(trainer)
        self._stop_if_asked(received, trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            self._stop_if_asked(largest([self._signal()])[0], trainer)

    def _stop_if_asked(self, received: float, trainer: L.Trainer) -> None:
        if received:
            raise Interrupted(
                f"stopped by {signal.Signals(int(received)).name} after step "
                f"{trainer.global_step}; go on with --train.resume auto ({self.path})",
                exit_status=128 + int(received),
            )

    def _signal(self) -> int:
        if self._launcher is not None and os.getppid() != self._launcher:
            return self._received or signal.SIGTERM
        return self._received

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put_handlers_back()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._put_handlers_back()

    def _save(self, trainer: L.Trainer) -> None:
        run_together(self._require_ours)
        # before the checkpoint, which must not be ahead of its metrics
        for metrics_logger in trainer.loggers:
            metrics_logger.save()
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def _put_handlers_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints completely or not at all, and read them without running their code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        content = io.BytesIO()  # torch hides a full disk behind an error of its own
        torch.save(checkpoint, content)
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(content.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # torch raises whatever the damage leads to
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path}: not a readable checkpoint ({reason}); use an earlier one, or start anew "
                "in another run_dir"
            ) from error


def checkpoint_to_resume(resume: str | None, run_dir: Path) -> Path | None:
    """Return the checkpoint that `train.resume` names: a file, or with `auto` the run directory's
    last one, if there is one.

    Processes that torchrun restarted after a failure, or Slurm with a requeued job, always resume
    from the last one.
    """
    if any(
        os.environ.get(name, "0") != "0"
        for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    ):
        resume = "auto"
    if resume is None:
        return None
    if resume == "auto":
        last = last_checkpoint(run_dir)
        return last if last.exists() else None
    if not Path(resume).is_file():
        raise ValueError(f"train.resume: found no file {resume}, expected a checkpoint or 'auto'")
    return Path(resume)


def last_checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"
