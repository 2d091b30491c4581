"""Patches cut from a known object, put together again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.physics.probe import illumination

SIZE = 16


def smooth_object(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (1 + 0.2 * np.sin(0.15 * y + 0.1)) * np.exp(1j * np.cos(0.12 * x))


def beam() -> torch.Tensor:
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2
    return torch.from_numpy(np.exp(-(y**2 + x**2) / 30)[None]).to(torch.complex64)


def scan_positions() -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(5), indexing="ij"), -1).reshape(-1, 2) * 4.0 + [103.0, -57.0]
    return grid + np.random.default_rng(0).uniform(-0.5, 0.5, grid.shape)


def patches_at(positions: np.ndarray) -> torch.Tensor:
    """The object on its own grid, round the whole pixel nearest to each position."""
    side = np.arange(SIZE) - SIZE // 2
    whole = np.floor(positions + 0.5)
    y, x = whole[:, 0, None, None] + side[:, None], whole[:, 1, None, None] + side[None, :]
    return torch.from_numpy(smooth_object(y, x)).to(torch.complex64)


def stitch(patches: torch.Tensor, positions: np.ndarray) -> StitchedObject:
    stitched = StitchedObject(positions, beam())
    corners, probe = stitched.place(positions)
    stitched.add(patches, illumination(probe), corners)
    return stitched


def truth_on_the_canvas(stitched: StitchedObject) -> np.ndarray:
    height, width = stitched.weight_sum.shape[1:]
    y, x = stitched.origin_px[0] + np.arange(height)[:, None], stitched.origin_px[1] + np.arange(width)[None, :]
    return smooth_object(y, x)


def test_object_lies_where_the_scan_coordinates_say() -> None:
    stitched = stitch(patches_at(scan_positions()), scan_positions())
    truth, valid = truth_on_the_canvas(stitched), stitched.valid()
    np.testing.assert_allclose(stitched.object()[valid], truth[valid], atol=1e-5)  # float32 sums
    assert 0.3 < valid.mean() < 0.99


def test_patch_centred_at_y_covers_rows_from_y_minus_half() -> None:
    positions = np.array([[40.0, 60.0], [44.0, 60.0]])
    stitched = StitchedObject(positions, torch.ones(1, SIZE, SIZE, dtype=torch.complex64))
    assert stitched.origin_px.tolist() == [32.0, 52.0]
    corners, _ = stitched.place(positions)
    stitched.add(torch.ones(2, SIZE, SIZE, dtype=torch.complex64), torch.ones(2, SIZE, SIZE), corners)
    assert np.flatnonzero(stitched.valid().any(axis=1)).tolist() == list(range(20))
    assert np.flatnonzero(stitched.valid().any(axis=0)).tolist() == list(range(16))


def test_probe_moves_by_what_is_left_below_a_pixel() -> None:
    positions = np.array([[40.0, 60.0], [43.3, 59.6]])
    _, probe = StitchedObject(positions, beam()).place(positions)
    side = np.arange(SIZE) - SIZE / 2
    light = illumination(probe).numpy()
    for number, expected in enumerate([(0, 0), (0.3, -0.4)]):
        centre = [(light[number].sum(axis=1 - axis) * side).sum() / light[number].sum() for axis in (0, 1)]
        assert centre == pytest.approx(expected, abs=0.05)  # the beam's tails meet the window's border at 1e-2 of its amplitude


def test_free_global_phases_of_patches_are_aligned() -> None:
    positions = scan_positions()
    free_phase = torch.from_numpy(np.random.default_rng(1).uniform(-np.pi, np.pi, len(positions))).float()
    stitched = stitch(patches_at(positions) * torch.polar(torch.ones_like(free_phase), free_phase)[:, None, None], positions)
    truth, valid = truth_on_the_canvas(stitched), stitched.valid()
    turn = np.vdot(stitched.object()[valid], truth[valid])
    np.testing.assert_allclose(stitched.object()[valid] * turn / abs(turn), truth[valid], atol=1e-4)  # 30 alignments in float32


def test_illumination_decides_where_patches_disagree() -> None:
    positions = np.array([[8.0, 8.0], [8.0, 12.0]])
    stitched = stitch(torch.stack([torch.full((SIZE, SIZE), 1.0 + 0j), torch.full((SIZE, SIZE), 3.0 + 0j)]), positions)
    light = illumination(beam()).numpy()
    first, second = light[8, 6], light[8, 2]  # what each probe gave to canvas pixel [8, 6]
    assert abs(stitched.object()[8, 6]) == pytest.approx((first * 1 + second * 3) / (first + second), rel=1e-5)


def test_stitched_patches_are_read_back_where_they_were() -> None:
    positions = scan_positions()
    stitched = stitch(patches_at(positions), positions)
    corners, _ = stitched.place(positions)
    middle = (slice(None), slice(5, 11), slice(5, 11))
    torch.testing.assert_close(stitched.extract(corners)[middle], patches_at(positions)[middle], rtol=0, atol=1e-5)


def test_memory_is_that_of_the_scanned_area() -> None:
    few, many = scan_positions(), np.repeat(scan_positions(), 50, axis=0)
    assert StitchedObject(few, beam()).weighted_sum.shape == StitchedObject(many, beam()).weighted_sum.shape
