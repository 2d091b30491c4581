"""The network's passes over a scan: from patterns to one stitched object.

A network that was trained on groups corrects the whole object, pass after pass: each pattern sees
what all others have agreed on, which is how phases meet over long distances. What a pass asks for
is judged by the likelihood, as a step of `refine` is. The judgement is a pass of its own, a seventh
of the work: the network need not see an object that is dropped, or the last one. A network that was
trained on single patterns reconstructs each pattern alone, and the patches' phases are fitted where
they overlap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ptycho_dist.inference.alignment import AlignedPatches
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.corrections import corrected_patches
from ptycho_dist.model.first_estimate import DIM_LIGHT, back_propagate
from ptycho_dist.model.loss import poisson_deviance
from ptycho_dist.physics.mask import num_counted
from ptycho_dist.physics.patches import add_patches, extract_patches
from ptycho_dist.physics.probe import illumination
from ptycho_dist.physics.propagation import diffracted_intensity

logger = logging.getLogger(__name__)

MOST_PASSES = 10
"""Of the network over a scan."""

LEAST_GAIN = 0.01
"""Passes end with one that lowers the deviance by less than this part of it."""

SHORTER = 0.5
"""A correction that raised the deviance is taken at this part of its length, and so are those after
it."""

SHORTEST = 0.1
"""Passes end where a shorter one would be needed."""

Patterns = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a pass over a scan: positions float64 (k, 2) as (y, x), pixels, and normalised amplitudes
(k, N, N), batch after batch."""


def stitch_alone(
    network: nn.Module, stitched: StitchedObject, patterns: Patterns, *, mask: Tensor | None = None
) -> None:
    """Reconstruct each pattern alone and add its patch, in the order in which the patterns come:
    see `stitching_order`."""
    patches = AlignedPatches(stitched)
    for positions_px, x_norm in patterns():
        corners, probe = stitched.place(positions_px)
        light = illumination(probe)
        as_groups = (x_norm[:, None], probe[:, None], corners[:, None], light[:, None])
        patches.add(corrected_patches(network, *as_groups, mask)[:, 0], light, corners)
    stitched.hold(patches.mean())


def correct_together(
    network: nn.Module,
    stitched: StitchedObject,
    patterns: Patterns,
    *,
    num_patterns: int,
    photons_per_intensity: float,
    mask: Tensor | None = None,
) -> dict[str, Any]:
    """Begin with the first estimate of all patterns together, and correct it for as long as that
    helps.

    Parameters
    ----------
    network
        Trained on groups.
    stitched
        An empty canvas; it holds the object afterwards. Memory beside it is that of four objects
        and a batch.
    patterns
        The scan; called for each pass of the network, for each object that is judged, and once
        before.
    num_patterns
        How many patterns a pass has.
    photons_per_intensity
        Counts that intensity 1 of `x_norm` stands for.
    mask
        bool (N, N), True where a pixel counts; None: all do. Patterns hold 0 at the others.

    Returns
    -------
    dict
        Figures for `summary.json`: `deviance_per_pixel` of the first estimate and after each
        correction that was kept, with the brightness that suits the scan best; `passes`, how many
        times the network saw the scan; `helped`, whether all corrections together lowered the
        deviance by more than `LEAST_GAIN`.
    """
    here = first_estimate_of_scan(stitched, patterns, mask)
    per_pixel = 2 / (num_patterns * num_counted(stitched.probe[0], mask))

    def judge(object_: Tensor) -> float:
        return per_pixel * deviance_of_scan(
            object_, stitched, patterns, photons_per_intensity, mask
        )

    kept, length, passes, gain = [judge(here)], 1.0, 0, 1.0
    while passes < MOST_PASSES and gain >= LEAST_GAIN:
        asked = corrected_object(network, here, stitched, patterns, mask) - here
        passes += 1
        while length >= SHORTEST:
            there = here + length * asked
            deviance = judge(there)
            if deviance < kept[-1]:  # NaN is not
                break
            length *= SHORTER
        else:
            break  # no part of what the network asks for helps
        here, gain = there, 1 - deviance / kept[-1]
        kept.append(deviance)
        logger.info("correction %d: deviance per pixel %.5g", passes, deviance)
    stitched.hold(here)
    helped = kept[-1] < (1 - LEAST_GAIN) * kept[0]
    if not helped:
        logger.warning(
            "the network adds nothing to the first estimate of this scan: deviance per pixel %.5g "
            "before, %.5g after its corrections. "
            "If it was trained on this scan, training was lost or too short: try half of "
            "train.learning_rate, or more of train.epochs; "
            "if on others, their probe, sampling or dose may be too different",
            kept[0],
            kept[-1],
        )
    return {"passes": passes, "deviance_per_pixel": kept, "helped": helped}


def first_estimate_of_scan(
    stitched: StitchedObject, patterns: Patterns, mask: Tensor | None = None
) -> Tensor:
    """`first_estimate` of all patterns as one group: the object (H, W) on the canvas. Adds the
    light of all patterns to the canvas."""
    asked, light_sum = (
        torch.zeros_like(stitched.light, dtype=torch.complex64),
        torch.zeros_like(stitched.light),
    )
    for positions_px, x_norm in patterns():
        corners, probe = stitched.place(positions_px)
        b, light = back_propagate(x_norm, probe, torch.ones_like(x_norm), mask)
        add_patches(asked, b[None], corners[None])
        add_patches(light_sum, (light + DIM_LIGHT)[None], corners[None])
        add_patches(stitched.light, illumination(probe)[None], corners[None])
    return 1 + asked[0] / light_sum[0].clamp_min(DIM_LIGHT)


def deviance_of_scan(
    object_: Tensor,
    stitched: StitchedObject,
    patterns: Patterns,
    photons_per_intensity: float,
    mask: Tensor | None = None,
) -> float:
    """Sum of d over the scan for an object (H, W).

    A common factor in the rates is left out of the judgement: its best value is that which makes
    all photons as many as were measured, and the sum of d is then lower by d of these two totals.
    So the outcome does not depend on the scale that counts photons, or on its gain.
    """
    deviance, predicted, measured = torch.zeros(3, dtype=torch.float64, device=object_.device)
    for positions_px, x_norm in patterns():
        corners, probe = stitched.place(positions_px)
        estimate = extract_patches(object_[None], corners[None], stitched.patch_size)[0]
        counts = photons_per_intensity * x_norm.square()
        rate = photons_per_intensity * diffracted_intensity(estimate, probe, mask)
        deviance += poisson_deviance(rate, counts).sum(dtype=torch.float64)
        predicted += rate.sum(dtype=torch.float64)
        measured += counts.sum(dtype=torch.float64)
    return float(deviance - poisson_deviance(predicted, measured))


def corrected_object(
    network: nn.Module,
    object_: Tensor,
    stitched: StitchedObject,
    patterns: Patterns,
    mask: Tensor | None = None,
) -> Tensor:
    """What the network makes of an object (H, W), all patterns at once."""
    weighted_sum = torch.zeros_like(stitched.light, dtype=torch.complex64)
    for positions_px, x_norm in patterns():
        corners, probe = stitched.place(positions_px)
        estimate = extract_patches(object_[None], corners[None], stitched.patch_size)[0]
        add_patches(
            weighted_sum,
            (illumination(probe) * network(x_norm, probe, estimate, mask))[None],
            corners[None],
        )
    return weighted_sum[0] / stitched.light[0].clamp_min(1e-12)
