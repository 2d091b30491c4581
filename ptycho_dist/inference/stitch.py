"""Patches into one object, at subpixel positions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.physics.patches import add_patches, extract_patches

VALID_WEIGHT = 0.01
"""Pixels that got less than this part of a probe's peak intensity, in all, are not reconstructed."""


class StitchedObject:
    """The weighted mean of patches, on a canvas that covers a scan. Its memory does not depend on the number of patches.

    Parameters
    ----------
    positions_px
        (n, 2) as (y, x): patch centres of the whole scan.
    weight
        float32 (N, N): weight of each pixel of a patch, the probe's intensity.
    """

    def __init__(self, positions_px: np.ndarray, weight: Tensor) -> None:
        self.patch_size = weight.shape[-1]
        self.origin_px = np.floor(positions_px.min(axis=0)) - self.patch_size // 2
        extent = np.ceil(np.ptp(positions_px, axis=0)).astype(int) + self.patch_size + 2
        self.weight = weight
        self.weighted_sum = torch.zeros(1, *extent.tolist(), dtype=torch.complex64, device=weight.device)
        self.weight_sum = torch.zeros(1, *extent.tolist(), dtype=torch.float32, device=weight.device)

    def add(self, patches: Tensor, positions_px: np.ndarray) -> None:
        """Add patches (k, N, N) at their positions (k, 2), each with its global phase fitted to what already lies there.

        A pattern does not tell the global phase of its patch, so neighbours may disagree in it.
        """
        corners = self._corners(positions_px)
        for patch, corner in zip(patches, corners.unsqueeze(1).unsqueeze(1), strict=True):
            already_there = extract_patches(self.weighted_sum, corner, self.patch_size)[0, 0]
            agreement = (self.weight * already_there * patch.conj()).sum()
            aligned = patch * torch.where(agreement == 0, 1, agreement.sgn())
            add_patches(self.weighted_sum, (self.weight * aligned)[None, None], corner)
            add_patches(self.weight_sum, self.weight[None, None], corner)

    def extract(self, positions_px: np.ndarray) -> Tensor:
        """Patches (k, N, N) of the stitched object."""
        return extract_patches(self._mean()[None], self._corners(positions_px)[None], self.patch_size)[0]

    def object(self) -> np.ndarray:
        """complex64 (H, W); zero where no patch has weight."""
        return self._mean().cpu().numpy()

    def valid(self) -> np.ndarray:
        """bool (H, W): where the object was illuminated enough to be reconstructed."""
        return (self.weight_sum[0] > VALID_WEIGHT * self.weight.max()).cpu().numpy()

    def _mean(self) -> Tensor:
        return self.weighted_sum[0] / self.weight_sum[0].clamp_min(1e-12)

    def _corners(self, positions_px: np.ndarray) -> Tensor:
        return torch.from_numpy(positions_px - self.patch_size // 2 - self.origin_px).to(self.weight.device)
