"""Placing, reading and merging patches, against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_dist.physics.patches import add_patches, extract_patches, merge_patches

CORNERS = torch.tensor([[[0.0, 0.0], [2.25, 3.5]], [[1.0, 4.75], [3.999, 0.001]]], dtype=torch.float64)


def read_by_loop(canvas: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation, written out pixel by pixel."""
    patch = np.empty((size, size), dtype=canvas.dtype)
    for row in range(size):
        for column in range(size):
            y, x = corner[0] + row, corner[1] + column
            i, j = int(np.floor(y)), int(np.floor(x))
            fy, fx = y - i, x - j
            patch[row, column] = (1 - fy) * ((1 - fx) * canvas[i, j] + fx * canvas[i, j + 1]) + fy * (
                (1 - fx) * canvas[i + 1, j] + fx * canvas[i + 1, j + 1]
            )
    return patch


def complex_noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


def test_reading_is_bilinear_interpolation() -> None:
    canvas = complex_noise(2, 12, 13)
    patches = extract_patches(canvas, CORNERS, 6)
    for group in range(2):
        for number in range(2):
            expected = read_by_loop(canvas[group].numpy(), CORNERS[group, number].numpy(), 6)
            np.testing.assert_allclose(patches[group, number].numpy(), expected, rtol=1e-12, atol=1e-12)  # float64 in another order


def test_whole_pixels_are_read_and_placed_unchanged() -> None:
    canvas = complex_noise(1, 12, 13)
    corner = torch.tensor([[[2.0, 5.0]]], dtype=torch.float64)
    assert torch.equal(extract_patches(canvas, corner, 6)[0, 0], canvas[0, 2:8, 5:11])
    placed = add_patches(torch.zeros_like(canvas), canvas[:, None, 2:8, 5:11], corner)
    assert torch.equal(placed[0, 2:8, 5:11], canvas[0, 2:8, 5:11])
    assert placed.abs().gt(0).sum() == 36


def test_placing_is_the_transpose_of_reading() -> None:
    canvas, patches = complex_noise(2, 12, 13), complex_noise(2, 2, 6, 6).flip(-1)
    inner_of_patches = (extract_patches(canvas, CORNERS, 6) * patches).sum()
    inner_of_canvases = (canvas * add_patches(torch.zeros_like(canvas), patches, CORNERS)).sum()
    torch.testing.assert_close(inner_of_patches, inner_of_canvases, rtol=1e-12, atol=1e-12)  # float64 in another order


def test_first_axis_is_the_row() -> None:
    canvas = torch.arange(100, dtype=torch.float64).reshape(1, 10, 10)
    corner = torch.tensor([[[3.0, 1.0]]], dtype=torch.float64)
    assert extract_patches(canvas, corner, 2)[0, 0].tolist() == [[31, 32], [41, 42]]


def test_merged_patches_are_the_weighted_mean_at_whole_pixels() -> None:
    patches = complex_noise(1, 3, 4, 4)
    weight = torch.rand(1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    positions = torch.tensor([[[10.0, 20.0], [12.0, 20.0], [11.0, 23.0]]], dtype=torch.float64)
    total, weights = np.zeros((7, 8), dtype=complex), np.zeros((7, 8))
    corners = [(0, 0), (2, 0), (1, 3)]
    for number, (y, x) in enumerate(corners):
        total[y : y + 4, x : x + 4] += (weight[0] * patches[0, number]).numpy()
        weights[y : y + 4, x : x + 4] += weight[0].numpy()
    mean = total / np.maximum(weights, 1e-12)
    merged = merge_patches(patches, weight, positions)
    for number, (y, x) in enumerate(corners):
        np.testing.assert_allclose(merged[0, number].numpy(), mean[y : y + 4, x : x + 4], rtol=1e-12)


@pytest.mark.parametrize("spread", [0.5, 5.3, 40.0])
def test_canvas_covers_the_actual_offsets(spread: float) -> None:
    """Patches of a common smooth object agree already: merging them hardly changes them, however far apart they are."""
    positions = torch.rand(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * spread
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = 1 + 0.01 * (positions[..., 0, None, None] + y) + 0.02j * (positions[..., 1, None, None] + x)  # linear: interpolated exactly
    merged = merge_patches(plane, torch.ones(1, 8, 8, dtype=torch.float64), positions)
    # A patch's outermost samples count for canvas pixels up to one pixel away, where this plane differs by less than 0.0224.
    torch.testing.assert_close(merged, plane, rtol=0, atol=0.0224)


def test_one_pattern_is_its_own_merge() -> None:
    patches = complex_noise(2, 1, 4, 4)
    positions = torch.tensor([[[3.7, 1.2]], [[0.0, 9.9]]], dtype=torch.float64)
    torch.testing.assert_close(merge_patches(patches, torch.ones(1, 4, 4, dtype=torch.float64), positions), patches)


def test_empty_batch() -> None:
    empty = torch.zeros(0, 4, 8, 8, dtype=torch.complex64, requires_grad=True)
    merged = merge_patches(empty, torch.ones(1, 8, 8), torch.zeros(0, 4, 2))
    merged.abs().sum().backward()
    assert merged.shape == (0, 4, 8, 8)


def test_gradient() -> None:
    patches = complex_noise(1, 3, 4, 4).requires_grad_()
    positions = torch.tensor([[[0.0, 0.3], [1.6, 0.0], [0.5, 2.5]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: merge_patches(p, torch.ones(1, 4, 4, dtype=torch.float64), positions), patches)
