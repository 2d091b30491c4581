"""The simulator against slow, independent calculations of the same physics."""

import math

import numpy as np
import pytest
from PIL import Image

from ptycho_dist.physics import simulation
from ptycho_dist.physics.simulated_objects import dead_leaves, image_contrast, lines, make_object
from ptycho_dist.physics.simulated_probes import (
    beam_diameter_px,
    defocused_probe,
    disk_probe,
    make_probe,
)
from ptycho_dist.physics.simulation import (
    canvas_shape,
    exit_waves,
    expected_intensity,
    noisy_diffraction,
    raster_positions,
    scale_probe,
    shift_probe,
    simulate_scan,
)

SETTINGS = {
    "object": "dead_leaves",
    "amplitude_range": (0.5, 1.0),
    "phase_range_rad": (-1.0, 1.0),
    "probe": "defocused",
    "probe_diameter_px": 14.0,
    "probe_defocus_rad": 6.0,
    "pattern_size": 32,
    "scan_shape": (4, 5),
    "step_px": 3.0,
    "jitter_px": 1.0,
    "nphotons": 1e5,
    "seed": 3,
}


def complex_noise(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def slow_moved_probe(mode, shift_y, shift_x):
    """The probe's trigonometric polynomial, evaluated at every pixel minus the shift, term by
    term."""
    size = len(mode)
    pixels, frequencies = np.arange(size), np.arange(-size // 2, size // 2)
    analysis = np.exp(-2j * np.pi * np.outer(frequencies, pixels) / size) / size
    coefficients = analysis @ mode @ analysis.T
    synthesis_y = np.exp(2j * np.pi * np.outer(pixels - shift_y, frequencies) / size)
    synthesis_x = np.exp(2j * np.pi * np.outer(pixels - shift_x, frequencies) / size)
    return synthesis_y @ coefficients @ synthesis_x.T


def slow_intensity(probe, transmission, position):
    """Explicit DFT matrix whose rows are ordered from frequency -N/2 up, so that DC is element
    N/2."""
    size = probe.shape[-1]
    pixels = np.arange(size)
    dft = np.exp(-2j * np.pi * np.outer(pixels - size // 2, pixels) / size) / math.sqrt(size)
    whole = [math.floor(coordinate + 0.5) for coordinate in position]
    patch = transmission[
        whole[0] - size // 2 : whole[0] + size // 2, whole[1] - size // 2 : whole[1] + size // 2
    ]
    intensity = np.zeros((size, size))
    for mode in probe:
        wave = slow_moved_probe(mode, position[0] - whole[0], position[1] - whole[1]) * patch
        intensity += np.abs(dft @ wave @ dft.T) ** 2
    return intensity


def test_intensity_is_that_of_an_explicit_dft_with_two_modes():
    rng = np.random.default_rng(0)
    probe, transmission = complex_noise(rng, 2, 8, 8), complex_noise(rng, 15, 17)
    positions = np.array([[4.0, 4.0], [6.3, 9.8], [10.5, 12.25]])
    # float64 sums of 64 terms of order 1: rounding is of order 1e-14.
    for found, position in zip(
        expected_intensity(probe, transmission, positions), positions, strict=True
    ):
        np.testing.assert_allclose(
            found, slow_intensity(probe, transmission, position), rtol=1e-10, atol=1e-12
        )


def test_empty_object_and_flat_probe_put_all_light_into_the_dc_pixel():
    intensity = expected_intensity(
        np.full((1, 8, 8), 3.0 + 0j), np.ones((8, 8), complex), np.array([[4.0, 4.0]])
    )[0]
    assert intensity[4, 4] == pytest.approx(9 * 64)
    assert intensity.sum() == pytest.approx(9 * 64)


def test_tilted_wave_moves_the_pattern_to_larger_columns():
    ramp = np.exp(2j * np.pi * 2 * np.arange(8) / 8) * np.ones((8, 1))
    intensity = expected_intensity(np.ones((1, 8, 8), complex), ramp, np.array([[4.0, 4.0]]))[0]
    assert np.unravel_index(intensity.argmax(), intensity.shape) == (4, 6)


def test_probe_shifted_by_whole_pixels_is_rolled():
    probe = complex_noise(np.random.default_rng(1), 2, 8, 8)
    moved = shift_probe(probe, np.array([[2.0, -1.0]]))[0]
    # rounding of values of order 1
    np.testing.assert_allclose(moved, np.roll(probe, (2, -1), axis=(-2, -1)), atol=1e-13)


def test_probe_shifted_by_part_of_a_pixel_is_the_continuous_probe_moved():
    def gaussian(centre_y, centre_x):
        rows, columns = np.indices((32, 32))
        return np.exp(-((rows - centre_y) ** 2 + (columns - centre_x) ** 2) / (2 * 2.5**2))[None]

    moved = shift_probe(gaussian(16, 16).astype(complex), np.array([[0.3, -0.45]]))[0]
    # sigma 2.5 px: the window's border is at exp(-20) = 2e-9, and the Nyquist frequency at
    # exp(-31).
    np.testing.assert_allclose(moved, gaussian(16.3, 15.55), atol=1e-8)


def test_moving_the_scan_position_reads_the_object_there():
    """A smooth object sampled part of a pixel further on, seen from a whole position, gives the
    same pattern."""

    def wavy(offset_y, offset_x):
        rows, columns = np.indices((40, 40)) + np.array([offset_y, offset_x])[:, None, None]
        return (
            1
            + 0.5j * np.sin(0.31 * rows) * np.cos(0.23 * columns)
            + 0.2 * np.cos(0.4 * rows + 0.1 * columns)
        )

    rows, columns = np.indices((32, 32)) - 16
    squared_radius = rows**2 + columns**2
    probe = np.exp(-squared_radius * (1 / 8 + 0.05j))[None]
    there = expected_intensity(probe, wavy(0, 0), np.array([[19.3, 20.6]]))
    sampled_there = expected_intensity(probe, wavy(0.3, -0.4), np.array([[19.0, 21.0]]))
    # The two exit waves differ by a shift, which the intensity does not see. The probe (sigma 2 px)
    # is exp(-32) = 1e-14 at the border of its window, and 1e-6 at the Nyquist frequency, with its
    # curvature: that is the error. The wrong way is off by percents.
    np.testing.assert_allclose(there, sampled_there, atol=1e-5 * there.max())
    wrong_way = expected_intensity(probe, wavy(-0.3, 0.4), np.array([[19.0, 21.0]]))
    assert np.abs(there - wrong_way).max() > 2e-2 * there.max()


def test_shifts_keep_every_photon():
    probe = complex_noise(np.random.default_rng(2), 3, 8, 8)
    shifted = shift_probe(probe, np.random.default_rng(3).uniform(-0.5, 0.5, size=(5, 2)))
    # unitary to rounding
    np.testing.assert_allclose(
        np.sum(np.abs(shifted) ** 2, axis=(1, 2, 3)), np.sum(np.abs(probe) ** 2), rtol=1e-12
    )


def test_patch_is_centred_as_the_convention_says():
    transmission = np.arange(100.0).reshape(10, 10).astype(complex)
    wave = exit_waves(np.ones((1, 4, 4), complex), transmission, np.array([[5.0, 3.0]]))[0, 0]
    # A flat probe is shifted by zero: rounding only.
    np.testing.assert_allclose(wave, transmission[3:7, 1:5], atol=1e-12)


@pytest.mark.parametrize("position", [(1.0, 5.0), (5.0, 9.0), (-3.0, 5.0)])
def test_patch_beyond_the_object_is_refused(position):
    with pytest.raises(
        ValueError, match=r"1 of 1 patches of 4 px reach beyond the object of \(10, 10\) px"
    ):
        exit_waves(np.ones((1, 4, 4), complex), np.ones((10, 10), complex), np.array([position]))


def test_mean_total_is_nphotons_whatever_the_chunks(monkeypatch):
    rng = np.random.default_rng(4)
    probe, transmission = complex_noise(rng, 2, 8, 8), complex_noise(rng, 30, 30)
    positions = rng.uniform(5, 25, size=(7, 2))
    for chunk_pixels in (2**20, 3 * 2 * 8 * 8, 1):
        monkeypatch.setattr(simulation, "CHUNK_PIXELS", chunk_pixels)
        scaled = scale_probe(probe, transmission, positions, 12345.0)
        totals = expected_intensity(scaled, transmission, positions).sum(axis=(1, 2))
        assert totals.mean() == pytest.approx(12345.0, rel=1e-12)  # float64 rounding
        assert totals.std() > 1  # one scale for all, not one a pattern


def test_counts_are_poisson():
    rng = np.random.default_rng(5)
    draws = 4000
    probe = complex_noise(rng, 1, 8, 8)
    transmission = np.ones((8, 8), complex)
    once = np.array([[4.0, 4.0]])
    probe = scale_probe(probe, transmission, once, 64 * 50.0)
    rate = expected_intensity(probe, transmission, once)[0]
    diffraction = noisy_diffraction(probe, transmission, np.repeat(once, draws, axis=0), rng)
    counts = np.round(diffraction.astype(np.float64) ** 2)
    # whole numbers of photons, to float32's half unit (6e-8)
    np.testing.assert_allclose(diffraction, np.sqrt(counts), rtol=1e-7)
    # The mean of a pixel has the standard error sqrt(rate / draws); 5 of them over 64 pixels fail
    # once in 3e4 seeds, and the seed is fixed.
    assert np.all(np.abs(counts.mean(axis=0) - rate) < 5 * np.sqrt(rate / draws))
    # Variance over mean is 1; with standard error sqrt((2 + 1 / rate) / draws) a pixel, a 64th of
    # its square for the mean of all.
    bright = rate > 1
    dispersion = np.mean(counts.var(axis=0, ddof=1)[bright] / counts.mean(axis=0)[bright])
    assert abs(dispersion - 1) < 5 * math.sqrt(3 / draws / bright.sum())
    # Pixels and patterns are independent: the total of a pattern is Poisson too. Same formula, one
    # pixel.
    totals = counts.sum(axis=(1, 2))
    assert abs(totals.var(ddof=1) / totals.mean() - 1) < 5 * math.sqrt(2 / draws)


def test_truth_explains_the_data_down_to_shot_noise():
    scan = simulate_scan(**SETTINGS | {"nphotons": 1e7})
    rate = expected_intensity(scan.probe, scan.object, scan.positions_px)
    bright = rate > 20
    chi_squared = np.mean(
        (scan.diffraction.astype(np.float64) ** 2 - rate)[bright] ** 2 / rate[bright]
    )
    assert bright.sum() > 5000
    # The mean of (k - rate)^2 / rate over m pixels is 1 with standard error sqrt((2 + 1 / rate) /
    # m).
    assert abs(chi_squared - 1) < 5 * math.sqrt(2.05 / bright.sum())


def test_scan_has_its_shapes_types_and_photons():
    scan = simulate_scan(**SETTINGS)
    assert scan.diffraction.shape == (20, 32, 32)
    assert scan.diffraction.dtype == np.float32
    assert scan.positions_px.shape == (20, 2)
    assert scan.positions_px.dtype == np.float64
    assert scan.probe.shape == (1, 32, 32)
    rate = expected_intensity(scan.probe, scan.object, scan.positions_px)
    assert rate.sum(axis=(1, 2)).mean() == pytest.approx(1e5, rel=1e-12)  # float64 rounding
    measured = np.sum(scan.diffraction.astype(np.float64) ** 2) / 20
    # standard error of the mean of 20 Poisson totals
    assert abs(measured - 1e5) < 5 * math.sqrt(1e5 / 20)


def test_seed_decides_everything(monkeypatch):
    first, again, other = (simulate_scan(**SETTINGS | {"seed": seed}) for seed in (3, 3, 4))
    for name in ("diffraction", "positions_px", "object", "probe"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.positions_px, other.positions_px)
    assert not np.array_equal(first.diffraction, other.diffraction)
    monkeypatch.setattr(simulation, "CHUNK_PIXELS", 3 * 32 * 32)
    in_chunks = simulate_scan(**SETTINGS)
    # the scale's sum is rounded chunk by chunk
    np.testing.assert_allclose(in_chunks.probe, first.probe, rtol=1e-12)
    np.testing.assert_array_equal(in_chunks.diffraction, first.diffraction)


def test_photons_change_neither_object_nor_positions():
    first, brighter = (
        simulate_scan(**SETTINGS | {"nphotons": nphotons}) for nphotons in (1e5, 1e7)
    )
    np.testing.assert_array_equal(first.object, brighter.object)
    np.testing.assert_array_equal(first.positions_px, brighter.positions_px)
    # sqrt(100), to rounding
    np.testing.assert_allclose(brighter.probe, 10 * first.probe, rtol=1e-12)


def test_denser_scan_sees_the_same_object():
    denser, sparser = (
        simulate_scan(**SETTINGS | {"jitter_px": 0.0, "scan_shape": shape, "step_px": step})
        for shape, step in (((4, 4), 3.0), ((2, 2), 9.0))
    )
    np.testing.assert_array_equal(denser.object, sparser.object)


def test_progress_reaches_the_end(monkeypatch):
    monkeypatch.setattr(simulation, "CHUNK_PIXELS", 8 * 32 * 32)
    reports = []
    simulate_scan(**SETTINGS, report_progress=lambda done, count: reports.append((done, count)))
    assert reports == [(8, 20), (16, 20), (20, 20)]


def test_raster_without_jitter():
    positions = raster_positions((2, 3), 2.5, 0.0, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(
        positions, [[4, 4], [4, 6.5], [4, 9], [6.5, 4], [6.5, 6.5], [6.5, 9]]
    )
    assert canvas_shape(positions, 8) == (11, 13)  # ceil(6.5) + 4, 9 + 4


def test_jitter_is_uniform_within_its_bound_along_both_axes():
    positions = raster_positions((50, 50), 10.0, 2.0, 8, np.random.default_rng(0))
    grid = 10.0 * np.indices((50, 50)).reshape(2, -1).T
    jitter = positions - grid
    jitter -= np.round(jitter.mean(axis=0))  # the whole pixels that bring the scan onto the canvas
    assert np.abs(jitter).max() <= 2.0
    # Variance of a uniform variable is 2^2 / 3, its relative standard error sqrt(4 / 5 / 2500) =
    # 1.8 %: 10 % is 5 of them.
    np.testing.assert_allclose(jitter.var(axis=0), 4 / 3, rtol=0.1)
    assert abs(np.corrcoef(jitter.T)[0, 1]) < 5 / 50  # standard error 1 / sqrt(2500)


def test_canvas_just_holds_the_patches_and_their_interpolation():
    positions = raster_positions((4, 6), 3.3, 1.0, 16, np.random.default_rng(1))
    rows, columns = canvas_shape(positions, 16)
    lowest, highest = np.floor(positions.min(axis=0)) - 8, np.ceil(positions.max(axis=0)) + 7
    np.testing.assert_array_equal(lowest, 0)
    np.testing.assert_array_equal(highest, (rows - 1, columns - 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": "leaves"}, "'leaves' is neither 'dead_leaves' nor 'lines' nor an image file"),
        (
            {"amplitude_range": (-0.1, 1.0)},
            r"amplitude range is \(-0.1, 1.0\), expected amplitudes of at least 0",
        ),
        (
            {"amplitude_range": (1.0, 0.5)},
            r"amplitude range is \(1.0, 0.5\), expected two finite numbers",
        ),
        ({"amplitude_range": (0.0, 0.0)}, "no light passes"),
        ({"phase_range_rad": (0.0, math.inf)}, r"phase range is \(0.0, inf\)"),
        ({"probe": "dsk"}, "found 'dsk', expected 'disk' or 'defocused'"),
        (
            {"probe": "disk", "probe_diameter_px": 32.0},
            "disk of 32.0 px has .* of its energy within 2 px of the border of 32 x 32",
        ),
        (
            {"probe_defocus_rad": 40.0},
            "needs an aperture of radius .* px, more than a detector of 32 px holds",
        ),
        ({"pattern_size": 31}, "pattern size is 31, expected an even number"),
        ({"scan_shape": (0, 5)}, r"shape is \(0, 5\)"),
        ({"step_px": 0.0}, "step is 0.0 px, expected a positive number"),
        ({"jitter_px": -1.0}, "jitter is -1.0 px"),
        ({"nphotons": math.nan}, "nphotons is nan, expected a positive number"),
    ],
)
def test_bad_settings_are_refused_by_what_was_found(change, message):
    with pytest.raises(ValueError, match=message):
        simulate_scan(**SETTINGS | change)


# Objects


@pytest.mark.parametrize("source", ["dead_leaves", "lines"])
def test_object_reaches_its_ranges(source):
    transmission = make_object(source, (60, 80), (0.4, 0.9), (-2.0, 1.5), np.random.default_rng(0))
    assert transmission.shape == (60, 80)
    # exp, abs and angle round in the last of 16 digits.
    amplitude, phase = np.abs(transmission), np.angle(transmission)
    np.testing.assert_allclose(
        [amplitude.min(), amplitude.max(), phase.min(), phase.max()],
        [0.4, 0.9, -2.0, 1.5],
        rtol=1e-12,
    )
    # Amplitude and phase are different pictures, with nothing or about half in common.
    assert abs(np.corrcoef(amplitude.ravel(), phase.ravel())[0, 1]) < 0.9


def test_equal_bounds_make_a_flat_phase():
    transmission = make_object("lines", (40, 40), (0.0, 1.0), (0.0, 0.0), np.random.default_rng(0))
    np.testing.assert_array_equal(transmission.imag, 0)
    assert np.ptp(transmission.real) == 1


def test_leaves_are_flat_and_share_their_edges_between_amplitude_and_phase():
    amplitude, phase = dead_leaves((200, 200), np.random.default_rng(0))
    edges = [np.hypot(*np.gradient(image)) for image in (amplitude, phase)]
    # Inside a leaf, beyond the 4 sigma at which the blur's kernel ends, nothing varies.
    flat = [edge == 0 for edge in edges]
    assert 0.1 < flat[0].mean() < 0.9
    # A pixel is flat in one exactly where it is in the other, but for rounding in the blur's sums.
    assert np.mean((edges[0] < 1e-12) == (edges[1] < 1e-12)) > 0.999
    # Values are drawn for each independently: over hundreds of leaves of unequal size the
    # correlation is about 0 +- 0.1.
    assert abs(np.corrcoef(amplitude.ravel(), phase.ravel())[0, 1]) < 0.4


def test_leaf_sizes_follow_the_inverse_cube():
    """Each radius is drawn with density proportional to r^-3: the areas that one-leaf canvases are
    covered by show which."""

    class OneLeaf:
        """Counts the draws of a generator: a canvas of one pixel stops at the first leaf that
        covers it."""

        def __init__(self):
            self.rng, self.leaves = np.random.default_rng(0), 0

        def random(self, size=None):
            self.leaves += size is not None
            return self.rng.random(size)

        def uniform(self, low, high):
            return self.rng.uniform(low, high)

    rng = OneLeaf()
    canvases = 300
    for _ in range(canvases):
        dead_leaves((1, 1), rng, radius_range_px=(2.0, 8.0))
    # A leaf covers the pixel with probability pi E[r^2] / (1 + 2 * 8)^2, and E[r^2] = 2 ln(8/2) /
    # (1/2^2 - 1/8^2) of that density.
    probability = math.pi * 2 * math.log(4) / (1 / 4 - 1 / 64) / 17**2
    # The number of leaves until success has the mean 1 / p and a relative standard error of about 1
    # / sqrt(300) = 6 %; allow 4 of them.
    assert rng.leaves / canvases == pytest.approx(1 / probability, rel=0.23)


def test_lines_are_half_shared_between_amplitude_and_phase():
    amplitude, phase = lines((200, 150), np.random.default_rng(0))
    assert amplitude.shape == (200, 150)
    assert (amplitude.min(), amplitude.max(), phase.min(), phase.max()) == (0, 1, 0, 1)
    # Half of the lines in common: a correlation of 1/2, within what the wide blur of a few dozen
    # crossings leaves to chance.
    assert 0.2 < np.corrcoef(amplitude.ravel(), phase.ravel())[0, 1] < 0.8


def test_a_single_line_has_the_published_profile(monkeypatch):
    """Across a long straight line, G(1) + 2 G(5) + 5 G(10) is the sum of three one-dimensional
    Gaussians."""

    class AcrossTheMiddle:
        def integers(self, side, size):
            return np.broadcast_to([[side // 2, 0], [side // 2, side - 1]], size)

    profile = lines((100, 100), AcrossTheMiddle())[0][:, 50]
    distance = np.arange(100) - 50.0
    expected = sum(
        w * np.exp(-(distance**2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi))
        for w, s in ((1, 1), (2, 5), (5, 10))
    )
    expected = (expected - expected.min()) / np.ptp(expected)
    # The sampled kernels are cut off at 4 sigma (6e-5 of their weight) and normalised again.
    np.testing.assert_allclose(profile, expected, atol=1e-3)


# Images


def half_bright(rows=40, columns=60):
    image = np.zeros((rows, columns))
    image[: rows // 2, : columns // 2] = 1.0
    return image


@pytest.mark.parametrize(
    "kind", ["png", "jpg", "png16", "tif float", "colour png", "npy", "npy bool"]
)
def test_image_gives_both_contrasts_the_right_way_round(tmp_path, kind):
    image = half_bright()
    suffix = (
        kind.replace("colour", "")
        .replace("16", "")
        .replace("float", "")
        .replace("bool", "")
        .split()[0]
    )
    path = tmp_path / f"image.{suffix}"
    if kind == "npy":
        np.save(path, 100.0 + image)
    elif kind == "npy bool":
        np.save(path, image > 0)
    elif kind == "png16":
        Image.fromarray((20000 + 100 * image).astype(np.uint16)).save(path)
    elif kind == "tif float":
        Image.fromarray((1e-3 * image).astype(np.float32)).save(path)
    elif kind == "colour png":
        Image.fromarray(
            np.stack([255 * image, 100 * image, 0 * image], axis=-1).astype(np.uint8)
        ).save(path)
    else:
        Image.fromarray((255 * image).astype(np.uint8)).save(path)
    contrast = image_contrast(path, (20, 30))
    assert contrast.shape == (2, 20, 30)
    np.testing.assert_array_equal(contrast[0], contrast[1])
    # Half size keeps the halves; 10 % is for JPEG's blocks and the resampling kernel's overshoot at
    # the edge (about 7 %).
    np.testing.assert_allclose(contrast[0][:8, :13], 1, atol=0.1)
    np.testing.assert_allclose(contrast[0][12:, :], 0, atol=0.1)
    np.testing.assert_allclose(contrast[0][:, 17:], 0, atol=0.1)


def test_complex_array_gives_amplitude_and_phase_their_own(tmp_path):
    rows, columns = np.indices((16, 16))
    np.save(tmp_path / "object.npy", (1 + rows) * np.exp(1j * columns / 10))
    amplitude, phase = image_contrast(tmp_path / "object.npy", (16, 16))
    # The same size is no resampling: float32 rounding.
    np.testing.assert_allclose(amplitude, rows / 15, atol=1e-6)
    np.testing.assert_allclose(phase, columns / 15, atol=1e-6)


def test_wide_image_keeps_its_proportions_and_its_centre(tmp_path):
    image = np.tile(np.linspace(0, 1, 90), (30, 1))
    image[:, :30], image[:, 60:] = 0, 1
    np.save(tmp_path / "wide.npy", image)
    contrast = image_contrast(tmp_path / "wide.npy", (30, 30))[0]
    # The middle third runs from 1/3 to 2/3 in even steps, so once stretched from 0 to 1: float32
    # rounding.
    np.testing.assert_allclose(contrast[0], np.linspace(0, 1, 30), atol=1e-5)


def test_shrinking_an_image_does_not_alias(tmp_path):
    image = np.indices((400, 400)).sum(axis=0) % 2.0  # a chequer board of single pixels
    image[:200] += 10
    np.save(tmp_path / "board.npy", image)
    contrast = image_contrast(tmp_path / "board.npy", (41, 41))[0]
    # Averages to grey on both sides of the step. The board is a tenth of the step: picking single
    # pixels would leave a spread of 0.05.
    assert contrast[:18].std() < 0.01
    assert contrast[23:].std() < 0.01


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "missing.png' is neither"),
        ("text.png", b"not an image", "cannot read the image .*text.png"),
        ("text.npy", b"not an array", "cannot read the image .*text.npy"),
        ("objects.npy", np.array([{"a": 1}]), "cannot read the image .*objects.npy"),
        ("cube.npy", np.ones((3, 4, 5)), r"shape \(3, 4, 5\), expected two dimensions"),
        ("flat.npy", np.ones((4, 5)), "same value in every pixel"),
        ("nan.npy", np.array([[1.0, np.nan], [0.0, 1.0]]), "not finite"),
    ],
)
def test_bad_images_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        image_contrast(path, (8, 8))


# Probes


def test_disk_has_its_diameter_at_half_amplitude():
    probe = disk_probe(64, 20.0)
    assert probe[32, 32] == pytest.approx(1.0)
    np.testing.assert_allclose(probe[32, [22, 42]], 0.5, atol=1e-12)
    np.testing.assert_array_equal(probe.imag, 0)
    # Area at half amplitude; pixels on the circle make it uncertain by about its circumference to
    # the power 1/2, 8 of 314.
    assert np.sum(probe.real > 0.5 - 1e-9) == pytest.approx(math.pi * 100, abs=8)


@pytest.mark.parametrize(
    ("size", "diameter", "defocus"),
    [(64, 28.0, 8.0), (64, 24.0, -12.0), (128, 40.0, 20.0), (32, 10.0, 5.0)],
)
def test_defocused_beam_has_its_diameter_and_is_centred_smooth_and_contained(
    size, diameter, defocus
):
    probe = defocused_probe(size, diameter, defocus)
    # The moment is exact for the continuous beam; the window cuts its faint tail (at most 0.5 % of
    # the energy, mostly far less).
    assert beam_diameter_px(probe) == pytest.approx(diameter, rel=0.01)
    intensity = np.abs(probe) ** 2
    for axis in (0, 1):
        assert np.sum(
            intensity.sum(axis=1 - axis) * np.arange(size)
        ) / intensity.sum() == pytest.approx(size // 2, abs=0.05)
    # Half of the energy of a uniform disk is within 0.71 of its radius; the Fresnel fringes move
    # that a little.
    rows, columns = np.indices(intensity.shape) - size // 2
    assert (
        0.4 < intensity[np.hypot(rows, columns) < diameter / 2 * 0.71].sum() / intensity.sum() < 0.7
    )


def test_defocused_beam_comes_from_a_round_aperture_with_a_quadratic_phase():
    probe = defocused_probe(64, 28.0, 8.0)
    lens = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe), norm="ortho"))
    bright = np.abs(lens) > 0.5 * np.abs(lens).max()
    radius = math.sqrt(bright.sum() / math.pi)
    rows, columns = np.indices(bright.shape) - 32
    assert np.hypot(rows, columns)[bright].max() < 1.1 * radius  # round, within a pixel
    along = np.unwrap(np.angle(lens[32, 32 : 32 + int(radius)]))
    # The phase is 8 (q/R)^2: its second difference 16 / R^2, with R known from the pixel count
    # within 5 %, its square within 10 %.
    np.testing.assert_allclose(np.diff(along, 2), 16 / radius**2, rtol=0.1)


def test_beam_diameter_of_a_uniform_disk_is_its_own():
    # An edge blurred by 1 px in amplitude takes its energy from 0.56 px further in all around: 1.1
    # of 60 px.
    assert beam_diameter_px(disk_probe(128, 60.0)) == pytest.approx(60.0 - 1.1, abs=0.3)


def test_given_probe_is_taken_as_it_is():
    modes = complex_noise(np.random.default_rng(0), 3, 16, 16).astype(np.complex64)
    np.testing.assert_array_equal(make_probe(modes, 16, 5.0, 0.0), modes)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("beam.npy", "found 'beam.npy', expected 'disk' or 'defocused'"),
        (np.ones((1, 8, 8)), r"found shape \(1, 8, 8\), expected \(modes, 16, 16\)"),
        (np.ones((0, 16, 16)), r"found shape \(0, 16, 16\)"),
        (np.zeros((1, 16, 16)), "nothing but zeros"),
        (np.full((1, 16, 16), np.nan), "NaN or infinite"),
    ],
)
def test_given_probe_that_can_not_be_used_is_refused(probe, message):
    with pytest.raises(ValueError, match=message):
        make_probe(probe, 16, 5.0, 0.0)
