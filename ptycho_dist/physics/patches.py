"""Patches on a common canvas.

A corner (y, x) is the canvas pixel that a patch's pixel [0, 0] lies on. What is left of a position below a pixel moves the probe
(`probe.whole_pixel_and_rest`), so nothing is interpolated here.
"""

from __future__ import annotations

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
    return canvas.view(-1)[_canvas_index(canvas, corners, patch_size)]


def add_patches(canvas: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Add patches (B, C, N, N) to canvases (B, H, W) in place, at corners (B, C, 2): the transpose of `extract_patches`."""
    canvas.view(-1).index_add_(0, _canvas_index(canvas, corners, patches.shape[-1]).flatten(), patches.flatten())
    return canvas


def merge_patches(patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    """Make overlapping patches of a group agree: their weighted mean on a canvas that covers them, read back at each position.

    Parameters
    ----------
    patches
        complex64 (B, C, N, N).
    weights
        Real (B, C, N, N), e.g. the illumination: what is lit decides.
    corners
        int64 (B, C, 2) as (y, x); any common origin a group.

    Returns
    -------
    Tensor
        complex64 (B, C, N, N). Where no patch has weight it is zero: nothing is lit there.
    """
    batch, _, _, patch_size = patches.shape
    corners = corners - corners.amin(dim=1, keepdim=True)
    canvas_size = patch_size + (int(corners.max()) if batch else 0)
    weighted_sum = add_patches(patches.new_zeros(batch, canvas_size, canvas_size), weights * patches, corners)
    weight_sum = add_patches(weights.new_zeros(batch, canvas_size, canvas_size), weights, corners)
    return extract_patches(weighted_sum / weight_sum.clamp_min(1e-12), corners, patch_size)


def _canvas_index(canvas: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Flat index (B, C, N, N) of each patch's pixels on its canvas."""
    batch, height, width = canvas.shape
    side = torch.arange(patch_size, device=corners.device)
    row = corners[..., 0, None] + side
    column = corners[..., 1, None] + side
    first_of_canvas = torch.arange(batch, device=corners.device).mul(height * width).view(-1, 1, 1, 1)
    return first_of_canvas + row[..., :, None] * width + column[..., None, :]
