"""One training step: patterns to patches, patches to photons, photons to the loss."""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor

from ptycho_dist.config import ModelConfig
from ptycho_dist.distributed import FailedTogether, require_same, sum_floats
from ptycho_dist.model.autoencoder import PtychoAutoencoder
from ptycho_dist.model.loss import ScaledPoissonLoss
from ptycho_dist.physics.patches import merge_patches
from ptycho_dist.physics.probe import illumination, normalize_probe, shift_probe, whole_pixel_and_rest
from ptycho_dist.physics.propagation import diffracted_intensity
from ptycho_dist.scale.intensity_scale import IntensityScale


class Samples(Protocol):
    """A batch of B groups of C patterns: `x_norm` float32 (B, C, N, N), `positions_px` (B, C, 2) as (y, x), `scan` int64 (B,)."""

    x_norm: Tensor
    positions_px: Tensor
    scan: Tensor


class PtychographyModule(L.LightningModule):
    """Network, physics and scaled Poisson loss.

    What only the data can tell is given by `build`, before the process group's ranks are wrapped in DDP.

    Parameters
    ----------
    config
        Network and loss.
    learning_rate
        Of Adam, until a schedule changes it.
    """

    network: PtychoAutoencoder
    probes: Tensor
    loss: ScaledPoissonLoss

    def __init__(self, config: ModelConfig, *, learning_rate: float) -> None:
        super().__init__()
        self.config = config
        self.learning_rate = learning_rate

    def build(self, probes: Tensor, intensity_scale: IntensityScale, *, seed: int) -> None:
        """Make network and loss.

        Parameters
        ----------
        probes
            One probe a scan, complex64 (scans, modes, N, N), in any units.
        intensity_scale
            The dataset's s; every rank must hold the same bits.
        seed
            Of the network's first weights.

        Raises
        ------
        FailedTogether
            Ranks hold different scales.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = PtychoAutoencoder(pattern_size=probes.shape[-1], base_width=self.config.base_width)
        self.register_buffer("probes", normalize_probe(probes), persistent=False)
        self.loss = ScaledPoissonLoss(intensity_scale, trainable=self.config.intensity_scale_trainable)
        require_same({"intensity_scale": float(self.loss.intensity_scale)})

    def forward(self, samples: Samples) -> Tensor:
        """Predicted intensity I_hat, float32 (B, C, N, N), normalised units."""
        with torch.autocast(self.device.type, enabled=False):
            whole_px, rest_px = whole_pixel_and_rest(samples.positions_px)
            probe = shift_probe(self.probes[samples.scan].unsqueeze(1), rest_px)
        patches = self.network(samples.x_norm, probe)
        with torch.autocast(self.device.type, enabled=False):
            if patches.shape[1] > 1:
                patches = merge_patches(patches, illumination(probe), whole_px)
            return diffracted_intensity(patches, probe)

    def training_step(self, samples: Samples, batch_idx: int) -> Tensor:
        loss = self.loss(self(samples), samples.x_norm)
        if not torch.isfinite(loss):  # the same on every rank, so all of them stop here
            raise FailedTogether(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}); try a lower learning rate"
            )
        num_pixels = samples.x_norm.numel()
        self._train_sums += torch.tensor([loss.item() * num_pixels, num_pixels], dtype=torch.float64)
        self.log("step_deviance_per_pixel", 2 * loss.detach(), on_step=True, on_epoch=False)
        return loss

    def on_train_epoch_start(self) -> None:
        self._train_sums = torch.zeros(2, dtype=torch.float64)

    def on_train_epoch_end(self) -> None:
        deviance, num_pixels = sum_floats(self._train_sums)
        self.log("train_deviance_per_pixel", 2 * deviance / num_pixels)
        if self.loss.log_gain is not None:
            self.log("gain", self.loss.log_gain.detach().exp())

    def on_validation_epoch_start(self) -> None:
        self._validation_sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, samples: Samples, batch_idx: int) -> None:
        predicted = self(samples)
        deviance = self.loss.deviance(predicted, samples.x_norm).sum(dtype=torch.float64)
        nll = self.loss.negative_log_likelihood(predicted, samples.x_norm).sum()
        self._validation_sums += torch.stack([deviance, nll, nll.new_tensor(samples.x_norm.numel())])

    def on_validation_epoch_end(self) -> None:
        deviance, nll, num_pixels = sum_floats(self._validation_sums)
        self.log_dict({"val_deviance_per_pixel": 2 * deviance / num_pixels, "val_nll": nll / num_pixels})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another scale: its buffer would replace the one that the data gave."""
        stored = float(checkpoint["state_dict"]["loss.intensity_scale"])
        derived = float(self.loss.intensity_scale)
        if stored != derived:
            raise FailedTogether(
                f"the checkpoint was trained with intensity_scale {stored!r}, the data give {derived!r}: other patterns or another nphotons"
            )
