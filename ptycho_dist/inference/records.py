"""Records of a reconstruction: its units, its photons, its figures for `summary.json`, its arrays.

All are frozen and complete when they are constructed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ptycho_dist.bundle import Bundle
from ptycho_dist.scale.calibration import Calibration, brightness

NormalizationSource = Literal["bundle", "scan"]
ProbeSource = Literal["bundle", "scan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """Units of a reconstruction: photons per unit of intensity, and the brightness of the scan.

    Patterns are normalised with an RMS factor r', X_norm = r' X, which is the bundle's r or the
    scan's own. The bundle's scale s and mean energy E hold for r, hence the ratio of the two::

        predicted_amplitude = s g r / r'
        measured_photons    = nphotons / E * (r / r')**2
        brightness          = sqrt(scan_energy / (N/2)**2)

    Attributes
    ----------
    predicted_amplitude
        Square root of the photons that predicted intensity 1 stands for.
    measured_photons
        Photons that measured intensity 1 stands for. It comes from the training set alone, so that
        neither the stored scale nor its gain changes the measured counts.
    brightness
        Amplitude of the scan's light relative to that of the patterns r' was derived from.
    """

    predicted_amplitude: float
    measured_photons: float
    brightness: float

    @classmethod
    def of(cls, bundle: Bundle, rms_factor: float, scan_energy: float) -> Units:
        """Return the units of a scan.

        Parameters
        ----------
        bundle
            Holds s, g, r, E, nphotons and N.
        rms_factor
            r', which the scan's patterns were normalised with.
        scan_energy
            Mean over the scan's patterns of sum X_norm**2.
        """
        return cls(
            predicted_amplitude=bundle.predicted_scale(rms_factor),
            measured_photons=bundle.calibration.photons_per_intensity(rms_factor),
            brightness=brightness(scan_energy, (bundle.pattern_size / 2) ** 2),
        )

    @property
    def predicted_photons(self) -> float:
        """Photons that predicted intensity 1 stands for."""
        return self.predicted_amplitude**2


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotonComparison:
    """Photons that an object predicts against the measured ones.

    Attributes
    ----------
    mean_measured_pattern, mean_predicted_pattern
        float64 (N, N): counts per pixel, mean over patterns, zero frequency at [N // 2, N // 2];
        NaN at masked pixels.
    pattern_deviance_per_pixel
        float32 (n,): twice the mean Poisson deviance over the unmasked pixels of each pattern, in
        the order of the scan.
    deviance_per_pixel
        Mean over the patterns.
    """

    mean_measured_pattern: np.ndarray
    mean_predicted_pattern: np.ndarray
    pattern_deviance_per_pixel: np.ndarray
    deviance_per_pixel: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """RMS factor that a scan was normalised with, and where it comes from."""

    source: NormalizationSource
    mode: str = "rms"
    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeChoice:
    """Probe that a scan was reconstructed with: from where, whether training refined it, and
    whether it is that of this scan or of the first training scan."""

    source: ProbeSource
    refined: bool
    of_this_scan: bool
    modes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrections:
    """Passes of the network over a whole scan.

    `deviance_per_pixel` holds the values of the first estimate and after each correction that was
    kept, each at the brightness that fits the scan best. `helped` is True if the corrections
    lowered the deviance noticeably.
    """

    passes: int
    deviance_per_pixel: tuple[float, ...]
    helped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinementRecord:
    """Maximum-likelihood refinement; `deviance_per_pixel` holds the values of the start and after
    each iteration."""

    iterations: int
    refine_probe: bool
    deviance_per_pixel: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Figures of a reconstruction, the content of `summary.json`.

    `corrections` is None for a network of single patterns, `refinement` without a refinement.
    Photons are means per pattern over the unmasked pixels. `bundle` and `data` are file names.
    """

    calibration: Calibration
    gain: float
    mean_measured_photons: float
    mean_predicted_photons: float
    deviance_per_pixel: float
    corrections: Corrections | None
    refinement: RefinementRecord | None
    num_patterns: int
    pattern_size: int
    masked_pixels: int
    normalization: Normalization
    probe: ProbeChoice
    device: str
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    bundle: str | None = None
    data: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `summary.json`. What does not apply is left out."""
        calibration = self.calibration.to_dict()
        first = ("intensity_scale", "nphotons", "nphotons_source")
        content = {key: calibration[key] for key in first} | dataclasses.asdict(self)
        content["calibration"] = calibration
        return {key: value for key, value in content.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """An object and how well it explains its scan.

    Attributes
    ----------
    object
        complex64 (H, W).
    origin_px
        float64 (2,) as (y, x): scan coordinate of object[0, 0]. The patch centred at y covers the
        rows from y - N/2 - origin_y on.
    positions_px
        float64 (n, 2) as (y, x).
    valid
        bool (H, W): illuminated pixels.
    illumination
        float32 (H, W): the probe's intensity summed over all positions, normalised units.
    initial_probe, probe
        complex64 (modes, N, N), normalised units: the scan's own, and the one that was used in the
        end; equal where neither training nor inference refined it.
    photons
        Predicted against measured photons.
    units
        Photons per unit of intensity.
    summary
        Figures for `summary.json`.
    """

    object: np.ndarray
    origin_px: np.ndarray
    positions_px: np.ndarray
    valid: np.ndarray
    illumination: np.ndarray
    initial_probe: np.ndarray
    probe: np.ndarray
    photons: PhotonComparison
    units: Units
    summary: Summary

    @property
    def refined_probe(self) -> np.ndarray | None:
        """`probe`, or None where it is the initial one."""
        return None if np.array_equal(self.initial_probe, self.probe) else self.probe


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the wall-clock seconds that a stage takes."""
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)
