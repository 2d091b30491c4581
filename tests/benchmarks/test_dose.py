"""The dose benchmark's own parts against NumPy, and its command, small."""

from __future__ import annotations

import json
import math

import dose
import numpy as np
import pytest
import torch

from ptycho_dist import ScaledPoissonLoss


def test_amplitude_loss_is_the_mean_square_of_amplitudes_whatever_the_dose():
    random = np.random.default_rng(0)
    intensity, x_norm = random.uniform(0, 2, (2, 3, 4, 8, 8))
    intensity[0, 0] = 0  # dark: no infinite slope
    expected = np.mean((np.sqrt(intensity) - x_norm) ** 2)
    gradients = []
    for scale in (0.3, 1e3):
        predicted = torch.tensor(intensity, requires_grad=True)
        loss = dose.AmplitudeLoss(scale)(predicted, torch.tensor(x_norm))
        # float64; the clamped zeros add 1e-19
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        (gradient,) = torch.autograd.grad(loss, predicted)
        gradients.append(gradient.numpy())
    lit = intensity > 0
    by_hand = (1 - x_norm[lit] / np.sqrt(intensity[lit])) / intensity.size
    np.testing.assert_allclose(gradients[0][lit], by_hand, rtol=1e-9)
    np.testing.assert_array_equal(gradients[0], gradients[1])
    assert np.isfinite(gradients[0]).all()


def test_both_losses_pull_the_same_way():
    random = np.random.default_rng(1)
    intensity, x_norm = torch.tensor(random.uniform(0.1, 2, (2, 2, 8, 8)))
    slopes = []
    for loss in (ScaledPoissonLoss(50.0), dose.AmplitudeLoss(50.0)):
        predicted = intensity.clone().requires_grad_()
        slopes.append(torch.autograd.grad(loss(predicted, x_norm), predicted)[0])
    assert torch.equal(slopes[0].sign(), slopes[1].sign())
    assert torch.equal(slopes[0] > 0, intensity > x_norm.square())


def test_dose_of_equal_quality_is_interpolated_on_the_logarithm():
    def row(photons, variant, error):
        scores = {
            "phase_correlation": 1 - error,
            "amplitude_correlation": 0.5,
            "complex_error": error,
        }
        return {"dose": photons, "variant": variant.name, "seed": 0, **scores}

    amplitude = [
        row(1e4, dose.AMPLITUDE, 0.4),
        row(4e4, dose.AMPLITUDE, 0.2),
        row(1e3, dose.AMPLITUDE, 0.6),
    ]
    found = dose.matching_dose(
        [*amplitude, row(1e4, dose.POISSON, 0.3), row(1e6, dose.POISSON, 0.2)]
    )
    assert found == {
        "phase_correlation": 20000,
        "amplitude_correlation": None,
        "complex_error": 20000,
    }


@pytest.mark.slow
def test_the_command_makes_a_small_table(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("model: {base_width: 2}\ntrain: {global_batch_size: 8}\n")
    monkeypatch.setattr(dose, "EPOCHS", 1)
    monkeypatch.setattr(dose, "SCAN_SHAPE", (6, 6))
    wrong = next(variant for variant in dose.VARIANTS if variant.told == 10)
    trainings = [
        (1e3, dose.POISSON, 0),
        (1e3, dose.AMPLITUDE, 0),
        (1e6, dose.POISSON, 0),
        (1e6, wrong, 0),
    ]
    monkeypatch.setattr(dose, "trainings", lambda: iter(trainings))
    rows = dose.make_table(tmp_path / "out", config)
    assert [(row["dose"], row["variant"]) for row in rows] == [
        (photons, variant.name) for photons, variant, _ in trainings
    ]
    poisson, amplitude, right, told_ten_times = rows
    # Same first weights and batches: what differs is the loss.
    assert poisson["complex_error"] != amplitude["complex_error"]
    # Deviances count true photons: that of the wrongly told run is like the other's, not ten times
    # it. Adam takes slightly other steps.
    assert told_ten_times["deviance_per_pixel"] == pytest.approx(
        right["deviance_per_pixel"], rel=0.2
    )
    assert told_ten_times["validation_deviance_per_pixel"] == pytest.approx(
        right["validation_deviance_per_pixel"], rel=0.2
    )
    # Shot noise alone: 1 at many counts a pixel, and this simulation has 244 in the mean, though
    # most of its pixels are dark.
    assert 0.3 < right["deviance_per_pixel_of_truth"] < 1.1
    assert all(
        math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float)
    )
    assert json.loads((tmp_path / "out/dose.json").read_text())["rows"] == rows
    assert (tmp_path / "out/dose.png").stat().st_size > 0
    assert (
        f"{told_ten_times['phase_correlation']:.3f} / {told_ten_times['amplitude_correlation']:.3f}"
        in capsys.readouterr().out
    )
    # What is there is used again.
    bundle = tmp_path / "out/1000_Poisson_0/bundle.zip"
    trained_at = bundle.stat().st_mtime_ns
    assert dose.make_table(tmp_path / "out", config) == rows
    assert bundle.stat().st_mtime_ns == trained_at
