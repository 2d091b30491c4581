"""The scaled Poisson loss against float64 references, and its gradient over several ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ptycho_dist import ScaledPoissonLoss
from ptycho_dist.model.loss import RATE_FLOOR, poisson_deviance
from ptycho_dist.scale.intensity_scale import IntensityScale

SCALE = 20.741162320055597


def prediction_and_measurement(
    nphotons: float, *, seed: int = 0, shape: tuple[int, ...] = (6, 32, 32)
) -> tuple[Tensor, Tensor, float]:
    """I_hat and X_norm, float32, of a pattern with a bright centre and empty pixels, and the scale
    that gives it nphotons."""
    random = np.random.default_rng(seed)
    y, x = np.indices(shape[-2:]) - shape[-1] / 2
    envelope = np.exp(-np.hypot(y, x) / 3)
    energy = (shape[-1] / 2) ** 2
    intensity = random.exponential(size=shape) * envelope
    intensity *= energy / intensity.sum(axis=(-2, -1)).mean()
    scale = math.sqrt(nphotons / energy)
    counts = random.poisson(scale**2 * intensity)
    prediction = intensity * random.uniform(0.8, 1.2, shape)
    return (
        torch.from_numpy(prediction).float(),
        torch.from_numpy(np.sqrt(counts) / scale).float(),
        scale,
    )


def deviance_in_float64(rate: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """rate - k - k log(rate / k), `rate` where k = 0; on its tangent below the floor."""
    lit = np.maximum(rate, RATE_FLOOR)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(counts > 0, lit - counts - counts * np.log(lit / counts), lit)
    return value + (rate - lit) * (1 - counts / lit)


@pytest.mark.parametrize("nphotons", [1e3, 1e6, 1e9])
def test_value_and_gradient_equal_float64(nphotons: float) -> None:
    prediction, x_norm, scale = prediction_and_measurement(nphotons)
    prediction.requires_grad_()
    loss = ScaledPoissonLoss(scale)(prediction, x_norm)
    loss.backward()

    rate = scale**2 * prediction.detach().double().numpy()
    counts = (scale * x_norm.double().numpy()) ** 2
    expected = deviance_in_float64(rate, counts).mean()
    gradient = scale**2 * (1 - counts / np.maximum(rate, RATE_FLOOR)) / counts.size
    # rate and counts are float32 products, 6e-8 each, and d ~ (rate - counts)**2 / 2 counts
    # amplifies that by about 2 counts / |rate - counts| ~ 20 for predictions that are 10 % off.
    assert loss.item() == pytest.approx(expected, rel=3e-6)
    np.testing.assert_allclose(
        prediction.grad.double().numpy(), gradient, rtol=0, atol=3e-6 * np.abs(gradient).max()
    )


def test_photons_of_a_billion_keep_their_digits() -> None:
    """At 1e9 counts in a pixel, predicted to a thousandth, the textbook form loses all but its
    first digit in float32."""
    counts = torch.full((1000,), 1e9)
    rate = counts * (1 + torch.linspace(1e-3, 2e-3, 1000))
    expected = deviance_in_float64(rate.double().numpy(), counts.double().numpy())
    np.testing.assert_allclose(
        poisson_deviance(rate, counts).numpy(), expected, rtol=3e-4
    )  # u - log(1 + u) is 5e-7 of terms 1e-3 that hold 6e-8
    textbook = (rate - counts - counts * torch.log(rate / counts)).numpy()
    assert np.abs(textbook / expected - 1).max() > 1e-2


def test_rate_far_below_the_counts() -> None:
    rate, counts = torch.tensor([1e-2, 1.0, 1e3]), torch.tensor([1e7, 1e9, 1e9])
    expected = deviance_in_float64(rate.double().numpy(), counts.double().numpy())
    # float32 rounding of the result
    np.testing.assert_allclose(poisson_deviance(rate, counts).numpy(), expected, rtol=1e-6)


def test_dark_pixels_have_finite_value_and_slope() -> None:
    # zero field: rate 0, also where photons were counted
    field = torch.zeros(4, requires_grad=True)
    counts = torch.tensor([0.0, 1.0, 100.0, 1e-42])
    deviance = poisson_deviance(field.square(), counts)
    deviance.sum().backward()
    assert torch.isfinite(deviance).all()
    assert torch.isfinite(field.grad).all()
    assert deviance[0] == 0
    rate = torch.tensor(
        [0.0, 0.5 * RATE_FLOOR, 2 * RATE_FLOOR], dtype=torch.float64, requires_grad=True
    )
    poisson_deviance(rate, torch.ones(3, dtype=torch.float64)).sum().backward()
    # tangent below the floor: 1 - k / floor; the exact slope above
    assert rate.grad.tolist() == pytest.approx(
        [1 - 1 / RATE_FLOOR, 1 - 1 / RATE_FLOOR, 1 - 0.5 / RATE_FLOOR], rel=1e-12
    )


def test_explicit_derivative_is_that_of_the_value() -> None:
    random = np.random.default_rng(0)
    counts = torch.from_numpy(random.poisson(3, 50).astype(float))
    rate = torch.from_numpy(random.uniform(0.1, 10, 50)).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: poisson_deviance(r, counts), rate)


def test_deviance_is_least_where_prediction_equals_measurement() -> None:
    x_norm = torch.rand(2, 8, 8) + 0.1
    loss = ScaledPoissonLoss(SCALE)
    at_the_truth = loss(x_norm.square(), x_norm)
    assert at_the_truth == pytest.approx(0, abs=1e-6)  # k phi(u) with |u| <= 1e-7: below 1e-12 k
    assert loss(1.01 * x_norm.square(), x_norm) > at_the_truth
    assert loss(0.99 * x_norm.square(), x_norm) > at_the_truth


def test_deviance_per_pixel_is_one_at_shot_noise() -> None:
    prediction, _, _ = prediction_and_measurement(1e9)
    scale = 1e3
    rate = scale**2 * prediction.double().clamp_min(1e-3)
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(0))
    x_norm = counts.sqrt() / scale
    deviance = 2 * ScaledPoissonLoss(scale).deviance(rate / scale**2, x_norm).mean()
    # 2 d follows chi-square with one degree of freedom: mean 1, variance 2; 6144 pixels, four
    # standard errors.
    assert deviance.item() == pytest.approx(1, abs=4 * math.sqrt(2 / rate.numel()))


def test_reported_nll_is_lambda_minus_k_log_lambda() -> None:
    prediction, x_norm, scale = prediction_and_measurement(1e6)
    prediction.clamp_min_(1e-4)
    rate = scale**2 * prediction.double()
    expected = rate - (scale * x_norm.double()) ** 2 * rate.log()
    reported = ScaledPoissonLoss(scale).negative_log_likelihood(prediction, x_norm)
    # counts and rate are float32 products
    torch.testing.assert_close(reported, expected, rtol=1e-5, atol=1e-4)


def test_scale_is_a_float64_buffer_and_travels_in_the_state() -> None:
    loss = ScaledPoissonLoss(
        IntensityScale(value=SCALE, nphotons=1.0, mean_energy=1.0, num_patterns=1)
    )
    assert dict(loss.named_buffers())["intensity_scale"].dtype == torch.float64
    other = ScaledPoissonLoss(math.nan)
    assert math.isnan(other.intensity_scale)
    other.load_state_dict(loss.state_dict())
    assert other.intensity_scale.item() == SCALE  # every bit


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf])
def test_impossible_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"intensity_scale is .* expected a positive number"):
        ScaledPoissonLoss(scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_scale_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="use bf16-mixed or 32"):
        ScaledPoissonLoss(SCALE).to(dtype)(torch.ones(1, 2, 2), torch.ones(1, 2, 2))


def test_other_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).*\(3, 2, 2\)"):
        ScaledPoissonLoss(SCALE)(torch.ones(1, 2, 2), torch.ones(3, 2, 2))


def test_autocast_does_not_lower_the_precision() -> None:
    prediction, x_norm, scale = prediction_and_measurement(1e6)
    loss = ScaledPoissonLoss(scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(prediction, x_norm).item() == loss(prediction, x_norm).item()
        inside = loss(prediction, x_norm)
    assert inside.item() == loss(prediction, x_norm).item()


def test_trainable_factor_starts_at_one_and_acts_on_the_prediction_only() -> None:
    prediction, x_norm, scale = prediction_and_measurement(1e6)
    fixed, trainable = ScaledPoissonLoss(scale), ScaledPoissonLoss(scale, trainable=True)
    assert trainable(prediction, x_norm).item() == fixed(prediction, x_norm).item()
    with torch.no_grad():
        trainable.log_gain.fill_(math.log(2))
    torch.testing.assert_close(
        trainable.predicted_counts(prediction), 4 * fixed.predicted_counts(prediction)
    )
    assert torch.equal(trainable.observed_counts(x_norm), fixed.observed_counts(x_norm))
    assert list(fixed.parameters()) == []


def test_optimiser_moves_the_trainable_factor_to_the_missing_light() -> None:
    _, x_norm, scale = prediction_and_measurement(1e6)
    prediction = x_norm.square() / 1.5**2  # too dark by 1.5 in amplitude
    loss = ScaledPoissonLoss(scale, trainable=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss(prediction, x_norm).backward()
        optimizer.step()
    assert loss.log_gain.exp().item() == pytest.approx(1.5, rel=1e-2)  # Adam's last steps


class OnePixelModel(nn.Module):
    """A stand-in for anybody's network: predicted intensity = weight**2 * input, with the loss
    inside, as DDP wants it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
        self.loss = ScaledPoissonLoss(scale, trainable=True)

    def forward(self, intensity: Tensor, x_norm: Tensor, mask: Tensor | None) -> Tensor:
        return self.loss(self.weight**2 * intensity, x_norm, mask)


def ddp_loss_and_gradients(
    parts: list[tuple[int, int]], masks: Tensor | None = None
) -> tuple[float, list[float]]:
    prediction, x_norm, scale = prediction_and_measurement(1e5)
    model: Any = OnePixelModel(scale)
    if dist.is_initialized():
        start, stop = parts[dist.get_rank()]
        model = nn.parallel.DistributedDataParallel(model)
    else:
        start, stop = 0, len(x_norm)
    loss = model(
        prediction[start:stop], x_norm[start:stop], None if masks is None else masks[start:stop]
    )
    loss.backward()
    return loss.item(), [parameter.grad.item() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "parts",
    [[(0, 3), (3, 6)], [(0, 1), (1, 6)], [(0, 6), (6, 6)], [(0, 2), (2, 3), (3, 6)]],
    ids=["even", "uneven", "empty", "three"],
)
def test_loss_and_gradient_are_those_of_one_process_on_the_union(
    on_ranks, parts: list[tuple[int, int]]
) -> None:
    loss, gradients = ddp_loss_and_gradients(parts)
    for rank_loss, rank_gradients in on_ranks(len(parts), ddp_loss_and_gradients, parts):
        assert rank_loss == pytest.approx(loss, rel=1e-12)  # float64 sums in another order
        # The gain is a float32 parameter: its gradient is rounded to 6e-8 on each rank and
        # averaged.
        assert rank_gradients == pytest.approx(gradients, rel=1e-6)


def some_masks() -> Tensor:
    """One a pattern, bool (6, 32, 32); the first lets everything count, the second little."""
    parts = torch.tensor([1.0, 0.05, 0.5, 0.9, 0.97, 0.7])[:, None, None]
    return torch.rand(6, 32, 32, generator=torch.Generator().manual_seed(1)) < parts


@pytest.mark.parametrize("one_for_all", [False, True])
@pytest.mark.parametrize("nphotons", [1e3, 1e9])
def test_masked_value_and_gradient_equal_float64(nphotons: float, one_for_all: bool) -> None:
    prediction, x_norm, scale = prediction_and_measurement(nphotons)
    prediction.requires_grad_()
    mask = some_masks()[3] if one_for_all else some_masks()
    counted = mask.expand(6, 32, 32).numpy()
    module = ScaledPoissonLoss(scale)
    loss = module(prediction, x_norm, mask)
    loss.backward()

    rate = scale**2 * prediction.detach().double().numpy()
    counts = (scale * x_norm.double().numpy()) ** 2
    expected = deviance_in_float64(rate[counted], counts[counted]).sum() / counted.sum()
    gradient = np.where(
        counted, scale**2 * (1 - counts / np.maximum(rate, RATE_FLOOR)) / counted.sum(), 0
    )
    assert loss.item() == pytest.approx(expected, rel=3e-6)  # as without a mask
    np.testing.assert_allclose(
        prediction.grad.double().numpy(), gradient, rtol=0, atol=3e-6 * np.abs(gradient).max()
    )
    assert np.all(prediction.grad.numpy()[~counted] == 0)
    deviance, nll = (
        of_pixel(prediction, x_norm, mask)
        for of_pixel in (module.deviance, module.negative_log_likelihood)
    )
    assert torch.equal(deviance[counted], module.deviance(prediction, x_norm)[counted])
    assert torch.equal(nll[counted], module.negative_log_likelihood(prediction, x_norm)[counted])
    assert not deviance[~counted].any()
    assert not nll[~counted].any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1.0, 4e9])
def test_what_masked_pixels_hold_does_not_matter(garbage: float) -> None:
    """On either side, alone and on both: the same bits of loss and gradients, the gain's too."""
    prediction, x_norm, scale = prediction_and_measurement(1e5)
    mask = some_masks()
    found = []
    for spoilt in ((), (0,), (1,), (0, 1)):
        sides = [
            torch.where(mask, side, garbage) if number in spoilt else side
            for number, side in enumerate((prediction, x_norm))
        ]
        module = ScaledPoissonLoss(scale, trainable=True)
        sides[0] = sides[0].clone().requires_grad_()
        loss = module(sides[0], sides[1], mask)
        loss.backward()
        nll = module.negative_log_likelihood(sides[0], sides[1], mask)
        found.append((loss.detach(), sides[0].grad, module.log_gain.grad, nll))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
    assert all(torch.isfinite(one).all() for one in found[0])


def test_mask_that_lets_everything_count_changes_no_bit() -> None:
    prediction, x_norm, scale = prediction_and_measurement(1e6)
    prediction.requires_grad_()
    module, found = ScaledPoissonLoss(scale), []
    for mask in (None, torch.ones(32, 32, dtype=torch.bool)):
        loss = module(prediction, x_norm, mask)
        found.append((loss.detach(), *torch.autograd.grad(loss, prediction)))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_no_pixel_that_counts_gives_zero() -> None:
    prediction = torch.ones(2, 4, 4, requires_grad=True)
    loss = ScaledPoissonLoss(SCALE)(
        prediction, torch.ones(2, 4, 4), torch.zeros(4, 4, dtype=torch.bool)
    )
    loss.backward()
    assert loss == 0
    assert not prediction.grad.any()


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.ones(4, 4), r"torch.float32 \(4, 4\)"),
        (torch.ones(4, 5, dtype=torch.bool), r"torch.bool \(4, 5\)"),
        (torch.ones(3, 2, 4, 4, dtype=torch.bool), r"torch.bool \(3, 2, 4, 4\)"),
    ],
)
def test_mask_that_does_not_fit_is_refused(mask: Tensor, found: str) -> None:
    with pytest.raises(
        ValueError, match=rf"mask is {found}, expected bool that broadcasts to \(2, 4, 4\)"
    ):
        ScaledPoissonLoss(SCALE)(torch.ones(2, 4, 4), torch.ones(2, 4, 4), mask)


def test_masked_loss_and_gradient_are_those_of_one_process_on_the_union(on_ranks) -> None:
    """Pixels are counted over all ranks: the patterns' masks leave from 5 % to all of them, and one
    rank has no pattern."""
    loss, gradients = ddp_loss_and_gradients([], some_masks())
    prediction, x_norm, scale = prediction_and_measurement(1e5)
    counted = some_masks().numpy()
    rate, counts = (
        1.3**2 * scale**2 * prediction.double().numpy(),
        (scale * x_norm.double().numpy()) ** 2,
    )
    assert loss == pytest.approx(
        deviance_in_float64(rate[counted], counts[counted]).sum() / counted.sum(), rel=3e-6
    )
    for parts in ([(0, 2), (2, 6)], [(0, 1), (1, 1), (1, 6)]):
        for rank_loss, rank_gradients in on_ranks(
            len(parts), ddp_loss_and_gradients, parts, some_masks()
        ):
            assert rank_loss == pytest.approx(loss, rel=1e-12)  # float64 sums in another order
            # of a float32 parameter, as above
            assert rank_gradients == pytest.approx(gradients, rel=1e-6)
