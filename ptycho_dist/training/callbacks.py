"""What happens around the training steps: learning rate, metrics, pictures, progress."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning as L

from ptycho_dist.config import Config
from ptycho_dist.data.scan import Scan
from ptycho_dist.distributed import describe, largest
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.training.run_bundle import bundle_of
from ptycho_dist.training.run_directory import RunDirectoryLogger
from ptycho_dist.training.step_clock import STEPS_BETWEEN_ROWS, StepClock

logger = logging.getLogger(__name__)

WARM_UP = 0.05
"""Part of the run over which the learning rate rises linearly."""

PICTURE_PIXELS = 1 << 20
"""Measured pixels that a picture of the object is made from, 256 patterns of 64 x 64: 3 s on one
core, which bounds the memory too."""

SECONDS_BETWEEN_LINES = 30.0
SHORTEST_EPOCH_TOLD = 2.0
"""Seconds since the last line below which the end of an epoch is not worth another."""


class GoOnWithinEpoch(L.Callback):
    """After a checkpoint from the middle of an epoch, skip what the epoch had already taken."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        sampler = trainer.train_dataloader.batch_sampler  # type: ignore[union-attr]
        sampler.go_on_after(trainer.global_step % sampler.steps_per_epoch)


class LearningRateSchedule(L.Callback):
    """Linear warm-up, then cosine to zero, over the steps or the minutes of the whole run.

    Whichever limit comes first ends the run. With a time limit the ranks agree on the clock at
    every step.
    """

    def __init__(self, peak: float, *, max_minutes: float | None) -> None:
        self.peak = peak
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.done = 0.0
        self._seconds_before = 0.0
        self._started = math.nan

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self.done = trainer.global_step / trainer.estimated_stepping_batches
        if self.max_seconds is not None:
            self.done = max(self.done, largest([self.seconds])[0] / self.max_seconds)
        learning_rate = self.peak * learning_rate_factor(self.done)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate
        pl_module.log("learning_rate", learning_rate, on_step=True, on_epoch=False, logger=False)
        if self.done >= 1:
            trainer.should_stop = True

    @property
    def seconds(self) -> float:
        """Time spent training, earlier parts of the run included."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def seconds_left(self) -> float:
        return self.seconds * (1 - self.done) / max(self.done, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]


def learning_rate_factor(done: float) -> float:
    """Return the fraction of the peak learning rate after `done`, 0 to 1, of the run."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)  # not zero: the first step counts too
    return 0.5 * (1 + math.cos(math.pi * (min(done, 1.0) - WARM_UP) / (1 - WARM_UP)))


class StepMetrics(L.Callback):
    """Rows of single steps in the run's metrics, every 50 steps.

    They come before the step's checkpoint. Lightning's own would come after it, and a run that is
    resumed from there would have no such row.

    Parameters
    ----------
    clock
        Times the steps; a callback that comes before this one.
    """

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if trainer.global_step % STEPS_BETWEEN_ROWS or not ends_step:
            return
        names = ("learning_rate", f"step_{_loss_metric(pl_module)}")
        row = {name: float(trainer.callback_metrics[name]) for name in names}
        row |= self.clock.split()
        for metrics_logger in trainer.loggers:
            metrics_logger.log_metrics(row, step=trainer.global_step - 1)
            metrics_logger.save()  # whoever watches the run sees it


class ObjectPictures(L.Callback):
    """Pictures of the object for the trackers, after 1, 2, 4, 8 ... epochs and at the end.

    Rank 0 alone draws, from the middle of the first scan; the others wait for it at their next
    collective. A failure is a warning, and the last picture.

    Parameters
    ----------
    config
        Of the run.
    scans
        That are trained on.
    run_logger
        It hands pictures to the trackers; without one, nothing is drawn.
    """

    def __init__(
        self, config: Config, scans: Sequence[Scan], run_logger: RunDirectoryLogger
    ) -> None:
        self.config = config
        self.scans = scans
        self.run_logger = run_logger
        self._draws = bool(run_logger.trackers)
        self._part: Scan | None = None
        self._drawn_at = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs & (epochs - 1) == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._draws or self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        # Only now: a run that nobody tracks does not wait for Matplotlib, Jinja and all of
        # inference before its first step.
        from ptycho_dist.training.report import central_part, draw_object

        assert isinstance(module, PtychographyModule)
        try:
            self._part = self._part or central_part(self.scans[0], PICTURE_PIXELS)
            pictures = draw_object(bundle_of(module, self.scans, self.config), self._part)
        except Exception as error:
            self._draws = False
            logger.warning(
                f"no more pictures of the object: {describe(error)}. The run is not affected"
            )
            return
        for name, png in pictures.items():
            self.run_logger.log_picture(name, png, trainer.global_step - 1)


class ProgressLog(L.Callback):
    """Log where the run is and how long it takes: after an epoch, and every half minute."""

    def __init__(self, schedule: LearningRateSchedule) -> None:
        self.schedule = schedule
        self._started = self._last_line = math.nan
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._last_line = time.monotonic()
        self._first_step = trainer.global_step
        num_parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        logger.info(
            f"training: {trainer.max_epochs} epochs of {trainer.num_training_batches} steps on "
            f"{trainer.world_size} rank(s), {pl_module.device}, precision {trainer.precision}, "
            f"network of {num_parameters} parameters"
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._log_line(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = time.monotonic() - self._last_line
        if trainer.global_step > self._first_step and seconds > SHORTEST_EPOCH_TOLD:
            # Here, not at the end of the last epoch, where the module has not yet added it up.
            self._log_line(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log_line(trainer, pl_module)

    def _log_line(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._last_line = time.monotonic()
        metric = _loss_metric(module)
        names = {f"train_{metric}": "train", "val_deviance_per_pixel": "val"}
        names[f"step_{metric}"] = "step"
        values = [
            f"{name} {trainer.callback_metrics[key]:.4g}"
            for key, name in names.items()
            if key in trainer.callback_metrics
        ]
        rate = (trainer.global_step - self._first_step) / (self._last_line - self._started)
        logger.info(
            f"step {trainer.global_step} of {trainer.estimated_stepping_batches} (epoch "
            f"{trainer.global_step / trainer.num_training_batches:.1f}): "
            f"{metric.replace('_', ' ')} {', '.join(values)}; {rate:.1f} steps/s, "
            f"{timedelta(seconds=round(self.schedule.seconds_left))} left"
        )


def _loss_metric(module: L.LightningModule) -> str:
    """Return the name of what the module's loss reports."""
    assert isinstance(module, PtychographyModule)
    return module.loss.metric
