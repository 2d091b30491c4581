"""What is known of the patches before the network: the known probe carries the patterns back to
real space.

A diffraction pattern shows a patch's *spectrum*; convolutions, which expect neighbours to belong
together, can do little with it. In real space the task left over is one of image restoration. What
arrives there is the patch in its right place, overlaid by its twin image: one pattern hardly tells
a patch from its twin (not at all where object and probe are real and the probe is symmetric). The
patterns of a group do, since each one's twin lies elsewhere: where they are added up the object
grows and the twins don't.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho_dist.physics.mask import masked
from ptycho_dist.physics.patches import GroupCanvas
from ptycho_dist.physics.propagation import intensity

DIM_LIGHT = 0.1
"""Light, as part of the peak intensity, below which the first estimate leaves the object
transparent rather than amplify what is seen."""

FAINT = 1e-12
"""Amplitude, where that of a bright pixel is about 1, below which a far field has no phase to keep:
what it asks for fades with it."""


def back_propagate(
    x_norm: Tensor, probe: Tensor, patches: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a pattern asks to change in an estimate of its patch, and the light it was seen in.

    The far field of the estimate is given the measured amplitude and keeps its phase. With P the
    strongest mode, Psi_m = FFT2(P_m * O) and Psi = FFT2(P * O), what that changes in the exit wave,
    seen through the probe as in the update of ePIE (Maiden & Rodenburg 2009,
    doi:10.1016/j.ultramic.2009.05.012), is::

        b = IFFT2((X_norm - sqrt(sum_m |Psi_m|^2)) * Psi / |Psi|) * conj(P) / max|P|^2

    It is 0 where the estimate explains the pattern, and near it about half of (the true O - O)
    `|P|^2 / max|P|^2` plus a twin image of the same strength.

    Parameters ---------- x_norm : (..., N, N) float32, normalised amplitude, DC at [N//2, N//2].
    probe : (..., modes, N, N) complex64, normalised units; leading axes are those of `x_norm`.
    patches : (..., N, N) complex64, the estimate. mask : bool, broadcasts to `x_norm`, True where a
    pixel counts; None: all do. The others ask for no change.

    Returns
    -------
    b : (..., N, N) complex64.
    light : (..., N, N) float32, `|P|^2 / max|P|^2`, which tells how strongly b dims each pixel.
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
    """The mode with the most light, of probes (..., modes, N, N), and its far field: both (..., N,
    N)."""
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
    """Patches that the patterns of a group agree on: one step from the transparent object, all
    patterns at once::

        O = 1 + (sum_i b_i) / (sum_i light_i + DIM_LIGHT),     b_i of the transparent object, on the
        canvas of the group

    Parameters
    ----------
    x_norm : (B, C, N, N) float32, normalised amplitude, DC at [N//2, N//2].
    probe : (B, C, modes, N, N) complex64, normalised units.
    canvas
        Of the groups, where their patches meet.
    mask : bool, broadcasts to `x_norm`: pixels that count; None: all do.

    Returns
    -------
    (B, C, N, N) complex64, the object read back at each position.
    """
    if x_norm.numel() == 0:  # the FFT libraries refuse what is empty
        return torch.ones_like(x_norm, dtype=torch.complex64)
    b, light = back_propagate(x_norm, probe, torch.ones_like(x_norm), mask)
    light = light + DIM_LIGHT
    return 1 + canvas.mean(b / light, light)
