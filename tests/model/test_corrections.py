"""Groups of patterns, corrected again and again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptycho_dist.model.autoencoder import PtychoAutoencoder
from ptycho_dist.model.corrections import MOST_CORRECTIONS, corrected_patches, corrections_at
from ptycho_dist.model.first_estimate import first_estimate
from ptycho_dist.physics.patches import GroupCanvas
from ptycho_dist.physics.probe import illumination, normalize_probe
from tests.model.networks import trained_like

SIZE = 16


def groups(group_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(
        torch.arange(SIZE) - SIZE / 2, torch.arange(SIZE) - SIZE / 2, indexing="ij"
    )
    probe = normalize_probe(torch.exp(-(y**2 + x**2) / 20 + 0.05j * (y**2 + x**2))[None]).expand(
        2, group_size, 1, SIZE, SIZE
    )
    x_norm = torch.rand(2, group_size, SIZE, SIZE, generator=generator)
    corners = torch.randint(0, 5, (2, group_size, 2), generator=generator)
    return x_norm, probe, corners, illumination(probe)


def corrected_by_hand(
    network: PtychoAutoencoder,
    x_norm: Tensor,
    probe: Tensor,
    corners: Tensor,
    weights: Tensor,
    times: int,
) -> Tensor:
    canvas = GroupCanvas(corners, x_norm.shape[-1])
    estimate = first_estimate(x_norm, probe, canvas)
    for _ in range(times):
        patches = network(x_norm, probe, estimate.detach())
        estimate = canvas.mean(patches, weights) if x_norm.shape[1] > 1 else patches
    return estimate


@pytest.mark.parametrize(
    ("group_size", "asked", "times"), [(1, 3, 1), (2, 1, 1), (2, 2, 2), (4, 3, 3)]
)
def test_each_correction_begins_with_what_the_group_agreed_on(
    group_size: int, asked: int, times: int
) -> None:
    network, samples = trained_like(SIZE), groups(group_size)
    patches = corrected_patches(network, *samples, corrections=asked)
    torch.testing.assert_close(patches, corrected_by_hand(network, *samples, times=times))
    assert not torch.allclose(
        patches, corrected_by_hand(network, *samples, times=times - 1), rtol=1e-2
    )


def test_steps_take_one_two_and_three_corrections_in_turn() -> None:
    assert [corrections_at(step) for step in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_gradient_goes_through_the_last_correction_alone() -> None:
    network, samples = trained_like(SIZE), groups(4)

    def gradients(patches: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(patches.abs().square().sum(), list(network.parameters())))

    ours, by_hand = (
        gradients(corrected_patches(network, *samples)),
        gradients(corrected_by_hand(network, *samples, times=MOST_CORRECTIONS)),
    )
    for our, expected in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(our, expected)


def test_patches_are_merged_in_full_precision_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        patches = corrected_patches(trained_like(SIZE), *groups(4))
    assert patches.dtype == torch.complex64
    # bfloat16: 8 bits
    torch.testing.assert_close(
        patches, corrected_patches(trained_like(SIZE), *groups(4)), rtol=0.1, atol=0.1
    )


def test_an_empty_batch_has_no_patches_and_gradients_of_zero() -> None:
    network = trained_like(SIZE)
    patches = corrected_patches(network, *(tensor[:0] for tensor in groups(4)))
    assert patches.shape == (0, 4, SIZE, SIZE)
    patches.abs().sum().backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any()
        for parameter in network.parameters()
    )
