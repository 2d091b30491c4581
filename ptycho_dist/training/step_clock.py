"""Where the time of a training step goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch.nn.parallel import DistributedDataParallel

from ptycho_dist.distributed import (
    average_gradients,
    collective_timer,
    largest,
    sum_floats,
    time_when_done,
    world_size,
)
from ptycho_dist.model.corrections import MOST_CORRECTIONS
from ptycho_dist.training.metrics import STEP_SPLIT, STEPS_BETWEEN_ROWS

TIMED_STEPS = MOST_CORRECTIONS
"""The last steps before a row are timed: one of each kind, with one, two and three corrections."""


def step_split(
    num_steps: int, total_s: float, load_s: float, collectives_s: Sequence[float]
) -> dict[str, float]:
    """Return where the time of a step goes, milliseconds, means over ranks; the four add up to the
    step. A collective.

    `load_ms` is the time until the batch is there; `compute_ms` is forward, backward and optimiser;
    `communicate_ms` is the time in collectives once every rank has entered them (that of the rank
    that came last); `wait_ms` is the time in collectives waiting for slower ranks.

    Parameters
    ----------
    num_steps
        Number of timed steps.
    total_s, load_s
        This rank's seconds in these steps, and in loading their batches.
    collectives_s
        This rank's seconds in each of their collectives.
    """
    communicate = -sum(largest([-seconds for seconds in collectives_s]))
    total, load, collectives = (
        sum_floats(torch.tensor([total_s, load_s, sum(collectives_s)])) / world_size()
    ).tolist()
    seconds = (load, total - load - collectives, communicate, collectives - communicate)
    in_ms = 1e3 / num_steps
    return {name: in_ms * value for name, value in zip(STEP_SPLIT, seconds, strict=True)}


def is_timed(step: int) -> bool:
    """Return True if the step after `step` steps is one of the last before a row of metrics."""
    return step % STEPS_BETWEEN_ROWS >= STEPS_BETWEEN_ROWS - TIMED_STEPS


class StepClock(L.Callback):
    """Time a few steps of every fifty. Only in these the GPU is synchronised, so the others lose no
    time."""

    def __init__(self) -> None:
        self._is_timed = False
        self._forget()

    def split(self) -> dict[str, float]:
        """Return `step_split` of the steps timed since the last call; empty if there are none. A
        collective."""
        if not self._steps:  # then on no rank
            return {}
        split = step_split(self._steps, self._total_s, self._load_s, collective_timer.seconds)
        self._forget()
        return split

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, average_gradients)
        self._ended = time_when_done()  # a run resumed within an epoch sees no start of one

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = time_when_done()  # validation is not a part of the next step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._is_timed = collective_timer.running = is_timed(trainer.global_step)
        if self._is_timed:
            self._load_s += time_when_done() - self._ended

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        collective_timer.end()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._is_timed or is_timed(trainer.global_step):
            now = time_when_done()
            if self._is_timed:
                ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
                self._total_s += now - self._ended
                self._steps += ends_step or trainer.is_last_batch
            self._ended = now
        collective_timer.running = False

    def _forget(self) -> None:
        self._steps, self._total_s, self._load_s = 0, 0.0, 0.0
        collective_timer.seconds.clear()
