"""The probe: in normalised units, and where it really was."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptycho_dist.physics.propagation import intensity


def normalize_probe(probe: Tensor) -> Tensor:
    """Scale a probe (..., modes, N, N) to the energy (N/2)**2, over all its modes, that an
    RMS-normalised pattern has in the mean.

    With this gauge an object that lets all light pass has amplitude 1, whatever the units of the
    file.
    """
    return with_energy(probe, (probe.shape[-1] / 2) ** 2)


def with_energy(probe: Tensor, wanted: float) -> Tensor:
    """Scale a probe (..., modes, N, N) to an energy over all its modes: complex64."""
    return (probe * (wanted / energy(probe)[..., None, None, None]).sqrt()).to(torch.complex64)


def energy(probe: Tensor) -> Tensor:
    """Sum of the illumination: (..., modes, N, N) complex to (...,) float64."""
    return illumination(probe.to(torch.complex128)).sum(dim=(-2, -1))


def illumination(probe: Tensor) -> Tensor:
    """Intensity of the probe, modes added: (..., modes, N, N) complex to (..., N, N) real. The
    weight of a patch where patches overlap."""
    return intensity(probe).sum(dim=-3)


def centre_of_light(probe: Tensor) -> Tensor:
    """Centroid of the illumination, pixels: complex (..., modes, N, N) to float64 (..., 2) as (y,
    x)."""
    light = illumination(probe).double()
    light = light / light.sum(dim=(-2, -1), keepdim=True)
    pixel = torch.arange(probe.shape[-1], dtype=torch.float64, device=probe.device)
    return torch.stack(
        ((light.sum(dim=-1) * pixel).sum(dim=-1), (light.sum(dim=-2) * pixel).sum(dim=-1)), dim=-1
    )


def whole_pixel_and_rest(positions_px: Tensor) -> tuple[Tensor, Tensor]:
    """Split positions (..., 2) into the nearest whole pixel, int64, and what is left, -0.5 to 0.5,
    in the positions' dtype.

    Patches lie on the object's pixel grid, at the whole pixel; the probe is moved by the rest. The
    probe is smooth and dark at the border of its window, so its Fourier shift is exact, where
    interpolating the object would blur it, differently at every position.
    """
    whole_px = positions_px.add(0.5).floor()
    return whole_px.long(), positions_px - whole_px


def shift_probe(probe: Tensor, shift_px: Tensor) -> Tensor:
    """Move probes by fractions of a pixel, by the Fourier shift theorem; the energy stays.

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
    if probe.numel() == 0 or shift_px.numel() == 0:  # the FFT libraries refuse what is empty
        return probe.expand(
            *torch.broadcast_shapes(probe.shape[:-3], shift_px.shape[:-1]), *probe.shape[-3:]
        )
    frequency = torch.fft.fftfreq(probe.shape[-1], device=probe.device)
    cycles = shift_px.to(torch.float32)[..., None] * frequency  # (..., 2, N)
    ramp = torch.polar(torch.ones_like(cycles), -2 * math.pi * cycles)
    return torch.fft.ifft2(
        torch.fft.fft2(probe) * (ramp[..., 0, :, None] * ramp[..., 1, None, :]).unsqueeze(-3)
    )
