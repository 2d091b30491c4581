"""The scaled Poisson loss: photons predicted against photons measured::

    lambda = (s g)**2 * I_hat       predicted counts; g = exp(w) is the optional trainable factor
    k      = (s X_norm)**2          observed counts
    d      = lambda - k - k * log(lambda / k),      lambda where k = 0

d is the Poisson negative log-likelihood less its minimum, so its gradient is the likelihood's and
nothing cancels at 1e9 photons; 2 d is the deviance (McCullagh & Nelder, Generalized Linear Models,
section 2.3). The scale s acts here and nowhere else in training.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ptycho_dist.distributed import mean_over_ranks
from ptycho_dist.physics.mask import masked, num_counted
from ptycho_dist.scale.intensity_scale import IntensityScale

RATE_FLOOR = 1e-3
"""Predicted counts a pixel below which the likelihood goes on along its tangent, so that a dark
pixel's value and slope stay finite."""


class Loss(Protocol):
    """Interface that a training step needs of its loss.

    `metric` names what `reported` makes of the minimised value, for metrics and figures. Validation
    always reports the Poisson deviance, by which runs with different losses can be compared.
    """

    metric: str
    intensity_scale: Tensor
    log_gain: nn.Parameter | None

    def __call__(self, predicted: Tensor, x_norm: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def reported(self, value: float) -> float: ...

    def deviance(self, predicted: Tensor, x_norm: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def negative_log_likelihood(
        self, predicted: Tensor, x_norm: Tensor, mask: Tensor | None = None
    ) -> Tensor: ...


class LossFactory(Protocol):
    """Makes a loss from the intensity scale: a class such as `ScaledPoissonLoss`."""

    def __call__(self, intensity_scale: float, *, trainable: bool) -> Loss: ...


class ScaledPoissonLoss(nn.Module):
    """Mean Poisson deviance in photon counts, for any DDP model.

    A collective where a process group is up. A subclass with another `forward` names what it
    reports by a `metric` of its own.

    Parameters
    ----------
    intensity_scale
        s, as `derive_intensity_scale` gives it; NaN until it is known (see `set_intensity_scale`).
        Kept as a float64 buffer.
    trainable
        Multiply the predicted amplitude by a trainable g = exp(w), exactly 1 at the start. It acts
        on the prediction only: on both sides the likelihood would fall to zero with g.
    """

    metric = "deviance_per_pixel"
    intensity_scale: Tensor

    def __init_subclass__(cls) -> None:
        if "forward" in vars(cls) and not {"metric", "reported"} <= vars(cls).keys():
            raise TypeError(f"{cls.__name__} has its own forward: give it a metric and reported()")

    def __init__(self, intensity_scale: float | IntensityScale, *, trainable: bool = False) -> None:
        super().__init__()
        self.register_buffer("intensity_scale", torch.tensor(math.nan, dtype=torch.float64))
        self.log_gain = nn.Parameter(torch.zeros(())) if trainable else None
        if isinstance(intensity_scale, IntensityScale):
            intensity_scale = intensity_scale.value
        value = float(intensity_scale)
        if not math.isnan(value):
            self.set_intensity_scale(value)

    def set_intensity_scale(self, value: float) -> None:
        """Fill the buffer with the dataset's scale."""
        if not 0 < value < math.inf:
            raise ValueError(f"intensity_scale is {value!r}, expected a positive number")
        self.intensity_scale.fill_(value)

    def reported(self, value: float) -> float:
        """Return the deviance per pixel, twice the loss."""
        return 2 * value

    def forward(
        self, predicted_intensity: Tensor, x_norm: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mean of d over the pixels that count, of all patterns of the global batch.

        Parameters
        ----------
        predicted_intensity
            I_hat, real (..., N, N), normalised units.
        x_norm
            Normalised amplitudes, same shape. A rank's batch may be of another size than the
            others', or empty.
        mask
            bool, broadcasts to `x_norm`, e.g. (N, N), or (B, 1, N, N) where patterns have different
            masks: True where a pixel counts; None: all do. What either side holds at the others,
            NaN too, neither counts nor spreads, and the gradient is zero there.

        Returns
        -------
        Tensor
            float64 scalar, the same on every rank. After DDP's averaging its gradient is that of
            one process on the union of all batches.
        """
        deviance = self.deviance(predicted_intensity, x_norm, mask).sum(dtype=torch.float64)
        return mean_over_ranks(deviance, num_counted(x_norm, mask))

    def deviance(
        self, predicted_intensity: Tensor, x_norm: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """d of each pixel, counts, 0 at pixels that do not count; no collective. Twice its mean
        over the others is the deviance a pixel."""
        if predicted_intensity.shape != x_norm.shape:
            raise ValueError(
                f"predicted_intensity has the shape {tuple(predicted_intensity.shape)}, x_norm "
                f"{tuple(x_norm.shape)}; expected equal shapes"
            )
        if mask is not None and not (
            mask.dtype == torch.bool and _broadcasts(mask.shape, x_norm.shape)
        ):
            raise ValueError(
                f"mask is {mask.dtype} {tuple(mask.shape)}, expected bool that broadcasts to "
                f"{tuple(x_norm.shape)}"
            )
        return poisson_deviance(
            self.predicted_counts(masked(predicted_intensity, mask)),
            self.observed_counts(masked(x_norm, mask)),
        )

    def negative_log_likelihood(
        self, predicted_intensity: Tensor, x_norm: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return lambda - k log(lambda) of each pixel, float64, without gradient, 0 where masked.

        This is TensorFlow's `log_poisson_loss`.
        """
        with torch.no_grad():
            rate = self.predicted_counts(masked(predicted_intensity, mask)).double()
            counts = self.observed_counts(masked(x_norm, mask)).double()
            return rate - counts * rate.clamp_min(RATE_FLOOR).log()

    def predicted_counts(self, predicted_intensity: Tensor) -> Tensor:
        """Return (s g)**2 I_hat in at least float32, whatever the autocast."""
        amplitude = self._checked_scale()
        if self.log_gain is not None:
            amplitude = amplitude * self.log_gain.exp()
        return amplitude.square() * _at_least_float32(predicted_intensity)

    def observed_counts(self, x_norm: Tensor) -> Tensor:
        """Return (s X_norm)**2 in at least float32."""
        return (self._checked_scale() * _at_least_float32(x_norm)).square()

    def _checked_scale(self) -> Tensor:
        if self.intensity_scale.dtype != torch.float64:
            raise ValueError(
                f"the intensity scale was rounded to {self.intensity_scale.dtype}: a '*-true' "
                "precision converts buffers; use bf16-mixed or 32"
            )
        return self.intensity_scale


def poisson_deviance(rate: Tensor, counts: Tensor) -> Tensor:
    """d = rate - counts - counts * log(rate / counts) of each pixel, `rate` where counts = 0;
    differentiable in `rate`.

    Below `RATE_FLOOR` it goes on along its tangent there.
    """
    return _PoissonDeviance.apply(rate, counts)


class _PoissonDeviance(torch.autograd.Function):
    """Explicit derivative: (rate - counts) / rate keeps its digits, which the derivative of the
    stable forward form does not."""

    @staticmethod
    def forward(ctx: Any, rate: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(rate, counts)
        lit_rate = rate.clamp_min(RATE_FLOOR)
        is_dark = counts < torch.finfo(counts.dtype).tiny  # no photon; k log k is zero there
        safe_counts = torch.where(is_dark, 1.0, counts)
        # counts * phi(u) with phi(u) = u - log(1 + u): 3e-7 relative in float32 at 1e9 counts,
        # where rate - counts + ... loses all.
        u = (lit_rate - safe_counts) / safe_counts
        log_ratio = torch.where(
            u.abs() < 0.5, torch.log1p(u), torch.log(lit_rate) - torch.log(safe_counts)
        )
        deviance = torch.where(is_dark, lit_rate, safe_counts * (u - log_ratio))
        return deviance + (rate - lit_rate) * _slope(lit_rate, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rate, counts = ctx.saved_tensors
        return gradient * _slope(rate.clamp_min(RATE_FLOOR), counts), None


def _slope(lit_rate: Tensor, counts: Tensor) -> Tensor:
    return (lit_rate - counts) / lit_rate


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(
        side in (1, wanted) for side, wanted in zip(reversed(shape), reversed(to), strict=False)
    )


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
