"""Where the time of a training step goes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L
from torch.nn.parallel import DistributedDataParallel

from ptycho_dist.distributed import StepSplit, average_gradients, collective_timer, time_when_done
from ptycho_dist.model.corrections import MOST_CORRECTIONS

STEPS_BETWEEN_ROWS = 50
TIMED_STEPS = MOST_CORRECTIONS
"""Of these, the last: as many as there are kinds of steps, with one, two and three corrections."""


class StepClock(L.Callback):
    """Time a few steps of every fifty; a GPU is waited for in these, which costs the others
    nothing."""

    def __init__(self) -> None:
        self._is_timed = False
        self._forget()

    def split(self) -> dict[str, float]:
        """`StepSplit` of the steps timed since it was last asked for, by name; empty if there are
        none. A collective."""
        if not self._steps:  # on no rank
            return {}
        split = StepSplit.of_all_ranks(
            num_steps=self._steps,
            total_s=self._total_s,
            load_s=self._load_s,
            collectives_s=collective_timer.seconds,
        )
        self._forget()
        return asdict(split)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, average_gradients)
        self._ended = time_when_done()  # a run that goes on within an epoch does not start one

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
                self._total_s += now - self._ended
                self._steps += (
                    batch_idx + 1
                ) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
            self._ended = now
        collective_timer.running = False

    def _forget(self) -> None:
        self._steps, self._total_s, self._load_s = 0, 0.0, 0.0
        collective_timer.seconds.clear()


def is_timed(step: int) -> bool:
    """Whether the step that comes after `step` of them is one of the last before a row of
    metrics."""
    return step % STEPS_BETWEEN_ROWS >= STEPS_BETWEEN_ROWS - TIMED_STEPS
