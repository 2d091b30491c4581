"""Apply the network repeatedly: each time it corrects the patches that a group's patterns agreed
on before.

A correction fixes what a pattern and its estimate show. What the neighbours then agree on is new to
each of them, and the next correction starts from it. So the network learns a step that can be
repeated, as in unrolled optimisation (Monga, Li & Eldar 2021, doi:10.1109/MSP.2020.3016905), and a
whole scan can be corrected more often than any group was in training. A single pattern has no
neighbours and gets one correction: more would only confirm its twin image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptycho_dist.model.first_estimate import first_estimate
from ptycho_dist.physics.patches import GroupCanvas

MOST_CORRECTIONS = 3
"""Corrections of a group of more than one pattern."""


def corrections_at(step: int) -> int:
    """Return the number of corrections at a training step: one, two, three, one, ...

    The network so learns from every estimate that it will meet, and the first correction has a loss
    of its own. With three at every step, networks drifted to where their own first corrections led
    them. The training deviance is therefore a mean over the three kinds of steps, and higher than
    that of validation, which takes all corrections.
    """
    return 1 + step % MOST_CORRECTIONS


def corrected_patches(
    network: nn.Module,
    x_norm: Tensor,
    probe: Tensor,
    corners: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    *,
    corrections: int = MOST_CORRECTIONS,
) -> Tensor:
    """Return patches of groups of patterns: their first estimate, corrected several times.

    After each correction overlapping patches are made to agree. Groups of one pattern are corrected
    once. The gradient goes through the last correction only: those before make the estimates that
    it must learn to correct. A gradient through all three takes twice the time and three times the
    memory.

    Parameters
    ----------
    network
        Corrects patches.
    x_norm
        float32 (B, C, N, N), normalised amplitude, DC at [N//2, N//2].
    probe
        complex64 (B, C, modes, N, N), normalised units, at the subpixel positions.
    corners
        int64 (B, C, 2) as (y, x), pixels; any common origin per group.
    weights
        float32 (B, C, N, N), weight of each patch where patches overlap: the illumination.
    mask
        bool, broadcasts to `x_norm`, False where a pixel is masked, or None.
    corrections
        Number of corrections, for groups of more than one pattern.

    Returns
    -------
    Tensor
        complex64 (B, C, N, N), the object read back at each position.
    """
    has_neighbours = x_norm.shape[1] > 1
    canvas = GroupCanvas(corners, x_norm.shape[-1])

    def correct(estimate: Tensor) -> Tensor:
        patches = network(x_norm, probe, estimate, mask)
        if not has_neighbours:
            return patches
        with torch.autocast(x_norm.device.type, enabled=False):
            return canvas.mean(patches, weights)

    with torch.no_grad():
        with torch.autocast(x_norm.device.type, enabled=False):
            estimate = first_estimate(x_norm, probe, canvas, mask)
        for _ in range(corrections - 1 if has_neighbours else 0):
            estimate = correct(estimate)
    return correct(estimate)
