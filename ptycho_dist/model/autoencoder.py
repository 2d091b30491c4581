"""The network: normalised diffraction amplitudes in, complex object patches out.

It corrects a first estimate of the patches (`first_estimate`), which the patterns have given in
real space with their twin images in it. The task left over is one of image restoration: a small
U-Net (Ronneberger et al., arXiv 1505.04597).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ptycho_dist.model.first_estimate import FAINT, back_propagate
from ptycho_dist.physics.propagation import intensity

BOTTLENECK_SIZE = 8
"""Side in pixels of the coarsest grid. Its 64 positions are few enough to be mixed by one dense 64
x 64 matrix."""

LOG_AMPLITUDE_RANGE = (-4.0, 1.5)
"""Bounds of ln|O|, from 2 % to 450 % of a transparent object's amplitude: no step can make the
predicted counts overflow."""


class ResidualConv(nn.Module):
    """x + relu(conv(x)), 3 x 3: (n, width, h, w) -> (n, width, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


class TokenMixer(nn.Module):
    """x + relu(channels(positions(x))): every position of the 8 x 8 grid sees all others at once.

    (n, width, 8, 8) -> (n, width, 8, 8). `positions` is linear over the 64 positions, the same for
    every channel; `channels` is 1 x 1. A twin image is the patch turned by 180 degrees, so what
    tells them apart lies on opposite sides of the patch, out of a 3 x 3 kernel's reach.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positions = nn.Linear(BOTTLENECK_SIZE**2, BOTTLENECK_SIZE**2)
        self.channels = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.positions(x.flatten(2)).unflatten(2, x.shape[2:])
        return x + self.channels(mixed).relu()


class PtychoAutoencoder(nn.Module):
    """U-Net that maps a normalised diffraction pattern and a first estimate of its patch to a
    complex object patch.

    The grid shrinks from N/2 to 8 while the width doubles from level to level, and grows back with
    a skip connection at each. No layer takes statistics over the batch: a patch depends on its own
    pattern and estimate alone, at any world size.

    Parameters
    ----------
    pattern_size
        N, pixels per side; a power of two, at least 16.
    base_width
        Channels on the N/2 grid.
    """

    def __init__(self, *, pattern_size: int, base_width: int) -> None:
        super().__init__()
        if pattern_size < 2 * BOTTLENECK_SIZE or pattern_size & (pattern_size - 1):
            raise ValueError(
                f"pattern_size must be a power of two and at least {2 * BOTTLENECK_SIZE}, not "
                f"{pattern_size}"
            )
        if base_width < 1:
            raise ValueError(f"base_width must be at least 1, not {base_width}")

        num_halvings = (pattern_size // (2 * BOTTLENECK_SIZE)).bit_length() - 1
        *widths, bottleneck_width = [base_width * 2**level for level in range(num_halvings + 1)]
        # a 3 x 3 neighbourhood of 2 x 2 pixels
        self.stem = nn.Conv2d(5, base_width, 6, stride=2, padding=2)
        self.encoder = nn.ModuleList(ResidualConv(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, stride=2) for width in widths)
        self.bottleneck = nn.Sequential(
            ResidualConv(bottleneck_width),
            TokenMixer(bottleneck_width),
            TokenMixer(bottleneck_width),
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths
        )
        self.decoder = nn.ModuleList(ResidualConv(width) for width in widths)
        last_conv = nn.Conv2d(base_width, 2 * 4, 3, padding=1)
        for parameter in last_conv.parameters():
            nn.init.zeros_(parameter)  # training starts at the first estimate
        self.head = nn.Sequential(nn.ReLU(), last_conv, nn.PixelShuffle(2))

    def forward(
        self, x_norm: Tensor, probe: Tensor, estimate: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return object patches of the patterns, each pattern on its own.

        Parameters
        ----------
        x_norm
            (..., N, N) float32, normalised amplitude, DC at [N//2, N//2].
        probe
            (..., modes, N, N) complex64, normalised units: energy (N/2)^2 over all modes; leading
            axes broadcast to those of `x_norm`.
        estimate
            (..., N, N) complex64, what is known of the patches: the `first_estimate` of a pattern
            with its neighbours, or what they agreed on after a correction.
        mask
            bool, broadcasts to `x_norm`, True where a pixel counts; None: all do. What the others
            hold has no influence.

        Returns
        -------
        Tensor
            (..., N, N) complex64, transmission O = estimate * exp(u + i v) of the object; ln|O| is
            clamped to LOG_AMPLITUDE_RANGE, the phase v is free.
        """
        # else an axis of groups could silently pair with one of patterns
        if probe.ndim != x_norm.ndim + 1:
            raise ValueError(
                f"probe has the shape {tuple(probe.shape)}, expected (..., modes, N, N) for "
                f"x_norm {tuple(x_norm.shape)}"
            )
        if x_norm.numel() == 0:
            # FFT and pixel shuffle refuse an empty batch. A blank pattern, dropped again, leaves
            # every weight a gradient, and it is zero.
            one_pattern = (1, *x_norm.shape[-2:])
            blank = self(
                x_norm.new_zeros(one_pattern),
                probe.new_ones(1, *probe.shape[-3:]),
                estimate.new_ones(one_pattern),
            )
            return blank[:0].reshape(x_norm.shape)
        patterns = x_norm.reshape(-1, *x_norm.shape[-2:])
        probes = probe.expand(*x_norm.shape[:-2], *probe.shape[-3:]).reshape(-1, *probe.shape[-3:])
        masks = None if mask is None else mask.expand_as(x_norm).reshape(patterns.shape)
        # Full precision: bfloat16's 8 bits would blur a pattern's dynamic range, and FFT does not
        # know it.
        with torch.autocast(x_norm.device.type, enabled=False):
            start = estimate.reshape(patterns.shape)
            b, light = back_propagate(patterns, probes, start, masks)
            x = torch.stack((b.real, b.imag, light, start.real - 1, start.imag), dim=1)

        # The layout follows the input through all convolutions, so that the weights can keep the
        # plain one that files and DDP expect.
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for conv, down in zip(self.encoder, self.down, strict=True):
            x = conv(x)
            skips.append(x)
            x = down(x)
        x = self.bottleneck(x)
        for up, conv, skip in zip(
            reversed(self.up), reversed(self.decoder), reversed(skips), strict=True
        ):
            x = conv(up(x) + skip)

        u, v = self.head(x).to(x_norm.dtype).unbind(dim=1)
        lowest, highest = LOG_AMPLITUDE_RANGE
        start_amplitude = intensity(start).sqrt()
        log_amplitude = start_amplitude.clamp(math.exp(lowest), math.exp(highest)).log() + u
        factor = log_amplitude.clamp(lowest, highest).exp() / start_amplitude.clamp_min(FAINT)
        return (start * torch.polar(factor, v)).view(x_norm.shape)
