"""The probe in normalised units."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize_probe(probe: Tensor) -> Tensor:
    """Scale a probe (..., modes, N, N) to the energy (N/2)**2, over all its modes, that an RMS-normalised pattern has in the mean.

    With this gauge an object that lets all light pass has amplitude 1, whatever the units of the file.
    """
    pattern_size = probe.shape[-1]
    energy = illumination(probe.to(torch.complex128)).sum(dim=(-2, -1), keepdim=True).unsqueeze(-3)
    return (probe * (pattern_size / 2 / energy.sqrt())).to(torch.complex64)


def illumination(probe: Tensor) -> Tensor:
    """Intensity of the probe, modes added: (..., modes, N, N) complex to (..., N, N) real. The weight of a patch where patches overlap."""
    return (probe.real.square() + probe.imag.square()).sum(dim=-3)
