"""Photon energy, distance and detector pixel: what turns metres into pixels of the object."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

PLANCK_TIMES_LIGHT_EV_M = 6.62607015e-34 * 299_792_458 / 1.602176634e-19
"""h c in eV m, exact in the SI of 2019."""


def photon_energy_eV(wavelength_m: float | None) -> float | None:
    """Return the energy of photons of a wavelength; None where this is not known, or 0."""
    return PLANCK_TIMES_LIGHT_EV_M / wavelength_m if wavelength_m else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """A far-field experiment.

    Attributes
    ----------
    energy_eV
        Photon energy.
    distance_m
        From the object to the detector.
    detector_pixel_m
        Pitch of the detector's (square) pixels.

    Raises
    ------
    ValueError
        One of them is not a positive number.
    """

    energy_eV: float
    distance_m: float
    detector_pixel_m: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} is {value!r}, expected a positive number")

    @property
    def wavelength_m(self) -> float:
        return PLANCK_TIMES_LIGHT_EV_M / self.energy_eV

    @property
    def field_of_view_m(self) -> float:
        """Side of the area that a pattern resolves: wavelength * distance / detector pixel."""
        return self.wavelength_m * self.distance_m / self.detector_pixel_m

    def object_pixel_m(self, pattern_size: int) -> float:
        """Pixel of the object, wavelength * distance / (N * detector pixel): the grid on which an
        FFT of N x N is the far field."""
        return self.field_of_view_m / pattern_size
