"""The number of processes changes nothing but the speed: batches, gradients, metrics and the loss
curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ptycho_dist.config import DataConfig, Hdf5Config, ModelConfig, TrainConfig
from ptycho_dist.data.batches import make_batches
from ptycho_dist.data.prepare import prepare
from ptycho_dist.data.sampler import GlobalBatchSampler
from ptycho_dist.model.corrections import MOST_CORRECTIONS
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.model.probe_modes import add_modes
from tests.ranks import run_on_ranks
from tests.scans import MASKED_HDF5, dead_pixels, small_scan_arrays
from tests.training.runs import act_as_torchrun, column, metrics, settings, train_one

GLOBAL_BATCH = 7


class WithoutLightning:
    """What the module asks its trainer for in a step."""

    def __init__(self, loader: Any, accumulate_grad_batches: int) -> None:
        self.train_dataloader = loader
        self.accumulate_grad_batches = accumulate_grad_batches
        self.global_step = MOST_CORRECTIONS - 1  # a step of all corrections


def gradients_of_one_step(
    scans: str | list[str],
    step: int,
    num_micro_batches: int,
    probe_modes: int | None = None,
    hdf5: dict[str, str] | None = None,
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of one optimiser step of an epoch, as Lightning computes them: DDP, loss /
    micro-batches, summed up."""
    data = prepare(
        DataConfig(
            path=scans,
            measurement="amplitude",
            nphotons=1e6,
            val_fraction=0,
            hdf5=Hdf5Config(**(hdf5 or {})),
        )
    )
    steps = TrainConfig(
        global_batch_size=GLOBAL_BATCH, accumulate_grad_batches=num_micro_batches, seed=3
    )
    config = ModelConfig(
        base_width=4,
        intensity_scale_trainable=True,
        probe_trainable=probe_modes is not None,
        probe_modes=probe_modes,
    )
    first_probes = torch.stack([add_modes(probe, probe_modes or 1) for probe in data.probes])
    module = PtychographyModule(
        config, data.calibration, data.probes, data.masks, first_probes=first_probes
    )
    torch.manual_seed(0)
    for parameter in module.network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # zero weights would pass no gradient on
    loader, _ = make_batches(data, steps)
    module._trainer = WithoutLightning(loader, num_micro_batches)  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    # so that what is compared is the arithmetic of the step, not float32 convolutions of other
    # batch sizes
    module.double()
    module.loss.intensity_scale = module.loss.intensity_scale.double()
    stepper = Step(module)
    wrapped = (
        torch.nn.parallel.DistributedDataParallel(stepper) if dist.is_initialized() else stepper
    )
    batches = list(loader)
    loss = 0.0
    for micro_batch in range(num_micro_batches):
        batch = step * num_micro_batches + micro_batch
        samples = batches[batch]._replace(x_norm=batches[batch].x_norm.double())
        part = wrapped(samples, batch) / num_micro_batches
        part.backward()
        loss += part.item()
    return loss, {
        name: parameter.grad.numpy()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


class Step(torch.nn.Module):
    def __init__(self, module: PtychographyModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, samples: Any, batch_idx: int) -> torch.Tensor:
        return self.module.training_step(samples, batch_idx)


def require_same_step(
    world_sizes: tuple[int, ...],
    scans: str | list[str],
    step: int,
    num_micro_batches: int,
    *how: Any,
) -> dict[str, np.ndarray]:
    """Compare loss and gradients on ranks with those of one process that takes the step at once;
    return the gradients."""
    loss, gradients = gradients_of_one_step(scans, step, 1, *how)
    for world_size in world_sizes:
        for rank_loss, rank_gradients in run_on_ranks(
            world_size, gradients_of_one_step, scans, step, num_micro_batches, *how
        ):
            assert rank_loss == pytest.approx(loss, rel=1e-6)
            assert rank_gradients.keys() == gradients.keys()
            for name, gradient in gradients.items():
                # float64 up to the float32 units that positions and normalisation come in
                largest = np.abs(gradient).max()
                np.testing.assert_allclose(
                    rank_gradients[name], gradient, rtol=1e-6, atol=1e-6 * largest, err_msg=name
                )
    return gradients


@pytest.mark.parametrize("num_micro_batches", [1, 3])
@pytest.mark.parametrize("step", [0, 5])
def test_loss_and_gradients_of_a_step(
    write_scan: Callable[..., Path], step: int, num_micro_batches: int
) -> None:
    """37 groups in batches of 7: the first step is whole, the last one has 2 samples, fewer than
    ranks or micro-batches."""
    require_same_step((2, 3), str(write_scan()), step, num_micro_batches)


def test_micro_batches_of_one_rank(write_scan: Callable[..., Path]) -> None:
    require_same_step((1,), str(write_scan()), 5, 3)


@pytest.mark.parametrize("step", [0, 8])
def test_gradients_of_trainable_probes(write_scan: Callable[..., Path], step: int) -> None:
    """Two scans with a probe of two modes each; the last step has one sample: a rank has none, and
    a scan has none on any rank."""
    scans = [
        str(write_scan()),
        str(write_scan("other.npz", arrays=small_scan_arrays(num_patterns=20, seed=1))),
    ]
    gradient = require_same_step((2, 3), scans, step, 1, 2)["trainable_probe.modes"]
    assert gradient.shape == (2, 2, 16, 16, 2)
    lit = np.abs(gradient).max(axis=(1, 2, 3, 4)) > 0
    assert lit.sum() == (2 if step == 0 else 1)


@pytest.mark.parametrize(("step", "num_micro_batches"), [(0, 1), (0, 3), (5, 3)])
def test_gradients_with_a_mask_a_scan(
    write_masked_scan: Callable[..., Path], step: int, num_micro_batches: int
) -> None:
    """Three scans, of which one has no mask and one little that counts: a step is the mean over all
    pixels that do, however it is dealt. The last step has a single sample."""
    masks = [dead_pixels(0), np.ones((16, 16), dtype=bool), dead_pixels(1, part=0.8)]
    scans = [
        str(
            write_masked_scan(
                f"scan{number}.h5", mask, arrays=small_scan_arrays(num_patterns=12, seed=number)
            )
        )
        for number, mask in enumerate(masks)
    ]
    require_same_step((2, 3), scans, step, num_micro_batches, None, MASKED_HDF5)


def test_weights_of_a_batch_are_those_of_its_samples() -> None:
    weights = np.random.default_rng(0).integers(1, 100, 37)
    settings_of_all = {
        "global_batch_size": 7,
        "world_size": 3,
        "shuffle_seed": 1,
        "num_micro_batches": 2,
    }
    samplers = [
        GlobalBatchSampler(37, rank=rank, weights=weights, **settings_of_all) for rank in range(3)
    ]
    orders = []
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        batches = [
            [sample for part in parts for sample in part] for parts in zip(*samplers, strict=True)
        ]
        orders.append([sample for batch in batches for sample in batch])
        found = [int(weights[batch].sum()) for batch in batches]
        in_step = [found[batch // 2 * 2] + found[batch // 2 * 2 + 1] for batch in range(12)]
        assert [samplers[0].weight_in(batch) for batch in range(12)] == list(
            zip(found, in_step, strict=True)
        )
    assert orders[0] != orders[1]


def batches_seen(
    num_micro_batches: int, epoch: int, world_size: int = 1, rank: int = 0
) -> list[list[int]]:
    sampler = GlobalBatchSampler(
        37,
        global_batch_size=GLOBAL_BATCH,
        rank=rank,
        world_size=world_size,
        shuffle_seed=5,
        num_micro_batches=num_micro_batches,
    )
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 5])
def test_sequence_of_global_batches(num_micro_batches: int, world_size: int, epoch: int) -> None:
    expected = [sorted(batch) for batch in batches_seen(1, epoch)]
    parts = [batches_seen(num_micro_batches, epoch, world_size, rank) for rank in range(world_size)]
    steps = [
        sorted(
            sample
            for part in parts
            for micro_batch in part[step * num_micro_batches : (step + 1) * num_micro_batches]
            for sample in micro_batch
        )
        for step in range(len(expected))
    ]
    assert steps == expected
    assert all(len(part) == len(expected) * num_micro_batches for part in parts)


def test_pass_that_goes_on_takes_the_rest_once() -> None:
    def sampler() -> GlobalBatchSampler:
        return GlobalBatchSampler(
            37, global_batch_size=7, rank=0, world_size=1, shuffle_seed=1, num_micro_batches=2
        )

    whole, rest = sampler(), sampler()
    rest.go_on_after(4)
    assert list(rest) == list(whole)[8:]
    assert list(rest) == list(whole)  # the next epoch is whole again


def test_weight_of_a_batch_is_that_of_all_ranks() -> None:
    samplers = [
        GlobalBatchSampler(
            37, global_batch_size=7, rank=rank, world_size=3, shuffle_seed=1, num_micro_batches=2
        )
        for rank in range(3)
    ]
    for batch, parts in enumerate(zip(*samplers, strict=True)):
        in_micro_batch, in_step = samplers[0].weight_in(batch)
        assert in_micro_batch == sum(map(len, parts))
        assert in_step == (2 if batch >= 10 else 7)


def validate(
    scan: str | list[str], group_size: int, hdf5: dict[str, str] | None = None
) -> dict[str, float]:
    """Metrics of an untrained network with a head that is not zero."""
    if dist.is_initialized():
        act_as_torchrun()
    data = prepare(
        DataConfig(
            path=scan,
            measurement="amplitude",
            nphotons=1e6,
            val_fraction=0.5,
            group_size=group_size,
            hdf5=Hdf5Config(**(hdf5 or {})),
        )
    )
    model = ModelConfig(base_width=4)
    module = PtychographyModule(model, data.calibration, data.probes, data.masks)
    torch.manual_seed(0)
    for parameter in module.network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    module.on_validation_epoch_start()
    logged: dict[str, float] = {}
    module.log_dict = lambda values: logged.update(
        {name: float(value) for name, value in values.items()}
    )  # type: ignore[method-assign]
    with torch.no_grad():
        for number, samples in enumerate(make_batches(data, TrainConfig(global_batch_size=4))[1]):
            module.validation_step(samples, number)
    module.on_validation_epoch_end()
    return logged


@pytest.mark.parametrize("group_size", [1, 4])
def test_validation_metrics(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], group_size: int
) -> None:
    scan = str(write_scan())
    expected = validate(scan, group_size)
    assert math.isfinite(expected["val_deviance_per_pixel"])
    for world_size in (2, 3, 5):
        for metrics_of_rank in on_ranks(world_size, validate, scan, group_size):
            assert metrics_of_rank == pytest.approx(expected, rel=1e-12)


def test_validation_metrics_with_a_mask_a_scan(
    on_ranks: Callable[..., Any], write_masked_scan: Callable[..., Path]
) -> None:
    scans = [
        str(
            write_masked_scan(
                f"scan{number}.h5",
                dead_pixels(number, part),
                arrays=small_scan_arrays(num_patterns=20, seed=number),
            )
        )
        for number, part in enumerate((0.1, 0.8))
    ]
    expected = validate(scans, 4, MASKED_HDF5)
    for world_size in (2, 3):
        for metrics_of_rank in on_ranks(world_size, validate, scans, 4, MASKED_HDF5):
            assert metrics_of_rank == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_loss_curve_of_fifty_steps(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scan = write_scan()
    curves = []
    for world_size in (1, 2, 3):
        run_dir = tmp_path / f"run{world_size}"
        on_ranks(
            world_size,
            train_one,
            settings(scan, run_dir, train__epochs=10, train__accumulate_grad_batches=world_size),
        )
        assert int(metrics(run_dir)[-1]["step"]) == 49  # counted from zero
        curves.append(column(run_dir, "train_deviance_per_pixel"))
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-3)
