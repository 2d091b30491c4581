"""One training step: patterns to patches, patches to photons, photons to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from ptycho_dist.config import ModelConfig
from ptycho_dist.distributed import FailedTogether, require_same, run_together, sum_floats
from ptycho_dist.model.corrections import MOST_CORRECTIONS, corrected_patches, corrections_at
from ptycho_dist.model.loss import ScaledPoissonLoss
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
from ptycho_dist.scale.intensity_scale import IntensityScale

LARGEST_SURPRISE = 2.0
"""Norm of a gradient, in units of its usual one, above which a step is shortened."""


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
    """Network, physics and scaled Poisson loss.

    What only the data can tell is given by `build`, before the process group's ranks are wrapped in
    DDP.

    Parameters
    ----------
    config
        Network and loss.
    learning_rate
        Of Adam, until a schedule changes it.
    """

    network: nn.Module
    loss: ScaledPoissonLoss
    trainable_probe: TrainableProbe | None
    _probes: Tensor
    _masks: Tensor | None
    _brightness: Tensor | None

    def __init__(self, config: ModelConfig, *, learning_rate: float) -> None:
        super().__init__()
        self.config = config
        self.learning_rate = learning_rate
        self._train_sums = torch.zeros(2, dtype=torch.float64)

    def build(
        self,
        probes: Tensor,
        intensity_scale: IntensityScale | float,
        *,
        seed: int,
        first_probes: Tensor | None = None,
        masks: Tensor | None = None,
        brightness: Tensor | None = None,
    ) -> None:
        """Make network and loss.

        Parameters
        ----------
        probes
            One probe a scan, complex64 (scans, modes, N, N), in any units.
        intensity_scale
            The dataset's s; every rank must hold the same bits.
        seed
            Of the network's first weights.
        first_probes
            Where a trainable probe begins, complex64 (scans, modes, N, N), if not at `probes`; its
            centre of light stays that of `probes`.
        masks
            One a scan, bool (scans, N, N), True where a pixel counts; None: all do.
        brightness
            Amplitude of each scan's light, float (scans,), 1 where its patterns have the mean
            energy of all; None: of every scan. The network then sees the objects of a weak scan as
            those of a strong one, since it reads patterns relative to their light.

        Raises
        ------
        FailedTogether
            Ranks hold different scales.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = build_network(self.config, probes.shape[-1])
        self.trainable_probe = None
        if self.config.probe_trainable:
            self.trainable_probe = TrainableProbe(
                probes if first_probes is None else first_probes, centre_of_light(probes)
            )
        else:
            # As pairs of reals: DDP sends buffers to all ranks, and not every backend can send
            # complex numbers.
            self.register_buffer(
                "_probes", torch.view_as_real(normalize_probe(probes)), persistent=False
            )
        self.register_buffer("_masks", masks, persistent=False)
        self.register_buffer(
            "_brightness", None if brightness is None else brightness.float(), persistent=False
        )
        self.loss = ScaledPoissonLoss(
            intensity_scale, trainable=self.config.intensity_scale_trainable
        )
        require_same({"intensity_scale": float(self.loss.intensity_scale)})

    @property
    def probes(self) -> Tensor:
        """complex64 (scans, modes, N, N), normalised units, each of the energy (N/2)**2."""
        return (
            torch.view_as_complex(self._probes)
            if self.trainable_probe is None
            else self.trainable_probe()
        )

    def mask(self, samples: Samples) -> Tensor | None:
        """Pixels of a batch that count, bool (B, 1, N, N), or None: all do."""
        return None if self._masks is None else self._masks[samples.scan].unsqueeze(1)

    def forward(self, samples: Samples) -> Tensor:
        """Predicted intensity I_hat, float32 (B, C, N, N), normalised units, at pixels that do not
        count too."""
        with torch.autocast(self.device.type, enabled=False):
            whole_px, rest_px = whole_pixel_and_rest(samples.positions_px)
            probe = shift_probe(self.probes[samples.scan].unsqueeze(1), rest_px)
            if self._brightness is not None:
                probe = probe * self._brightness[samples.scan].view(-1, 1, 1, 1, 1)
            # A trainable probe learns from the light it sheds. A gradient through the network's
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
        self._train_sums += torch.tensor(
            [value * in_micro_batch, in_micro_batch], dtype=torch.float64
        )
        self.log("step_deviance_per_pixel", 2 * value, on_step=True, on_epoch=False, logger=False)
        # Lightning divides by the number of micro-batches; a step is the mean over its pixels that
        # count, however its samples are dealt to those.
        return loss * (self.trainer.accumulate_grad_batches * in_micro_batch / in_step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a gradient that is not finite before it reaches the weights. DDP has averaged it,
        so all ranks see the same one."""
        gradients = {
            name: parameter.grad
            for name, parameter in self.named_parameters()
            if parameter.grad is not None
        }
        if not flat(gradients.values()).isfinite().all():
            name = next(
                name for name, gradient in gradients.items() if not gradient.isfinite().all()
            )
            raise FailedTogether(
                f"the gradient of {name} is not finite at step {self.global_step}; the step was "
                "not taken"
            )
        limit_surprise(optimizer)

    def on_train_epoch_end(self) -> None:
        deviance, num_samples = self._train_sums
        self._train_sums = torch.zeros(2, dtype=torch.float64)
        metrics = {"train_deviance_per_pixel": 2 * float(deviance) / float(num_samples)}
        if self.loss.log_gain is not None:
            metrics["gain"] = float(self.loss.log_gain.detach().exp())
        self.log_dict(metrics, logger=False)
        # To the loggers at once: Lightning would wait until after the epoch's checkpoint, and a run
        # that is killed between the two and resumed would have no row of this epoch.
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step=self.global_step - 1)

    def _refuse_loss(
        self, value: float, predicted: Tensor, x_norm: Tensor, mask: Tensor | None
    ) -> None:
        def refuse_own() -> None:
            own = self.loss.deviance(predicted, x_norm, mask).sum()
            if not torch.isfinite(own):
                raise ValueError(
                    f"the loss is {own.item()} at step {self.global_step} (epoch "
                    f"{self.current_epoch}); the step was not taken"
                )

        run_together(refuse_own)
        raise FailedTogether(
            f"the loss is {value} at step {self.global_step}; the step was not taken"
        )

    def on_validation_epoch_start(self) -> None:
        self._validation_sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, samples: Samples, batch_idx: int) -> None:
        predicted, mask = self(samples), self.mask(samples)
        deviance = self.loss.deviance(predicted, samples.x_norm, mask).sum(dtype=torch.float64)
        nll = self.loss.negative_log_likelihood(predicted, samples.x_norm, mask).sum()
        self._validation_sums += torch.stack(
            [deviance, nll, nll.new_tensor(num_counted(samples.x_norm, mask))]
        )

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
        """Refuse a checkpoint of another scale or subset, whose buffer would replace the one that
        the data gave, or of another start."""
        stored = {"intensity_scale": float(checkpoint["state_dict"]["loss.intensity_scale"])}
        stored["subset_fingerprint"] = checkpoint["hyper_parameters"]["subset_fingerprint"]
        for name, value in stored.items():
            if value != self.hparams[name]:
                raise FailedTogether(
                    f"the checkpoint was trained with {name} {value!r}, the data give "
                    f"{self.hparams[name]!r}: other patterns or nphotons"
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


def limit_surprise(optimizer: torch.optim.Optimizer) -> None:
    """Scale a gradient down where its norm exceeds its usual one, the root of Adam's second
    moments, by more than `LARGEST_SURPRISE`.

    Adam would go ten ordinary steps along a single gradient that is far out of the ordinary, and
    end where no gradient leads back. A fixed limit would depend on the photons; this one has no
    state of its own, so a resumed run goes on with the same bits.
    """
    parameters = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if not all(parameter in optimizer.state for parameter in parameters):
        return  # the first step: nothing is usual yet
    states = [optimizer.state[parameter] for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    beta, step = optimizer.param_groups[0]["betas"][1], states[0]["step"]
    usual_energy = flat(state["exp_avg_sq"] for state in states).sum() / (1 - beta**step)
    shorter = (
        (LARGEST_SURPRISE * (usual_energy / flat(gradients).square().sum()).sqrt())
        .nan_to_num(nan=1.0)
        .clamp_max(1.0)
    )
    for gradient in gradients:
        gradient.mul_(shorter)  # 1 where both are zero


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All their numbers in a row: one operation then serves all weights of a network, where each
    has few."""
    return torch.cat([tensor.flatten() for tensor in tensors])
