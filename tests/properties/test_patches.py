"""Reading, adding and merging patches, against loops over single pixels, for any whole corners."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from ptycho_dist.physics.patches import GroupCanvas, add_patches, extract_patches

Pixels = dict[tuple[int, int], complex]


@st.composite
def corners_on_a_canvas(draw: st.DrawFn) -> tuple[Tensor, int, tuple[int, int]]:
    """Corners (B, C, 2), N, and a canvas (H, W) that holds all patches, if just."""
    patch_size = draw(st.integers(1, 5))
    height, width = draw(st.integers(patch_size, 12)), draw(st.integers(patch_size, 12))
    batch, group_size = draw(st.integers(0, 3)), draw(st.integers(1, 5))
    corner = st.tuples(st.integers(0, height - patch_size), st.integers(0, width - patch_size))
    corners = draw(st.lists(corner, min_size=batch * group_size, max_size=batch * group_size))
    return (
        torch.tensor(corners, dtype=torch.int64).reshape(batch, group_size, 2),
        patch_size,
        (height, width),
    )


@st.composite
def corners_anywhere(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Corners (B, C, 2), negative too and far from zero, with groups that overlap wholly, partly
    and not at all; N."""
    batch, group_size, spread = (
        draw(st.integers(0, 3)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 20)),
    )
    origin = st.sampled_from([0, -7, 123456, -(2**40)])
    groups = [
        [
            (y + draw(st.integers(0, spread)), x + draw(st.integers(0, spread)))
            for _ in range(group_size)
        ]
        for y, x in draw(st.lists(st.tuples(origin, origin), min_size=batch, max_size=batch))
    ]
    return torch.tensor(groups, dtype=torch.int64).reshape(batch, group_size, 2), draw(
        st.integers(1, 5)
    )


def whole_numbers(seed: int, *shape: int) -> Tensor:
    """Complex whole numbers of at most 100: sums of products of two are exact in float64, so their
    order does not matter."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(
        random.integers(-100, 101, shape) + 1j * random.integers(-100, 101, shape)
    )


def patches_and_weights(seed: int, corners: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Noise, and weights over eight decades of which a third is zero."""
    random = np.random.default_rng(seed)
    shape = (*corners.shape[:2], patch_size, patch_size)
    patches = random.normal(size=shape) + 1j * random.normal(size=shape)
    weights = 10 ** random.uniform(-4, 4, shape) * (random.uniform(size=shape) > 1 / 3)
    return torch.from_numpy(patches), torch.from_numpy(weights)


def read_by_loop(canvas: Tensor, corner: list[int], patch_size: int) -> list[list[complex]]:
    y, x = corner
    return [
        [canvas[y + row, x + column].item() for column in range(patch_size)]
        for row in range(patch_size)
    ]


def merge(patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    return GroupCanvas(corners, patches.shape[-1]).mean(patches, weights)


def merge_by_loop(patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    """Weighted mean over all patches of a group that see a pixel; 0 where their weights are all
    0."""
    merged = torch.zeros_like(patches)
    for group in range(len(patches)):
        total: Pixels = defaultdict(complex)
        weight_total: dict[tuple[int, int], float] = defaultdict(float)
        places = [
            (number, row, column, (y + row, x + column))
            for number, (y, x) in enumerate(corners[group].tolist())
            for row in range(patches.shape[-1])
            for column in range(patches.shape[-1])
        ]
        for number, row, column, place in places:
            total[place] += (
                weights[group, number, row, column] * patches[group, number, row, column]
            ).item()
            weight_total[place] += weights[group, number, row, column].item()
        for number, row, column, place in places:
            merged[group, number, row, column] = (
                total[place] / weight_total[place] if weight_total[place] else 0
            )
    return merged


seeds = st.integers(0, 2**32 - 1)


@given(corners_on_a_canvas(), seeds)
def test_reading_equals_a_loop(drawn: tuple[Tensor, int, tuple[int, int]], seed: int) -> None:
    corners, patch_size, shape = drawn
    canvas = whole_numbers(seed, len(corners), *shape)
    patches = extract_patches(canvas, corners, patch_size)
    assert patches.shape == (*corners.shape[:2], patch_size, patch_size)
    expected = [
        [read_by_loop(canvas[group], corner, patch_size) for corner in corners[group].tolist()]
        for group in range(len(corners))
    ]
    assert patches.tolist() == expected


@given(corners_on_a_canvas(), seeds)
def test_adding_equals_a_loop(drawn: tuple[Tensor, int, tuple[int, int]], seed: int) -> None:
    corners, patch_size, shape = drawn
    patches = whole_numbers(seed, *corners.shape[:2], patch_size, patch_size)
    canvas = whole_numbers(seed + 1, len(corners), *shape)
    expected = canvas.clone()
    for group in range(len(corners)):
        for number, (y, x) in enumerate(corners[group].tolist()):
            for row in range(patch_size):
                for column in range(patch_size):
                    expected[group, y + row, x + column] += patches[group, number, row, column]
    assert add_patches(canvas, patches, corners) is canvas
    assert torch.equal(canvas, expected)


@given(corners_on_a_canvas(), seeds)
def test_adding_is_the_adjoint_of_reading(
    drawn: tuple[Tensor, int, tuple[int, int]], seed: int
) -> None:
    """<extract(canvas), patches> = <canvas, add(patches)>, to the last bit for whole numbers; also
    as autograd finds it."""
    corners, patch_size, shape = drawn
    canvas = whole_numbers(seed, len(corners), *shape).requires_grad_()
    patches = whole_numbers(seed + 1, *corners.shape[:2], patch_size, patch_size)
    added = add_patches(torch.zeros_like(canvas), patches, corners)
    read = extract_patches(canvas, corners, patch_size)
    assert (read.conj() * patches).sum() == (canvas.conj() * added).sum()
    read.backward(patches)
    assert canvas.grad is not None
    assert torch.equal(canvas.grad, added)


@given(corners_anywhere(), seeds)
@example((torch.tensor([[[0, 0], [0, 0], [-3, 40]]]), 1), 0)
def test_merging_equals_a_loop(drawn: tuple[Tensor, int], seed: int) -> None:
    corners, patch_size = drawn
    patches, weights = patches_and_weights(seed, corners, patch_size)
    # The same terms in the same order, but for the products' last bit; a mean of opposite terms
    # cancels, hence the absolute part.
    torch.testing.assert_close(
        merge(patches, weights, corners),
        merge_by_loop(patches, weights, corners),
        rtol=1e-13,
        atol=1e-13,
    )


@given(corners_anywhere(), seeds)
def test_merging_in_single_precision(drawn: tuple[Tensor, int], seed: int) -> None:
    corners, patch_size = drawn
    patches, weights = patches_and_weights(seed, corners, patch_size)
    merged = merge(patches.to(torch.complex64), weights.float(), corners)
    assert merged.dtype == torch.complex64
    # At most 5 terms of size up to 5, each with a handful of roundings of 6e-8.
    torch.testing.assert_close(
        merged.to(torch.complex128), merge_by_loop(patches, weights, corners), rtol=2e-6, atol=5e-6
    )


@given(corners_anywhere(), seeds)
def test_merging_again_changes_nothing(drawn: tuple[Tensor, int], seed: int) -> None:
    corners, patch_size = drawn
    patches, weights = patches_and_weights(seed, corners, patch_size)
    once = merge(patches, weights, corners)
    # float64 rounding of 5 terms
    torch.testing.assert_close(merge(once, weights, corners), once, rtol=1e-13, atol=1e-13)


@given(corners_on_a_canvas(), seeds)
def test_patches_of_one_object_are_left_as_they_are(
    drawn: tuple[Tensor, int, tuple[int, int]], seed: int
) -> None:
    corners, patch_size, shape = drawn
    patches = extract_patches(whole_numbers(seed, len(corners), *shape), corners, patch_size)
    _, weights = patches_and_weights(seed, corners, patch_size)
    merged = merge(patches, weights + 1e-4, corners)
    # of values up to 141: float64 rounding
    torch.testing.assert_close(merged, patches, rtol=1e-13, atol=1e-11)


@given(
    corners_anywhere(), seeds, st.tuples(st.integers(-(2**50), 2**50), st.integers(-(2**50), 2**50))
)
def test_merging_knows_neither_origin_nor_the_other_groups(
    drawn: tuple[Tensor, int], seed: int, shift: tuple[int, int]
) -> None:
    corners, patch_size = drawn
    patches, weights = patches_and_weights(seed, corners, patch_size)
    merged = merge(patches, weights, corners)
    assert torch.equal(merge(patches, weights, corners + torch.tensor(shift)), merged)
    for group in range(len(corners)):
        alone = merge(
            patches[group : group + 1], weights[group : group + 1], corners[group : group + 1]
        )
        assert torch.equal(alone[0], merged[group])
