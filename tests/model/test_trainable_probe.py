"""A trainable probe keeps its gauge, and its modes don't interfere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptycho_dist.model.trainable_probe import TrainableProbe
from ptycho_dist.physics.probe import centre_of_light, illumination, shift_probe
from ptycho_dist.physics.propagation import diffracted_intensity

N = 32


def beam(shift_px: tuple[float, float] = (0, 0), *, scans: int = 1) -> torch.Tensor:
    y, x = np.indices((N, N)) - N / 2
    modes = [
        np.exp(-((y - shift_px[0]) ** 2 + (x - shift_px[1]) ** 2) / 40)
        * np.exp(0.03j * (y**2 + x**2))
        * (1 + 0.2 * x * k)
        for k in range(2)
    ]
    return torch.from_numpy(np.stack([np.stack(modes)] * scans)).to(torch.complex64)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e7])
def test_energy_is_that_of_the_gauge_whatever_the_parameters(factor: float) -> None:
    probe = TrainableProbe(factor * beam(scans=3), centre_of_light(beam(scans=3)))
    with torch.no_grad():
        probe.modes[1] *= 7
    energy = illumination(probe()).sum(dim=(1, 2))
    # a float32 sum
    torch.testing.assert_close(energy, torch.full((3,), (N / 2) ** 2), rtol=1e-5, atol=0)


def test_gauge_is_kept_through_steps_that_pull_at_it() -> None:
    """A loss that wants the light brighter, and 5 px further down."""
    first = beam()
    probe = TrainableProbe(first, centre_of_light(first))
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.02)
    row = torch.arange(N)[:, None]
    for _ in range(5):
        optimizer.zero_grad()
        (illumination(probe()) * (row - N / 2 - 5).square()).sum().backward()
        optimizer.step()
        # the step does pull
        assert (centre_of_light(probe()) - centre_of_light(first)).abs().max() > 0.01
        probe.return_to_gauge()
        # The shift theorem moves a centroid exactly but for what light there is at the window's
        # border.
        torch.testing.assert_close(
            centre_of_light(probe()), centre_of_light(first), rtol=0, atol=0.05
        )
        assert float(probe.modes.detach().square().sum()) == pytest.approx((N / 2) ** 2, rel=1e-5)


def test_return_to_gauge_moves_the_light_and_nothing_else() -> None:
    moved = shift_probe(beam(), torch.tensor([[1.3, -0.4]], dtype=torch.float64))
    probe = TrainableProbe(moved, centre_of_light(beam()))
    before = torch.fft.fft2(probe()).abs().detach()
    probe.return_to_gauge()
    # float32 transforms
    torch.testing.assert_close(torch.fft.fft2(probe()).abs().detach(), before, rtol=1e-4, atol=1e-4)
    expected = TrainableProbe(beam(), centre_of_light(beam()))()
    torch.testing.assert_close(probe(), expected, rtol=1e-3, atol=1e-3)


def test_modes_add_their_intensities() -> None:
    probe = TrainableProbe(beam(), centre_of_light(beam()))()[0].detach().numpy().astype(complex)
    random = np.random.default_rng(0)
    patch = np.exp(1j * random.uniform(-1, 1, (N, N)))
    expected = sum(
        np.abs(np.fft.fftshift(np.fft.fft2(mode * patch, norm="ortho"))) ** 2 for mode in probe
    )
    interfering = np.abs(np.fft.fftshift(np.fft.fft2(probe.sum(0) * patch, norm="ortho"))) ** 2
    predicted = diffracted_intensity(torch.from_numpy(patch), torch.from_numpy(probe)).numpy()
    np.testing.assert_allclose(predicted, expected, rtol=1e-9)
    assert not np.allclose(predicted, interfering, rtol=0.1)
    # Parseval: the patch has amplitude 1
    assert math.isclose(predicted.sum(), (N / 2) ** 2, rel_tol=1e-5)
