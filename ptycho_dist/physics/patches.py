"""Patches on a common canvas, at subpixel positions.

A corner (y, x) is the canvas coordinate of a patch's pixel [0, 0]. Between pixels the canvas is interpolated linearly along each axis;
placing is the transpose of reading, so the same weights apply both ways.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def extract_patches(canvas: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Read patches off canvases.

    Parameters
    ----------
    canvas
        (B, H, W), complex or real.
    corners
        (B, C, 2) as (y, x), pixels, with 0 <= corner and corner + patch_size < H, W.
    patch_size
        N.

    Returns
    -------
    Tensor
        (B, C, N, N).
    """
    flat_index, fy, fx = _windows(canvas, corners, patch_size)
    window = canvas.view(-1)[flat_index]
    window = window[..., :-1, :] * (1 - fy) + window[..., 1:, :] * fy
    return window[..., :-1] * (1 - fx) + window[..., 1:] * fx


def add_patches(canvas: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Add patches (B, C, N, N) to canvases (B, H, W) in place, at corners (B, C, 2); the transpose of `extract_patches`."""
    flat_index, fy, fx = _windows(canvas, corners, patches.shape[-1])
    rows = pad(patches, (0, 1)) * (1 - fx) + pad(patches, (1, 0)) * fx
    window = pad(rows, (0, 0, 0, 1)) * (1 - fy) + pad(rows, (0, 0, 1, 0)) * fy
    canvas.view(-1).index_add_(0, flat_index.flatten(), window.flatten())
    return canvas


def merge_patches(patches: Tensor, weight: Tensor, positions_px: Tensor) -> Tensor:
    """Make overlapping patches of a group agree: their weighted mean on a canvas that covers them, read back at each position.

    Parameters
    ----------
    patches
        complex64 (B, C, N, N).
    weight
        Real (B or 1, N, N), e.g. the illumination: what is lit decides.
    positions_px
        (B, C, 2) as (y, x); any common origin a group.

    Returns
    -------
    Tensor
        complex64 (B, C, N, N). Where no patch has weight the canvas is zero: nothing is lit there.
    """
    batch, _, patch_size, _ = patches.shape
    corners = positions_px - positions_px.amin(dim=1, keepdim=True)
    canvas_size = patch_size + 1 + (int(corners.max()) if batch else 0)
    canvas_shape = (batch, canvas_size, canvas_size)
    weight = weight.unsqueeze(1).expand(patches.shape)
    weighted_sum = add_patches(patches.new_zeros(canvas_shape), weight * patches, corners)
    weight_sum = add_patches(weight.new_zeros(canvas_shape), weight, corners)
    return extract_patches(weighted_sum / weight_sum.clamp_min(1e-12), corners, patch_size)


def _windows(canvas: Tensor, corners: Tensor, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flat canvas index (B, C, N + 1, N + 1) of the pixels around each patch, and the corners' fractions of a pixel, (B, C, 1, 1) each."""
    batch, height, width = canvas.shape
    whole = corners.floor()
    fy, fx = (corners - whole).to(canvas.real.dtype).unsqueeze(-1).unsqueeze(-1).unbind(dim=2)
    first = whole.long()
    side = torch.arange(patch_size + 1, device=corners.device)
    row = first[..., 0, None] + side
    column = first[..., 1, None] + side
    canvas_start = torch.arange(batch, device=corners.device).mul(height * width).view(-1, 1, 1, 1)
    return canvas_start + row[..., :, None] * width + column[..., None, :], fy, fx
