"""The network's passes over a scan: from patterns to one stitched object.

A network that was trained on groups corrects the whole object, pass after pass: each pattern sees what all others have agreed on, which is
how phases meet over long distances. What a pass asks for is judged by the likelihood, as a step of `refine` is. A network that was trained
on single patterns reconstructs each pattern alone, and the patches' phases are fitted where they overlap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
"""A correction that raised the deviance is taken at this part of its length, and so are those after it."""

SHORTEST = 0.1
"""Passes end where a shorter one would be needed."""

Patterns = Callable[[], Iterable[tuple[np.ndarray, Tensor]]]
"""Starts a pass over a scan: positions (k, 2) as (y, x), pixels, and normalised amplitudes (k, N, N)."""


def stitch_alone(network: nn.Module, stitched: StitchedObject, patterns: Patterns, *, mask: Tensor | None = None) -> None:
    """Reconstruct each pattern alone and add its patch, in the order in which the patterns come: see `stitching_order`."""
    for positions_px, x_norm in patterns():
        corners, probe = stitched.place(positions_px)
        light = illumination(probe)
        as_groups = (x_norm[:, None], probe[:, None], corners[:, None], light[:, None])
        stitched.add(corrected_patches(network, *as_groups, mask)[:, 0], light, corners)


def correct_together(
    network: nn.Module,
    stitched: StitchedObject,
    patterns: Patterns,
    *,
    num_patterns: int,
    photons_per_intensity: float,
    mask: Tensor | None = None,
) -> dict[str, Any]:
    """Begin with the first estimate of all patterns together, and correct it for as long as that helps.

    Parameters
    ----------
    network
        Trained on groups.
    stitched
        An empty canvas; it holds the object afterwards. Memory beside it is that of four objects and a batch.
    patterns
        The scan; called once a pass, and once before the first.
    num_patterns
        How many patterns a pass has.
    photons_per_intensity
        Counts that intensity 1 of `x_norm` stands for.
    mask
        bool (N, N), True where a pixel counts; None: all do. Patterns hold 0 at the others.

    Returns
    -------
    dict
        Figures for `summary.json`: `deviance_per_pixel` of the first estimate and after each correction that was kept, with the brightness
        that suits the scan best; `passes`, how many times the network saw the scan.
    """
    here = first_estimate_of_scan(stitched, patterns, mask)
    deviance, corrected = _judge_and_correct(network, here, stitched, patterns, photons_per_intensity, mask)
    per_pixel = 2 / (num_patterns * num_counted(stitched.probe[0], mask))
    kept, length, passes = [deviance * per_pixel], 1.0, 1
    while passes < MOST_PASSES and length >= SHORTEST:
        there = here + length * (corrected - here)
        deviance_there, corrected_there = _judge_and_correct(network, there, stitched, patterns, photons_per_intensity, mask)
        passes += 1
        if not deviance_there < deviance:  # NaN is not
            length *= SHORTER
            continue
        gain = 1 - deviance_there / deviance
        here, deviance, corrected = there, deviance_there, corrected_there
        kept.append(deviance * per_pixel)
        logger.info("correction %d: deviance per pixel %.5g", len(kept) - 1, kept[-1])
        if gain < LEAST_GAIN:
            break
    stitched.hold(here)
    return {"passes": passes, "deviance_per_pixel": kept}


def first_estimate_of_scan(stitched: StitchedObject, patterns: Patterns, mask: Tensor | None = None) -> Tensor:
    """`first_estimate` of all patterns as one group: the object (H, W) on the canvas. Adds the light of all patterns to the canvas."""
    asked, light_sum = torch.zeros_like(stitched.weighted_sum), torch.zeros_like(stitched.light)
    for positions_px, x_norm in patterns():
        corners, probe = stitched.place(positions_px)
        b, light = back_propagate(x_norm, probe, torch.ones_like(x_norm), mask)
        add_patches(asked, b[None], corners[None])
        add_patches(light_sum, (light + DIM_LIGHT)[None], corners[None])
        add_patches(stitched.light, illumination(probe)[None], corners[None])
    return 1 + asked[0] / light_sum[0].clamp_min(DIM_LIGHT)


def _judge_and_correct(
    network: nn.Module,
    object_: Tensor,
    stitched: StitchedObject,
    patterns: Patterns,
    photons_per_intensity: float,
    mask: Tensor | None,
) -> tuple[float, Tensor]:
    """One pass: sum of d over the scan for an object (H, W), and what the network makes of it.

    A common factor in the rates is left out of the judgement: its best value is that which makes all photons as many as were measured, and
    the sum of d is then lower by d of these two totals. So the outcome does not depend on the scale that counts photons, or on its gain.
    """
    deviance, predicted, measured = torch.zeros(3, dtype=torch.float64, device=object_.device)
    weighted_sum = torch.zeros_like(stitched.weighted_sum)
    for positions_px, x_norm in patterns():
        corners, probe = stitched.place(positions_px)
        estimate = extract_patches(object_[None], corners[None], stitched.patch_size)[0]
        counts = photons_per_intensity * x_norm.square()
        rate = photons_per_intensity * diffracted_intensity(estimate, probe, mask)
        deviance += poisson_deviance(rate, counts).sum(dtype=torch.float64)
        predicted += rate.sum(dtype=torch.float64)
        measured += counts.sum(dtype=torch.float64)
        add_patches(weighted_sum, (illumination(probe) * network(x_norm, probe, estimate, mask))[None], corners[None])
    corrected = weighted_sum[0] / stitched.light[0].clamp_min(1e-12)
    return float(deviance - poisson_deviance(predicted, measured)), corrected
