"""Scores are invariant under what ptychography cannot know, and under nothing else."""

import json
import math

import numpy as np
import pytest
from scipy import ndimage

from ptycho_dist.report.comparison import compare_with_reference, fit_phase_ramp, remove_phase_ramp

SHAPE = (90, 100)
# Rounding of complex64 is 6e-8 of a value, and some 1e-6 of the contrast, which is a tenth of the value.
ROUNDING = 1e-5


def smooth_noise(seed, shape=SHAPE, sigma=2.0):
    """Smooth random image of mean 0 and standard deviation 1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (noise - noise.mean()) / noise.std()


def random_object(seed, phase_rad=0.4):
    field = (0.8 + 0.1 * smooth_noise(seed)) * np.exp(1j * phase_rad * smooth_noise(seed + 1000))
    return field.astype(np.complex64)


def ramp(shape, rad_per_px):
    y, x = np.indices(shape)
    return np.exp(1j * (rad_per_px[0] * y + rad_per_px[1] * x))


@pytest.fixture
def positions():
    # Fractional on purpose: the whole pixels inside are rows 15..69 and columns 20..79.
    return np.array([[14.3, 19.5], [69.8, 40.0], [30.0, 79.9], [50.2, 33.3]])


def compare(object_, positions, reference, *, origin_px=(0, 0), valid=None):
    valid = np.ones(object_.shape, dtype=bool) if valid is None else valid
    return compare_with_reference(object_, origin_px=origin_px, valid=valid, positions_px=positions, reference=reference)


def assert_same_numbers(one, other, tolerance=1e-9):
    for name, value in one.numbers().items():
        assert other.numbers()[name] == pytest.approx(value, abs=tolerance), name


# From a slight tilt to one that wraps every 2.3 pixels.
@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.003, -0.011), (0.31, -0.7), (-1.9, 2.7)])
def test_phase_ramp_global_phase_and_gain_are_fitted(positions, slope):
    reference = random_object(1)
    object_ = (2.5 * np.exp(2.2j) * reference * ramp(SHAPE, slope)).astype(np.complex64)
    result = compare(object_, positions, reference)
    for score in (
        result.phase_correlation,
        result.amplitude_correlation,
        result.phase_ssim,
        result.amplitude_ssim,
    ):
        assert score == pytest.approx(1, abs=ROUNDING)
    assert result.complex_error < ROUNDING
    assert result.amplitude_gain == pytest.approx(1 / 2.5, rel=ROUNDING)
    # Rounding of the phase, averaged over thousands of pixels and divided by the box's width, is far below this.
    assert result.phase_ramp_rad_per_px == pytest.approx(slope, abs=1e-7)
    np.testing.assert_allclose(result.aligned, result.reference, atol=ROUNDING)


def test_box_is_the_whole_pixels_between_the_outermost_positions(positions):
    reference = random_object(1)
    result = compare(reference, positions, reference)
    assert result.box_px == (15, 70, 20, 80)
    assert result.num_pixels == 55 * 60
    assert result.aligned.shape == result.reference.shape == (55, 60)
    assert result.aligned.dtype == result.reference.dtype == np.complex64


def test_phase_that_wraps_in_the_object_is_aligned(positions):
    # Standard deviation 1.2 rad: some phases lie beyond pi from the mean, so both images contain wraps.
    reference = random_object(1, phase_rad=1.2)
    object_ = (reference * ramp(SHAPE, (0.2, 0.1))).astype(np.complex64)
    result = compare(object_, positions, reference)
    # Looser than ROUNDING: of 3300 pixels one that lies within rounding of the cut may jump by 2 pi.
    assert result.phase_correlation > 0.99
    assert result.complex_error < ROUNDING


def test_unrelated_object_scores_near_zero(positions):
    shape = SHAPE
    reference = random_object(1)
    rng = np.random.default_rng(5)
    noise = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    result = compare(noise, positions, reference)
    # 3300 independent pixels: standard deviation 0.017 each, so 0.1 is six of them.
    assert abs(result.phase_correlation) < 0.1
    assert abs(result.amplitude_correlation) < 0.1
    # The best of 3300 ramps explains about log(3300)/3300 = 0.25 % of the energy, 0.12 % of the error.
    assert 0.99 < result.complex_error <= 1


def test_noise_lowers_every_score(positions):
    reference = random_object(1)
    rng = np.random.default_rng(6)
    noise = rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)
    little, much = (compare((reference + scale * noise).astype(np.complex64), positions, reference) for scale in (0.01, 0.1))
    for name in ("phase_correlation", "amplitude_correlation", "phase_ssim", "amplitude_ssim"):
        assert getattr(much, name) < getattr(little, name) < 1
    assert much.complex_error > little.complex_error
    # Noise of 0.01 in either part is sqrt(2) * 0.01 of an RMS amplitude of 0.806; 3300 pixels know it to 2 %.
    assert little.complex_error == pytest.approx(math.sqrt(2) * 0.01 / 0.806, rel=0.06)


def test_origin_places_the_object_in_scan_coordinates(positions):
    reference = random_object(1)
    object_ = (reference + 0.05 * random_object(7)).astype(np.complex64)
    whole = compare(object_, positions, reference)
    cropped = compare(object_[9:, 4:95], positions, reference, origin_px=(9, 4))
    padded = compare(np.pad(object_, ((6, 2), (11, 0))), positions, reference, origin_px=(-6, -11))
    # The same pixels in the same order: the very same numbers.
    assert_same_numbers(whole, cropped, tolerance=0)
    assert_same_numbers(whole, padded, tolerance=0)
    # An origin that is wrong by two pixels, the width of the features, must show.
    assert compare(object_, positions, reference, origin_px=(2, 0)).phase_correlation < 0.8


def test_fractional_origin_is_resampled(positions):
    y, x = np.indices(SHAPE)

    # The same analytic field on two grids, of at least 21 pixels a period.
    def field(y, x):
        return (0.8 + 0.1 * np.sin(0.3 * y + 0.1 * x)) * np.exp(0.5j * np.cos(0.2 * x - 0.1 * y))

    object_ = field(y + 0.4, x - 0.25).astype(np.complex64)
    valid = np.zeros(SHAPE, dtype=bool)
    valid[16:70, 10:90] = True
    result = compare(
        np.where(valid, object_, np.nan),
        positions,
        field(y, x).astype(np.complex64),
        origin_px=(0.4, -0.25),
        valid=valid,
    )
    # Splines err by some 1e-5 on so smooth a field; placing it at the nearest pixel errs by 3e-2.
    assert result.complex_error < 5e-4
    assert result.phase_correlation > 0.9999
    # Row 16 of the object lies at 16.4: the first row whose four neighbours 17.4 - 1 .. + 2 are valid is 18.
    assert np.flatnonzero(np.isfinite(result.aligned).any(axis=1))[0] + result.box_px[0] == 18


def test_pixels_outside_the_mask_change_nothing(positions):
    reference = random_object(1)
    object_ = (reference + 0.05 * random_object(7)).astype(np.complex64)
    valid = np.ones(SHAPE, dtype=bool)
    valid[30:45, 10:50] = False
    clean = compare(object_, positions, reference, valid=valid)
    for garbage in (1e6, np.nan, np.inf):
        spoiled, spoiled_reference = object_.copy(), reference.copy()
        spoiled[~valid] = garbage
        spoiled_reference[~valid] = garbage
        assert_same_numbers(clean, compare(spoiled, positions, reference, valid=valid), tolerance=0)
        assert_same_numbers(clean, compare(object_, positions, spoiled_reference, valid=valid), tolerance=0)
    assert clean.num_pixels == 55 * 60 - 15 * 30
    y0, y1, x0, x1 = clean.box_px
    np.testing.assert_array_equal(np.isnan(clean.aligned), ~valid[y0:y1, x0:x1])


def test_constant_images_have_no_correlation(positions):
    reference = random_object(1)
    flat = np.full(SHAPE, 0.7 + 0.2j, dtype=np.complex64)
    with pytest.warns(RuntimeWarning, match="amplitude correlation is undefined .* of the object is constant"):
        result = compare(flat, positions, reference)
    assert math.isnan(result.amplitude_correlation)
    assert math.isfinite(result.complex_error)
    assert math.isfinite(result.phase_ssim)

    phase_only = np.exp(1j * np.angle(reference)).astype(np.complex64)
    with pytest.warns(RuntimeWarning) as caught:
        result = compare(reference, positions, phase_only)
    assert {str(warning.message).split(" is ")[0] for warning in caught} == {"amplitude correlation", "amplitude SSIM"}
    assert result.numbers()["amplitude_correlation"] is None
    # JSON has no NaN: strict serialisation must pass.
    json.dumps(result.numbers(), allow_nan=False)


def test_single_row_can_be_aligned():
    reference = random_object(1)
    positions = np.array([[30.0, 10.0], [30.0, 80.0]])
    object_ = (reference * ramp(SHAPE, (0.0, 0.2))).astype(np.complex64)
    result = compare(object_, positions, reference)
    assert result.box_px == (30, 31, 10, 81)
    assert result.phase_correlation == pytest.approx(1, abs=ROUNDING)


def test_ramp_fit_is_the_maximum_of_the_matched_sum():
    field = random_object(3) * ramp(SHAPE, (0.05, -0.4)) * (1 + 0.3 * smooth_noise(8))
    best = fit_phase_ramp(field)

    def matched(slope):
        return abs(remove_phase_ramp(field, slope).sum())

    # A hundredth of a fringe across the image either way must be worse.
    for step in ((7e-4, 0), (-7e-4, 0), (0, 6e-4), (0, -6e-4)):
        assert matched((best[0] + step[0], best[1] + step[1])) < matched(best)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object_": np.ones(SHAPE)}, r"the object is float64 \(90, 100\); expected a complex array"),
        ({"reference": np.ones((2, *SHAPE), np.complex64)}, r"the reference is complex64 \(2, 90, 100\); expected"),
        ({"valid": np.ones((3, 4), dtype=bool)}, r"mask is bool \(3, 4\); expected bool \(90, 100\)"),
        ({"valid": np.ones(SHAPE)}, r"mask is float64 .*expected bool"),
        ({"valid": np.zeros(SHAPE, dtype=bool)}, r"no pixel of the box .*= \(15, 70, 20, 80\) is valid"),
        ({"origin_px": (0.0, np.nan)}, r"origin_px is \[0.0, nan\]; expected two finite"),
        ({"origin_px": 3.0}, "origin_px is 3.0; expected two finite"),
        ({"positions_px": np.zeros((2, 5))}, r"shape \(2, 5\); expected \(n, 2\)"),
        ({"positions_px": np.zeros((0, 2))}, r"shape \(0, 2\); expected \(n, 2\)"),
        ({"positions_px": np.array([[1.0, np.inf]])}, "positions_px holds NaN or infinity at 1 of 2 values"),
        (
            {"origin_px": (70, 0)},
            r"no rows to compare: the positions span 15..70, the object 70..160 and the reference",
        ),
        ({"origin_px": (0, -80)}, r"no columns to compare: .*the object -80..20"),
        ({"positions_px": np.array([[30.2, 10.0], [30.8, 50.0]])}, "no rows to compare: the positions span 31..31"),
        (
            {"object_": np.full(SHAPE, np.nan, np.complex64)},
            "the object, where it is valid, holds NaN or infinity at 9000",
        ),
        (
            {"reference": np.full(SHAPE, np.inf, np.complex64)},
            "the reference, .* holds NaN or infinity at 3300 of 3300",
        ),
        ({"object_": np.zeros(SHAPE, np.complex64)}, "the object is zero at all 3300 compared pixels"),
        ({"reference": np.zeros(SHAPE, np.complex64)}, "the reference is zero at all 3300 compared pixels"),
    ],
)
def test_refused_input_is_named(positions, change, message):
    arguments = {
        "object_": random_object(1),
        "origin_px": (0, 0),
        "valid": np.ones(SHAPE, dtype=bool),
        "positions_px": positions,
        "reference": random_object(2),
    } | change
    with pytest.raises(ValueError, match=message):
        compare_with_reference(arguments.pop("object_"), **arguments)
