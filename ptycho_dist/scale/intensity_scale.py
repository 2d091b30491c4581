"""The RMS factor and the intensity scale: each one number for the whole dataset, found by all ranks
together::

    r = (N / 2) / sqrt(mean over patterns of sum X**2)              brings measured amplitudes to
    the network's range s = sqrt(nphotons / mean over patterns of sum X_norm**2)        brings
    normalised amplitudes to photons, in the loss

Both are sqrt(energy wanted / mean energy found). The mean is an exact fraction and the root is
rounded once, so the result is the correctly rounded one and has the same bits on any number of
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import Tensor
from torch.distributed import ProcessGroup

from ptycho_dist.distributed import FailedTogether
from ptycho_dist.scale.exact_sum import ExactSum, exact_energy_sum
from ptycho_dist.scale.nphotons import require_photons


@dataclass(frozen=True, kw_only=True, slots=True)
class IntensityScale:
    """The record of a derivation, as the bundle keeps it.

    Attributes
    ----------
    value
        s: photon amplitude a unit of normalised amplitude.
    nphotons
        Mean photons a pattern that s was derived for.
    mean_energy
        Mean over patterns of sum X_norm**2.
    num_patterns
        How many patterns were counted, over all ranks.
    """

    value: float
    nphotons: float
    mean_energy: float
    num_patterns: int


def derive_intensity_scale(
    x_norm: np.ndarray | Tensor | Iterable[np.ndarray | Tensor],
    nphotons: float,
    *,
    process_group: ProcessGroup | None = None,
) -> IntensityScale:
    """Dataset-level s = sqrt(nphotons / mean(sum(x_norm**2))) from every rank's shard. A collective
    where a process group is up.

    Parameters
    ----------
    x_norm
        This rank's shard of normalised amplitudes: an array or tensor (n, ..., H, W), or an
        iterable of such chunks. A pattern is the last two axes. May be empty on some ranks.
    nphotons
        Mean photons a pattern.
    process_group
        The ranks that hold the shards; None: the default group.

    Raises
    ------
    ValueError
        nphotons is not a positive number, a value is not finite, or there is no pattern or no light
        in any shard. Every rank raises.
    """
    require_photons(nphotons, "nphotons")
    chunks = (x_norm,) if isinstance(x_norm, np.ndarray | Tensor) else x_norm
    energy = exact_energy_sum(chunks, process_group)
    return IntensityScale(
        value=scale_to_mean_energy(energy, Fraction(float(nphotons))),
        nphotons=float(nphotons),
        mean_energy=float(energy.mean),
        num_patterns=energy.count,
    )


def scale_to_mean_energy(energy: ExactSum, wanted: Fraction) -> float:
    """The factor on amplitudes that brings their mean energy to `wanted`, correctly rounded.

    Every rank holds the same energy, so where it can't be used every rank raises the same
    `FailedTogether`.
    """
    if energy.count == 0:
        raise FailedTogether("no pattern on any rank: there is nothing to derive a scale from")
    if energy.total == 0:
        raise FailedTogether(
            f"all {energy.count} patterns are zero: there is nothing to derive a scale from"
        )
    try:
        return rounded_sqrt(wanted / energy.mean)
    except OverflowError as error:
        raise FailedTogether(
            f"the patterns' mean energy {float(energy.mean)!r} is too small: "
            f"no float64 holds the factor that brings it to {float(wanted)!r}"
        ) from error


def rounded_sqrt(ratio: Fraction) -> float:
    """Square root of a positive fraction, rounded once (to nearest, ties to even)."""
    # Scale by an even power of two so that the integer root has at least 64 bits; a sticky bit
    # stands for everything below them.
    half_shift = 64 + max(0, ratio.denominator.bit_length() - ratio.numerator.bit_length())
    scaled, remainder = divmod(ratio.numerator << (2 * half_shift), ratio.denominator)
    root = math.isqrt(scaled)
    is_inexact = bool(remainder) or root * root != scaled
    return (2 * root + is_inexact) / (1 << (half_shift + 1))
