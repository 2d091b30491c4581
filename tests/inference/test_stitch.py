"""Patches cut from a known object, put together again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from ptycho_dist.inference.alignment import AlignedPatches, stitching_order
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.physics.probe import illumination

SIZE = 16


def smooth_object(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (1 + 0.2 * np.sin(0.15 * y + 0.1)) * np.exp(1j * np.cos(0.12 * x))


def beam() -> torch.Tensor:
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2
    return torch.from_numpy(np.exp(-(y**2 + x**2) / 30)[None]).to(torch.complex64)


def scan_positions() -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(5), indexing="ij"), -1).reshape(
        -1, 2
    ) * 4.0 + [103.0, -57.0]
    return grid + np.random.default_rng(0).uniform(-0.5, 0.5, grid.shape)


def patches_at(positions: np.ndarray) -> torch.Tensor:
    """The object on its own grid, round the whole pixel nearest to each position."""
    side = np.arange(SIZE) - SIZE // 2
    whole = np.floor(positions + 0.5)
    y, x = whole[:, 0, None, None] + side[:, None], whole[:, 1, None, None] + side[None, :]
    return torch.from_numpy(smooth_object(y, x)).to(torch.complex64)


def stitch(patches: torch.Tensor, positions: np.ndarray) -> StitchedObject:
    stitched = StitchedObject(positions, beam())
    corners, probe = stitched.place(torch.from_numpy(positions))
    put_together(stitched, (patches, illumination(probe), corners))
    return stitched


def put_together(
    stitched: StitchedObject, *batches: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    aligned = AlignedPatches(stitched)
    for batch in batches:
        aligned.add(*batch)
    stitched.hold(aligned.mean())


def truth_on_the_canvas(stitched: StitchedObject) -> np.ndarray:
    height, width = stitched.light.shape[1:]
    y, x = (
        stitched.origin_px[0] + np.arange(height)[:, None],
        stitched.origin_px[1] + np.arange(width)[None, :],
    )
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
    corners, _ = stitched.place(torch.from_numpy(positions))
    put_together(
        stitched,
        (torch.ones(2, SIZE, SIZE, dtype=torch.complex64), torch.ones(2, SIZE, SIZE), corners),
    )
    assert np.flatnonzero(stitched.valid().any(axis=1)).tolist() == list(range(20))
    assert np.flatnonzero(stitched.valid().any(axis=0)).tolist() == list(range(16))


def test_probe_moves_by_what_is_left_below_a_pixel() -> None:
    positions = np.array([[40.0, 60.0], [43.3, 59.6]])
    _, probe = StitchedObject(positions, beam()).place(torch.from_numpy(positions))
    side = np.arange(SIZE) - SIZE / 2
    light = illumination(probe).numpy()
    for number, expected in enumerate([(0, 0), (0.3, -0.4)]):
        centre = [
            (light[number].sum(axis=1 - axis) * side).sum() / light[number].sum() for axis in (0, 1)
        ]
        # the beam's tails meet the window's border at 1e-2 of its amplitude
        assert centre == pytest.approx(expected, abs=0.05)


def test_a_patch_counts_by_its_light_squared() -> None:
    position = np.array([[40.0, 60.0]])
    stitched = StitchedObject(position, beam())
    corners, _ = stitched.place(torch.from_numpy(position).expand(2, 2))
    patches, light = (
        torch.ones(2, SIZE, SIZE) * torch.tensor([1.0, 2.0])[:, None, None],
        torch.ones(2, SIZE, SIZE),
    )
    light[1] = 3.0
    put_together(stitched, (patches.to(torch.complex64), light, corners))
    np.testing.assert_allclose(stitched.object(), (1 * 1 + 9 * 2) / 10, rtol=1e-6)
    np.testing.assert_allclose(stitched.illumination(), 4.0)


def raster(
    rows: int, columns: int, step_px: float, corner: tuple[float, float] = (0, 0)
) -> np.ndarray:
    grid = (
        np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
        * step_px
        + corner
    )
    return grid + np.random.default_rng(0).uniform(-0.5, 0.5, grid.shape)


def ring(radius_px: float, count: int) -> np.ndarray:
    angle = np.arange(count) * 2 * np.pi / count
    return radius_px * np.stack([np.sin(angle), np.cos(angle)], axis=1)


SCANS = {
    "one pattern": np.array([[3.3, 4.4]]),
    "the same place again and again": np.full((9, 2), 7.2),
    "line": np.stack([np.zeros(30), np.arange(30) * 3.0], axis=1),
    "raster": raster(9, 11, 2.5),
    "weak overlap": raster(6, 7, 9),  # the beam's amplitude falls to 1/e in 5.5 px
    "islands": np.concatenate(
        [raster(5, 5, 2.5), raster(6, 6, 2.5, (0, 60)), raster(4, 4, 2.5, (50, 20))]
    ),
    "ring": ring(30, 50),  # nothing in the middle, where all patterns are as far from
    "horseshoe": np.concatenate(
        [raster(16, 2, 3), raster(16, 2, 3, (0, 40)), raster(2, 12, 3, (48, 4))]
    ),
    "spiral": np.arange(5, 40)[:, None] ** 0.7
    * np.array([[np.sin(1.1 * turn), np.cos(1.1 * turn)] for turn in range(5, 40)]),
    "a gap that only the beam's tails cross": np.concatenate(
        [raster(6, 5, 2.5), raster(6, 5, 2.5, (0, 10 + 12))]
    ),
}


def with_free_phases(patches: torch.Tensor) -> torch.Tensor:
    free_phase = torch.from_numpy(
        np.random.default_rng(1).uniform(-np.pi, np.pi, len(patches))
    ).float()
    return patches * torch.polar(torch.ones_like(free_phase), free_phase)[:, None, None]


def stitch_in_order(
    patches: torch.Tensor, positions: np.ndarray, *, batch: int = 7
) -> StitchedObject:
    stitched = StitchedObject(positions, beam())
    order = stitching_order(positions, SIZE)
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    places = [stitched.place(torch.from_numpy(positions[patterns])) for patterns in batches]
    put_together(
        stitched,
        *(
            (patches[patterns], illumination(probe), corners)
            for patterns, (corners, probe) in zip(batches, places, strict=True)
        ),
    )
    return stitched


def ratio_to_truth(stitched: StitchedObject, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Object over truth, less the global phase of each island, and the numbers of the islands (0:
    not valid)."""
    islands, count = ndimage.label(stitched.valid())
    ratio = stitched.object() / truth
    for island in range(1, count + 1):
        ratio[islands == island] *= np.exp(-1j * np.angle(ratio[islands == island].sum()))
    return ratio, islands


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", list(SCANS))
def test_no_seams_whatever_the_phases_of_patches_and_the_way_of_the_scan(
    name: str, constant: bool, shuffle: bool
) -> None:
    positions = np.random.default_rng(2).permutation(SCANS[name]) if shuffle else SCANS[name]
    patches = patches_at(positions)
    stitched = stitch_in_order(
        with_free_phases(torch.ones_like(patches) if constant else patches), positions
    )
    ratio, islands = ratio_to_truth(
        stitched, np.ones(1) if constant else truth_on_the_canvas(stitched)
    )
    # Patches that agree but for their phases leave float32 sums: 6e-8 a term, and a phase from a
    # few dim pixels, a hundred times that. An eye sees a step of 0.01; the wrong phase of a branch
    # gave steps of 0.6 to 1.9.
    np.testing.assert_allclose(ratio[islands > 0], 1, atol=1e-4)


def test_almost_dark_overlap_is_outweighed_by_the_many_patches_across_it() -> None:
    """Two bright halves with a dark band between, as wide as the beam, where the patches hold as
    much noise as object."""
    positions = raster(20, 16, 2.5)

    def with_band(values: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x - 20) < 5, 0.01, 1) * values

    side = np.arange(SIZE) - SIZE // 2
    x = np.floor(positions[:, 1] + 0.5)[:, None, None] + side
    rng = np.random.default_rng(3)
    patches = with_band(patches_at(positions).numpy(), x)
    patches = patches + 0.01 * (
        rng.normal(size=patches.shape) + 1j * rng.normal(size=patches.shape)
    )
    stitched = stitch_in_order(
        with_free_phases(torch.from_numpy(patches).to(torch.complex64)), positions
    )
    columns = stitched.origin_px[1] + np.arange(stitched.light.shape[2])
    ratio, islands = ratio_to_truth(stitched, with_band(truth_on_the_canvas(stitched), columns))
    halves = [
        np.angle(ratio[:, chosen][islands[:, chosen] > 0].mean())
        for chosen in (columns < 14, columns > 26)
    ]
    # A patch tells its phase from some 60 pixels with a noise of 0.01: to 0.001 to 0.002 rad, and a
    # chain of ten to less than 0.01.
    assert halves[0] == pytest.approx(halves[1], abs=0.01)


def test_noise_of_patches_does_not_add_up_across_the_scan() -> None:
    positions = raster(20, 20, 2.5)
    rng = np.random.default_rng(4)
    patches = patches_at(positions).numpy()
    patches = patches + 0.2 * (rng.normal(size=patches.shape) + 1j * rng.normal(size=patches.shape))
    stitched = stitch_in_order(
        with_free_phases(torch.from_numpy(patches).to(torch.complex64)), positions
    )
    ratio, _ = ratio_to_truth(stitched, truth_on_the_canvas(stitched))
    blocks = [
        np.angle(ratio[y : y + 12, x : x + 12].mean())
        for y in range(6, 50, 12)
        for x in range(6, 50, 12)
    ]
    # Each patch is aligned with the mean of some tens: a fiftieth of a radian at most, where single
    # links would add up to a tenth.
    assert np.ptp(blocks) < 0.05


def test_every_pattern_comes_once_in_the_order() -> None:
    for positions in SCANS.values():
        assert sorted(stitching_order(positions, SIZE)) == list(range(len(positions)))


def test_size_of_the_batch_does_not_matter() -> None:
    positions = scan_positions()
    patches = with_free_phases(patches_at(positions))
    one, many = (stitch_in_order(patches, positions, batch=batch) for batch in (1, 64))
    np.testing.assert_allclose(one.object(), many.object(), atol=1e-6)


def test_illumination_decides_where_patches_disagree() -> None:
    positions = np.array([[8.0, 8.0], [8.0, 12.0]])
    stitched = stitch(
        torch.stack([torch.full((SIZE, SIZE), 1.0 + 0j), torch.full((SIZE, SIZE), 3.0 + 0j)]),
        positions,
    )
    light = illumination(beam()).numpy()
    first, second = light[8, 6], light[8, 2]  # what each probe gave to canvas pixel [8, 6]
    assert abs(stitched.object()[8, 6]) == pytest.approx(
        (first**2 * 1 + second**2 * 3) / (first**2 + second**2), rel=1e-5
    )


def test_stitched_patches_are_read_back_where_they_were() -> None:
    positions = scan_positions()
    stitched = stitch(patches_at(positions), positions)
    corners, _ = stitched.place(torch.from_numpy(positions))
    middle = (slice(None), slice(5, 11), slice(5, 11))
    torch.testing.assert_close(
        stitched.extract(corners)[middle], patches_at(positions)[middle], rtol=0, atol=1e-5
    )


def test_an_object_is_held_to_the_bit_and_is_zero_where_nothing_was_seen() -> None:
    stitched = stitch(patches_at(scan_positions()), scan_positions())
    stitched.light[0, :3] = 0
    given = torch.randn(
        stitched.light.shape[1:], dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    stitched.hold(given)
    assert np.array_equal(stitched.object()[3:], given.numpy()[3:])
    assert not stitched.object()[:3].any()


def test_memory_is_that_of_the_scanned_area() -> None:
    few, many = scan_positions(), np.repeat(scan_positions(), 50, axis=0)
    assert StitchedObject(few, beam()).light.shape == StitchedObject(many, beam()).light.shape
