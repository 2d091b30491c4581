"""The loss in float32 against the textbook formulas in float64: value and gradient, pixel by pixel,
with a bound for every rounding.

EPSILON is the largest relative error of one float32 rounding. The bounds count roundings along the
way; none is a fitted number.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ptycho_dist import ScaledPoissonLoss
from ptycho_dist.model.loss import RATE_FLOOR, poisson_deviance

EPSILON = 2.0**-24
LIT_BY_FLOAT32 = float(np.float32(RATE_FLOOR))
"""The floor as the float32 arithmetic knows it."""

PHOTONS = st.one_of(
    st.just(0.0), st.integers(1, 1000).map(float), st.floats(0, 9).map(lambda power: 10**power)
)
RATIOS = st.one_of(
    st.just(0.0),
    st.just(1.0),
    st.floats(-8, 8).map(lambda power: 10**power),
    st.floats(-7, 0).map(lambda power: 1 + 10**power),
    st.floats(-7, -0.01).map(lambda power: 1 - 10**power),
)


@st.composite
def pixels(draw: st.DrawFn) -> tuple[float, float]:
    """Rate and counts, float32, up to 1e9: equal, alike to all degrees, far apart, and zero."""
    counts = draw(PHOTONS)
    rate = min(draw(RATIOS) * (counts or 1.0), 1e9)
    return float(np.float32(rate)), float(np.float32(counts))


def lit(rate: np.ndarray) -> np.ndarray:
    return np.maximum(rate, LIT_BY_FLOAT32)


def slope_in_float64(rate: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return 1 - counts / lit(rate)


def deviance_in_float64(rate: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """lambda - k - k log(lambda / k), lambda where k = 0; on its tangent below the floor."""
    lit_rate = lit(rate)
    safe_counts = np.where(counts > 0, counts, 1)
    value = np.where(
        counts > 0, lit_rate - counts - counts * np.log(lit_rate / safe_counts), lit_rate
    )
    return value + (rate - lit_rate) * slope_in_float64(rate, counts)


def rounding_of_deviance(rate: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bound on the float32 error of `poisson_deviance`.

    u = (lambda - k) / k has two roundings and log(1 + u) one and those of its argument; both are
    then taken k times, so 6 of |lambda - k|. Where |u| >= 0.5 the logarithm is a difference of two,
    each rounded to 2 of its size. The product and the tangent add 4 of the result.
    """
    lit_rate, safe_counts = lit(rate), np.where(counts > 0, counts, 1)
    is_far = np.abs(lit_rate - counts) >= 0.49 * counts
    logarithms = np.where(is_far, np.abs(np.log(lit_rate)) + np.abs(np.log(safe_counts)), 0)
    value = np.abs(deviance_in_float64(lit_rate, counts)) + np.abs(
        (rate - lit_rate) * slope_in_float64(rate, counts)
    )
    return EPSILON * (6 * np.abs(lit_rate - counts) + 2 * counts * logarithms + 4 * value)


@given(st.lists(pixels(), min_size=1, max_size=20))
def test_value_of_each_pixel(drawn: list[tuple[float, float]]) -> None:
    rate, counts = np.array(drawn).T
    value = poisson_deviance(
        torch.tensor(rate, dtype=torch.float32), torch.tensor(counts, dtype=torch.float32)
    )
    error = np.abs(value.double().numpy() - deviance_in_float64(rate, counts))
    assert (error <= rounding_of_deviance(rate, counts)).all(), (
        f"rate {rate.tolist()}, counts {counts.tolist()}, error {error.tolist()}"
    )


@given(st.lists(pixels(), min_size=1, max_size=20))
def test_slope_of_each_pixel(drawn: list[tuple[float, float]]) -> None:
    """(lambda - k) / lambda: a subtraction and a division, so two roundings of itself however near
    lambda is to k."""
    rate, counts = np.array(drawn).T
    tensor = torch.tensor(rate, dtype=torch.float32, requires_grad=True)
    poisson_deviance(tensor, torch.tensor(counts, dtype=torch.float32)).sum().backward()
    assert tensor.grad is not None
    # In rational numbers, for 1 - k / lambda would cancel: the difference of two float32 is exact
    # in float64.
    expected = (lit(rate) - counts) / lit(rate)
    np.testing.assert_allclose(tensor.grad.double().numpy(), expected, rtol=2.01 * EPSILON, atol=0)


@given(st.lists(pixels(), min_size=1, max_size=20))
def test_float64_inputs_are_kept_in_float64(drawn: list[tuple[float, float]]) -> None:
    rate, counts = np.array(drawn).T
    value = poisson_deviance(
        torch.tensor(rate, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
    )
    lit_rate = np.maximum(rate, RATE_FLOOR)
    safe_counts = np.where(counts > 0, counts, 1)
    textbook = np.where(
        counts > 0, lit_rate - counts - counts * np.log(lit_rate / safe_counts), lit_rate
    )
    expected = textbook + (rate - lit_rate) * (1 - counts / lit_rate)
    # The reference cancels: each of its terms is rounded to 1.1e-16 of itself, logarithms of up to
    # 28 included.
    np.testing.assert_allclose(
        value.numpy(), expected, rtol=1e-14, atol=1e-14 * counts.max() + 1e-14 * rate.max()
    )


@given(PHOTONS, st.floats(0, RATE_FLOOR), st.floats(0, RATE_FLOOR))
def test_below_the_floor_the_value_is_a_straight_line_that_meets_the_curve(
    counts: float, one: float, other: float
) -> None:
    rate = torch.tensor([one, other, RATE_FLOOR], dtype=torch.float64, requires_grad=True)
    value = poisson_deviance(rate, torch.full((3,), counts, dtype=torch.float64))
    value.sum().backward()
    assert rate.grad is not None
    assert rate.grad.unique().numel() == 1
    assert rate.grad[0].item() == pytest.approx(1 - counts / RATE_FLOOR, rel=1e-14, abs=1e-14)
    fallen = (value[:2] - value[2]).tolist()
    expected = [(place - RATE_FLOOR) * (1 - counts / RATE_FLOOR) for place in (one, other)]
    # the difference cancels
    assert fallen == pytest.approx(expected, rel=1e-12, abs=1e-13 * max(1.0, abs(value[2].item())))


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    """I_hat and X_norm, float32 (B, C, N, N), and s, for 1e3 to 1e9 photons a pattern; pixels
    without photons and without prediction."""
    nphotons = 10 ** draw(st.floats(3, 9))
    shape = draw(
        st.tuples(
            st.integers(1, 3),
            st.integers(1, 3),
            *[st.shared(st.sampled_from([4, 8, 16]), key="N")] * 2,
        )
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # of the pattern: how much brighter its centre is than its rim
    contrast = draw(st.floats(0.1, 4))
    mistake = 10 ** draw(st.floats(-6, 0.5))  # of the prediction, relative
    intensity = random.lognormal(0, contrast, shape)
    intensity *= (shape[-1] / 2) ** 2 / intensity.sum(axis=(-2, -1)).mean()
    scale = math.sqrt(nphotons) / (shape[-1] / 2)
    counts = random.poisson(scale**2 * intensity).astype(np.float64)
    prediction = np.where(counts > 0, counts / scale**2, intensity) * np.exp(
        mistake * random.normal(size=shape)
    )
    counts[random.uniform(size=shape) < draw(st.sampled_from([0, 0.1, 1]))] = 0
    prediction[random.uniform(size=shape) < draw(st.sampled_from([0, 0.1, 1]))] = 0
    return prediction.astype(np.float32), np.sqrt(counts / scale**2).astype(np.float32), scale


ALL_DARK = np.zeros((1, 1, 4, 4), dtype=np.float32)


@given(batches())
@example((ALL_DARK, ALL_DARK, 1e3))
@example((ALL_DARK, ALL_DARK + 1, 1e4))
def test_loss_and_gradient_of_a_batch(batch: tuple[np.ndarray, np.ndarray, float]) -> None:
    prediction, x_norm, scale = batch
    predicted_intensity = torch.from_numpy(prediction).requires_grad_()
    loss = ScaledPoissonLoss(scale)(predicted_intensity, torch.from_numpy(x_norm))
    loss.backward()

    rate = scale**2 * prediction.astype(np.float64)
    counts = (scale * x_norm.astype(np.float64)) ** 2
    # s**2 and its product with I_hat are rounded once each; s, s X_norm (both squared) and the
    # square: five times. d changes by (1 - k / lambda) with lambda and by log(k / lambda) with k.
    rate_error, counts_error = 2 * EPSILON * rate, 5 * EPSILON * counts
    slope = slope_in_float64(rate, counts)
    slope_in_counts = np.log(np.where(counts > 0, counts, 1) / lit(rate)) * (counts > 0) + (
        rate - lit(rate)
    ) / lit(rate)
    steepest = np.abs(slope) + rate_error * counts / lit(rate) ** 2
    bound = (
        rounding_of_deviance(rate, counts)
        + rate_error * steepest
        + counts_error * (np.abs(slope_in_counts) + 10 * EPSILON)
    )
    assert abs(loss.item() - deviance_in_float64(rate, counts).mean()) <= 1.01 * bound.mean()

    # The slope's own roundings and the factors s**2 and 1 / (pixels) are five; those of lambda and
    # k move it by k / lambda.
    assert predicted_intensity.grad is not None
    gradient = scale**2 / counts.size * slope
    gradient_bound = (
        EPSILON * scale**2 / counts.size * (5 * np.abs(slope) + 1.01 * 7 * counts / lit(rate))
    )
    error = np.abs(predicted_intensity.grad.double().numpy() - gradient)
    assert (error <= gradient_bound).all()


@given(batches())
def test_dark_field_has_a_finite_gradient(batch: tuple[np.ndarray, np.ndarray, float]) -> None:
    """The gradient reaches a network through a field whose square is the prediction; where it is
    zero nothing may become NaN."""
    prediction, x_norm, scale = batch
    field = torch.from_numpy(
        np.sqrt(prediction) * (np.arange(prediction.size).reshape(prediction.shape) % 2)
    ).requires_grad_()
    loss = ScaledPoissonLoss(scale, trainable=True)
    value = loss(field.square(), torch.from_numpy(x_norm))
    value.backward()
    assert math.isfinite(value.item())
    assert field.grad is not None
    assert torch.isfinite(field.grad).all()
    assert loss.log_gain is not None
    assert loss.log_gain.grad is not None
    assert torch.isfinite(loss.log_gain.grad)


@given(batches(), st.integers(0, 2**32 - 1))
def test_empty_batches_and_the_order_of_pixels_change_nothing(
    batch: tuple[np.ndarray, np.ndarray, float], seed: int
) -> None:
    prediction, x_norm, scale = (
        torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in batch
    )
    loss = ScaledPoissonLoss(scale)
    order = torch.randperm(prediction.numel(), generator=torch.Generator().manual_seed(seed))
    shuffled = loss(prediction.flatten()[order], x_norm.flatten()[order])
    # Float64 sums of at most 2304 terms that are all positive but for roundings, in another order.
    torch.testing.assert_close(shuffled, loss(prediction, x_norm), rtol=1e-12, atol=1e-12)
