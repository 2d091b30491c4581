"""Probe and propagation against explicit sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_dist.physics.probe import (
    illumination,
    normalize_probe,
    shift_probe,
    whole_pixel_and_rest,
)
from ptycho_dist.physics.propagation import diffracted_intensity


def complex_noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def test_intensity_is_the_incoherent_sum_of_the_modes_discrete_fourier_transforms() -> None:
    size, probe, patch = 6, complex_noise(3, 6, 6), complex_noise(2, 6, 6).flip(0)
    frequency = np.arange(size) - size // 2  # zero frequency at [N // 2, N // 2]
    transform = np.exp(-2j * np.pi * np.outer(frequency, np.arange(size)) / size) / np.sqrt(size)
    expected = np.zeros((2, size, size))
    for number in range(2):
        for mode in range(3):
            exit_wave = probe[mode].numpy().astype(complex) * patch[number].numpy()
            expected[number] += np.abs(transform @ exit_wave @ transform.T) ** 2
    # float32 FFT of 36 terms
    np.testing.assert_allclose(
        diffracted_intensity(patch, probe).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_energy_of_the_exit_wave_is_kept() -> None:
    probe = complex_noise(2, 32, 32)
    total = diffracted_intensity(torch.ones(1, 32, 32, dtype=torch.complex64), probe).sum()
    assert total.item() == pytest.approx(illumination(probe).sum().item(), rel=1e-6)


def test_each_group_has_its_own_probe() -> None:
    probes, patches = complex_noise(2, 1, 8, 8), complex_noise(2, 3, 8, 8).flip(-1)
    together = diffracted_intensity(patches, probes.unsqueeze(1))
    for group in range(2):
        torch.testing.assert_close(
            together[group], diffracted_intensity(patches[group], probes[group])
        )


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("modes", [1, 3])
def test_normalised_probe_has_the_energy_of_a_normalised_pattern(unit: float, modes: int) -> None:
    probe = normalize_probe(unit * complex_noise(2, modes, 16, 16))
    energy = illumination(probe).sum(dim=(-2, -1))
    assert probe.dtype == torch.complex64
    assert energy.tolist() == pytest.approx([64.0, 64.0], rel=1e-6)  # (16 / 2)**2


def test_normalisation_keeps_the_modes_relative_power() -> None:
    probe = complex_noise(2, 16, 16)
    probe[1] *= 0.5
    power = [mode.abs().square().sum() for mode in normalize_probe(probe)]
    assert (power[1] / power[0]).item() == pytest.approx(
        (probe[1].abs().square().sum() / probe[0].abs().square().sum()).item(), rel=1e-5
    )


def test_empty_batch_passes() -> None:
    patches = torch.zeros(0, 4, 8, 8, dtype=torch.complex64, requires_grad=True)
    diffracted_intensity(patches, complex_noise(1, 1, 8, 8)).sum().backward()
    assert patches.grad.shape == patches.shape


def test_positions_split_into_the_nearest_pixel_and_the_rest() -> None:
    positions = torch.tensor([[3.2, 4.7], [5.0, -1.5]], dtype=torch.float64)
    whole_px, rest_px = whole_pixel_and_rest(positions)
    assert whole_px.tolist() == [[3, 5], [5, -1]]
    torch.testing.assert_close(whole_px + rest_px, positions)
    assert rest_px.abs().max() <= 0.5


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.45), (-0.5, 0.5)])
def test_shifted_probe_is_the_probe_sampled_elsewhere(shift: tuple[float, float]) -> None:
    """A Gaussian beam can be sampled anywhere: moved by d, its value at y is the old one at y -
    d."""
    y, x = (torch.arange(32.0)[:, None] - 16, torch.arange(32.0)[None, :] - 16)

    def beam(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(y**2 + 2 * x**2) / 30 + 0.3j * y - 0.1j * x)

    moved = shift_probe(beam(y, x)[None], torch.tensor(shift))
    # float32 transforms; the beam has fallen to 2e-4 at the window's border, where the shift is
    # periodic
    torch.testing.assert_close(moved[0], beam(y - shift[0], x - shift[1]), rtol=0, atol=2e-4)


def test_each_pattern_has_its_own_shift() -> None:
    probes, shifts = complex_noise(2, 3, 8, 8), torch.rand(2, 4, 2) - 0.5
    together = shift_probe(probes.unsqueeze(1), shifts)
    assert together.shape == (2, 4, 3, 8, 8)
    torch.testing.assert_close(together[1, 2], shift_probe(probes[1], shifts[1, 2]))
    # no light is lost
    torch.testing.assert_close(
        illumination(together).sum(dim=(-2, -1))[1], illumination(probes[1]).sum().expand(4)
    )


def test_no_pattern_no_shift() -> None:
    assert shift_probe(complex_noise(0, 1, 2, 8, 8), torch.zeros(0, 4, 2)).shape == (0, 4, 2, 8, 8)


def test_a_detector_sees_nothing_where_its_mask_says_so() -> None:
    patches = torch.polar(torch.rand(2, 8, 8), torch.rand(2, 8, 8)).requires_grad_()
    probe, mask = torch.randn(1, 8, 8, dtype=torch.complex64), torch.rand(2, 8, 8) > 0.3
    seen, whole = diffracted_intensity(patches, probe, mask), diffracted_intensity(patches, probe)
    assert torch.equal(seen[mask], whole[mask])
    assert not seen[~mask].any()
    (gradient,) = torch.autograd.grad(
        diffracted_intensity(patches, probe, mask[:1] & False).sum(), patches
    )
    assert not gradient.any()
