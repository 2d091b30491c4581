"""What happens around the training steps: hand-over from data to model, learning rate, progress."""

from __future__ import annotations

import logging
import math
import time
from datetime import timedelta
from typing import Any

import lightning as L
import numpy as np
import torch

from ptycho_dist.bundle import software_versions
from ptycho_dist.config import Config
from ptycho_dist.data.module import ScanDataModule
from ptycho_dist.data.scan import Scan, stack_masks
from ptycho_dist.distributed import describe, largest
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.training.run_bundle import bundle_of_run
from ptycho_dist.training.run_directory import RunDirectoryLogger
from ptycho_dist.training.start import Start
from ptycho_dist.training.step_clock import STEPS_BETWEEN_ROWS, StepClock

logger = logging.getLogger(__name__)

WARM_UP = 0.05
"""Part of the run over which the learning rate rises linearly."""

PICTURE_PIXELS = 1 << 20
"""Measured pixels that a picture of the object is made from, 256 patterns of 64 x 64: 3 s on one
core, which bounds the memory too."""


class HandOver(L.Callback):
    """Give the model what the data module found; this is where the two wings meet.

    It runs after the data module's `setup` and before the ranks are wrapped in DDP.

    Parameters
    ----------
    config
        Of the run.
    start
        Where training begins.
    """

    def __init__(self, config: Config, start: Start) -> None:
        self.config = config
        self.start = start

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data, module = trainer.datamodule, pl_module  # type: ignore[attr-defined]
        assert isinstance(data, ScanDataModule)
        assert isinstance(module, PtychographyModule)
        probes = torch.from_numpy(np.stack([scan.probe for scan in data.scans]))
        masks = stack_masks(data.scans)
        module.build(
            probes,
            data.intensity_scale,
            seed=self.config.train.seed,
            first_probes=self.start.probes(data),
            masks=None if masks is None else torch.from_numpy(masks),
            brightness=torch.from_numpy(data.brightness) if len(data.scans) > 1 else None,
        )
        self.start.load_weights(module.network, data)
        # Saved here, not in the module's __init__: hparams.yaml and the checkpoints then hold
        # values that only the data could give.
        module.save_hyperparameters(
            {
                "intensity_scale": data.intensity_scale.value,
                "nphotons": data.nphotons.value,
                "nphotons_source": data.nphotons.source,
                "mean_energy": data.intensity_scale.mean_energy,
                "num_patterns": data.intensity_scale.num_patterns,
                "normalization": {"mode": "rms", "factor": data.normalization.factor},
                "subset": data.subset.description,
                "subset_fingerprint": data.subset.fingerprint,
                "world_size": trainer.world_size,
                "config": self.config.to_dict(),
                "versions": software_versions(),
            }
        )


class GoOnWithinEpoch(L.Callback):
    """After a checkpoint from the middle of an epoch, skip what the epoch had already taken."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        sampler = trainer.train_dataloader.batch_sampler  # type: ignore[union-attr]
        sampler.go_on_after(trainer.global_step % sampler.steps_per_epoch)


class LearningRateSchedule(L.Callback):
    """Linear warm-up, then cosine to zero, over the whole run: its steps or its minutes, whichever
    ends first.

    With a time limit the ranks agree on the clock at every step, and the run ends when it is used
    up.
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
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
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
    """Fraction of the peak learning rate after `done`, 0 to 1, of the run."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)  # not zero: the first step counts too
    return 0.5 * (1 + math.cos(math.pi * (min(done, 1.0) - WARM_UP) / (1 - WARM_UP)))


class StepMetrics(L.Callback):
    """Rows of single steps in the run's metrics, every 50 steps.

    Before the step's checkpoint, where Lightning's own would come after it: a run that is resumed
    from there would have no such row.

    Parameters
    ----------
    clock
        Says where their time went; a callback that comes before this one.
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
        in_the_middle_of_a_step = (
            batch_idx + 1
        ) % trainer.accumulate_grad_batches and not trainer.is_last_batch
        if trainer.global_step % STEPS_BETWEEN_ROWS or in_the_middle_of_a_step:
            return
        row = {
            name: float(trainer.callback_metrics[name])
            for name in ("learning_rate", "step_deviance_per_pixel")
        }
        row |= self.clock.split()
        for metrics_logger in trainer.loggers:
            metrics_logger.log_metrics(row, step=trainer.global_step - 1)
            metrics_logger.save()  # whoever watches the run sees it


class ObjectPictures(L.Callback):
    """Pictures of the object for the trackers: after 1, 2, 4, 8 ... epochs, so that they stay few,
    and at the end.

    Rank 0 alone draws, from the middle of the first scan; the others wait for it at their next
    collective. A failure is a warning, and the last picture.

    Parameters
    ----------
    config
        Of the run.
    run_logger
        It hands pictures to the trackers; without one, nothing is drawn.
    """

    def __init__(self, config: Config, run_logger: RunDirectoryLogger) -> None:
        self.config = config
        self.run_logger = run_logger
        self._draws = bool(run_logger.trackers)
        self._scan: Scan | None = None
        self._drawn_at = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs & (epochs - 1) == 0:
            self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        if not self._draws or self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        # Only now: a run that nobody tracks does not wait for Matplotlib, Jinja and all of
        # inference before its first step.
        from ptycho_dist.training.report import central_part, draw_object

        data, module = trainer.datamodule, trainer.lightning_module  # type: ignore[attr-defined]
        assert isinstance(data, ScanDataModule)
        assert isinstance(module, PtychographyModule)
        try:
            self._scan = self._scan or central_part(data.scans[0], PICTURE_PIXELS)
            pictures = draw_object(bundle_of_run(self.config, data, module), self._scan)
        except Exception as error:
            self._draws = False
            logger.warning(
                "no more pictures of the object: %s. The run is not affected", describe(error)
            )
            return
        for name, png in pictures.items():
            self.run_logger.log_picture(name, png, trainer.global_step - 1)


class ProgressLog(L.Callback):
    """Lines in the log: where the run is and how long it takes; after an epoch, and within a long
    one every half minute."""

    def __init__(self, schedule: LearningRateSchedule) -> None:
        self.schedule = schedule
        self._started = self._last_line = math.nan
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._last_line = time.monotonic()
        self._first_step = trainer.global_step
        num_parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        logger.info(
            "training: %d epochs of %d steps on %d rank(s), %s, precision %s, network of %d "
            "parameters",
            trainer.max_epochs,
            trainer.num_training_batches,
            trainer.world_size,
            pl_module.device,
            trainer.precision,
            num_parameters,
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if time.monotonic() - self._last_line > 30:
            self._log_line(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self._first_step and time.monotonic() - self._last_line > 2:
            # here, not at the end of the last epoch, where the module has not yet added it up
            self._log_line(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log_line(trainer)

    def _log_line(self, trainer: L.Trainer) -> None:
        now = time.monotonic()
        self._last_line = now
        steps_done = trainer.global_step - self._first_step
        names = {
            "train_deviance_per_pixel": "train",
            "val_deviance_per_pixel": "val",
            "step_deviance_per_pixel": "step",
        }
        deviances = [
            f"{name} {trainer.callback_metrics[key]:.4g}"
            for key, name in names.items()
            if key in trainer.callback_metrics
        ]
        logger.info(
            "step %d of %d (epoch %.1f): deviance per pixel %s; %.1f steps/s, %s left",
            trainer.global_step,
            trainer.estimated_stepping_batches,
            trainer.global_step / trainer.num_training_batches,
            ", ".join(deviances),
            steps_done / (now - self._started),
            timedelta(seconds=round(self.schedule.seconds_left)),
        )
