"""Object of a whole scan, on a canvas that covers all patches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.physics.patches import add_patches, extract_patches
from ptycho_dist.physics.probe import illumination, shift_probe, whole_pixel_and_rest

VALID_WEIGHT = 0.01
"""Least light of a valid pixel, summed over the patches, as a fraction of the probe's peak
intensity."""


class StitchedObject:
    """An object and the light that it was seen in, on a canvas that covers a scan.

    Both are zero at first. Memory does not depend on the number of patches.

    Parameters
    ----------
    positions_px
        float64 (n, 2) as (y, x): patch centres of the whole scan.
    probe
        complex64 (modes, N, N).

    Attributes
    ----------
    origin_px
        float64 (2,) as (y, x): scan coordinate of pixel [0, 0].
    light
        float32 (1, H, W): the probe's intensity summed over the patches, normalised units.
    """

    def __init__(self, positions_px: np.ndarray, probe: Tensor) -> None:
        self.probe = probe
        self.patch_size = probe.shape[-1]
        whole_px, _ = whole_pixel_and_rest(torch.from_numpy(positions_px))
        first, last = whole_px.amin(dim=0), whole_px.amax(dim=0)
        self.origin_px = (first - self.patch_size // 2).double().numpy()
        self._origin_px = torch.from_numpy(self.origin_px).to(probe.device)
        canvas_shape = (1, *(last - first + self.patch_size).tolist())
        self.light = torch.zeros(canvas_shape, dtype=torch.float32, device=probe.device)
        self._object = torch.zeros_like(self.light[0], dtype=torch.complex64)

    def place(self, positions_px: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corners of patches on the canvas, int64 (k, 2), and the probes at their
        subpixel positions, complex64 (k, modes, N, N)."""
        corners, rest_px = self.corners(positions_px)
        return corners, shift_probe(self.probe, rest_px)

    def corners(self, positions_px: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corners of patches on the canvas, int64 (k, 2), and the subpixel remainders of
        their positions, float64 (k, 2)."""
        return whole_pixel_and_rest(positions_px - self.patch_size // 2 - self._origin_px)

    def hold(self, object_: Tensor) -> None:
        """Replace the object by (H, W), seen in the light of the canvas; it is zero in the dark."""
        self._object = torch.where(self.light[0] > 0, object_, 0)

    def replace(self, object_: Tensor, probe: Tensor, positions_px: Tensor) -> None:
        """Replace the object by (H, W), and the probe that it was seen with by (modes, N, N)."""
        self.probe = probe
        self.light = torch.zeros_like(self.light)
        for position_px in positions_px:  # one by one: a GPU adds what overlaps in any order
            corner, shifted_probe = self.place(position_px[None])
            add_patches(self.light, illumination(shifted_probe)[None], corner[None])
        self.hold(object_)

    def extract(self, corners: Tensor) -> Tensor:
        """Return patches (k, N, N) of the object."""
        return extract_patches(self._object[None], corners[None], self.patch_size)[0]

    def object(self) -> np.ndarray:
        """Return the object, complex64 (H, W)."""
        return self._object.cpu().numpy()

    def valid(self) -> np.ndarray:
        """Return the mask, bool (H, W), of pixels with enough light to be reconstructed."""
        return (self.light[0] > VALID_WEIGHT * illumination(self.probe).max()).cpu().numpy()

    def illumination(self) -> np.ndarray:
        """Return `light` as float32 (H, W)."""
        return self.light[0].cpu().numpy()
