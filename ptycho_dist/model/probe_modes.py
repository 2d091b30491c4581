"""Additional incoherent modes of a probe: partial coherence, jitter and detector blur add them to a
beam's strongest mode."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from ptycho_dist.physics.probe import centre_of_light, illumination

SHARE_OF_A_NEW_MODE = 0.02
"""Energy of an added mode, relative to the strongest one."""


def add_modes(probe: Tensor, num_modes: int) -> Tensor:
    """Add modes to a probe as in a Gaussian Schell-model beam: its strongest mode times polynomials
    in y and x, orthogonal to all before.

    The first two are what small movements of the beam along y and x add (Starikov & Wolf, J. Opt.
    Soc. Am. 72, 923 (1982)).

    Parameters
    ----------
    probe
        complex64 (modes, N, N), any units.
    num_modes
        Number of modes in all; at least as many as there are, and at most N**2.

    Returns
    -------
    Tensor
        complex64 (num_modes, N, N). The first are those of `probe`, bit for bit.
    """
    modes = list(probe)
    if len(modes) == num_modes:
        return probe
    light = probe.to(torch.complex128)
    energies = illumination(light.unsqueeze(1)).sum(dim=(-2, -1))
    strongest = light[int(energies.argmax())]
    basis: list[Tensor] = []
    for mode in light:
        basis += _orthogonal_part(mode, basis)
    polynomials = _polynomials(strongest)
    while len(modes) < num_modes:
        for mode in _orthogonal_part(next(polynomials) * strongest, basis):
            basis.append(mode)
            modes.append((mode * (SHARE_OF_A_NEW_MODE * energies.max()).sqrt()).to(probe.dtype))
    return torch.stack(modes)


def _orthogonal_part(mode: Tensor, basis: list[Tensor]) -> list[Tensor]:
    """Return the part of a mode that is orthogonal to an orthonormal basis, at norm 1; empty if
    there is none."""
    mode = mode / mode.norm().clamp_min(torch.finfo(torch.float64).tiny)
    for _ in range(2):  # the second pass removes the rounding errors of the first
        for other in basis:
            mode = mode - other * (other.conj() * mode).sum()
    return [mode / mode.norm()] if mode.norm() > 1e-6 else []


def _polynomials(mode: Tensor) -> Iterator[Tensor]:
    """Yield y, x, y^2, y x, x^2, y^3, ... (N, N), about the centre of light, in units of the
    window."""
    y, x = centre_of_light(mode[None])
    pixel = torch.arange(mode.shape[-1], dtype=torch.float64, device=mode.device)
    y, x = ((pixel - y) / mode.shape[-1])[:, None], (pixel - x) / mode.shape[-1]
    for degree in count(1):
        for power in range(degree, -1, -1):
            yield y**power * x ** (degree - power)
