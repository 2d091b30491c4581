"""The network applied again and again: each time it corrects the patches that the patterns of a
group agreed on the time before.

One correction mends what a pattern and its estimate show. What neighbours then agree on is news to
each of them, from which the next correction starts. So the network learns a step that can be
repeated, as in unrolled optimisation (Monga, Li & Eldar 2021, doi:10.1109/MSP.2020.3016905), and a
scan can be corrected as one whole, more often than any group was in training. A single pattern has
no neighbours and gets one correction: more would only confirm what it can't tell, its twin image
where that explains it as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptycho_dist.model.first_estimate import first_estimate
from ptycho_dist.physics.patches import GroupCanvas

MOST_CORRECTIONS = 3
"""Of a group of more than one pattern."""


def corrections_at(step: int) -> int:
    """How many corrections a group gets at a training step: one, two, three, and from the
    beginning.

    The network so learns from every estimate that it will be given, and the first correction is
    held to the patterns by a loss of its own. With three at every step nothing did: networks
    drifted to where their own first corrections led them, and did not come back. Training's
    deviance is therefore a mean over the three kinds of steps, and above that of validation, which
    takes all corrections.
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
    """Patches of groups of patterns: their first estimate, corrected several times, neighbours made
    to agree each time.

    Groups of one pattern are corrected once. The gradient goes through the last correction alone:
    the ones before it only make the estimates that it must learn to correct. With a gradient
    through all of three a step takes twice as long and three times the memory.

    Parameters
    ----------
    network
        Corrects patches.
    x_norm : (B, C, N, N) float32, normalised amplitude, DC at [N//2, N//2].
    probe : (B, C, modes, N, N) complex64, normalised units, at the subpixel positions.
    corners : (B, C, 2) int64 as (y, x), pixels; any common origin a group.
    weights : (B, C, N, N) float32, of each patch where patches overlap: the illumination.
    mask : bool, broadcasts to `x_norm`: pixels that count; None: all do.
    corrections
        How many, of groups of more than one pattern.

    Returns
    -------
    (B, C, N, N) complex64, the object read back at each position.
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
