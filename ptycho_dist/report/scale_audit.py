"""The photon scale as a person can check it: every number of its derivation, and what must follow
from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

_FLOAT64_ROUNDING = 1e-15
_FLOAT32_ROUNDING = 6e-8
"""Each X_norm is rounded to float32, at most 2**-24 = 5.96e-8 of it; so no mean of them, nor its
root, is further off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Something that must be equal: what, the two values, and by how much they may differ,
    relatively."""

    name: str
    found: float
    expected: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Relative."""
        return self.found / self.expected - 1

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleRecord:
    """What a bundle says of its scale.

    Attributes
    ----------
    intensity_scale
        s.
    gain
        g, the trained factor on the predicted amplitude; 1 where none was trained.
    nphotons
        Mean photons a pattern that s was derived for.
    nphotons_source
        Who said so: `metadata`, `config` or `measured`.
    rms_factor
        r.
    mean_energy
        Mean over patterns of sum X_norm**2.
    num_patterns
        How many patterns r and s were derived from.
    pattern_size
        N.
    subset_fingerprint
        SHA-256 of these patterns.
    """

    intensity_scale: float
    gain: float
    nphotons: float
    nphotons_source: str
    rms_factor: float
    mean_energy: float
    num_patterns: int
    pattern_size: int
    subset_fingerprint: str

    def checks(self) -> tuple[Check, Check]:
        """The definition of s, and the closed form that it has because r and s come from the same
        patterns."""
        return (
            Check(
                name="definition: s² · mean energy = nphotons",
                found=self.intensity_scale**2 * self.mean_energy,
                expected=self.nphotons,
                tolerance=_FLOAT64_ROUNDING,
            ),
            Check(
                name="closed form: s = √nphotons / (N/2)",
                found=self.intensity_scale,
                expected=math.sqrt(self.nphotons) / (self.pattern_size / 2),
                tolerance=_FLOAT32_ROUNDING,
            ),
        )
