"""What is wrong with a scan, or suspicious, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from ptycho_dist.data.scan import Scan
from ptycho_dist.physics.direct_beam import is_in_corners
from ptycho_dist.physics.scan_positions import nearest_distances_px
from ptycho_dist.preflight.illumination import (
    beam_overlap,
    far_field_correlation,
    fit_object,
    lies_on_object,
)
from ptycho_dist.preflight.statistics import PatternStatistics

Severity = Literal["error", "warning", "note"]

# Thresholds beyond which a person should look. Sound scans stay silent: the two measured ones of
# the tests, and simulated ones, have a far-field correlation above 0.97, an overlap above 75 %, and
# a centre of mass within 4 % of N of the middle.
LEAST_OVERLAP = 0.5
LEAST_FAR_FIELD_CORRELATION = 0.5
LARGEST_OFFSET = 1 / 12
"""Distance of the centre of mass from [N/2, N/2], relative to N."""
FEWEST_COUNTS_AROUND_DEAD = 50
HOT_TIMES = 20
"""Brightness relative to the brightest neighbour that only a fault explains."""
FEWEST_AT_LARGEST = 8
"""Numbers that equal the largest: of counts in the thousands, hardly ever two do by chance."""
FEWEST_TELLING = 100
_EXPLAINS_NOTHING = 0.97
"""Residual relative to that with other patterns' positions; 0.88 for simulated scans of 1000
photons per pattern, mostly noise."""
_NAMED = 8
_NEIGHBOURS = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table.

    Attributes
    ----------
    severity
        `error`: training can't run. `warning`: it can, but on what is likely wrong. `note`: good to
        know.
    what
        What was found, with numbers.
    fix
        How to fix it.
    """

    severity: Severity
    what: str
    fix: str


def _warning(what: str, fix: str) -> Finding:
    return Finding("warning", what, fix)


def find(
    scan: Scan, statistics: PatternStatistics, *, nphotons: float | None, training_fails: bool
) -> list[Finding]:
    """Return all findings.

    Parameters
    ----------
    scan, statistics
        The scan, and the statistics of its patterns.
    nphotons
        Mean photons per pattern that training uses; None if unknown.
    training_fails
        True if training fails at a pattern: invalid numbers are then an error, else a warning,
        because the subset leaves them out.
    """
    return [
        *_invalid_numbers(scan, statistics, "error" if training_fails else "warning"),
        *_measurement(scan, statistics),
        *_saturation(scan, statistics),
        *_faulty_pixels(scan, statistics),
        *_detector_gaps(scan, statistics),
        *_hot_pixels(scan, statistics),
        *_centre(scan, statistics),
        *_dark_patterns(statistics),
        *_photons(statistics, nphotons),
        *_positions(scan),
        *_probe(scan, statistics),
        *_object(scan, statistics),
    ]


def named(places: np.ndarray) -> str:
    """Return `[3, 5], [4, 5] and 7 others` for an array (k, 2), or the like for numbers (k,)."""
    first = ", ".join(str(place) for place in places[:_NAMED].tolist())
    return f"{first} and {len(places) - _NAMED} others" if len(places) > _NAMED else first


def _invalid_numbers(
    scan: Scan, statistics: PatternStatistics, severity: Severity
) -> Iterator[Finding]:
    for word, number in statistics.num_invalid.items():
        pattern, row, column = statistics.first_invalid[word]
        yield Finding(
            severity,
            f"{number} {word} numbers in {scan.key}, the first at pixel [{row}, {column}] of "
            f"pattern {pattern}",
            "Mask the pixels if they are always the same: --data.mask FILE, 1 where a pixel "
            "counts. Else leave the patterns out.",
        )


def _measurement(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    looks = looks_like(statistics)
    if looks is not None and looks != scan.measurement:
        numbers = "whole numbers" if looks == "counts" else "roots of whole numbers"
        yield _warning(
            f"said to hold {scan.measurement}, but the numbers are {numbers}: they look like "
            f"{looks}",
            f"Ask who wrote the file. --data.measurement {looks}, or the metadata's, decides "
            "how every photon is counted.",
        )


def looks_like(statistics: PatternStatistics) -> Literal["counts", "amplitude"] | None:
    """Return what the numbers look like; None if there are too few, or they are scaled."""
    if statistics.num_telling < FEWEST_TELLING:
        return None
    if statistics.num_whole == statistics.num_telling:
        # ones alone are their own squares
        return "counts" if statistics.largest.max() > 1 else None
    return "amplitude" if statistics.num_whole_squares > 0.99 * statistics.num_telling else None


def _saturation(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    at_limit = np.argwhere(statistics.at_type_limit > 0)
    if len(at_limit):
        yield _warning(
            f"{statistics.at_type_limit.sum()} numbers are the largest of "
            f"{scan.diffraction.dtype}, at pixels {named(at_limit)}",
            "Saturated, or the detector's mark for what it did not measure: mask these "
            "pixels (--data.mask FILE), or expose less.",
        )
        return
    largest = statistics.largest.max()
    in_counts = largest**2 if scan.measurement == "amplitude" else largest
    if in_counts >= 1000 and statistics.num_at_largest >= FEWEST_AT_LARGEST:
        yield _warning(
            f"{statistics.num_at_largest} numbers equal the largest, {largest:.6g}, at "
            f"pixels {named(np.argwhere(statistics.largest == largest))}: clipped",
            "The detector saturates there: mask these pixels (--data.mask FILE), or measure "
            "with less exposure.",
        )


_MASK_THEM = "Mask them: --data.mask FILE, 1 where a pixel counts and 0 where not."


def _faulty_pixels(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    total = statistics.mean_pattern * scan.num_patterns
    # Six of eight neighbours have light: at the edge of a bright disk only half of them do.
    third_darkest = ndimage.rank_filter(total, rank=2, footprint=_NEIGHBOURS, mode="reflect")
    is_dark = (statistics.largest == 0) & (third_darkest >= FEWEST_COUNTS_AROUND_DEAD)
    is_dead = is_dark & _counted(scan)
    if is_dead.any():
        yield _warning(
            f"{is_dead.sum()} pixels are 0 in every pattern, among bright ones: "
            f"{named(np.argwhere(is_dead))}",
            _MASK_THEM,
        )


def _detector_gaps(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    total, counted = statistics.mean_pattern * scan.num_patterns, _counted(scan)
    for axis, name in ((1, "rows"), (0, "columns")):
        light = total.sum(axis=axis)
        lit = np.flatnonzero(light > FEWEST_COUNTS_AROUND_DEAD)
        between = np.arange(lit[0], lit[-1]) if len(lit) else lit
        gap = between[(light[between] == 0) & np.any(counted, axis=axis)[between]]
        if len(gap):
            yield _warning(
                f"the {name} {named(gap)} are 0 in every pattern, with light on both sides: "
                "a gap between the detector's modules",
                _MASK_THEM,
            )


def _hot_pixels(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    total = statistics.mean_pattern * scan.num_patterns
    brightest = ndimage.maximum_filter(total, footprint=_NEIGHBOURS, mode="reflect")
    is_hot = _counted(scan) & (
        total > HOT_TIMES * np.maximum(brightest, FEWEST_COUNTS_AROUND_DEAD / HOT_TIMES)
    )
    middle = scan.pattern_size // 2
    # the direct beam may be as sharp
    is_hot[middle - 2 : middle + 3, middle - 2 : middle + 3] = False
    if is_hot.any():
        yield _warning(
            f"{is_hot.sum()} pixels are over {HOT_TIMES} times brighter than all around "
            f"them: {named(np.argwhere(is_hot))}",
            _MASK_THEM,
        )


def _counted(scan: Scan) -> np.ndarray:
    size = scan.pattern_size
    return np.ones((size, size), dtype=bool) if scan.mask is None else scan.mask


def _centre(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    mean, size = statistics.mean_pattern, scan.pattern_size
    if not mean.any():
        return
    if is_in_corners(mean):
        yield _warning(
            "the light is in the corners of the patterns: zero frequency looks to be at [0, 0]",
            "Write them with numpy.fft.fftshift over the last two axes: the direct beam "
            f"belongs to [{size // 2}, {size // 2}].",
        )
        return
    row, column = centre_of_mass(mean)
    offset = max(abs(row - size // 2), abs(column - size // 2))
    if offset > max(LARGEST_OFFSET * size, 1):
        yield _warning(
            f"the mean pattern has its centre of mass at [{row:.1f}, {column:.1f}], expected "
            f"near [{size // 2}, {size // 2}]",
            "Look at the picture: is the direct beam in the middle? If not, --data.crop N "
            "--data.centre_px '[row, column]' takes a window about it.",
        )


def centre_of_mass(pattern: np.ndarray) -> tuple[float, float]:
    row, column = ndimage.center_of_mass(pattern)
    return float(row), float(column)


def _dark_patterns(statistics: PatternStatistics) -> Iterator[Finding]:
    counts = statistics.counts
    dark = np.flatnonzero(counts == 0)
    if len(dark):
        yield _warning(
            f"{len(dark)} patterns have no count at all: {named(dark)}",
            "Leave them out: they say that the object is black there.",
        )
    typical = np.median(counts[counts > 0]) if (counts > 0).any() else 0.0
    odd = np.flatnonzero((counts > 0) & ((counts < typical / 10) | (counts > 10 * typical)))
    if len(odd):
        yield Finding(
            "note",
            f"{len(odd)} patterns have over ten times more or fewer counts than the median "
            f"of {typical:.6g}: {named(odd)}",
            "Was the shutter open, the beam there, the sample in it? Leave out what was not "
            "measured as the others were.",
        )


def _photons(statistics: PatternStatistics, nphotons: float | None) -> Iterator[Finding]:
    mean = float(statistics.counts.mean())
    if nphotons is None or mean == 0:
        return
    ratio = nphotons / mean
    if not 0.5 < ratio < 2:
        yield _warning(
            f"nphotons is {nphotons:.6g}, but the file's numbers add up to {mean:.6g} a pattern",
            "Right where the numbers are scaled counts; else correct the metadata, or "
            "--data.nphotons measured where there are none.",
        )
    elif abs(ratio - 1) > 0.05:
        yield Finding(
            "note",
            f"nphotons is {nphotons:.6g}, the file's numbers add up to {mean:.6g} a pattern",
            "Nothing, where nphotons is the dose before noise, mask and crop.",
        )


def _positions(scan: Scan) -> Iterator[Finding]:
    extent = float(np.ptp(scan.positions_px, axis=0).max())
    if scan.num_patterns > 1 and extent < 1:
        yield _warning(
            f"all positions lie within {extent:.3g} px: they look like metres",
            "Give pixels of the object, wavelength * distance / (N * detector pixel); or an "
            "HDF5 file with its unit and geometry.",
        )
        return
    num_again = scan.num_patterns - len(np.unique(scan.positions_px, axis=0))
    if num_again:
        yield _warning(
            f"{num_again} of {scan.num_patterns} positions are those of an earlier pattern",
            "Fine where the scan stopped there to measure again; else the positions of these "
            "patterns were not recorded.",
        )
    yield from _overlap(scan)
    if scan.num_patterns > 1 and scan.object_guess is None:
        yield Finding(
            "note",
            "whether the axes of the positions are exchanged or reversed can't be told from "
            "a file without an object",
            "Reconstruct with infer.py --refine 20, also a copy with x and y exchanged and "
            "one with x reversed: the true axes give the least deviance_per_pixel.",
        )


def _overlap(scan: Scan) -> Iterator[Finding]:
    distances, size = nearest_distances_px(scan.positions_px), scan.pattern_size
    if len(distances) == 0:
        return
    typical = np.median(distances)
    if typical > size * (1 - LEAST_OVERLAP):
        yield _warning(
            f"neighbouring positions are {typical:.4g} px apart: even a beam that fills the patch "
            f"of {size} px overlaps by {100 * max(0.0, 1 - typical / size):.0f} % only",
            "Check energy, distance, detector pixel and the unit of the positions. Or is it "
            "near field? That is not modelled.",
        )
    elif len(scan.probe):
        overlap, diameter = beam_overlap(distances, scan.probe)
        if overlap < LEAST_OVERLAP:
            yield _warning(
                f"overlap {100 * overlap:.0f} %: {distances.mean():.4g} px between "
                f"neighbours, a beam of {diameter:.4g} px",
                f"At least {100 * LEAST_OVERLAP:.0f} % is wanted, better 70 %. Check the "
                "probe and the unit of the positions.",
            )


def _probe(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    if len(scan.probe) == 0 or not statistics.mean_pattern.any():
        return
    correlation = far_field_correlation(scan.probe, statistics.mean_pattern, scan.mask)
    if correlation < LEAST_FAR_FIELD_CORRELATION:
        yield _warning(
            "the probe's far field does not look like the mean pattern: correlation "
            f"{correlation:.2f}, of a sound scan over 0.9",
            "Is it the probe of this scan, of this energy and crop, in real space, and is the "
            "direct beam in the middle of the patterns? --data.probe FILE gives another; "
            "--model.probe_trainable true refines one that is only rough.",
        )


def _object(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    if scan.object_guess is None:
        return
    outside = np.flatnonzero(~lies_on_object(scan, scan.positions_px))
    if len(outside):
        rows, columns = scan.object_guess.shape
        yield _warning(
            f"the patches of {len(outside)} patterns do not lie on the object of {rows} x "
            f"{columns} px: {named(outside)}",
            "Positions are pixels of the object, of a patch's centre; position (0, 0) lies "
            "on the object's pixel [0, 0].",
        )
    fit = None if statistics.num_invalid else fit_object(scan)
    if fit is None:
        return
    words, least = min(fit.residual_turned.items(), key=lambda item: item[1], default=("", np.inf))
    if least < 0.7 * fit.residual:
        yield _warning(
            f"the object explains the patterns better with {words}: residual {least:.3f}, as "
            f"the positions are {fit.residual:.3f}",
            "Exchange or reverse them in the file, or the object.",
        )
    elif fit.residual > _EXPLAINS_NOTHING * fit.residual_exchanged:
        yield _warning(
            f"the object does not explain the patterns: residual {fit.residual:.3f}, and "
            f"{fit.residual_exchanged:.3f} with the positions of other patterns",
            "Object, probe, positions and patterns may be of different scans, or the "
            "positions' axes are not the object's.",
        )
