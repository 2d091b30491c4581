"""The calibration: every number that ties normalised amplitudes to photons, in one record.

`prepare` derives it from the training patterns. The bundle, `hparams.yaml`, `summary.json` and the
reports store it whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

from ptycho_dist.scale.intensity_scale import IntensityScale, rounded_sqrt

FLOAT64_ROUNDING = 1e-15
FLOAT32_ROUNDING = 6e-8
"""X_norm is rounded to float32, at most 2**-24 = 5.96e-8 of it; so no mean of it is further off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Two numbers that must be equal, and their largest relative difference."""

    name: str
    found: float
    expected: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Relative difference."""
        return self.found / self.expected - 1

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Record of what was derived from the training patterns, each counted once.

    The energy of a pattern is the sum of its squared amplitudes.

    Attributes
    ----------
    intensity_scale
        s = sqrt(nphotons / mean_energy): photon amplitude per unit of normalised amplitude.
    nphotons
        Mean photons per pattern.
    nphotons_source
        Where nphotons comes from: `metadata...`, `config` or `measured`; any text in a bundle that
        holds another project's network.
    rms_factor
        r, which normalises the network's input: X_norm = r X.
    mean_energy
        Mean energy of X_norm.
    num_patterns
        How many patterns were counted, over all ranks.
    pattern_size
        N.
    subset_fingerprint
        SHA-256 of these patterns; empty where nobody took it.
    scan_brightness
        `brightness` of each scan that was trained on.

    Raises
    ------
    ValueError
        A number is not positive and finite, or a value has another type.
    """

    intensity_scale: float
    nphotons: float
    nphotons_source: str
    rms_factor: float
    mean_energy: float
    num_patterns: int
    pattern_size: int
    subset_fingerprint: str = ""
    scan_brightness: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("intensity_scale", "nphotons", "rms_factor", "mean_energy"):
            _require_positive(name, getattr(self, name), float | int)
        for name in ("num_patterns", "pattern_size"):
            _require_positive(name, getattr(self, name), int)
        for name in ("nphotons_source", "subset_fingerprint"):
            if not isinstance(value := getattr(self, name), str):
                raise ValueError(f"calibration: {name} is {value!r}, expected text")
        for value in self.scan_brightness:
            _require_positive("scan_brightness", value, float | int)

    @classmethod
    def of(
        cls,
        scale: IntensityScale,
        *,
        nphotons_source: str,
        rms_factor: float,
        pattern_size: int,
        subset_fingerprint: str = "",
        scan_brightness: tuple[float, ...] = (),
    ) -> Calibration:
        """Return the record of a scale that `derive_intensity_scale` gave."""
        return cls(
            intensity_scale=scale.value,
            nphotons=scale.nphotons,
            mean_energy=scale.mean_energy,
            num_patterns=scale.num_patterns,
            nphotons_source=nphotons_source,
            rms_factor=rms_factor,
            pattern_size=pattern_size,
            subset_fingerprint=subset_fingerprint,
            scan_brightness=scan_brightness,
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Calibration:
        """Return the record that `to_dict` gave; raises ValueError for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(record, Mapping) or set(record) != names:
            raise ValueError(f"calibration: found {record!r}, expected the keys {sorted(names)}")
        if not isinstance(record["scan_brightness"], list):
            raise ValueError(f"calibration: scan_brightness is {record['scan_brightness']!r}")
        return cls(**{**record, "scan_brightness": tuple(record["scan_brightness"])})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML and JSON."""
        return {**asdict(self), "scan_brightness": list(self.scan_brightness)}

    def photons_per_intensity(self, rms_factor: float | None = None) -> float:
        """Return the measured photons that X_norm**2 = 1 stands for.

        Parameters
        ----------
        rms_factor
            Factor that the patterns were normalised by; None: r.
        """
        ratio = 1.0 if rms_factor is None else self.rms_factor / rms_factor
        return self.nphotons / self.mean_energy * ratio**2

    def checks(self) -> tuple[Check, Check]:
        """Return the definition of s, and the closed form that follows from it.

        The closed form holds because r and s come from the same patterns.
        """
        return (
            Check(
                name="definition: s² · mean energy = nphotons",
                found=self.intensity_scale**2 * self.mean_energy,
                expected=self.nphotons,
                tolerance=FLOAT64_ROUNDING,
            ),
            Check(
                name="closed form: s = √nphotons / (N/2)",
                found=self.intensity_scale,
                expected=math.sqrt(self.nphotons) / (self.pattern_size / 2),
                tolerance=FLOAT32_ROUNDING,
            ),
        )


def brightness(mean_energy: Fraction | float, training_mean_energy: Fraction | float) -> float:
    """Return the incident amplitude of a scan relative to that of the training patterns.

    It is the root of the ratio of the mean pattern energies, correctly rounded. In normalised units
    the training patterns have the mean energy (N/2)**2. The network reads patterns relative to
    their incident amplitude, so a scan's probe is multiplied by its brightness.
    """
    return rounded_sqrt(Fraction(mean_energy) / Fraction(training_mean_energy))


def _require_positive(name: str, value: object, kind: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
        raise ValueError(f"calibration: {name} is {value!r}, expected a positive number")
