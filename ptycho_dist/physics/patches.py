"""Patches on a common canvas.

A corner (y, x) is the canvas pixel under a patch's pixel [0, 0]. The subpixel part of a position
moves the probe (`probe.whole_pixel_and_rest`), so nothing is interpolated here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def extract_patches(canvas: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Read patches off canvases.

    Parameters
    ----------
    canvas
        (B, H, W), complex or real.
    corners
        int64 (B, C, 2) as (y, x), pixels, with 0 <= corner and corner + patch_size <= H, W.
    patch_size
        N.

    Returns
    -------
    Tensor
        (B, C, N, N).
    """
    return canvas.view(-1)[_canvas_index(canvas.shape, corners, patch_size)]


def add_patches(canvas: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Add patches (B, C, N, N) to canvases (B, H, W) in place, at corners (B, C, 2): the transpose
    of `extract_patches`."""
    canvas.view(-1).index_add_(
        0, _canvas_index(canvas.shape, corners, patches.shape[-1]).flatten(), patches.flatten()
    )
    return canvas


class GroupCanvas:
    """One canvas per group of patches, just large enough for the widest group.

    Parameters
    ----------
    corners
        int64 (B, C, 2) as (y, x); any common origin per group.
    patch_size
        N.
    """

    def __init__(self, corners: Tensor, patch_size: int) -> None:
        corners = corners - corners.amin(dim=1, keepdim=True)
        side = patch_size + (int(corners.max()) if len(corners) else 0)
        self._shape = (len(corners), side, side)
        self._index = _canvas_index(self._shape, corners, patch_size)

    def mean(self, patches: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean of overlapping patches, read back at each position.

        Parameters
        ----------
        patches
            complex64 (B, C, N, N).
        weights
            Real (B, C, N, N), e.g. the illumination.

        Returns
        -------
        Tensor
            complex64 (B, C, N, N); zero where no patch has weight.
        """
        return (self._sum(weights * patches) / self._sum(weights).clamp_min(1e-12))[self._index]

    def _sum(self, patches: Tensor) -> Tensor:
        canvas = patches.new_zeros(self._shape).view(-1)
        return canvas.index_add_(0, self._index.flatten(), patches.flatten())


def _canvas_index(canvas_shape: Sequence[int], corners: Tensor, patch_size: int) -> Tensor:
    """Return the flat index (B, C, N, N) of the patches' pixels on canvases (B, H, W)."""
    batch, height, width = canvas_shape
    side = torch.arange(patch_size, device=corners.device)
    row = corners[..., 0, None] + side
    column = corners[..., 1, None] + side
    start = torch.arange(batch, device=corners.device).mul(height * width).view(-1, 1, 1, 1)
    return start + row[..., :, None] * width + column[..., None, :]
