"""A first estimate of the patches: the known probe carries the patterns back to real space.

A diffraction pattern shows a patch's *spectrum*, of which convolutions can make little. In real
space, image restoration is left. What arrives there is the patch in its place, overlaid by its twin
image: a single pattern hardly tells a patch from its twin. The patterns of a group do, because each
one's twin lies elsewhere: in their sum the object grows and the twins don't.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho_dist.physics.mask import masked
from ptycho_dist.physics.patches import GroupCanvas
from ptycho_dist.physics.propagation import intensity

DIM_LIGHT = 0.1
"""Light, relative to the peak intensity, below which the first estimate leaves the object
transparent instead of amplifying noise."""

FAINT = 1e-12
"""Amplitude, where a bright pixel has about 1, below which a far field has no phase to keep: the
change that it asks for fades with it."""


def back_propagate(
    x_norm: Tensor, probe: Tensor, patches: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the change that a pattern asks for in an estimate of its patch, and the light there.

    The far field of the estimate gets the measured amplitude and keeps its phase. With P the
    strongest mode, Psi_m = FFT2(P_m * O) and Psi = FFT2(P * O), the change of the exit wave, seen
    through the probe as in ePIE (Maiden & Rodenburg 2009, doi:10.1016/j.ultramic.2009.05.012),
    is::

        b = IFFT2((X_norm - sqrt(sum_m |Psi_m|^2)) * Psi / |Psi|) * conj(P) / max|P|^2

    It is 0 where the estimate explains the pattern, and near that about half of (true O - O)
    `|P|^2 / max|P|^2` plus a twin image of the same strength.

    Parameters
    ----------
    x_norm
        float32 (..., N, N), normalised amplitude, DC at [N//2, N//2].
    probe
        complex64 (..., modes, N, N), normalised units; leading axes are those of `x_norm`.
    patches
        complex64 (..., N, N), the estimate.
    mask
        bool, broadcasts to `x_norm`, False where a pixel is masked and asks for no change, or None.

    Returns
    -------
    b
        complex64 (..., N, N).
    light
        float32 (..., N, N), `|P|^2 / max|P|^2`: how strongly b dims each pixel.
    """
    far_fields = torch.fft.fft2(probe * patches.unsqueeze(-3), norm="ortho")
    difference = (
        torch.fft.ifftshift(x_norm, dim=(-2, -1)) - intensity(far_fields).sum(dim=-3).sqrt()
    )
    if mask is not None:
        difference = masked(difference, torch.fft.ifftshift(mask, dim=(-2, -1)))
    mode, far_field = _strongest_mode(probe, far_fields)
    exit_wave_change = torch.fft.ifft2(
        far_field * (difference / intensity(far_field).sqrt().clamp_min(FAINT)), norm="ortho"
    )
    light = intensity(mode)
    peak = light.amax(dim=(-2, -1), keepdim=True)
    return exit_wave_change * (mode.conj() / peak), light / peak


def _strongest_mode(probe: Tensor, far_fields: Tensor) -> tuple[Tensor, Tensor]:
    """Return the brightest mode of probes (..., modes, N, N), and its far field: (..., N, N)."""
    if probe.shape[-3] == 1:
        return probe.squeeze(-3), far_fields.squeeze(-3)
    strongest = (
        intensity(probe)
        .sum(dim=(-2, -1), keepdim=True)
        .argmax(dim=-3, keepdim=True)
        .expand_as(probe[..., :1, :, :])
    )
    return probe.gather(-3, strongest).squeeze(-3), far_fields.gather(-3, strongest).squeeze(-3)


def first_estimate(
    x_norm: Tensor, probe: Tensor, canvas: GroupCanvas, mask: Tensor | None = None
) -> Tensor:
    """Return patches that the patterns of a group agree on: one step from the transparent object.

    On the group's canvas, with b_i of the transparent object::

        O = 1 + (sum_i b_i) / (sum_i light_i + DIM_LIGHT)

    Parameters
    ----------
    x_norm
        float32 (B, C, N, N), normalised amplitude, DC at [N//2, N//2].
    probe
        complex64 (B, C, modes, N, N), normalised units.
    canvas
        Canvas of the groups, where their patches meet.
    mask
        bool, broadcasts to `x_norm`, False where a pixel is masked, or None.

    Returns
    -------
    Tensor
        complex64 (B, C, N, N), the object read back at each position.
    """
    if x_norm.numel() == 0:  # the FFT libraries refuse what is empty
        return torch.ones_like(x_norm, dtype=torch.complex64)
    b, light = back_propagate(x_norm, probe, torch.ones_like(x_norm), mask)
    light = light + DIM_LIGHT
    return 1 + canvas.mean(b / light, light)
