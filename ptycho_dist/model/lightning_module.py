"""One training step: patterns to patches, patches to photons, photons to the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor

from ptycho_dist.config import ModelConfig
from ptycho_dist.distributed import FailedTogether, require_same, run_together, sum_floats
from ptycho_dist.model.corrections import MOST_CORRECTIONS, corrected_patches, corrections_at
from ptycho_dist.model.gradients import limit_surprise, require_finite_gradient
from ptycho_dist.model.loss import LossFactory, ScaledPoissonLoss
from ptycho_dist.model.network import build_network
from ptycho_dist.model.trainable_probe import TrainableProbe
from ptycho_dist.physics.mask import num_counted
from ptycho_dist.physics.probe import (
    centre_of_light,
    illumination,
    normalize_probe,
    shift_probe,
    whole_pixel_and_rest,
)
from ptycho_dist.physics.propagation import diffracted_intensity
from ptycho_dist.scale.calibration import Calibration


class Samples(Protocol):
    """A batch of B groups of C patterns: `x_norm` float32 (B, C, N, N), `positions_px` (B, C, 2) as
    (y, x), `scan` int64 (B,)."""

    @property
    def x_norm(self) -> Tensor: ...

    @property
    def positions_px(self) -> Tensor: ...

    @property
    def scan(self) -> Tensor: ...


class PtychographyModule(L.LightningModule):
    """Network, physics and scaled loss.

    Parameters
    ----------
    config
        Network and loss.
    calibration
        Of the training data: intensity scale and brightness of the scans.
    probes
        One probe per scan, complex64 (scans, modes, N, N), in any units.
    masks
        One per scan, bool (scans, N, N), True where a pixel counts; None: all do.
    learning_rate
        Of Adam, until a schedule changes it.
    seed
        Of the network's first weights.
    first_probes
        Where a trainable probe begins, complex64 (scans, modes, N, N), if not at `probes`; its
        centre of mass stays that of `probes`.
    loss
        Makes the loss from the intensity scale.
    record
        Hyperparameters for `hparams.yaml` and the checkpoints.

    Raises
    ------
    FailedTogether
        Ranks hold different scales.
    """

    _probes: Tensor
    _masks: Tensor | None
    _brightness: Tensor | None

    def __init__(
        self,
        config: ModelConfig,
        calibration: Calibration,
        probes: Tensor,
        masks: Tensor | None = None,
        *,
        learning_rate: float = 3e-3,
        seed: int = 0,
        first_probes: Tensor | None = None,
        loss: LossFactory = ScaledPoissonLoss,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(dict(record or {}))
        self.calibration = calibration
        self.learning_rate = learning_rate
        self._train_sums = torch.zeros(2, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = build_network(config, probes.shape[-1])
        self.trainable_probe: TrainableProbe | None = None
        if config.probe_trainable:
            begin = probes if first_probes is None else first_probes
            self.trainable_probe = TrainableProbe(begin, centre_of_light(probes))
        else:
            # As pairs of reals: DDP sends buffers to all ranks, and not every backend can send
            # complex numbers.
            pairs = torch.view_as_real(normalize_probe(probes))
            self.register_buffer("_probes", pairs, persistent=False)
        self.register_buffer("_masks", masks, persistent=False)
        # The network reads patterns relative to their incident amplitude, so that it sees the
        # objects of a weak scan as those of a strong one.
        bright = calibration.scan_brightness
        several = torch.tensor(bright, dtype=torch.float32) if len(bright) > 1 else None
        self.register_buffer("_brightness", several, persistent=False)
        self.loss = loss(calibration.intensity_scale, trainable=config.intensity_scale_trainable)
        require_same({"intensity_scale": float(self.loss.intensity_scale)})

    @property
    def probes(self) -> Tensor:
        """complex64 (scans, modes, N, N), normalised units, each of the energy (N/2)**2."""
        if self.trainable_probe is not None:
            return self.trainable_probe()
        return torch.view_as_complex(self._probes)

    @property
    def gain(self) -> float:
        """The trainable factor g on the predicted amplitude; 1 where none is trained."""
        log_gain = self.loss.log_gain
        return 1.0 if log_gain is None else float(log_gain.detach().exp())

    def mask(self, samples: Samples) -> Tensor | None:
        """Return the unmasked pixels of a batch, bool (B, 1, N, N), or None: all count."""
        return None if self._masks is None else self._masks[samples.scan].unsqueeze(1)

    def forward(self, samples: Samples) -> Tensor:
        """Return I_hat, float32 (B, C, N, N), normalised units, masked pixels included."""
        with torch.autocast(self.device.type, enabled=False):
            whole_px, rest_px = whole_pixel_and_rest(samples.positions_px)
            probe = shift_probe(self.probes[samples.scan].unsqueeze(1), rest_px)
            if self._brightness is not None:
                probe = probe * self._brightness[samples.scan].view(-1, 1, 1, 1, 1)
            # A trainable probe learns from the exit waves alone. A gradient through the network's
            # input made it no better, and slower.
            known_probe = probe.detach()
        patches = corrected_patches(
            self.network,
            samples.x_norm,
            known_probe,
            whole_px,
            illumination(probe),
            self.mask(samples),
            corrections=corrections_at(self.global_step) if self.training else MOST_CORRECTIONS,
        )
        with torch.autocast(self.device.type, enabled=False):
            return diffracted_intensity(patches, probe)

    def training_step(self, samples: Samples, batch_idx: int) -> Tensor:
        predicted, mask = self(samples), self.mask(samples)
        loss = self.loss(predicted, samples.x_norm, mask)
        value = loss.item()  # the same on every rank
        if not math.isfinite(value):
            self._refuse_loss(value, predicted, samples.x_norm, mask)
        in_micro_batch, in_step = self.trainer.train_dataloader.batch_sampler.weight_in(batch_idx)  # type: ignore[union-attr]
        sums = [value * in_micro_batch, in_micro_batch]
        self._train_sums += torch.tensor(sums, dtype=torch.float64)
        shown = self.loss.reported(value)
        self.log(f"step_{self.loss.metric}", shown, on_step=True, on_epoch=False, logger=False)
        # Lightning divides by the number of micro-batches; a step is the mean over its unmasked
        # pixels, however its samples are dealt to those.
        return loss * (self.trainer.accumulate_grad_batches * in_micro_batch / in_step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # DDP has averaged the gradient, so all ranks see the same one.
        require_finite_gradient(self.named_parameters(), self.global_step)
        limit_surprise(optimizer)

    def on_train_epoch_end(self) -> None:
        loss_sum, num_samples = self._train_sums.tolist()
        self._train_sums = torch.zeros(2, dtype=torch.float64)
        metrics = {f"train_{self.loss.metric}": self.loss.reported(loss_sum / num_samples)}
        if self.loss.log_gain is not None:
            metrics["gain"] = self.gain
        self.log_dict(metrics, logger=False)
        # To the loggers at once: Lightning would wait until after the epoch's checkpoint, and a run
        # that is killed between the two and resumed would have no row of this epoch.
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step=self.global_step - 1)

    def _refuse_loss(
        self, value: float, predicted: Tensor, x_norm: Tensor, mask: Tensor | None
    ) -> None:
        where = f"at step {self.global_step} (epoch {self.current_epoch}); the step was not taken"

        def refuse_own() -> None:
            own = self.loss.deviance(predicted, x_norm, mask).sum()
            if not torch.isfinite(own):
                raise ValueError(f"the loss is {own.item()} {where}")

        run_together(refuse_own)
        raise FailedTogether(f"the loss is {value} {where}")

    def on_validation_epoch_start(self) -> None:
        self._validation_sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, samples: Samples, batch_idx: int) -> None:
        predicted, mask = self(samples), self.mask(samples)
        deviance = self.loss.deviance(predicted, samples.x_norm, mask).sum(dtype=torch.float64)
        nll = self.loss.negative_log_likelihood(predicted, samples.x_norm, mask).sum()
        num_pixels = nll.new_tensor(num_counted(samples.x_norm, mask))
        self._validation_sums += torch.stack([deviance, nll, num_pixels])

    def on_validation_epoch_end(self) -> None:
        deviance, nll, num_pixels = sum_floats(self._validation_sums)
        self.log_dict(
            {"val_deviance_per_pixel": 2 * deviance / num_pixels, "val_nll": nll / num_pixels}
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.trainable_probe is not None:
            self.trainable_probe.return_to_gauge()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = self._train_sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another scale or subset, or of a run that began otherwise.

        Its buffer would replace the scale that the data gave.
        """
        scale = float(checkpoint["state_dict"]["loss.intensity_scale"])
        stored = {**checkpoint["hyper_parameters"]["calibration"], "intensity_scale": scale}
        for name in ("intensity_scale", "subset_fingerprint"):
            if stored[name] != (given := getattr(self.calibration, name)):
                raise FailedTogether(
                    f"the checkpoint was trained with {name} {stored[name]!r}, the data give "
                    f"{given!r}: other patterns or nphotons"
                )
        began_with, init = (
            hparams["config"]["train"].get("init")
            for hparams in (checkpoint["hyper_parameters"], self.hparams)
        )
        if began_with != init:
            raise FailedTogether(
                f"the checkpoint's run began with train.init {began_with!r}, found {init!r}; "
                "expected the same"
            )
        self._train_sums = checkpoint["train_sums"]
