"""Placing, reading and merging patches, against slices and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_dist.physics.patches import GroupCanvas, add_patches, extract_patches

CORNERS = torch.tensor([[[0, 0], [2, 3]], [[1, 4], [3, 0]]])


def complex_noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


def test_reading_is_slicing() -> None:
    canvas = complex_noise(2, 9, 10)
    patches = extract_patches(canvas, CORNERS, 6)
    for group in range(2):
        for number, (y, x) in enumerate(CORNERS[group].tolist()):  # the first axis is the row
            assert torch.equal(patches[group, number], canvas[group, y : y + 6, x : x + 6])


def test_placing_is_adding_to_slices() -> None:
    patches = complex_noise(2, 2, 6, 6)
    expected = torch.ones(2, 9, 10, dtype=torch.complex128)
    placed = add_patches(expected.clone(), patches, CORNERS)
    for group in range(2):
        for number, (y, x) in enumerate(CORNERS[group].tolist()):
            expected[group, y : y + 6, x : x + 6] += patches[group, number]
    # overlapping terms in another order
    torch.testing.assert_close(placed, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("spread", [0, 3, 40])
def test_merged_patches_are_the_weighted_mean_on_a_canvas_that_covers_them(spread: int) -> None:
    generator = torch.Generator().manual_seed(1)
    patches = complex_noise(3, 4, 5, 5)
    weights = torch.rand(3, 4, 5, 5, dtype=torch.float64, generator=generator) + 0.1
    corners = torch.randint(-7, -7 + spread + 1, (3, 4, 2), generator=generator)  # any origin
    merged = GroupCanvas(corners, 5).mean(patches, weights)
    for group in range(3):
        total, weight = np.zeros((100, 100), dtype=complex), np.zeros((100, 100))
        for number, (y, x) in enumerate((corners[group] + 7).tolist()):
            total[y : y + 5, x : x + 5] += (weights[group, number] * patches[group, number]).numpy()
            weight[y : y + 5, x : x + 5] += weights[group, number].numpy()
        for number, (y, x) in enumerate((corners[group] + 7).tolist()):
            expected = total[y : y + 5, x : x + 5] / weight[y : y + 5, x : x + 5]
            np.testing.assert_allclose(merged[group, number].numpy(), expected, rtol=1e-12)


def test_one_pattern_is_its_own_merge() -> None:
    patches = complex_noise(2, 1, 4, 4)
    merged = GroupCanvas(torch.tensor([[[3, 1]], [[0, 9]]]), 4).mean(
        patches, torch.ones(2, 1, 4, 4, dtype=torch.float64)
    )
    torch.testing.assert_close(merged, patches)


def test_where_nothing_is_lit_the_merge_is_zero() -> None:
    patches = complex_noise(1, 2, 4, 4)
    canvas = GroupCanvas(torch.zeros(1, 2, 2, dtype=torch.int64), 4)
    assert canvas.mean(patches, torch.zeros(1, 2, 4, 4, dtype=torch.float64)).abs().max() == 0


def test_empty_batch() -> None:
    empty = torch.zeros(0, 4, 8, 8, dtype=torch.complex64, requires_grad=True)
    merged = GroupCanvas(torch.zeros(0, 4, 2, dtype=torch.int64), 8).mean(
        empty, torch.ones(0, 4, 8, 8)
    )
    merged.abs().sum().backward()
    assert merged.shape == (0, 4, 8, 8)


def test_gradient() -> None:
    patches = complex_noise(1, 3, 4, 4).requires_grad_()
    weights = torch.rand(1, 3, 4, 4, dtype=torch.float64) + 0.1
    corners = torch.tensor([[[0, 0], [1, 0], [0, 2]]])
    assert torch.autograd.gradcheck(lambda p: GroupCanvas(corners, 4).mean(p, weights), patches)
