"""Passes of the network over a scan: from patterns to one stitched object.

A network that was trained on groups corrects the whole object, pass after pass. Each pattern sees
what all others have agreed on, so phases agree over long distances. The likelihood judges each
correction, as it judges a step of `refine`. The judgement is a pass of its own, a seventh of the
work, so the network never sees an object that is dropped, nor the last one. A network that was
trained on single patterns reconstructs each pattern alone, and the phases of the patches are fitted
where they overlap.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ptycho_dist.inference.alignment import AlignedPatches, stitching_order
from ptycho_dist.inference.records import Corrections
from ptycho_dist.inference.scan_patterns import Patterns
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
"""Largest number of passes of the network over a scan."""

LEAST_GAIN = 0.01
"""Relative decrease of the deviance below which passes end."""

SHORTER = 0.5
"""Factor on the length of a correction that raised the deviance, and of those after it."""

SHORTEST = 0.1
"""Length of a correction below which passes end."""


def stitch_alone(network: nn.Module, stitched: StitchedObject, patterns: Patterns) -> None:
    """Reconstruct each pattern alone and stitch the patches on an empty canvas."""
    patches = AlignedPatches(stitched)
    order = stitching_order(patterns.positions_px, stitched.patch_size)
    for positions_px, x_norm in patterns.batches(order):
        corners, probe = stitched.place(positions_px)
        light = illumination(probe)
        as_groups = (x_norm[:, None], probe[:, None], corners[:, None], light[:, None])
        patches.add(corrected_patches(network, *as_groups, patterns.mask)[:, 0], light, corners)
    stitched.hold(patches.mean())


def correct_together(
    network: nn.Module, stitched: StitchedObject, patterns: Patterns, photons_per_intensity: float
) -> Corrections:
    """Correct the first estimate of all patterns together for as long as that helps.

    There is one pass for the first estimate, one for each pass of the network, and one for each
    object that is judged.

    Parameters
    ----------
    network
        Trained on groups.
    stitched
        An empty canvas; it holds the object afterwards. Memory beside it is that of four objects
        and a batch.
    patterns
        The scan.
    photons_per_intensity
        Photons that intensity 1 of the patterns stands for.
    """
    here = first_estimate_of_scan(stitched, patterns)
    per_pixel = 2 / (patterns.num_patterns * num_counted(stitched.probe[0], patterns.mask))

    def judge(object_: Tensor) -> float:
        return per_pixel * deviance_of_scan(object_, stitched, patterns, photons_per_intensity)

    kept, length, passes, gain = [judge(here)], 1.0, 0, 1.0
    while passes < MOST_PASSES and gain >= LEAST_GAIN:
        asked = corrected_object(network, here, stitched, patterns) - here
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
            "the network does not improve the first estimate of this scan: deviance per pixel %.5g "
            "before, %.5g after its corrections. "
            "If it was trained on this scan, training diverged or was too short: try half of "
            "train.learning_rate, or more of train.epochs. "
            "If it was trained on others, their probe, sampling or dose may be too different",
            kept[0],
            kept[-1],
        )
    return Corrections(passes=passes, deviance_per_pixel=tuple(kept), helped=helped)


def first_estimate_of_scan(stitched: StitchedObject, patterns: Patterns) -> Tensor:
    """Return the `first_estimate` of all patterns as one group, the object (H, W) on the canvas,
    and add the light of all patterns to the canvas."""
    asked = torch.zeros_like(stitched.light, dtype=torch.complex64)
    light_sum = torch.zeros_like(stitched.light)
    for positions_px, x_norm in patterns.batches():
        corners, probe = stitched.place(positions_px)
        b, light = back_propagate(x_norm, probe, torch.ones_like(x_norm), patterns.mask)
        add_patches(asked, b[None], corners[None])
        add_patches(light_sum, (light + DIM_LIGHT)[None], corners[None])
        add_patches(stitched.light, illumination(probe)[None], corners[None])
    return 1 + asked[0] / light_sum[0].clamp_min(DIM_LIGHT)


def deviance_of_scan(
    object_: Tensor, stitched: StitchedObject, patterns: Patterns, photons_per_intensity: float
) -> float:
    """Return the sum of d over the scan for an object (H, W), minimised over a common factor.

    The best common factor in the rates makes the totals of predicted and measured photons equal; it
    lowers the sum of d by d of these two totals. So the value depends neither on the scale that
    predicts photons nor on its gain.
    """
    deviance, predicted, measured = torch.zeros(3, dtype=torch.float64, device=object_.device)
    for positions_px, x_norm in patterns.batches():
        corners, probe = stitched.place(positions_px)
        estimate = extract_patches(object_[None], corners[None], stitched.patch_size)[0]
        counts = photons_per_intensity * x_norm.square()
        rate = photons_per_intensity * diffracted_intensity(estimate, probe, patterns.mask)
        deviance += poisson_deviance(rate, counts).sum(dtype=torch.float64)
        predicted += rate.sum(dtype=torch.float64)
        measured += counts.sum(dtype=torch.float64)
    return float(deviance - poisson_deviance(predicted, measured))


def corrected_object(
    network: nn.Module, object_: Tensor, stitched: StitchedObject, patterns: Patterns
) -> Tensor:
    """Return an object (H, W) as the network corrects it, all patterns at once."""
    weighted_sum = torch.zeros_like(stitched.light, dtype=torch.complex64)
    for positions_px, x_norm in patterns.batches():
        corners, probe = stitched.place(positions_px)
        estimate = extract_patches(object_[None], corners[None], stitched.patch_size)[0]
        corrected = network(x_norm, probe, estimate, patterns.mask)
        add_patches(weighted_sum, (illumination(probe) * corrected)[None], corners[None])
    return weighted_sum[0] / stitched.light[0].clamp_min(1e-12)
