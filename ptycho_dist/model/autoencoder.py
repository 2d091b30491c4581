"""The network: normalised diffraction amplitudes in, complex object patches out.

A diffraction pattern shows a patch's *spectrum*; convolutions, which expect neighbours to belong together, can do little with it. So
the known probe first carries the pattern back to real space (`back_propagate`). What arrives there is a blurred picture of the patch in
its right place, overlaid by its twin, and the task left over is one of image restoration: a small U-Net (Ronneberger et al.,
arXiv 1505.04597).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BOTTLENECK_SIZE = 8
"""Side in pixels of the coarsest grid. Its 64 positions are few enough to be mixed by one dense 64 x 64 matrix."""

LOG_AMPLITUDE_RANGE = (-4.0, 1.5)
"""Bounds of ln|O|, from 2 % to 450 % of a transparent object's amplitude: no step can make the predicted counts overflow."""


def back_propagate(x_norm: Tensor, probe: Tensor) -> Tensor:
    """First guess of the patches in real space, and the light they were seen in.

    The far field is given the measured amplitude and the phase it would have without an object. With P the strongest mode,
    Psi_m = FFT2(P_m) and Psi = FFT2(P), what that changes in the exit wave, seen through the probe as in the update of ePIE
    (Maiden & Rodenburg 2009, doi:10.1016/j.ultramic.2009.05.012), is

        b = IFFT2((X_norm - sqrt(sum_m |Psi_m|^2)) * Psi / |Psi|) * conj(P) / max|P|^2

    It is 0 for a transparent object, and near it about half of (O - 1) |P|^2 / max|P|^2 plus a twin image of the same strength.

    Parameters
    ----------
    x_norm : (n, N, N) float32, normalised amplitude, DC at [N//2, N//2].
    probe : (n, modes, N, N) complex64, normalised units.

    Returns
    -------
    (n, 3, N, N) float32: real and imaginary part of b, and |P|^2 / max|P|^2, which tells how strongly b dims each pixel.
    """
    far_fields = torch.fft.fft2(probe, norm="ortho")
    transparent_amplitude = far_fields.abs().square().sum(dim=1).sqrt()
    strongest = probe.abs().square().sum(dim=(-2, -1)).argmax(dim=1)
    each_probe = torch.arange(len(probe), device=probe.device)
    mode, far_field = probe[each_probe, strongest], far_fields[each_probe, strongest]

    difference = torch.fft.ifftshift(x_norm, dim=(-2, -1)) - transparent_amplitude
    exit_wave_change = torch.fft.ifft2(difference * far_field.sgn(), norm="ortho")
    intensity = mode.abs().square()
    peak = intensity.amax(dim=(-2, -1), keepdim=True)
    b = exit_wave_change * mode.conj() / peak
    return torch.stack((b.real, b.imag, intensity / peak), dim=1)


class ResidualConv(nn.Module):
    """x + relu(conv(x)), 3 x 3: (n, width, h, w) -> (n, width, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


class TokenMixer(nn.Module):
    """x + relu(channels(positions(x))): every position of the 8 x 8 grid sees all others at once.

    (n, width, 8, 8) -> (n, width, 8, 8). `positions` is linear over the 64 positions, the same for every channel; `channels` is 1 x 1.
    A twin image is the patch turned by 180 degrees, so what tells them apart lies on opposite sides of the patch, out of a 3 x 3
    kernel's reach.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positions = nn.Linear(BOTTLENECK_SIZE**2, BOTTLENECK_SIZE**2)
        self.channels = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.positions(x.flatten(2)).unflatten(2, x.shape[2:])
        return x + self.channels(mixed).relu()


class PtychoAutoencoder(nn.Module):
    """U-Net from one normalised diffraction pattern to one complex object patch.

    The grid shrinks from N/2 (2 x 2 pixels folded into channels) to 8 while the width doubles from level to level, and grows back with a
    skip connection at each. No layer takes statistics over the batch: a patch depends on its own pattern alone, at any world size.

    Parameters
    ----------
    pattern_size : N, pixels a side; a power of two, at least 16.
    base_width : channels on the N/2 grid.
    """

    def __init__(self, *, pattern_size: int, base_width: int) -> None:
        super().__init__()
        if pattern_size < 2 * BOTTLENECK_SIZE or pattern_size & (pattern_size - 1):
            raise ValueError(f"pattern_size must be a power of two and at least {2 * BOTTLENECK_SIZE}, not {pattern_size}")
        if base_width < 1:
            raise ValueError(f"base_width must be at least 1, not {base_width}")

        num_halvings = (pattern_size // (2 * BOTTLENECK_SIZE)).bit_length() - 1
        *widths, bottleneck_width = [base_width * 2**level for level in range(num_halvings + 1)]
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(3 * 4, base_width, 3, padding=1))
        self.encoder = nn.ModuleList(ResidualConv(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, stride=2) for width in widths)
        self.bottleneck = nn.Sequential(ResidualConv(bottleneck_width), TokenMixer(bottleneck_width), TokenMixer(bottleneck_width))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths)
        self.decoder = nn.ModuleList(ResidualConv(width) for width in widths)
        last_conv = nn.Conv2d(base_width, 2 * 4, 3, padding=1)
        for parameter in last_conv.parameters():
            nn.init.zeros_(parameter)  # training starts at the empty object, O = 1 exactly
        self.head = nn.Sequential(nn.ReLU(), last_conv, nn.PixelShuffle(2))

    def forward(self, x_norm: Tensor, probe: Tensor) -> Tensor:
        """Object patches of the patterns, each pattern on its own.

        Parameters
        ----------
        x_norm : (..., N, N) float32, normalised amplitude, DC at [N//2, N//2].
        probe : (..., modes, N, N) complex64, normalised units: energy (N/2)^2 over all modes; leading axes broadcast to those of `x_norm`.

        Returns
        -------
        (..., N, N) complex64, transmission O = exp(u + i v) of the object; u is clamped to LOG_AMPLITUDE_RANGE, the phase v is free.
        """
        if probe.ndim != x_norm.ndim + 1:  # else an axis of groups could silently pair with one of patterns
            raise ValueError(f"probe has the shape {tuple(probe.shape)}, expected (..., modes, N, N) for x_norm {tuple(x_norm.shape)}")
        if x_norm.numel() == 0:
            # FFT and pixel shuffle refuse an empty batch. A blank pattern, dropped again, leaves every weight a gradient, and it is zero.
            blank = self(x_norm.new_zeros(1, *x_norm.shape[-2:]), probe.new_ones(1, *probe.shape[-3:]))
            return blank[:0].reshape(x_norm.shape)
        each_probe = probe.expand(*x_norm.shape[:-2], *probe.shape[-3:]).reshape(-1, *probe.shape[-3:])
        # Full precision: bfloat16's 8 bits would blur a pattern's dynamic range, and FFT does not know it.
        with torch.autocast(x_norm.device.type, enabled=False):
            x = back_propagate(x_norm.reshape(-1, *x_norm.shape[-2:]), each_probe)

        # The layout follows the input through all convolutions, so that the weights can keep the plain one that files and DDP expect.
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for conv, down in zip(self.encoder, self.down, strict=True):
            x = conv(x)
            skips.append(x)
            x = down(x)
        x = self.bottleneck(x)
        for up, conv, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True):
            x = conv(up(x) + skip)

        u, v = self.head(x).to(x_norm.dtype).unbind(dim=1)
        return torch.polar(u.clamp(*LOG_AMPLITUDE_RANGE).exp(), v).view(x_norm.shape)
