"""Each finding, provoked by a file that is wrong in this way alone; and none where nothing is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_dist.config import SimulationConfig
from ptycho_dist.data.npz_writer import write_npz_scan
from ptycho_dist.data.readers import read_scan
from ptycho_dist.physics.simulation import simulate_scan
from ptycho_dist.preflight.findings import Finding, find, named
from ptycho_dist.preflight.statistics import pattern_statistics
from tests.data.readers.far_field import simulate
from tests.scans import small_scan_arrays

WriteScan = Callable[..., Path]
Arrays = dict[str, np.ndarray]


def findings_of(
    path: Path,
    measurement: Any = "amplitude",
    *,
    nphotons: float | None = None,
    training_fails: bool = False,
) -> list[Finding]:
    scan = read_scan(path, measurement)
    return find(
        scan,
        pattern_statistics(scan),
        nphotons=nphotons or scan.nphotons,
        training_fails=training_fails,
    )


def changed_at(places: Any, value: Any) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        diffraction = arrays["diffraction"].copy()
        diffraction[places] = value
        return {"diffraction": diffraction}

    return change


def as_counts(arrays: Arrays) -> np.ndarray:
    return np.round(arrays["diffraction"].astype(np.float64) ** 2)


def saturated(arrays: Arrays) -> Arrays:
    counts = as_counts(arrays).astype(np.uint16)
    counts[4:9, 2, 3] = 65535
    return {"diffraction": counts}


def spread(factor: float) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: factor * arrays[key] for key in ("xcoords", "ycoords")}


def repeated(arrays: Arrays) -> Arrays:
    return {
        key: np.where(np.arange(37) < 34, arrays[key], arrays[key][0])
        for key in ("xcoords", "ycoords")
    }


def noise(arrays: Arrays) -> Arrays:
    random = np.random.default_rng(1)
    return {
        "probeGuess": (random.normal(size=(16, 16)) + 1j * random.normal(size=(16, 16))).astype(
            np.complex64
        )
    }


# What is changed, what is said to be measured, how severe, and what is said.
PROVOKED: dict[str, tuple[Callable[[Arrays], Arrays], str, str, str]] = {
    "NaN": (changed_at((3, 4, 5), np.nan), "amplitude", "warning", "1 NaN numbers in diffraction, "
                                                                   "the first at pixel [4, 5] of "
                                                                   "pattern 3"),
    "infinite": (changed_at((3, 4, 5), np.inf), "amplitude", "warning", "1 infinite numbers"),
    "negative": (changed_at((slice(None), 4, 5), -1), "amplitude", "warning", "37 negative numbers"),
    "counts called amplitude": (
        lambda arrays: {"diffraction": as_counts(arrays)},
        "amplitude", "warning", "said to hold amplitude, but the numbers are whole numbers",
    ),
    "amplitude called counts": (
        lambda arrays: {}, "counts", "warning", "said to hold counts, but the numbers are roots "
                                                "of whole numbers",
    ),
    "largest of its type": (saturated, "counts", "warning", "5 numbers are the largest of uint16, "
                                                            "at pixels [2, 3]"),
    "clipped": (
        lambda arrays: {"diffraction": np.sqrt(np.minimum(20 * as_counts(arrays), 4000)).astype(np.float32)},
        "amplitude", "warning", "numbers equal the largest, 63.2456, at pixels",
    ),
    "dead pixel": (
        changed_at((slice(None), 7, 9), 0), "amplitude", "warning", "1 pixels are 0 in every "
                                                                    "pattern, among bright ones: "
                                                                    "[7, 9]",
    ),
    "two dead pixels side by side": (
        changed_at((slice(None), 7, slice(9, 11)), 0),
        "amplitude", "warning", "2 pixels are 0 in every pattern, among bright ones: [7, 9], [7, "
                                "10]",
    ),
    "gap of rows": (changed_at((slice(None), slice(5, 7)), 0), "amplitude", "warning", "the rows 5, 6 are "
                                                                                       "0 "
                                                                                       "in "
                                                                                       "every "
                                                                                       "pattern"),
    "gap of columns": (
        changed_at((slice(None), slice(None), slice(5, 7)), 0), "amplitude", "warning", "the columns 5, 6 "
                                                                                        "are "
                                                                                        "0 "
                                                                                        "in "
                                                                                        "every "
                                                                                        "pattern",
    ),
    "hot pixel": (
        changed_at((slice(None), 1, 2), 9), "amplitude", "warning", "1 pixels are over 20 times "
                                                                    "brighter than all around "
                                                                    "them: [1, 2]",
    ),
    "zero frequency at [0, 0]": (
        lambda arrays: {"diffraction": np.fft.ifftshift(arrays["diffraction"], axes=(1, 2))},
        "amplitude", "warning", "the light is in the corners",
    ),
    "beam beside the middle": (
        lambda arrays: {"diffraction": np.roll(arrays["diffraction"], (3, -2), axis=(1, 2))},
        "amplitude", "warning", "centre of mass at [10.7, 6.1]",
    ),
    "dark patterns": (changed_at(slice(5, 7), 0), "amplitude", "warning", "2 patterns have no "
                                                                          "count "
                                                                          "at "
                                                                          "all: "
                                                                          "5, "
                                                                          "6"),
    "faint pattern": (
        lambda arrays: {"diffraction": arrays["diffraction"] * np.where(np.arange(37) == 8, 0.25, 1)[:, None, None].astype(np.float32)},
        "amplitude", "note", "1 patterns have over ten times more or fewer counts than the median",
    ),
    "metres": (spread(1e-9), "amplitude", "warning", "px: they look like metres"),
    "positions again": (repeated, "amplitude", "warning", "3 of 37 positions are those of an "
                                                          "earlier pattern"),
    "too far apart for any "
    "beam": (spread(5), "amplitude", "warning", "px apart: even a beam that fills the patch of 16 "
                                                "px overlaps by"),
    "too far apart for this "
    "beam": (spread(2), "amplitude", "warning", "overlap 29 %: 5.337 px between neighbours, a "
                                                "beam of 7.54 px"),
    "probe of something "
    "else": (noise, "amplitude", "warning", "the probe's far field does not look like the mean "
                                            "pattern"),
    "object too small": (
        lambda arrays: {"objectGuess": arrays["objectGuess"][:30]},
        "amplitude", "warning", "patterns do not lie on the object of 30 x 42 px: 35, 36",
    ),
}  # fmt: skip


def test_sound_scan_has_nothing_to_look_at(write_scan: WriteScan) -> None:
    assert findings_of(write_scan()) == []
    assert (
        findings_of(
            write_scan(diffraction=as_counts(small_scan_arrays()).astype(np.int32)), "counts"
        )
        == []
    )


@pytest.mark.parametrize(
    ("change", "measurement", "severity", "what"), PROVOKED.values(), ids=PROVOKED
)
def test_what_is_wrong_is_found(
    write_scan: WriteScan,
    change: Callable[[Arrays], Arrays],
    measurement: str,
    severity: str,
    what: str,
) -> None:
    found = findings_of(write_scan(**change(small_scan_arrays())), measurement)
    (finding,) = [finding for finding in found if what in finding.what]
    assert finding.severity == severity
    assert finding.fix


def test_invalid_numbers_are_an_error_where_training_meets_them(write_scan: WriteScan) -> None:
    diffraction = changed_at((3, 4, 5), np.nan)(small_scan_arrays())["diffraction"]
    assert [
        finding.severity
        for finding in findings_of(write_scan(diffraction=diffraction), training_fails=True)
    ] == ["error"]


@pytest.mark.parametrize(
    "name", ["NaN", "largest of its type", "dead pixel", "gap of rows", "hot pixel"]
)
def test_masked_pixels_are_not_looked_at(write_scan: WriteScan, name: str) -> None:
    change, measurement, *_ = PROVOKED[name]
    changed = change(small_scan_arrays())
    mask = np.ones((16, 16), dtype=bool)
    mask[[4, 2, 7, 1], [5, 3, 9, 2]] = False
    mask[5:7] = False
    assert findings_of(write_scan(mask=mask, **changed), measurement) == []


@pytest.mark.parametrize(
    ("ratio", "severities"), [(0.3, ["warning"]), (3, ["warning"]), (1.2, ["note"]), (1.01, [])]
)
def test_dose_that_the_numbers_contradict(
    write_scan: WriteScan, ratio: float, severities: list[str]
) -> None:
    mean = float(
        (small_scan_arrays()["diffraction"].astype(np.float64) ** 2).sum(axis=(1, 2)).mean()
    )
    found = findings_of(write_scan(), nphotons=ratio * mean)
    assert [finding.severity for finding in found] == severities
    assert all(
        f"nphotons is {ratio * mean:.6g}" in finding.what
        and f"{mean:.6g} a pattern" in finding.what
        for finding in found
    )


def test_axes_of_positions_can_not_be_told_without_an_object(write_scan: WriteScan) -> None:
    (finding,) = findings_of(write_scan(drop=("objectGuess",)))
    assert (finding.severity, "can't be told" in finding.what) == ("note", True)


def write_far_field(path: Path, turn: Callable[[np.ndarray], np.ndarray]) -> Path:
    truth = simulate()
    positions = turn(truth.corners_px + 8.0)
    np.savez(
        path,
        diffraction=np.sqrt(truth.counts).astype(np.float32),
        ycoords=positions[:, 0],
        xcoords=positions[:, 1],
        probeGuess=truth.probe.astype(np.complex64),
        objectGuess=truth.object.astype(np.complex64),
    )
    return path


@pytest.mark.parametrize(
    ("turn", "what"),
    {
        "as they are": (lambda positions: positions, None),
        "y reversed": (
            lambda positions: np.array([41 - positions[:, 0], positions[:, 1]]).T,
            "better with y reversed",
        ),
        "x reversed": (
            lambda positions: np.array([positions[:, 0], 27 - positions[:, 1]]).T,
            "better with x reversed",
        ),
        "of other patterns": (
            lambda positions: positions[::-1],
            "the object does not explain the patterns",
        ),
    }.values(),
)
def test_object_tells_positions_that_are_not_its_own(
    tmp_path: Path, turn: Callable[[np.ndarray], np.ndarray], what: str | None
) -> None:
    found = [
        finding.what
        for finding in findings_of(write_far_field(tmp_path / "scan.npz", turn))
        if "object" in finding.what
    ]
    assert (found == []) if what is None else (len(found) == 1 and what in found[0])


def test_object_tells_exchanged_axes(write_scan: WriteScan) -> None:
    """Of positions that lie on it either way."""
    arrays = small_scan_arrays()
    exchanged = {"xcoords": np.floor(arrays["ycoords"]), "ycoords": np.floor(arrays["xcoords"])}
    assert any(
        "better with x and y exchanged" in finding.what
        for finding in findings_of(write_scan(**exchanged))
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"probe": "disk"},
        {"object": "lines", "nphotons": 1e9},
        {"nphotons": 1e3},
        {"probe": "disk", "nphotons": 1e9},
    ],
    ids=str,
)
def test_simulated_scans_are_sound(tmp_path: Path, settings: dict[str, Any]) -> None:
    simulation = simulate_scan(
        **dataclasses.asdict(SimulationConfig(scan_shape=(7, 8), **settings)),
        report_progress=lambda *_: None,
    )
    write_npz_scan(
        tmp_path / "scan.npz",
        diffraction=simulation.diffraction,
        positions_px=simulation.positions_px,
        probe=simulation.probe,
        transmission=simulation.object,
        nphotons=simulation.nphotons,
        settings={},
    )
    assert findings_of(tmp_path / "scan.npz", None) == []


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["siemens_velociprobe_N64.npz", "siemens_velociprobe_N128.npz"])
def test_measured_scans_are_sound(realdata: Path, name: str) -> None:
    assert findings_of(realdata / name) == []


@pytest.mark.realdata
def test_near_field_scan_is_told_by_its_steps(realdata: Path) -> None:
    found = findings_of(realdata / "petraiii_p25_near_field.cxi", None)
    assert any(
        "even a beam that fills the patch of 100 px" in finding.what and "near field" in finding.fix
        for finding in found
    )


def test_many_places_are_named_in_part() -> None:
    assert named(np.arange(3)) == "0, 1, 2"
    assert (
        named(np.argwhere(np.ones((3, 4))))
        == "[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3] and 4 others"
    )
