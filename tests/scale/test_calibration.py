"""The calibration record: what it refuses, what it converts, and how it is stored."""

from __future__ import annotations

import dataclasses
import json
import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
import yaml

from ptycho_dist.scale.calibration import Calibration, brightness
from ptycho_dist.scale.intensity_scale import IntensityScale

CALIBRATION = Calibration(
    intensity_scale=31.25,
    nphotons=1e6,
    nphotons_source="config",
    rms_factor=0.25,
    mean_energy=1024.0,
    num_patterns=37,
    pattern_size=64,
    subset_fingerprint="ab12",
    scan_brightness=(0.5, 1.25),
)


def test_record_of_a_scale_keeps_every_number() -> None:
    scale = IntensityScale(value=31.25, nphotons=1e6, mean_energy=1024.0, num_patterns=37)
    assert (
        Calibration.of(
            scale,
            nphotons_source="config",
            rms_factor=0.25,
            pattern_size=64,
            subset_fingerprint="ab12",
            scan_brightness=(0.5, 1.25),
        )
        == CALIBRATION
    )


def test_yaml_and_json_give_the_record_back() -> None:
    record = CALIBRATION.to_dict()
    assert Calibration.from_dict(yaml.safe_load(yaml.safe_dump(record))) == CALIBRATION
    assert Calibration.from_dict(json.loads(json.dumps(record))) == CALIBRATION


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intensity_scale", 0.0),
        ("intensity_scale", math.nan),
        ("nphotons", math.inf),
        ("nphotons", True),
        ("rms_factor", -1.0),
        ("rms_factor", "0.25"),
        ("mean_energy", None),
        ("num_patterns", 37.0),
        ("num_patterns", 0),
        ("pattern_size", False),
        ("nphotons_source", 3),
        ("subset_fingerprint", None),
        ("scan_brightness", [1.0, 0.0]),
        ("scan_brightness", "none"),
    ],
)
def test_value_that_is_no_calibration_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"calibration: {key} is "):
        Calibration.from_dict({**CALIBRATION.to_dict(), key: value})


@pytest.mark.parametrize("change", [{"extra": 1}, None])
def test_missing_and_unknown_keys_are_refused(change: dict[str, Any] | None) -> None:
    record = CALIBRATION.to_dict()
    if change is None:
        del record["rms_factor"]
    with pytest.raises(ValueError, match="expected the keys"):
        Calibration.from_dict({**record, **(change or {})})


def test_photons_per_intensity_bring_the_mean_pattern_to_nphotons() -> None:
    # Powers of two: exact.
    assert CALIBRATION.photons_per_intensity() * CALIBRATION.mean_energy == 1e6
    # Patterns normalised by half of r have half the amplitude: four times the photons per unit.
    assert CALIBRATION.photons_per_intensity(0.125) == 4 * CALIBRATION.photons_per_intensity()


def test_checks_hold_for_the_derived_scale_and_for_no_other() -> None:
    # s = sqrt(1e6 / 1024) = 1000 / 32 = 31.25
    assert all(check.holds for check in CALIBRATION.checks())
    wrong = dataclasses.replace(CALIBRATION, intensity_scale=31.25 * (1 + 1e-7))
    assert not any(check.holds for check in wrong.checks())
    other_patterns = dataclasses.replace(CALIBRATION, mean_energy=1025.0)
    assert [check.holds for check in other_patterns.checks()] == [False, True]


@pytest.mark.parametrize(("scan", "training"), [(Fraction(7, 3), Fraction(11, 5)), (2.0, 8.0)])
def test_brightness_is_the_root_of_the_ratio_of_energies(scan: Any, training: Any) -> None:
    with localcontext(prec=60):
        ratio = Fraction(scan) / Fraction(training)
        exact = (Decimal(ratio.numerator) / Decimal(ratio.denominator)).sqrt()
    assert brightness(scan, training) == float(exact)  # rounded once
