"""What counts in a step, and what happens to its gradient before it is taken."""

from __future__ import annotations

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import xlogy

from ptycho_dist.config import ModelConfig
from ptycho_dist.data.batches import Samples
from ptycho_dist.data.sampler import GlobalBatchSampler
from ptycho_dist.model.corrections import MOST_CORRECTIONS
from ptycho_dist.model.gradients import LARGEST_SURPRISE, limit_surprise
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.model.loss import RATE_FLOOR
from tests.calibrations import made_up_calibration

N = 16


def steps_with(
    gradients: list[np.ndarray],
) -> tuple[torch.Tensor, torch.optim.Adam, list[np.ndarray]]:
    """Two parameters after Adam steps with given gradients of both, and the gradients that the
    steps were taken with."""
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
    gradients = [
        direction / np.linalg.norm(direction)
        for direction in np.random.default_rng(0).normal(size=(20, 5))
    ]
    _, _, taken = steps_with(gradients)
    np.testing.assert_array_equal(taken, np.float32(gradients))


@pytest.mark.parametrize("photons", [1.0, 1e9])
def test_a_gradient_out_of_the_ordinary_is_shortened_to_the_limit_whatever_the_photons(
    photons: float,
) -> None:
    ordinary, out_of_it = (
        photons * np.array([1.0, -2.0, 0.5, 1.0, 0.0]),
        photons * np.array([3e4, 1e4, -2e4, 0.0, 1e4]),
    )
    _, _, taken = steps_with([ordinary] * 10 + [out_of_it])
    # Of equal gradients the root of the second moments, corrected for their start, is the gradient
    # itself.
    expected = out_of_it * LARGEST_SURPRISE * np.linalg.norm(ordinary) / np.linalg.norm(out_of_it)
    np.testing.assert_allclose(taken[-1], expected, rtol=1e-5)  # float32
    np.testing.assert_array_equal(taken[-2], np.float32(ordinary))


def test_one_such_gradient_does_not_carry_the_weights_away() -> None:
    """Adam alone goes on along it for many steps."""
    ordinary = [np.full(5, sign * 1.0) for sign in (1, -1) * 10]
    weights, *_ = steps_with([*ordinary, np.full(5, 1e5), *ordinary])
    # five ordinary steps; without the limit seven, and up to thirty after a longer run
    assert weights.abs().max() < 5 * 0.01


def test_zero_gradients_stay_zero() -> None:
    _, _, taken = steps_with([np.zeros(5)] * 3)
    np.testing.assert_array_equal(taken, np.zeros((3, 5)))


class Trainer:
    """What the module asks its trainer for in a step."""

    def __init__(self) -> None:
        self.accumulate_grad_batches = 1
        self.global_step = MOST_CORRECTIONS - 1  # a step of all corrections, as validation's
        self.train_dataloader = types.SimpleNamespace(
            batch_sampler=GlobalBatchSampler(
                3, global_batch_size=3, rank=0, world_size=1, shuffle_seed=0
            )
        )


def module_and_samples(
    masks: torch.Tensor | None, brightness: tuple[float, ...] = ()
) -> tuple[PtychographyModule, Samples]:
    """Three groups, of scans 1, 0 and 1."""
    random = np.random.default_rng(0)
    y, x = np.indices((N, N)) - N / 2
    probes = np.stack(
        [np.exp(-(y**2 + x**2) / (10 + 5 * number) + 0.05j * y * x) for number in range(2)]
    )[:, None]
    calibration = replace(made_up_calibration(30.0), scan_brightness=brightness)
    probe_stack = torch.from_numpy(probes.astype(np.complex64))
    module = PtychographyModule(ModelConfig(base_width=4), calibration, probe_stack, masks)
    torch.manual_seed(1)
    for parameter in module.network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    module._trainer = Trainer()  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    samples = Samples(
        x_norm=torch.from_numpy(random.exponential(0.3, (3, 4, N, N)).astype(np.float32)),
        positions_px=torch.from_numpy(random.uniform(0, 6, (3, 4, 2))),
        scan=torch.tensor([1, 0, 1]),
    )
    return module, samples


def test_a_weak_scans_objects_are_those_of_a_strong_one() -> None:
    """What is predicted for the same patterns in an eighth of the light is a 64th of the photons:
    powers of two change no digit."""
    module, samples = module_and_samples(None)
    brightness = (1.0, 0.125)
    weak, _ = module_and_samples(None, brightness)
    amplitude = torch.tensor(brightness)[samples.scan].view(-1, 1, 1, 1)
    found = weak(samples._replace(x_norm=amplitude * samples.x_norm))
    torch.testing.assert_close(found, amplitude**2 * module(samples), rtol=0, atol=0)
    assert not torch.equal(weak(samples), module(samples))


def two_masks() -> torch.Tensor:
    return (
        torch.rand(2, N, N, generator=torch.Generator().manual_seed(0))
        < torch.tensor([0.9, 0.4])[:, None, None]
    )


def test_each_scans_mask_counts_for_its_patterns() -> None:
    """Loss and validation metrics by NumPy in float64, from what the module predicts."""
    module, samples = module_and_samples(two_masks())
    counted = two_masks().numpy()[[1, 0, 1]][:, None].repeat(4, axis=1)
    loss = module.training_step(samples, 0)
    rate = 900 * module(samples).detach().double().numpy()
    counts = 900 * samples.x_norm.double().numpy() ** 2
    deviance = rate - counts + xlogy(counts, counts) - xlogy(counts, rate)
    assert rate.min() > RATE_FLOOR
    assert loss.item() == pytest.approx(deviance[counted].mean(), rel=1e-5)  # float32 rates
    assert abs(deviance.mean() / deviance[counted].mean() - 1) > 1e-3

    logged: dict[str, float] = {}
    module.log_dict = lambda values: logged.update(
        {name: float(value) for name, value in values.items()}
    )  # type: ignore[method-assign]
    module.on_validation_epoch_start()
    with torch.no_grad():
        module.validation_step(samples, 0)
    module.on_validation_epoch_end()
    assert logged["val_deviance_per_pixel"] == pytest.approx(2 * deviance[counted].mean(), rel=1e-5)
    assert logged["val_nll"] == pytest.approx(
        (rate - xlogy(counts, rate))[counted].mean(), rel=1e-5
    )


def test_what_masked_pixels_hold_changes_no_bit_of_loss_and_gradients() -> None:
    found = []
    for garbage in (0.0, torch.nan, 4e9):
        module, samples = module_and_samples(two_masks())
        counted = two_masks()[samples.scan].unsqueeze(1)
        loss = module.training_step(
            samples._replace(x_norm=torch.where(counted, samples.x_norm, garbage)), 0
        )
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in module.parameters())])
    assert torch.isfinite(found[0][0])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_masks_that_let_everything_count_change_no_bit() -> None:
    found = []
    for masks in (None, torch.ones(2, N, N, dtype=torch.bool)):
        module, samples = module_and_samples(masks)
        loss = module.training_step(samples, 0)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in module.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_masks_are_not_in_checkpoints() -> None:
    assert not [name for name in module_and_samples(two_masks())[0].state_dict() if "mask" in name]
