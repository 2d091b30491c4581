"""The scans' probes as trainable parameters, kept in a gauge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptycho_dist.physics.probe import centre_of_light, normalize_probe, shift_probe


class TrainableProbe(nn.Module):
    """One probe a scan, refined with the network.

    Patterns don't tell a brighter probe and a darker object from their opposites, nor a common
    shift of the two. So the energy over all modes is (N/2)^2 whatever the parameters are, and the
    centre of light goes back, after each step, to where it was at the beginning. A phase ramp of
    the probe against one of the object stays open; comparisons with a reference fit it.

    Parameters
    ----------
    probes
        complex64 (scans, modes, N, N), any units: where training begins.
    centres_px
        float64 (scans, 2) as (y, x): where the centre of light stays.
    """

    centres_px: Tensor

    def __init__(self, probes: Tensor, centres_px: Tensor) -> None:
        super().__init__()
        # Pairs of reals: not every backend can average complex gradients. One parameter for all
        # scans: a rank whose batch has no pattern of a scan still gives it a gradient, zero.
        self.modes = nn.Parameter(torch.view_as_real(normalize_probe(probes)).clone())
        self.register_buffer("centres_px", centres_px, persistent=False)

    def forward(self) -> Tensor:
        """complex64 (scans, modes, N, N), normalised units."""
        modes = torch.view_as_complex(self.modes)
        energy = self.modes.square().sum(dim=(1, 2, 3, 4)).view(-1, 1, 1, 1)
        return modes * (modes.shape[-1] / 2 / energy.sqrt())

    @torch.no_grad()
    def return_to_gauge(self) -> None:
        """Scale and shift the parameters back. A shift by the Fourier theorem is unitary: nothing
        is lost, however often it is done."""
        probes = self()
        self.modes.copy_(
            torch.view_as_real(shift_probe(probes, self.centres_px - centre_of_light(probes)))
        )
