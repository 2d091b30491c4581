"""Masked detector pixels: dead or hot ones, gaps between modules, a beam stop.

A mask is bool, False where a pixel is masked, and broadcasts to the patterns (..., N, N); None
masks nothing. A masked pixel holds no light, predicted or measured: it adds nothing to an energy, a
photon number or a likelihood. Only means over pixels need the number of those that count.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Set masked pixels of values (..., N, N) to 0, also NaN; no gradient comes back from them."""
    return values if mask is None else torch.where(mask, values, 0)


def num_counted(patterns: Tensor, mask: Tensor | None) -> int:
    """Return the number of unmasked pixels of patterns (..., N, N), in all."""
    return patterns.numel() if mask is None else int(mask.expand_as(patterns).sum())
