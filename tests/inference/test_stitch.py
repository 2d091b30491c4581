"""Patches cut from a known object, put together again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_dist.inference.stitch import StitchedObject

SIZE = 16


def smooth_object(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (1 + 0.2 * np.sin(0.15 * y + 0.1)) * np.exp(1j * np.cos(0.12 * x))


def patches_at(positions: np.ndarray) -> torch.Tensor:
    """The object sampled at each patch's own, subpixel, grid."""
    side = np.arange(SIZE) - SIZE // 2
    y, x = positions[:, 0, None, None] + side[:, None], positions[:, 1, None, None] + side[None, :]
    return torch.from_numpy(smooth_object(y, x)).to(torch.complex64)


def weight() -> torch.Tensor:
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2
    return torch.from_numpy(np.exp(-(y**2 + x**2) / 30)).float()


def scan_positions(*, whole: bool) -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(5), indexing="ij"), -1).reshape(-1, 2) * 4.0 + [103.0, -57.0]
    return grid if whole else grid + np.random.default_rng(0).uniform(-0.5, 0.5, grid.shape)


def truth_on_the_canvas(stitched: StitchedObject) -> np.ndarray:
    height, width = stitched.weight_sum.shape[1:]
    y, x = stitched.origin_px[0] + np.arange(height)[:, None], stitched.origin_px[1] + np.arange(width)[None, :]
    return smooth_object(y, x)


@pytest.mark.parametrize(("whole", "tolerance"), [(True, 1e-5), (False, 0.03)], ids=["whole pixels", "subpixel"])
def test_object_lies_where_the_scan_coordinates_say(whole: bool, tolerance: float) -> None:
    positions = scan_positions(whole=whole)
    stitched = StitchedObject(positions, weight())
    stitched.add(patches_at(positions), positions)
    truth, valid = truth_on_the_canvas(stitched), stitched.valid()
    lit = (stitched.weight_sum[0] > 0.5).numpy()
    # Whole pixels: float32 sums. Subpixel: linear interpolation of a wave of 0.15 rad a pixel under a sloping weight; positions whose
    # fraction had the wrong sign would be off by 0.07 in the mean.
    np.testing.assert_allclose(stitched.object()[lit], truth[lit], atol=tolerance)
    assert 0.3 < valid.mean() < 0.95


def test_patch_centred_at_y_covers_rows_from_y_minus_half() -> None:
    positions = np.array([[40.0, 60.0], [44.0, 60.0]])
    stitched = StitchedObject(positions, torch.ones(SIZE, SIZE))
    assert stitched.origin_px.tolist() == [32.0, 52.0]
    patches = torch.zeros(2, SIZE, SIZE, dtype=torch.complex64)
    patches[0] = 1
    patches[1] = 1
    stitched.add(patches, positions)
    assert np.flatnonzero(stitched.valid().any(axis=1)).tolist() == list(range(20))
    assert np.flatnonzero(stitched.valid().any(axis=0)).tolist() == list(range(16))


def test_free_global_phases_of_patches_are_aligned() -> None:
    positions = scan_positions(whole=True)
    free_phase = torch.from_numpy(np.random.default_rng(1).uniform(-np.pi, np.pi, len(positions)))
    patches = patches_at(positions) * torch.polar(torch.ones(len(positions)), free_phase.float())[:, None, None]
    stitched = StitchedObject(positions, weight())
    stitched.add(patches, positions)
    truth, valid = truth_on_the_canvas(stitched), stitched.valid()
    turn = np.vdot(stitched.object()[valid], truth[valid])
    np.testing.assert_allclose(stitched.object()[valid] * turn / abs(turn), truth[valid], atol=1e-4)  # 30 alignments in float32


def test_weights_decide_where_patches_disagree() -> None:
    positions = np.array([[8.0, 8.0], [8.0, 8.0]])
    weighted = StitchedObject(positions, weight())
    weighted.add(torch.stack([torch.full((SIZE, SIZE), 1.0 + 0j), torch.full((SIZE, SIZE), 3.0 + 0j)]), positions)
    assert np.abs(weighted.object()[weighted.valid()]) == pytest.approx(2.0, rel=1e-6)  # equal weights: the mean


def test_stitched_patches_are_read_back_where_they_were() -> None:
    positions = scan_positions(whole=True)
    stitched = StitchedObject(positions, weight())
    stitched.add(patches_at(positions), positions)
    middle = (slice(None), slice(5, 11), slice(5, 11))
    torch.testing.assert_close(stitched.extract(positions)[middle], patches_at(positions)[middle], rtol=0, atol=1e-5)


def test_memory_is_that_of_the_scanned_area() -> None:
    few, many = scan_positions(whole=True), np.repeat(scan_positions(whole=True), 50, axis=0)
    assert StitchedObject(few, weight()).weighted_sum.shape == StitchedObject(many, weight()).weighted_sum.shape
