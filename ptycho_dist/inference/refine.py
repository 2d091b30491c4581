"""Maximum-likelihood refinement of a stitched object, and of its probe if asked.

What is lowered is the Poisson deviance of the whole scan, the one that the network was trained with
(maximum likelihood in ptychography: Thibault & Guizar-Sicairos 2012,
doi:10.1088/1367-2630/14/6/063004). Steps are quasi-Newton: memoryless BFGS (Shanno 1978,
doi:10.1287/moor.3.3.244), preconditioned by the light that each pixel got. One iteration is one
pass over the patterns: the pass that judges a step also gives the gradient for the next one. A step
that raises the deviance is taken back and shortened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.loss import poisson_deviance
from ptycho_dist.physics.mask import num_counted
from ptycho_dist.physics.patches import extract_patches
from ptycho_dist.physics.probe import energy, shift_probe, with_energy
from ptycho_dist.physics.propagation import diffracted_intensity

logger = logging.getLogger(__name__)

FAINT = 0.01
"""This part of the brightest pixel's light is added to every pixel's, lest noise is blown up in the
dark (as in rPIE: Maiden, Johnson & Li 2017, doi:10.1364/OPTICA.4.000736)."""

SHORTER = 0.25
"""A step that was taken back is tried again at this part of its length."""

Photons = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a pass over a scan: positions float64 (k, 2) as (y, x), pixels, and measured counts (k, N,
N), batch after batch."""

Unknowns = list[Tensor]
"""[object], or [object, probe] where the probe is refined too; also a step or a gradient in them,
of the same shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """A refined object and how it was reached.

    Attributes
    ----------
    object
        complex64 (H, W), on the canvas of the stitched object.
    probe
        complex64 (modes, N, N), of the energy that it had.
    summary
        Figures for `summary.json`. `deviance_per_pixel` holds the start's and one value an
        iteration; it never rises.
    """

    object: Tensor
    probe: Tensor
    summary: dict[str, Any]


@torch.inference_mode(False)
def refine(
    stitched: StitchedObject,
    photons: Photons,
    *,
    num_patterns: int,
    photons_per_intensity: float,
    iterations: int,
    refine_probe: bool = False,
    mask: Tensor | None = None,
) -> Refinement:
    """Raise the likelihood of a scan, starting from a stitched object and its probe, which are left
    as they are.

    Beside one batch, memory is that of about ten objects, whatever the number of patterns. Pixels
    that no light reaches keep their value.

    Parameters
    ----------
    stitched
        Where to start.
    photons
        The scan; called once a pass.
    num_patterns
        How many patterns a pass has.
    photons_per_intensity
        Counts that intensity 1 in normalised units stands for, (s g)**2.
    iterations
        Passes, after a first one that judges the start.
    refine_probe
        Update the probe too. Its energy over all modes stays, so the object's amplitude keeps its
        unit.
    mask
        bool (N, N), True where a pixel counts; None: all do. Counts are 0 at the others.
    """
    started = time.perf_counter()
    # autograd keeps nothing that was made in inference mode
    mask = None if mask is None else mask.clone()
    deviance_per_pixel: list[float] = []

    def judge(unknowns: Unknowns) -> tuple[float, Unknowns]:
        return _deviance_and_gradient(unknowns, stitched, photons, photons_per_intensity, mask)

    def note(deviance: float) -> None:
        deviance_per_pixel.append(
            2 * deviance / (num_patterns * num_counted(stitched.probe[0], mask))
        )
        done = len(deviance_per_pixel) - 1
        logger.info(
            "refinement: deviance per pixel %.5g after %d of %d iterations",
            deviance_per_pixel[-1],
            done,
            iterations,
        )

    here = [torch.from_numpy(stitched.object()).to(stitched.probe.device)]
    if refine_probe:
        here.append(stitched.probe.clone())
    curvature = _rough_curvature(
        here, stitched.light[0].clone(), photons_per_intensity, num_patterns
    )
    deviance, gradient = judge(here)
    note(deviance)
    direction, length = (
        [-slope / bend for slope, bend in zip(gradient, curvature, strict=True)],
        1.0,
    )
    for _ in range(iterations):
        there = _moved(here, direction, length)
        deviance_there, gradient_there = judge(there)
        if deviance_there <= deviance:  # NaN is not
            direction = _next_direction(
                gradient_there,
                curvature,
                step=_minus(there, here),
                change=_minus(gradient_there, gradient),
            )
            here, deviance, gradient, length = there, deviance_there, gradient_there, 1.0
        else:
            length *= SHORTER
        note(deviance)
    return Refinement(
        object=here[0],
        probe=here[1] if refine_probe else stitched.probe,
        summary={
            "iterations": iterations,
            "refine_probe": refine_probe,
            "deviance_per_pixel": deviance_per_pixel,
            "seconds": round(time.perf_counter() - started, 3),
        },
    )


def _deviance_and_gradient(
    unknowns: Unknowns,
    stitched: StitchedObject,
    photons: Photons,
    photons_per_intensity: float,
    mask: Tensor | None = None,
) -> tuple[float, Unknowns]:
    """One pass: sum of d over the scan, and its gradient d/dRe + i d/dIm in each of the
    unknowns."""
    variables = [unknown.detach().requires_grad_() for unknown in unknowns]
    object_, probe = variables if len(variables) == 2 else (*variables, stitched.probe.clone())
    total = torch.zeros((), dtype=torch.float64, device=probe.device)
    gradient = [torch.zeros_like(unknown) for unknown in unknowns]
    for positions_px, counts in photons():
        corners, rest_px = stitched.corners(positions_px)
        patches = extract_patches(object_[None], corners[None], stitched.patch_size)[0]
        rate = photons_per_intensity * diffracted_intensity(
            patches, shift_probe(probe, rest_px), mask
        )
        deviance = poisson_deviance(rate, counts).sum(dtype=torch.float64)
        for so_far, of_batch in zip(
            gradient, torch.autograd.grad(deviance, variables), strict=True
        ):
            so_far += of_batch
        total += deviance.detach()
    return float(total), gradient


def _rough_curvature(
    unknowns: Unknowns, light: Tensor, photons_per_intensity: float, num_patterns: int
) -> list[Tensor]:
    """What a gradient is divided by for a first step: second derivatives of the deviance, as far as
    they do not mix pixels.

    Where the rate c |Psi|**2 is the measured one, d bends by 4 c along the amplitude of the exit
    wave's spectrum Psi. Dividing by that is a step to about the measured amplitude, as ePIE's,
    averaged over the patterns that saw a pixel, each by its light.
    """
    object_, *probe = unknowns
    bends = [light + FAINT * light.max()]
    if probe:  # its pixels met many places of the object, so all of them about the same
        bends.append(num_patterns * (light * object_.abs().square()).sum() / light.sum())
    return [4 * photons_per_intensity * bend for bend in bends]


def _next_direction(
    gradient: Unknowns, curvature: list[Tensor], *, step: Unknowns, change: Unknowns
) -> Unknowns:
    """Minus the memoryless BFGS inverse Hessian times the gradient: the two-loop recursion with one
    pair (Nocedal & Wright, algorithm 7.4).

    `change` is that of the gradient over `step`. The curvature is rescaled to fit them.
    """
    along = _dot(step, change)
    if along <= 0:  # the deviance is not convex: nothing learned from this step
        return [-slope / bend for slope, bend in zip(gradient, curvature, strict=True)]
    scaled_change = [y / bend for y, bend in zip(change, curvature, strict=True)]
    scale = along / _dot(change, scaled_change)
    before = _dot(step, gradient) / along
    direction = [
        scale * (slope / bend - before * y)
        for slope, bend, y in zip(gradient, curvature, scaled_change, strict=True)
    ]
    after = _dot(change, direction) / along
    return [-(d + (before - after) * s) for d, s in zip(direction, step, strict=True)]


def _moved(unknowns: Unknowns, direction: Unknowns, length: float) -> Unknowns:
    object_, *probe = (unknown + length * d for unknown, d in zip(unknowns, direction, strict=True))
    return [
        object_,
        *(
            with_energy(there, float(energy(here)))
            for there, here in zip(probe, unknowns[1:], strict=True)
        ),
    ]


def _minus(those: Unknowns, these: Unknowns) -> Unknowns:
    return [that - this for that, this in zip(those, these, strict=True)]


def _dot(these: Unknowns, those: Unknowns) -> float:
    """Re <these, those>: complex numbers count as pairs of reals."""
    products = (
        this.real * that.real + this.imag * that.imag
        for this, that in zip(these, those, strict=True)
    )
    return sum(float(product.sum(dtype=torch.float64)) for product in products)
