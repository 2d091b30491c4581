"""Each metric against another implementation of its definition."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import metrics as oracle
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ptycho_dist.report.metrics import (
    SCALE_WEIGHTS,
    correlation,
    mean_absolute_error,
    multiscale_structural_similarity,
    num_scales,
    peak_signal_noise_ratio,
    structural_similarity,
)

ALL = (
    mean_absolute_error,
    correlation,
    lambda image, reference, mask: peak_signal_noise_ratio(image, reference, 1.0, mask),
    lambda image, reference, mask: structural_similarity(image, reference, 1.0, mask),
    lambda image, reference, mask: multiscale_structural_similarity(image, reference, 1.0, mask),
)


def smooth_pair(shape, seed=0, noise=0.05):
    """A smooth image with values from 0 to 1, and the same with noise."""
    rng = np.random.default_rng(seed)
    reference = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    reference = (reference - reference.min()) / np.ptp(reference)
    return reference + noise * rng.normal(size=shape), reference


@pytest.fixture
def pair():
    return smooth_pair((60, 71))


@pytest.fixture
def disk():
    y, x = np.indices((60, 71))
    return (y - 30) ** 2 + (x - 35) ** 2 < 26**2


def test_errors_are_their_definitions(pair, disk):
    image, reference = pair
    assert mean_absolute_error(image, reference, disk) == pytest.approx(
        np.abs(image - reference)[disk].mean()
    )
    # Range 255 instead of 1: 20 log10(255) = 48.13 dB more, as published tables have it.
    for data_range in (1.0, 255.0):
        expected = oracle.peak_signal_noise_ratio(reference, image, data_range=data_range)
        assert peak_signal_noise_ratio(image, reference, data_range) == pytest.approx(expected)
    masked = 10 * np.log10(1 / np.square(image - reference)[disk].mean())
    assert peak_signal_noise_ratio(image, reference, 1.0, disk) == pytest.approx(masked)
    assert peak_signal_noise_ratio(reference, reference, 1.0) == math.inf
    deviations = [values[disk] - values[disk].mean() for values in pair]
    cosine = (
        deviations[0]
        @ deviations[1]
        / np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum())
    )
    assert correlation(image, reference, disk) == pytest.approx(cosine)


def test_correlation_with_no_contrast(pair):
    image, reference = pair
    rounded = 0.7 + 1e-7 * np.random.default_rng(0).normal(size=image.shape)
    assert correlation(rounded, reference, rounding=1e-6) == 0
    assert math.isnan(correlation(image, rounded, rounding=1e-6))
    assert correlation(np.full_like(image, 0.5), reference) == 0


@pytest.mark.parametrize("data_range", [0.3, 1.0, 20.0])
def test_ssim_is_that_of_scikit_image(pair, data_range):
    image, reference = pair
    # Its mean leaves out the border that no whole window fits in, as ours does; both work in
    # float64.
    gaussian = oracle.structural_similarity(
        image,
        reference,
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert structural_similarity(image, reference, data_range) == pytest.approx(gaussian, abs=1e-9)
    uniform = oracle.structural_similarity(
        image, reference, data_range=data_range, win_size=7, use_sample_covariance=False
    )
    assert structural_similarity(
        image, reference, data_range, uniform_window_px=7
    ) == pytest.approx(uniform, abs=1e-9)


def test_masked_ssim_is_the_mean_over_whole_windows(pair, disk):
    image, reference = pair
    _, similarity = oracle.structural_similarity(
        image,
        reference,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    chosen = [
        similarity[y, x] for y in range(5, 55) for x in range(5, 66) if disk[y - 5 : y + 6, x - 5 : x + 6].all()
    ]  # fmt: skip
    assert structural_similarity(image, reference, 1.0, disk) == pytest.approx(
        np.mean(chosen), abs=1e-9
    )


def multiscale_by_definition(image, reference, data_range):
    """Wang's MS-SSIM with SciPy's convolutions, whole windows only."""
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(values):
        return ndimage.correlate(values, window)[5:-5, 5:-5]

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        mean, mean_reference = blur(image), blur(reference)
        variance, variance_reference = (
            blur(image**2) - mean**2,
            blur(reference**2) - mean_reference**2,
        )
        covariance = blur(image * reference) - mean * mean_reference
        term = (2 * covariance + c2) / (variance + variance_reference + c2)
        if scale == 4:
            term = term * (2 * mean * mean_reference + c1) / (mean**2 + mean_reference**2 + c1)
        product *= term.mean() ** weight
        image, reference = (
            ndimage.uniform_filter(values, 2, origin=-1)[:-1:2, :-1:2]
            for values in (image, reference)
        )
    return product


def test_multiscale_ssim_is_its_definition():
    image, reference = smooth_pair((192, 208), noise=0.2)
    ours = multiscale_structural_similarity(image, reference, 1.0)
    assert 0.5 < ours < 0.99
    assert ours == pytest.approx(multiscale_by_definition(image, reference, 1.0), abs=1e-9)
    # The library's own takes the border into the coarsest scale's mean, from windows that see the
    # image reflected.
    tensors = (torch.from_numpy(values)[None, None] for values in (image, reference))
    assert ours == pytest.approx(
        float(multiscale_structural_similarity_index_measure(*tensors, data_range=1.0)), abs=0.01
    )


@pytest.mark.parametrize(
    ("side", "scales"), [(10, 0), (11, 1), (21, 1), (22, 2), (175, 4), (176, 5), (1000, 5)]
)
def test_scales_that_fit(side, scales):
    assert num_scales(np.ones((side, 2 * side), dtype=bool)) == scales


def test_one_scale_is_ssim():
    image, reference = smooth_pair((20, 21))
    assert multiscale_structural_similarity(image, reference, 1.0) == pytest.approx(
        structural_similarity(image, reference, 1.0) ** sum(SCALE_WEIGHTS)
    )


def test_region_without_a_whole_window_has_no_similarity(pair):
    thin = np.zeros(pair[0].shape, dtype=bool)
    thin[20:30] = True
    assert math.isnan(structural_similarity(*pair, 1.0, thin))
    assert math.isnan(multiscale_structural_similarity(*pair, 1.0, thin))


@pytest.mark.parametrize("metric", ALL)
def test_nothing_outside_the_mask_counts(pair, disk, metric):
    clean = metric(*pair, disk)
    for garbage in (1e6, np.nan):
        assert metric(*(np.where(disk, values, garbage) for values in pair), disk) == clean


@pytest.mark.parametrize("metric", ALL)
def test_noise_is_seen(metric):
    quality = -1 if metric is mean_absolute_error else 1
    little, much = (
        quality * metric(*smooth_pair((60, 71), noise=noise), None) for noise in (0.02, 0.2)
    )
    assert little > much


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (
            np.ones((60, 71), complex),
            None,
            r"the image is complex128 \(60, 71\); expected real numbers",
        ),
        (np.ones((60, 70)), None, r"the image is \(60, 70\), the reference \(60, 71\)"),
        (np.ones((60, 71)), np.ones((60, 71)), "the mask float64"),
        (np.ones((60, 71)), np.zeros((60, 71), bool), "the mask is empty"),
        (np.full((60, 71), np.nan), None, "the image holds NaN or infinity at 4260 of 4260 values"),
    ],
)
@pytest.mark.parametrize("metric", ALL)
def test_refused_image_is_named(pair, metric, image, mask, message):
    with pytest.raises(ValueError, match=message):
        metric(image, pair[1], mask)


@pytest.mark.parametrize(
    "metric", [peak_signal_noise_ratio, structural_similarity, multiscale_structural_similarity]
)
@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan])
def test_refused_range_is_named(pair, metric, data_range):
    with pytest.raises(ValueError, match=r"data_range is .*; expected a positive number"):
        metric(*pair, data_range)
