"""The probe: its energy, centre, and subpixel shifts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptycho_dist.physics.propagation import intensity


def normalize_probe(probe: Tensor) -> Tensor:
    """Scale a probe (..., modes, N, N) to the energy (N/2)**2 over all modes, the mean energy of
    RMS-normalised patterns: a fully transparent object then has amplitude 1."""
    return with_energy(probe, (probe.shape[-1] / 2) ** 2)


def with_energy(probe: Tensor, wanted: float) -> Tensor:
    """Scale a probe (..., modes, N, N) to an energy over all its modes; complex64."""
    return (probe * (wanted / energy(probe)[..., None, None, None]).sqrt()).to(torch.complex64)


def energy(probe: Tensor) -> Tensor:
    """Return the sum of the illumination, float64 (...), of a probe (..., modes, N, N)."""
    return illumination(probe.to(torch.complex128)).sum(dim=(-2, -1))


def illumination(probe: Tensor) -> Tensor:
    """Return the intensity (..., N, N), modes added, of a probe (..., modes, N, N): the weight of a
    patch where patches overlap."""
    return intensity(probe).sum(dim=-3)


def centre_of_light(probe: Tensor) -> Tensor:
    """Return the centroid of the illumination, pixels, float64 (..., 2) as (y, x)."""
    light = illumination(probe).double()
    light = light / light.sum(dim=(-2, -1), keepdim=True)
    pixel = torch.arange(probe.shape[-1], dtype=torch.float64, device=probe.device)
    return torch.stack(
        ((light.sum(dim=-1) * pixel).sum(dim=-1), (light.sum(dim=-2) * pixel).sum(dim=-1)), dim=-1
    )


def whole_pixel_and_rest(positions_px: Tensor) -> tuple[Tensor, Tensor]:
    """Split positions (..., 2) into the nearest whole pixel, int64, and the rest, -0.5 to 0.5.

    Patches lie on the object's pixel grid, at the whole pixel; the probe moves by the rest. It is
    smooth and dark at the border of its window, so its Fourier shift is exact; interpolating the
    object would blur it differently at every position.
    """
    whole_px = positions_px.add(0.5).floor()
    return whole_px.long(), positions_px - whole_px


def shift_probe(probe: Tensor, shift_px: Tensor) -> Tensor:
    """Move probes by fractions of a pixel by the Fourier shift theorem, which keeps their energy.

    Parameters
    ----------
    probe
        complex64 (..., modes, N, N).
    shift_px
        (..., 2) as (y, x), towards larger rows and columns; leading axes broadcast with those of
        `probe`.

    Returns
    -------
    Tensor
        complex64 (..., modes, N, N).
    """
    if probe.numel() == 0 or shift_px.numel() == 0:  # FFT libraries refuse empty arrays
        return probe.expand(
            *torch.broadcast_shapes(probe.shape[:-3], shift_px.shape[:-1]), *probe.shape[-3:]
        )
    frequency = torch.fft.fftfreq(probe.shape[-1], device=probe.device)
    cycles = shift_px.to(torch.float32)[..., None] * frequency  # (..., 2, N)
    ramp = torch.polar(torch.ones_like(cycles), -2 * math.pi * cycles)
    return torch.fft.ifft2(
        torch.fft.fft2(probe) * (ramp[..., 0, :, None] * ramp[..., 1, None, :]).unsqueeze(-3)
    )
