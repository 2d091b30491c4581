"""Where the direct beam is on the detector."""

from __future__ import annotations

import numpy as np


def is_in_corners(mean_pattern: np.ndarray) -> bool:
    """Return True if the light of a mean pattern (N, N) lies in its corners: zero frequency is at
    [0, 0], where [N//2, N//2] is expected."""
    quarter = mean_pattern.shape[-1] // 4
    inner = slice(quarter, mean_pattern.shape[-1] - quarter)
    return bool(
        np.fft.fftshift(mean_pattern)[inner, inner].sum() > 2 * mean_pattern[inner, inner].sum()
    )
