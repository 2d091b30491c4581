"""Maximum-likelihood refinement of a stitched object, and of its probe if asked.

It minimises the Poisson deviance of the whole scan, which is the loss of the training (maximum
likelihood in ptychography: Thibault & Guizar-Sicairos 2012, doi:10.1088/1367-2630/14/6/063004).
Steps are quasi-Newton: memoryless BFGS (Shanno 1978, doi:10.1287/moor.3.3.244), preconditioned by
the light of each pixel. One iteration is one pass over the patterns: the pass that judges a step
also gives the gradient for the next one. A step that raises the deviance is taken back and
shortened.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho_dist.inference.records import Units
from ptycho_dist.inference.scan_patterns import Patterns
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.loss import poisson_deviance
from ptycho_dist.physics.mask import num_counted
from ptycho_dist.physics.patches import extract_patches
from ptycho_dist.physics.probe import energy, shift_probe, with_energy
from ptycho_dist.physics.propagation import diffracted_intensity

logger = logging.getLogger(__name__)

FAINT = 0.01
"""Fraction of the brightest pixel's light that is added to every pixel's, so that noise is not
amplified in the dark (as in rPIE: Maiden, Johnson & Li 2017, doi:10.1364/OPTICA.4.000736)."""

SHORTER = 0.25
"""Factor on the length of a step that was taken back."""

Unknowns = list[Tensor]
"""[object], or [object, probe] if the probe is refined too; also a step or a gradient in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """A refined object and its history.

    Attributes
    ----------
    object
        complex64 (H, W), on the canvas of the stitched object.
    probe
        complex64 (modes, N, N), of unchanged energy.
    deviance_per_pixel
        Of the start and after each iteration; it never rises.
    """

    object: Tensor
    probe: Tensor
    deviance_per_pixel: tuple[float, ...]


@torch.inference_mode(False)
def refine(
    stitched: StitchedObject,
    patterns: Patterns,
    units: Units,
    *,
    iterations: int,
    refine_probe: bool = False,
) -> Refinement:
    """Maximise the likelihood of a scan, starting from a stitched object and its probe, which are
    not changed.

    Memory beside one batch is that of about ten objects, whatever the number of patterns. Pixels
    without light keep their value.

    Parameters
    ----------
    stitched
        Object and probe to start from.
    patterns
        The scan.
    units
        Photons per unit of intensity, measured and predicted.
    iterations
        Number of passes after the first one, which judges the start.
    refine_probe
        Update the probe too. Its energy over all modes is kept, and with it the unit of the
        object's amplitude.
    """
    # autograd keeps nothing that was made in inference mode
    mask = None if patterns.mask is None else patterns.mask.clone()
    num_pixels = patterns.num_patterns * num_counted(stitched.probe[0], mask)
    history: list[float] = []

    def judge(unknowns: Unknowns) -> tuple[float, Unknowns]:
        return _deviance_and_gradient(unknowns, stitched, patterns, units, mask)

    def note(deviance: float) -> None:
        history.append(2 * deviance / num_pixels)
        progress = (history[-1], len(history) - 1, iterations)
        logger.info("refinement: deviance per pixel %.5g after %d of %d iterations", *progress)

    here = [torch.from_numpy(stitched.object()).to(stitched.probe.device)]
    if refine_probe:
        here.append(stitched.probe.clone())
    light = stitched.light[0].clone()
    curvature = _rough_curvature(here, light, units.predicted_photons, patterns.num_patterns)
    deviance, gradient = judge(here)
    note(deviance)
    direction, length = _downhill(gradient, curvature), 1.0
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
        deviance_per_pixel=tuple(history),
    )


def _deviance_and_gradient(
    unknowns: Unknowns,
    stitched: StitchedObject,
    patterns: Patterns,
    units: Units,
    mask: Tensor | None,
) -> tuple[float, Unknowns]:
    """Return the sum of d over the scan and its gradient d/dRe + i d/dIm in each of the unknowns,
    in one pass."""
    variables = [unknown.detach().requires_grad_() for unknown in unknowns]
    object_, probe = variables if len(variables) == 2 else (*variables, stitched.probe.clone())
    total = torch.zeros((), dtype=torch.float64, device=probe.device)
    gradient = [torch.zeros_like(unknown) for unknown in unknowns]
    for positions_px, x_norm in patterns.batches():
        counts = units.measured_photons * x_norm.square()
        corners, rest_px = stitched.corners(positions_px)
        patches = extract_patches(object_[None], corners[None], stitched.patch_size)[0]
        rate = units.predicted_photons * diffracted_intensity(
            patches, shift_probe(probe, rest_px), mask
        )
        deviance = poisson_deviance(rate, counts).sum(dtype=torch.float64)
        of_batch = torch.autograd.grad(deviance, variables)
        for so_far, more in zip(gradient, of_batch, strict=True):
            so_far += more
        total += deviance.detach()
    return float(total), gradient


def _rough_curvature(
    unknowns: Unknowns, light: Tensor, photons_per_intensity: float, num_patterns: int
) -> list[Tensor]:
    """Return the second derivatives of the deviance as far as they do not mix pixels: a first step
    is the gradient divided by them.

    Where the rate c |Psi|**2 is the measured one, the curvature of d along the amplitude of the
    exit wave's spectrum Psi is 4 c. Dividing by it is a step to about the measured amplitude, as in
    ePIE, averaged over the patterns that saw a pixel, weighted by their light.
    """
    object_, *probe = unknowns
    bends = [light + FAINT * light.max()]
    if probe:  # its pixels met many places of the object, so their curvatures are about equal
        bends.append(num_patterns * (light * object_.abs().square()).sum() / light.sum())
    return [4 * photons_per_intensity * bend for bend in bends]


def _downhill(gradient: Unknowns, curvature: list[Tensor]) -> Unknowns:
    return [-slope / bend for slope, bend in zip(gradient, curvature, strict=True)]


def _next_direction(
    gradient: Unknowns, curvature: list[Tensor], *, step: Unknowns, change: Unknowns
) -> Unknowns:
    """Return minus the memoryless BFGS inverse Hessian times the gradient: the two-loop recursion
    with one pair (Nocedal & Wright, algorithm 7.4).

    `change` is the change of the gradient over `step`. The curvature is rescaled to fit both.
    """
    along = _dot(step, change)
    if along <= 0:  # the deviance is not convex here: the step tells nothing
        return _downhill(gradient, curvature)
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
    there = [unknown + length * d for unknown, d in zip(unknowns, direction, strict=True)]
    probes = zip(there[1:], unknowns[1:], strict=True)
    return [there[0], *(with_energy(probe, float(energy(before))) for probe, before in probes)]


def _minus(those: Unknowns, these: Unknowns) -> Unknowns:
    return [that - this for that, this in zip(those, these, strict=True)]


def _dot(these: Unknowns, those: Unknowns) -> float:
    """Return Re <these, those>: complex numbers count as pairs of reals."""
    products = (
        this.real * that.real + this.imag * that.imag
        for this, that in zip(these, those, strict=True)
    )
    return sum(float(product.sum(dtype=torch.float64)) for product in products)
