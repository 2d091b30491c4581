"""Fourier ring correlation against sums over the frequencies one by one, and against images of
known likeness."""

import math

import numpy as np
import pytest

from ptycho_dist.report.fourier_ring import FourierRingCorrelation, fourier_ring_correlation


def by_brute_force(image, reference, taper):
    """Curve and numbers of independent values: no FFT, no bincount."""
    rows, columns = image.shape
    side = min(image.shape)
    y, x = np.indices(image.shape)
    faded = [
        taper * (values - np.sum(taper * values) / np.sum(taper)) for values in (image, reference)
    ]
    sums = {ring: [0.0, 0.0, 0.0, 0] for ring in range(side)}
    for v in range(-(rows // 2), (rows + 1) // 2):
        for u in range(-(columns // 2), (columns + 1) // 2):
            wave = np.exp(-2j * np.pi * (v * y / rows + u * x / columns))
            one, other = (np.sum(wave * values) for values in faded)
            ring = sums[round(side * math.hypot(v / rows, u / columns))]
            ring[0] += (one * other.conjugate()).real
            ring[1] += abs(one) ** 2
            ring[2] += abs(other) ** 2
            ring[3] += 1
    chosen = [sums[ring] for ring in range(1, side // 2 + 1)]
    return [cross / math.sqrt(one * other) for cross, one, other, _ in chosen], [
        count for *_, count in chosen
    ]


def test_curve_is_its_definition():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(20, 25)) + 1j * rng.normal(size=(20, 25))
    image = reference + rng.normal(size=(20, 25))
    mask = np.ones(reference.shape, dtype=bool)
    mask[:3] = False
    # A quarter of 20 px; the first pixel inside lies 1 px from the outside.
    y, x = np.indices(mask.shape)
    distance = np.minimum.reduce([y - 2.0, 20.0 - y, x + 1.0, 25.0 - x])
    taper = np.sin(np.pi / 2 * np.clip(distance / 5, 0, 1)) ** 2
    curve = fourier_ring_correlation(
        np.where(mask, image, np.nan), np.where(mask, reference, np.nan), mask
    )
    expected, counts = by_brute_force(image, reference, taper)
    np.testing.assert_allclose(curve.correlation, expected, atol=1e-12)
    np.testing.assert_allclose(curve.frequency_cycles_per_px, np.arange(1, 11) / 20)
    root = np.sqrt(np.maximum(np.array(counts) * np.mean(taper**2) ** 2 / np.mean(taper**4), 1))
    np.testing.assert_allclose(curve.half_bit, (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root))
    # The transform of a real image is symmetric: half as many independent values, a higher
    # threshold.
    assert (
        fourier_ring_correlation(image.real, reference.real, mask).half_bit >= curve.half_bit
    ).all()


def low_pass(noise, cutoff_cycles_per_px):
    frequency = np.hypot(np.fft.fftfreq(noise.shape[0])[:, None], np.fft.fftfreq(noise.shape[1]))
    return np.fft.ifft2(np.fft.fft2(noise) * (frequency < cutoff_cycles_per_px)).real


def test_resolution_is_where_the_likeness_ends():
    rng = np.random.default_rng(1)
    shape = (128, 150)
    shared = low_pass(rng.normal(size=shape), 0.2)
    image, reference = (
        shared + 0.3 * (noise - low_pass(noise, 0.2)) for noise in rng.normal(size=(2, *shape))
    )
    mask = np.ones(shape, dtype=bool)
    curve = fourier_ring_correlation(image, reference, mask)
    for threshold in (curve.half_bit, 0.5):
        # The fading blurs the curve by a ring or two of 1/128.
        assert 1 / curve.resolution_px(threshold) == pytest.approx(0.2, abs=2 / 128)
    # Beyond, fewer than one ring in ten is above the 1/2-bit threshold by chance.
    assert np.mean(curve.correlation[30:] > curve.half_bit[30:]) < 0.1


def test_edge_of_the_region_is_no_likeness():
    rng = np.random.default_rng(2)
    y, x = np.indices((100, 100))
    disk = (y - 50) ** 2 + (x - 40) ** 2 < 35**2
    # A slope is all that they share; cut off at the edge it would be in every ring.
    image, reference = (y / 20 + 0.1 * noise for noise in rng.normal(size=(2, 100, 100)))
    curve = fourier_ring_correlation(image, reference, disk)
    # Some tens of independent values in a ring: the mean of 40 rings has a standard deviation of
    # 0.03.
    assert abs(curve.correlation[10:].mean()) < 0.1


def test_equal_and_flat_images():
    mask = np.ones((40, 40), dtype=bool)
    image = np.random.default_rng(3).normal(size=mask.shape)
    curve = fourier_ring_correlation(image, 2 * image + 1, mask)
    np.testing.assert_allclose(curve.correlation, 1)
    assert curve.resolution_px(curve.half_bit) == curve.resolution_px(0.5) == 2
    flat = fourier_ring_correlation(np.zeros_like(image), image, mask)
    assert (flat.correlation == 0).all()
    assert flat.resolution_px(0.5) == math.inf


@pytest.mark.parametrize(
    ("correlation", "period_px"),
    [
        # half-way between the second and the third of 0.1, 0.2, ...
        ([0.9, 0.7, 0.3, 0.2, 0.1, 0.0], 1 / 0.25),
        # two rings may be chance; the end counts
        ([0.9, 0.7, 0.3, 0.2, 0.9, 0.3], 1 / (0.5 + 0.1 * 0.4 / 0.6)),
        ([0.2, 0.3, 0.9, 0.9, 0.9, 0.9], 2.0),
        ([0.2, 0.3, 0.4, 0.9, 0.9, 0.9], math.inf),
    ],
)
def test_crossing(correlation, period_px):
    curve = FourierRingCorrelation(
        frequency_cycles_per_px=np.arange(1, 7) / 10,
        correlation=np.array(correlation),
        half_bit=np.full(6, 0.3),
    )
    assert curve.resolution_px(0.5) == pytest.approx(period_px)
