"""Scores are invariant under what ptychography cannot know, and under nothing else."""

import json
import math

import numpy as np
import pytest
from scipy import ndimage

from ptycho_dist.physics import simulated_objects
from ptycho_dist.report.alignment import fit_phase_ramp, remove_phase_ramp
from ptycho_dist.report.comparison import compare_with_reference
from ptycho_dist.report.metrics import structural_similarity

SHAPE = (90, 100)
# Rounding of complex64 is 6e-8 of a value, and some 1e-6 of the contrast, which is a tenth of the
# value.
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


def compare(object_, positions, reference, *, origin_px=(0, 0), valid=None, illumination=None):
    valid = np.ones(object_.shape, dtype=bool) if valid is None else valid
    illumination = np.ones(object_.shape) if illumination is None else illumination
    return compare_with_reference(
        object_,
        origin_px=origin_px,
        valid=valid,
        illumination=illumination,
        positions_px=positions,
        reference=reference,
    )


def assert_same_numbers(one, other, tolerance):
    for name, value in one.numbers().items():
        assert other.numbers()[name] == pytest.approx(value, abs=tolerance, rel=tolerance), name


# From a slight tilt to one that wraps every 2.3 pixels.
@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.003, -0.011), (0.31, -0.7), (-1.9, 2.7)])
def test_phase_ramp_global_phase_and_gain_are_fitted(positions, slope):
    reference = random_object(1)
    object_ = (2.5 * np.exp(2.2j) * reference * ramp(SHAPE, slope)).astype(np.complex64)
    result = compare(object_, positions, reference)
    for score in (
        result.phase.correlation,
        result.amplitude.correlation,
        result.phase.ssim,
        result.amplitude.ssim,
    ):
        assert score == pytest.approx(1, abs=ROUNDING)
    assert result.complex_error < ROUNDING
    assert result.amplitude_gain == pytest.approx(1 / 2.5, rel=ROUNDING)
    # Rounding of the phase, averaged over thousands of pixels and divided by the box's width, is
    # far below this.
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
    # Standard deviation 1.2 rad: some phases lie beyond pi from the mean, so both images contain
    # wraps.
    reference = random_object(1, phase_rad=1.2)
    object_ = (reference * ramp(SHAPE, (0.2, 0.1))).astype(np.complex64)
    result = compare(object_, positions, reference)
    # Looser than ROUNDING: of 3300 pixels one that lies within rounding of the cut may jump by 2
    # pi.
    assert result.phase.correlation > 0.99
    assert result.complex_error < ROUNDING


def test_unrelated_object_scores_near_zero(positions):
    shape = SHAPE
    reference = random_object(1)
    rng = np.random.default_rng(5)
    noise = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    result = compare(noise, positions, reference)
    # 3300 independent pixels: standard deviation 0.017 each, so 0.1 is six of them.
    assert abs(result.phase.correlation) < 0.1
    assert abs(result.amplitude.correlation) < 0.1
    # The best of 3300 ramps explains about log(3300)/3300 = 0.25 % of the energy, 0.12 % of the
    # error.
    assert 0.99 < result.complex_error <= 1


def test_similarity_of_phases_is_relative_to_the_least_of_the_reference(positions):
    reference = random_object(1)
    result = compare(
        (reference + 0.1 * random_object(7)).astype(np.complex64), positions, reference
    )
    image, phase = (np.angle(field) for field in (result.aligned, result.reference))
    expected = structural_similarity(image - phase.min(), phase - phase.min(), np.ptp(phase))
    assert result.phase.ssim == pytest.approx(expected, abs=ROUNDING)


def test_noise_lowers_every_score(positions):
    reference = random_object(1)
    rng = np.random.default_rng(6)
    noise = rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)
    little, much = (
        compare((reference + scale * noise).astype(np.complex64), positions, reference)
        for scale in (0.01, 0.1)
    )
    for image in ("phase", "amplitude"):
        for score in ("correlation", "ssim", "ms_ssim", "psnr_db"):
            assert getattr(getattr(much, image), score) < getattr(getattr(little, image), score)
        assert getattr(much, image).mae > getattr(little, image).mae
        assert (
            getattr(much, image).frc.correlation.mean()
            < getattr(little, image).frc.correlation.mean()
        )
    assert much.complex_error > little.complex_error
    # Noise of 0.01 in either part is sqrt(2) * 0.01 of an RMS amplitude of 0.806; 3300 pixels know
    # it to 2 %.
    assert little.complex_error == pytest.approx(math.sqrt(2) * 0.01 / 0.806, rel=0.06)


def test_origin_places_the_object_in_scan_coordinates(positions):
    reference = random_object(1)
    object_ = (reference + 0.05 * random_object(7)).astype(np.complex64)
    whole = compare(object_, positions, reference)
    cropped = compare(object_[9:, 4:95], positions, reference, origin_px=(9, 4))
    padded = compare(np.pad(object_, ((6, 2), (11, 0))), positions, reference, origin_px=(-6, -11))
    # The same pixels; what differs is how splines end, six pixels beyond them: each pixel takes .27
    # of what its neighbour has.
    assert_same_numbers(whole, cropped, tolerance=1e-3)
    assert_same_numbers(whole, padded, tolerance=1e-3)
    assert whole.shift_px == pytest.approx((0, 0), abs=0.02)
    # An origin that is wrong by two pixels is a shift.
    assert compare(object_, positions, reference, origin_px=(2, 0)).shift_px == pytest.approx(
        (-2, 0), abs=0.02
    )


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
    assert result.phase.correlation > 0.9999
    # Row 16 of the object lies at 16.4: the first row whose four neighbours 17.4 - 1 .. + 2 are
    # valid is 18.
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
        assert_same_numbers(
            clean, compare(object_, positions, spoiled_reference, valid=valid), tolerance=0
        )
    assert clean.num_pixels == 55 * 60 - 15 * 30
    y0, y1, x0, x1 = clean.box_px
    np.testing.assert_array_equal(np.isnan(clean.aligned), ~valid[y0:y1, x0:x1])


def test_constant_images_have_no_correlation(positions):
    reference = random_object(1)
    phase_only = np.exp(1j * np.angle(reference)).astype(np.complex64)
    with pytest.warns(
        RuntimeWarning, match="amplitude correlation, PSNR and similarities are undefined"
    ):
        result = compare(reference, positions, phase_only)
    assert math.isnan(result.amplitude.correlation)
    assert result.numbers()["amplitude_correlation"] is None
    assert result.amplitude.mae > 0
    assert result.phase.correlation == pytest.approx(1, abs=ROUNDING)
    # JSON has no NaN: strict serialisation must pass.
    json.dumps(result.numbers(), allow_nan=False)


@pytest.fixture(scope="module")
def leaves():
    """Strong contrast, amplitude and phase independent, with a reference that has a ramp of its own
    as ePIE's have."""
    scan = simulated_objects.make_object(
        "dead_leaves", (150, 160), (0.5, 1.0), (-2.0, 2.0), np.random.default_rng(0)
    )
    return (scan * ramp(scan.shape, (0.02, -0.03))).astype(np.complex64), np.array(
        [[20.0, 20.0], [129.0, 139.0]]
    )


def score_of(object_, leaves):
    reference, positions = leaves
    return compare(object_.astype(np.complex64), positions, reference)


def first_numbers(result):
    """What the report puts first."""
    names = list(result.numbers())[:4]
    assert names == [
        "phase_correlation",
        "amplitude_correlation",
        "object_frc_half_bit_resolution_px",
        "object_frc_0.5_resolution_px",
    ]
    return [result.numbers()[name] for name in names]


def test_truth_in_any_gauge_scores_best(leaves):
    truth = leaves[0]
    phase, amplitude, half_bit_px, half_px = first_numbers(
        score_of(3 * np.exp(1j) * truth * ramp(truth.shape, (-0.4, 0.1)), leaves)
    )
    assert (phase, amplitude) == pytest.approx((1, 1), abs=ROUNDING)
    assert half_bit_px == half_px == 2


@pytest.mark.parametrize("shift", [(1.0, -3.0), (0.3, 0.0), (-2.4, 1.5), (4.9, -4.7)])
def test_shifted_truth_is_found(leaves, shift):
    truth = leaves[0]
    moved = ndimage.shift(truth, shift, order=5, mode="nearest") * ramp(truth.shape, (0.3, -0.2))
    result = score_of(moved, leaves)
    assert result.shift_px == pytest.approx((-shift[0], -shift[1]), abs=0.01)
    # Twice interpolated, edges of 1 px have lost a little.
    assert min(result.phase.correlation, result.amplitude.correlation) > 0.995
    assert result.frc.resolution_px(result.frc.half_bit) < 3


def impostors(truth):
    rng = np.random.default_rng(0)
    amplitude, phase = np.abs(truth), np.angle(truth)
    return {
        "flat": np.full(truth.shape, 0.6 + 0.2j),
        "ramp": ramp(truth.shape, (0.02, -0.03)),
        "noise": rng.normal(size=truth.shape) + 1j * rng.normal(size=truth.shape),
        "flat with noise": 1 + 0.1 * rng.normal(size=truth.shape) + 0j,
        "amplitude for phase": (phase + 4) / 8 * np.exp(4j * amplitude),
        "twin": truth[::-1, ::-1].conj(),
        "another object": simulated_objects.make_object(
            "dead_leaves", truth.shape, (0.5, 1.0), (-2.0, 2.0), rng
        ),
    }


@pytest.mark.parametrize("name", list(impostors(np.ones((2, 2)))))
def test_impostor_scores_badly_in_what_comes_first(leaves, name):
    phase, amplitude, half_bit_px, half_px = first_numbers(
        score_of(impostors(leaves[0])[name], leaves)
    )
    # Large leaves are few: two unrelated images of some tens of them correlate by chance by 0.1 or
    # 0.2, either way.
    limit = 0.01 if name in ("flat", "ramp") else 0.3
    assert phase < limit
    assert amplitude < limit
    # None: not even the longest period.
    assert half_bit_px is None or half_bit_px > 30
    assert half_px is None or half_px > 30


def test_only_what_was_lit_is_compared(positions):
    reference = random_object(1)
    illumination = np.full(SHAPE, 5.0)
    illumination[30:45, 10:50] = 0.49  # less than a tenth
    illumination[50:55, 10:50] = 0.51
    spoiled = np.where(illumination < 0.5, 0.3, reference).astype(np.complex64)
    result = compare(spoiled, positions, reference, illumination=illumination)
    assert result.num_pixels == 55 * 60 - 15 * 30
    assert result.complex_error < ROUNDING


def test_single_row_can_be_aligned():
    reference = random_object(1)
    positions = np.array([[30.0, 10.0], [30.0, 80.0]])
    object_ = (reference * ramp(SHAPE, (0.0, 0.2))).astype(np.complex64)
    result = compare(object_, positions, reference)
    assert result.box_px == (30, 31, 10, 81)
    assert result.phase.correlation == pytest.approx(1, abs=ROUNDING)


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
        (
            {"object_": np.ones(SHAPE)},
            r"the object is float64 \(90, 100\); expected a complex array",
        ),
        (
            {"reference": np.ones((2, *SHAPE), np.complex64)},
            r"the reference is complex64 \(2, 90, 100\); expected",
        ),
        (
            {"valid": np.ones((3, 4), dtype=bool)},
            r"mask is bool \(3, 4\); expected bool \(90, 100\)",
        ),
        ({"valid": np.ones(SHAPE)}, r"mask is float64 .*expected bool"),
        (
            {"valid": np.zeros(SHAPE, dtype=bool)},
            r"no pixel of the box .*= \(15, 70, 20, 80\) is valid",
        ),
        (
            {"illumination": np.ones((3, 4))},
            r"illumination is float64 \(3, 4\); expected real numbers \(90, 100\)",
        ),
        (
            {"illumination": np.full(SHAPE, np.nan)},
            "the illumination, where the object is valid, holds NaN",
        ),
        ({"origin_px": (0.0, np.nan)}, r"origin_px is \[0.0, nan\]; expected two finite"),
        ({"origin_px": 3.0}, "origin_px is 3.0; expected two finite"),
        ({"positions_px": np.zeros((2, 5))}, r"shape \(2, 5\); expected \(n, 2\)"),
        ({"positions_px": np.zeros((0, 2))}, r"shape \(0, 2\); expected \(n, 2\)"),
        (
            {"positions_px": np.array([[1.0, np.inf]])},
            "positions_px holds NaN or infinity at 1 of 2 values",
        ),
        (
            {"origin_px": (70, 0)},
            r"no rows to compare: the positions span 15..70, the object 70..160 and the reference",
        ),
        ({"origin_px": (0, -80)}, r"no columns to compare: .*the object -80..20"),
        (
            {"positions_px": np.array([[30.2, 10.0], [30.8, 50.0]])},
            "no rows to compare: the positions span 31..31",
        ),
        (
            {"object_": np.full(SHAPE, np.nan, np.complex64)},
            "the object, where it is valid, holds NaN or infinity at 9000",
        ),
        (
            {"reference": np.full(SHAPE, np.inf, np.complex64)},
            "the reference, .* holds NaN or infinity at 3300 of 3300",
        ),
        (
            {"object_": np.zeros(SHAPE, np.complex64)},
            "the object is zero at all 3300 compared pixels",
        ),
        (
            {"reference": np.zeros(SHAPE, np.complex64)},
            "the reference is zero at all 3300 compared pixels",
        ),
    ],
)
def test_refused_input_is_named(positions, change, message):
    arguments = {
        "object_": random_object(1),
        "origin_px": (0, 0),
        "valid": np.ones(SHAPE, dtype=bool),
        "illumination": np.ones(SHAPE),
        "positions_px": positions,
        "reference": random_object(2),
    } | change
    with pytest.raises(ValueError, match=message):
        compare_with_reference(arguments.pop("object_"), **arguments)
