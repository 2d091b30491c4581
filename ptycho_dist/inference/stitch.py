"""Patches into one object, at subpixel positions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.physics.patches import add_patches, extract_patches
from ptycho_dist.physics.probe import illumination, shift_probe, whole_pixel_and_rest

VALID_WEIGHT = 0.01
"""Pixels that got less than this part of a probe's peak intensity, in all, are not reconstructed."""


class StitchedObject:
    """The weighted mean of patches, on a canvas that covers a scan. Its memory does not depend on the number of patches.

    Parameters
    ----------
    positions_px
        float64 (n, 2) as (y, x): patch centres of the whole scan.
    probe
        complex64 (modes, N, N).
    """

    def __init__(self, positions_px: np.ndarray, probe: Tensor) -> None:
        self.probe = probe
        self.patch_size = probe.shape[-1]
        whole_px, _ = whole_pixel_and_rest(torch.from_numpy(positions_px))
        first, last = whole_px.amin(dim=0), whole_px.amax(dim=0)
        self.origin_px = (first - self.patch_size // 2).double().numpy()
        canvas_shape = (1, *(last - first + self.patch_size).tolist())
        self.weighted_sum = torch.zeros(canvas_shape, dtype=torch.complex64, device=probe.device)
        self.weight_sum = torch.zeros(canvas_shape, dtype=torch.float32, device=probe.device)

    def place(self, positions_px: np.ndarray) -> tuple[Tensor, Tensor]:
        """Corners of patches on the canvas, int64 (k, 2), and the probes at their subpixel positions, complex64 (k, modes, N, N)."""
        whole_px, rest_px = whole_pixel_and_rest(torch.from_numpy(positions_px - self.patch_size // 2 - self.origin_px))
        return whole_px.to(self.probe.device), shift_probe(self.probe, rest_px.to(self.probe.device))

    def add(self, patches: Tensor, weights: Tensor, corners: Tensor) -> None:
        """Add patches (k, N, N) with weights (k, N, N), each patch's global phase fitted to what already lies there.

        A pattern does not tell the global phase of its patch, so neighbours may disagree in it.
        """
        for patch, weight, corner in zip(patches, weights, corners[:, None, None], strict=True):
            already_there = extract_patches(self.weighted_sum, corner, self.patch_size)[0, 0]
            agreement = (weight * already_there * patch.conj()).sum()
            aligned = patch * torch.where(agreement == 0, 1, agreement.sgn())
            add_patches(self.weighted_sum, (weight * aligned)[None, None], corner)
            add_patches(self.weight_sum, weight[None, None], corner)

    def extract(self, corners: Tensor) -> Tensor:
        """Patches (k, N, N) of the stitched object."""
        return extract_patches(self._mean()[None], corners[None], self.patch_size)[0]

    def object(self) -> np.ndarray:
        """complex64 (H, W); zero where no patch has weight."""
        return self._mean().cpu().numpy()

    def valid(self) -> np.ndarray:
        """bool (H, W): where the object was illuminated enough to be reconstructed."""
        return (self.weight_sum[0] > VALID_WEIGHT * illumination(self.probe).max()).cpu().numpy()

    def illumination(self) -> np.ndarray:
        """float32 (H, W): the probe's intensity summed over the patches, normalised units."""
        return self.weight_sum[0].cpu().numpy()

    def _mean(self) -> Tensor:
        return self.weighted_sum[0] / self.weight_sum[0].clamp_min(1e-12)
