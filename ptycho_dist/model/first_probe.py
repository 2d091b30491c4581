"""The probe that training starts with: the best of the scan's own and two that its patterns
suggest, roughly refined.

The network sees its patterns through the probe (`back_propagate`), so a probe that is far off can't
be learned along with it: the network sees noise until the probe is nearly right, and until then the
probe gets no useful gradient. A few sweeps of ePIE, which needs no network, over the middle of the
scan come first.
"""

from __future__ import annotations

import logging
import math

import torch
from scipy import ndimage
from torch import Tensor

from ptycho_dist.model.probe_modes import add_modes
from ptycho_dist.physics.mask import masked, num_counted
from ptycho_dist.physics.patches import extract_patches
from ptycho_dist.physics.probe import (
    centre_of_light,
    illumination,
    normalize_probe,
    shift_probe,
    whole_pixel_and_rest,
)

logger = logging.getLogger(__name__)

NUM_PATTERNS = 256
"""Patterns that are used, those nearest to the middle of the scan."""
SWEEPS_TO_CHOOSE = 3
SWEEPS_TO_REFINE = 10
CLEARLY_BETTER = 0.8
"""A beam replaces the file's probe if its residual is below this fraction of the probe's."""
PROBE_STEP = 0.5
"""Step of ePIE's probe update; 1 over-corrects while the object is still rough."""


def find_first_probe(
    x_norm: Tensor, positions_px: Tensor, probe: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Choose and roughly refine a probe.

    Parameters
    ----------
    x_norm
        float32 (n, N, N), normalised amplitudes of neighbouring patterns, DC at [N//2, N//2].
    positions_px
        float64 (n, 2) as (y, x).
    probe
        complex64 (modes, N, N), any units: the scan file's.
    mask
        bool (N, N), False where a pixel is masked, or None.

    Returns
    -------
    Tensor
        complex64 (modes, N, N), normalised units.
    """
    beams = lens_beams(_filled(x_norm.square().mean(dim=0).sqrt(), mask), probe)
    candidates = {
        "the file's": probe,
        "a lens's beam, defocused one way": add_modes(beams[:1], len(probe)),
        "a lens's beam, defocused the other way": add_modes(beams[1:], len(probe)),
    }
    names = list(candidates)
    trials = [
        JointReconstruction(x_norm, positions_px, candidate, mask)
        for candidate in candidates.values()
    ]
    residuals = [[trial.sweep() for _ in range(SWEEPS_TO_CHOOSE)][-1] for trial in trials]
    best = min(range(len(trials)), key=residuals.__getitem__)
    best = best if residuals[best] < CLEARLY_BETTER * residuals[0] else 0
    for _ in range(SWEEPS_TO_REFINE):
        residual = trials[best].sweep()
    logger.info(
        "first probe: %s; residual of the amplitudes after %d sweeps over %d patterns %s; after "
        "%d more %.4f",
        names[best],
        SWEEPS_TO_CHOOSE,
        len(x_norm),
        ", ".join(f"{name} {value:.4f}" for name, value in zip(names, residuals, strict=True)),
        SWEEPS_TO_REFINE,
        residual,
    )
    return normalize_probe(trials[best].probe)


def lens_beams(mean_amplitude: Tensor, probe: Tensor) -> Tensor:
    """Return the beams of a lens with the measured far field, as far out of focus, on either side,
    as a probe's width suggests.

    With the far field A(q) exp(i c q^2), q in detector pixels, a beam's second moment is by
    Parseval's theorem::

        <r^2> = (N / 2 pi)^2 (int |grad A|^2 + 4 c^2 int q^2 A^2) / int A^2

    which gives c up to its sign. `int |grad A|^2` is taken from the focused beam's moment.

    Parameters
    ----------
    mean_amplitude
        A, float32 (N, N): root of the mean pattern, DC at [N//2, N//2].
    probe
        complex64 (modes, N, N): gives the width.

    Returns
    -------
    Tensor
        complex64 (2, N, N), any units.
    """
    size = mean_amplitude.shape[-1]
    far_field = torch.fft.ifftshift(mean_amplitude, dim=(-2, -1)).to(torch.complex128)
    q = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=probe.device)
    q_squared = q[:, None].square() + q.square()
    moment_a_curvature = (
        (size / (2 * math.pi)) ** 2
        * 4
        * (q_squared * far_field.abs().square()).sum()
        / far_field.abs().square().sum()
    )
    # from [0, 0] to [N//2, N//2]
    centred = far_field * torch.polar(torch.ones_like(q_squared), -math.pi * (q[:, None] + q))
    focused = torch.fft.ifft2(centred)
    curvature = (
        (_second_moment(probe) - _second_moment(focused[None])).clamp_min(0) / moment_a_curvature
    ).sqrt()
    phases = torch.stack((curvature, -curvature))[:, None, None] * q_squared
    return torch.fft.ifft2(centred * torch.polar(torch.ones_like(phases), phases)).to(
        torch.complex64
    )


def _filled(pattern: Tensor, mask: Tensor | None) -> Tensor:
    """Return a pattern (N, N) whose masked pixels have the value of the nearest unmasked one: holes
    would be structure of the far field, and so light far from the focus."""
    if mask is None:
        return pattern
    nearest = ndimage.distance_transform_edt(
        ~mask.cpu().numpy(), return_distances=False, return_indices=True
    )
    row, column = torch.from_numpy(nearest).to(pattern.device, torch.int64)
    return pattern[row, column]


def _second_moment(probe: Tensor) -> Tensor:
    """Return <r^2> of a probe's illumination about its centre of light, float64, pixels^2."""
    light = illumination(probe).double()
    pixel = torch.arange(probe.shape[-1], dtype=torch.float64, device=probe.device)
    y, x = centre_of_light(probe)
    return (light * ((pixel - y).square()[:, None] + (pixel - x).square())).sum() / light.sum()


class JointReconstruction:
    """Refine object and probe of neighbouring patterns together.

    ePIE (Maiden & Rodenburg 2009, doi:10.1016/j.ultramic.2009.05.012) with incoherent modes
    (Thibault & Menzel, Nature 494, 68 (2013)).

    Parameters
    ----------
    x_norm
        float32 (n, N, N), DC at [N//2, N//2].
    positions_px
        float64 (n, 2) as (y, x).
    probe
        complex64 (modes, N, N), any units; scaled to the energy of the patterns.
    mask
        bool (N, N), False where a pixel is masked (its far field stays as it is), or None.
    """

    def __init__(
        self, x_norm: Tensor, positions_px: Tensor, probe: Tensor, mask: Tensor | None = None
    ) -> None:
        self.amplitude = torch.fft.ifftshift(x_norm, dim=(-2, -1))
        self.mask = None if mask is None else torch.fft.ifftshift(mask, dim=(-2, -1))
        whole_px, self.rest_px = whole_pixel_and_rest(positions_px)
        self.corners = whole_px - whole_px.amin(dim=0)
        self.probe = normalize_probe(probe)
        extent = self.corners.amax(dim=0) + x_norm.shape[-1]
        self.object = torch.ones(tuple(extent.tolist()), dtype=torch.complex64, device=probe.device)
        self._order = torch.Generator().manual_seed(0)

    def sweep(self) -> float:
        """Use every pattern once, in random order; return the mean squared residual of the
        amplitudes per unmasked pixel."""
        residual = self.amplitude.new_zeros(())
        for number in torch.randperm(len(self.amplitude), generator=self._order).tolist():
            residual += self._take(number)
        return float(residual) / num_counted(self.amplitude, self.mask)

    def _take(self, number: int) -> Tensor:
        amplitude, rest_px = self.amplitude[number], self.rest_px[number]
        corner, size = self.corners[number], amplitude.shape[-1]
        probe = shift_probe(self.probe, rest_px)
        patch = extract_patches(self.object[None], corner[None, None], size)[0, 0]
        far_fields = torch.fft.fft2(probe * patch, norm="ortho")
        predicted = illumination(far_fields).sqrt()
        change = torch.fft.ifft2(
            masked(amplitude / predicted.clamp_min(1e-6) - 1, self.mask) * far_fields, norm="ortho"
        )
        row, column = corner.tolist()
        self.object[row : row + size, column : column + size] += (probe.conj() * change).sum(
            dim=0
        ) / illumination(probe).max()
        probe_change = patch.conj() * change / patch.abs().square().max()
        self.probe = self.probe + PROBE_STEP * shift_probe(probe_change, -rest_px)
        return masked(predicted - amplitude, self.mask).square().sum()
