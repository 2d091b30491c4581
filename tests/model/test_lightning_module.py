"""What happens to a gradient before a step is taken with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_dist.model.lightning_module import LARGEST_SURPRISE, limit_surprise


def steps_with(gradients: list[np.ndarray]) -> tuple[torch.Tensor, torch.optim.Adam, list[np.ndarray]]:
    """Two parameters after Adam steps with given gradients of both, and the gradients that the steps were taken with."""
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 1))]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    taken = []
    for gradient in gradients:
        parameters[0].grad = torch.tensor(gradient[:3], dtype=torch.float32)
        parameters[1].grad = torch.tensor(gradient[3:, None], dtype=torch.float32)
        limit_surprise(optimizer)
        taken.append(np.concatenate([parameter.grad.numpy().ravel() for parameter in parameters]))
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters]), optimizer, taken


def test_ordinary_gradients_are_left_alone() -> None:
    gradients = [direction / np.linalg.norm(direction) for direction in np.random.default_rng(0).normal(size=(20, 5))]
    _, _, taken = steps_with(gradients)
    np.testing.assert_array_equal(taken, np.float32(gradients))


@pytest.mark.parametrize("photons", [1.0, 1e9])
def test_a_gradient_out_of_the_ordinary_is_shortened_to_the_limit_whatever_the_photons(photons: float) -> None:
    ordinary, out_of_it = photons * np.array([1.0, -2.0, 0.5, 1.0, 0.0]), photons * np.array([3e4, 1e4, -2e4, 0.0, 1e4])
    _, _, taken = steps_with([ordinary] * 10 + [out_of_it])
    # Of equal gradients the root of the second moments, corrected for their start, is the gradient itself.
    expected = out_of_it * LARGEST_SURPRISE * np.linalg.norm(ordinary) / np.linalg.norm(out_of_it)
    np.testing.assert_allclose(taken[-1], expected, rtol=1e-5)  # float32
    np.testing.assert_array_equal(taken[-2], np.float32(ordinary))


def test_one_such_gradient_does_not_carry_the_weights_away() -> None:
    """Adam alone goes on along it for many steps."""
    ordinary = [np.full(5, sign * 1.0) for sign in (1, -1) * 10]
    weights, *_ = steps_with([*ordinary, np.full(5, 1e5), *ordinary])
    assert weights.abs().max() < 5 * 0.01  # five ordinary steps; without the limit seven, and up to thirty after a longer run


def test_zero_gradients_stay_zero() -> None:
    _, _, taken = steps_with([np.zeros(5)] * 3)
    np.testing.assert_array_equal(taken, np.zeros((3, 5)))
