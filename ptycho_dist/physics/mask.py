"""Detector pixels that do not count: dead or hot ones, gaps between modules, a beam stop.

A mask is bool, True where a pixel counts, and broadcasts to the patterns (..., N, N); None stands
for one that is True everywhere. A pixel that does not count holds no light, in what is predicted as
in what was measured: it adds nothing to an energy, a photon number or a likelihood, and only means
over pixels need to know how many are left.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values (..., N, N), 0 where a pixel does not count: what was there, NaN too, gets no further,
    and no gradient comes back."""
    return values if mask is None else torch.where(mask, values, 0)


def num_counted(patterns: Tensor, mask: Tensor | None) -> int:
    """How many pixels of patterns (..., N, N) count, in all."""
    return patterns.numel() if mask is None else int(mask.expand_as(patterns).sum())
