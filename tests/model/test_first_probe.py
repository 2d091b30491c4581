"""The probe that training begins with: found where the file's is a mere Gaussian, kept where it is
good."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_dist.model.first_probe import JointReconstruction, find_first_probe, lens_beams
from ptycho_dist.model.probe_modes import add_modes
from ptycho_dist.physics.probe import shift_probe
from ptycho_dist.physics.propagation import diffracted_intensity
from ptycho_dist.physics.simulated_probes import beam_diameter_px
from ptycho_dist.physics.simulation import simulate_scan

N = 32


def scan(**changes: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_norm, positions and the true probe of a simulated scan."""
    settings: dict[str, Any] = {
        "object": "dead_leaves",
        "amplitude_range": (0.6, 1.0),
        "phase_range_rad": (-0.8, 0.8),
        "probe": "defocused",
        "probe_diameter_px": 16.0,
        "probe_defocus_rad": -6.0,
        "pattern_size": N,
        "scan_shape": (12, 12),
        "step_px": 3.0,
        "jitter_px": 1.0,
        "nphotons": 1e5,
        "seed": 0,
    }
    simulation = simulate_scan(**(settings | changes))
    amplitude = simulation.diffraction
    x_norm = amplitude * (N / 2 / np.sqrt((amplitude.astype(np.float64) ** 2).sum((1, 2)).mean()))
    return (
        torch.from_numpy(x_norm.astype(np.float32)),
        torch.from_numpy(simulation.positions_px),
        torch.from_numpy(simulation.probe),
    )


def gaussian(diameter_px: float) -> torch.Tensor:
    y, x = np.indices((N, N)) - N / 2
    return torch.from_numpy(np.exp(-(y**2 + x**2) / (diameter_px**2 / 4))).to(torch.complex64)[None]


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of the energy that two probes have in common, at their best relative shift."""
    one, other = one[0].numpy().astype(complex), other[0].numpy().astype(complex)
    correlation = np.fft.ifft2(np.fft.fft2(one) * np.fft.fft2(other).conj())
    return float(
        np.abs(correlation).max() ** 2 / (np.abs(one) ** 2).sum() / (np.abs(other) ** 2).sum()
    )


@pytest.mark.parametrize(("defocus", "way"), [(6.0, "one way"), (-6.0, "the other way")])
def test_gaussian_becomes_the_beam_on_the_right_side_of_focus(
    caplog: pytest.LogCaptureFixture, defocus: float, way: str
) -> None:
    x_norm, positions_px, truth = scan(probe_defocus_rad=defocus)
    start = gaussian(16.0)
    assert agreement(start, truth) < 0.5
    with caplog.at_level(logging.INFO, logger="ptycho_dist"):
        found = find_first_probe(x_norm, positions_px, start)
    assert agreement(found, truth) > 0.95
    assert f"first probe: a lens's beam, defocused {way};" in caplog.text
    assert found.dtype == torch.complex64
    assert float(found.abs().square().sum()) == pytest.approx((N / 2) ** 2, rel=1e-5)


def test_good_probe_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    x_norm, positions_px, truth = scan()
    with caplog.at_level(logging.INFO, logger="ptycho_dist"):
        found = find_first_probe(x_norm, positions_px, truth.to(torch.complex64))
    assert "first probe: the file's" in caplog.text
    assert agreement(found, truth) > 0.99


def test_lens_beams_have_the_measured_far_field_and_the_width_that_was_asked() -> None:
    x_norm, _, _ = scan()
    mean_amplitude = x_norm.square().mean(dim=0).sqrt()
    beams = lens_beams(mean_amplitude, gaussian(16.0))
    for beam in beams:
        far_field = np.abs(np.fft.fftshift(np.fft.fft2(beam.numpy(), norm="ortho")))
        np.testing.assert_allclose(
            far_field / far_field.max(), mean_amplitude / mean_amplitude.max(), atol=1e-5
        )
        # the window cuts a faint halo off
        assert beam_diameter_px(beam.numpy()[None]) == pytest.approx(16.0, rel=0.1)
    assert not torch.allclose(beams[0], beams[1], atol=1e-2)


def test_sweep_is_epie() -> None:
    """One pattern against NumPy in float64, with two modes and a position between pixels."""
    x_norm, positions_px, truth = scan(scan_shape=(1, 1))
    probe = add_modes(truth.to(torch.complex64), 2)
    joint = JointReconstruction(x_norm, positions_px, probe)
    modes = probe.numpy().astype(complex)
    modes *= N / 2 / np.sqrt((np.abs(modes) ** 2).sum())
    rest = positions_px[0].numpy() - np.floor(positions_px[0].numpy() + 0.5)
    frequency = np.fft.fftfreq(N)
    ramp = np.exp(-2j * np.pi * (frequency[:, None] * rest[0] + frequency * rest[1]))
    shifted = np.fft.ifft2(np.fft.fft2(modes) * ramp)
    measured = np.fft.ifftshift(x_norm[0].numpy().astype(float))
    far_fields = np.fft.fft2(shifted, norm="ortho")
    predicted = np.sqrt((np.abs(far_fields) ** 2).sum(0))
    change = np.fft.ifft2(far_fields * (measured / np.maximum(predicted, 1e-6) - 1), norm="ortho")
    residual = joint.sweep()
    assert residual == pytest.approx(np.mean((predicted - measured) ** 2), rel=1e-4)
    expected_object = 1 + (shifted.conj() * change).sum(0) / (np.abs(shifted) ** 2).sum(0).max()
    # float32, of quotients of dark pixels
    np.testing.assert_allclose(joint.object.numpy(), expected_object, atol=1e-3)
    np.testing.assert_allclose(
        joint.probe.numpy(),
        modes + 0.5 * np.fft.ifft2(np.fft.fft2(change) * ramp.conj()),
        atol=1e-3,
    )


def with_gap_and_stop() -> torch.Tensor:
    """Two columns between modules, and a beam stop over the middle."""
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[:, 20:22] = False
    mask[14:18, 14:18] = False
    return mask


def test_masked_pixels_keep_their_far_field_in_a_sweep() -> None:
    """As if they had measured what is predicted there; the residual is a pixel's that counts."""
    x_norm, positions_px, truth = scan(scan_shape=(1, 1))
    probe, mask = add_modes(truth.to(torch.complex64), 2), with_gap_and_stop()
    joint = JointReconstruction(torch.where(mask, x_norm, torch.nan), positions_px, probe, mask)
    residual = joint.sweep()
    predicted = JointReconstruction(x_norm, positions_px, probe)
    shifted = shift_probe(predicted.probe, predicted.rest_px[0])
    amplitude = diffracted_intensity(torch.ones(N, N, dtype=torch.complex64), shifted).sqrt()
    expected = JointReconstruction(torch.where(mask, x_norm, amplitude), positions_px, probe)
    # float32 transforms
    assert residual == pytest.approx(expected.sweep() * N**2 / int(mask.sum()), rel=1e-4)
    np.testing.assert_allclose(joint.object.numpy(), expected.object.numpy(), atol=1e-4)
    np.testing.assert_allclose(joint.probe.numpy(), expected.probe.numpy(), atol=1e-4)


def test_first_probe_is_found_behind_a_mask_whatever_it_hides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x_norm, positions_px, truth = scan()
    mask = with_gap_and_stop()
    with caplog.at_level(logging.INFO, logger="ptycho_dist"):
        found = [
            find_first_probe(torch.where(mask, x_norm, garbage), positions_px, gaussian(16.0), mask)
            for garbage in (0.0, torch.nan, 4e9)
        ]
    assert "first probe: a lens's beam, defocused the other way;" in caplog.text
    assert agreement(found[0], truth) > 0.95
    assert all(torch.equal(found[0], other) for other in found[1:])
