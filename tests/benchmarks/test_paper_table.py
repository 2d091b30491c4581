"""The published table's command, small, and its protocol against independent computations."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import paper_table
import pytest
from paper_protocol import (
    NPHOTONS,
    PATTERN_SIZE,
    compared,
    ideal_probe,
    positions_of_test,
    positions_of_training,
    published_multiscale_similarity,
    scores,
    simulate,
)
from scipy.ndimage import gaussian_filter

from ptycho_dist.data.readers import read_scan

SIDE_PX = 104
SAMPLE_VARIANCE = 1 / 4 / 48
"""Variances over 49 pixels in place of 48 change an SSIM of s by at most s (1 - s) / 48."""


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    file = tmp_path_factory.mktemp("scan") / "scan.npz"
    simulate(
        file,
        object_seed=2,
        side_px=SIDE_PX,
        positions_px=positions_of_test(SIDE_PX, 1),
        probe=ideal_probe(),
    )
    return read_scan(file)


def reconstruction_of(object_, positions_px):
    return SimpleNamespace(object=object_, origin_px=np.zeros(2), positions_px=positions_px)


def similarity_by_hand(image, reference, data_range):
    """SSIM of scikit-image's defaults: every 7 x 7 window in the image, sample variances."""
    values = []
    for y in range(image.shape[0] - 6):
        for x in range(image.shape[1] - 6):
            a, b = image[y : y + 7, x : x + 7].ravel(), reference[y : y + 7, x : x + 7].ravel()
            covariance = np.cov(a, b)
            c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            values.append(
                luminance * (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
            )
    return np.mean(values)


def test_positions_are_the_published_rasters():
    training = positions_of_training(392)
    assert len(training) == 83**2
    assert (training.min(), training.max()) == (32, 360)  # patches from the first pixel to the last
    singles, groups = positions_of_test(392, 1), positions_of_test(392, 4)
    assert len(singles) == 33**2
    np.testing.assert_array_equal(groups[::4], singles)
    np.testing.assert_array_equal(groups[:4] - groups[0], [[0, 0], [0, 4], [4, 0], [4, 4]])
    assert groups.max() + PATTERN_SIZE // 2 <= 392


def test_ideal_probe_is_the_published_disk():
    probe = ideal_probe()[0]
    assert np.all(probe.imag == 0)
    np.testing.assert_array_equal(probe, probe[::-1, ::-1])
    # Above half: exp(-r^2 / 2 s^2) > 1/2 within r = s sqrt(2 ln 2) = 10.9 px; pixels on the circle
    # leave its area uncertain by 2 %.
    radius = PATTERN_SIZE / (0.7 * math.pi**2) * math.sqrt(2 * math.log(2))
    assert np.sum(probe.real > 0.5) == pytest.approx(math.pi * radius**2, rel=0.02)


def test_simulated_scan_is_the_published_one(scan):
    truth, corners = scan.object_guess, scan.positions_px.astype(int) - PATTERN_SIZE // 2
    patches = np.array([truth[y : y + PATTERN_SIZE, x : x + PATTERN_SIZE] for y, x in corners])
    assert np.abs(patches).max(axis=(1, 2)).mean() == pytest.approx(1, rel=1e-6)  # float32
    assert not np.angle(truth).any()
    # Poisson noise of 1e9 photons is 3e-5 of them a pattern; float32 amplitudes round by less.
    photons = np.square(scan.amplitude(np.arange(scan.num_patterns)).astype(np.float64)).sum(
        axis=(1, 2)
    )
    assert photons.mean() == pytest.approx(NPHOTONS, rel=1e-4)
    # The probe in the file explains the patterns: sqrt of a Poisson number is off by 1/2 in the
    # mean square wherever there is light.
    expected = np.abs(
        np.fft.fftshift(np.fft.fft2(scan.probe[0] * patches, norm="ortho"), axes=(-2, -1))
    )
    assert np.square(expected - scan.amplitude(np.arange(scan.num_patterns)))[
        expected > 10
    ].mean() == pytest.approx(0.25, rel=0.1)


def test_truth_is_perfect_in_any_gauge(scan):
    y, x = np.indices(scan.object_guess.shape)
    object_ = 3 * scan.object_guess * np.exp(1j * (3 + 1e-3 * y - 2e-3 * x))
    found = scores(*compared(reconstruction_of(object_, scan.positions_px), scan.object_guess))
    assert found["psnr"] > 150  # float32
    assert found["mae"] < 1e-6
    for key in ("amplitude_ssim", "ms_ssim", "phase_ssim"):
        assert found[key] == pytest.approx(1, abs=1e-6)


def test_flat_object_scores_badly_in_amplitude(scan):
    found = scores(
        *compared(
            reconstruction_of(np.ones_like(scan.object_guess), scan.positions_px), scan.object_guess
        )
    )
    assert found["amplitude_ssim"] < 0.4
    assert found["ms_ssim"] < 0.3
    assert found["mae"] > 0.05


def test_scores_agree_with_computations_by_hand(scan):
    random = np.random.default_rng(0)
    noise = random.normal(size=(2, *scan.object_guess.shape))
    object_ = (scan.object_guess + 0.05 * noise[0]) * np.exp(
        0.1j * gaussian_filter(noise[1], 2.0) / 0.14
    )
    amplitude, phase, truth = compared(
        reconstruction_of(object_, scan.positions_px), scan.object_guess
    )

    first, last = int(scan.positions_px.min()) - 5, int(scan.positions_px.max()) + 5
    window = np.s_[first:last, first:last]
    expected_truth = np.abs(scan.object_guess[window])
    expected = np.abs(object_[window]) * expected_truth.mean() / np.abs(object_[window]).mean()
    np.testing.assert_allclose(truth, expected_truth)
    np.testing.assert_allclose(amplitude, expected)
    y, x = np.indices(phase.shape)
    # no plane is left: the residual of a least-squares fit is orthogonal to it
    for direction in (1, y - y.mean(), x - x.mean()):
        assert abs(np.sum(phase * direction)) < 1e-6
    curved = np.angle(object_[window]) - phase
    assert np.abs(np.diff(curved, 2, axis=0)).max() < 1e-9
    assert np.abs(np.diff(curved, 2, axis=1)).max() < 1e-9

    found = scores(amplitude, phase, truth)
    error = expected - expected_truth
    assert found["mae"] == pytest.approx(np.abs(error).mean())
    assert found["psnr"] == pytest.approx(20 * math.log10(255) - 10 * math.log10(np.mean(error**2)))
    by_hand = similarity_by_hand(expected, expected_truth, np.ptp(expected_truth))
    assert found["amplitude_ssim"] == pytest.approx(by_hand, abs=SAMPLE_VARIANCE)
    by_hand = similarity_by_hand((phase + math.pi) / (2 * math.pi), np.full_like(phase, 0.5), 1.0)
    assert found["phase_ssim"] == pytest.approx(by_hand, abs=SAMPLE_VARIANCE)


def test_multiscale_similarity_is_the_published_product(scan):
    random = np.random.default_rng(1)
    reference = np.abs(scan.object_guess).astype(np.float64)
    image = reference + 0.1 * gaussian_filter(random.normal(size=reference.shape), 1.0)
    # scales of 96, 48, 24, 12 and 6 px: the last one holds no window
    image, reference = image[:96, :96], reference[:96, :96]
    blurred = [gaussian_filter(picture, 1.0) for picture in (image, reference)]
    data_range = max(np.ptp(picture) for picture in blurred)
    expected = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363)):
        every = 2**scale
        expected *= (
            similarity_by_hand(*(picture[::every, ::every] for picture in blurred), data_range)
            ** weight
        )
    assert published_multiscale_similarity(image, reference) == pytest.approx(
        expected, abs=SAMPLE_VARIANCE
    )


@pytest.mark.slow
def test_the_command_makes_a_small_table(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("model: {base_width: 2}\ntrain: {epochs: 1, global_batch_size: 16}\n")
    row = next(row for row in paper_table.ROWS if row.probe == "ideal" and row.group_size == 4)
    monkeypatch.setattr(paper_table, "ROWS", (row,))
    rows = paper_table.make_table(tmp_path / "out", None, config=config, side_px=SIDE_PX)
    assert [found["name"] for found in rows] == ["C = 4, ideal probe"]
    assert rows[0]["published"]["amplitude_ssim"] == 0.952
    assert set(rows[0]["mean"]) == {*paper_table.COLUMNS, "deviance_per_pixel"}
    # Trained, if only for a moment: better than the flat object, whose similarity is about 0.25.
    assert rows[0]["mean"]["amplitude_ssim"] > 0.4
    assert rows[0]["training"]["cpu_seconds"] > 0
    written = json.loads((tmp_path / "out/paper_table.json").read_text())
    assert written["rows"] == rows
    assert (tmp_path / "out/paper_table.png").stat().st_size > 0
    assert f"{rows[0]['mean']['amplitude_ssim']:.3f} (0.952)" in capsys.readouterr().out
    # What is there is used again.
    bundle = tmp_path / "out/ideal_C4/run/bundle.zip"
    trained_at = bundle.stat().st_mtime_ns
    assert (
        paper_table.make_table(tmp_path / "out", None, config=config, side_px=SIDE_PX)[0]["mean"]
        == rows[0]["mean"]
    )
    assert bundle.stat().st_mtime_ns == trained_at
