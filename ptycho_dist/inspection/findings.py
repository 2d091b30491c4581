"""What is wrong with a scan, or suspicious: what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from ptycho_dist.data.scan import Scan
from ptycho_dist.inspection.illumination import (
    far_field_correlation,
    fit_object,
    lies_on_object,
    nearest_distances_px,
)
from ptycho_dist.inspection.statistics import PatternStatistics
from ptycho_dist.physics.simulated_probes import beam_diameter_px

Severity = Literal["error", "warning", "note"]

# Beyond these a person should look. They are set so that sound scans stay silent: the two measured
# ones of the tests, and simulated ones, have a far-field correlation above 0.97, an overlap above
# 75 %, and a centre of mass within 4 % of N of the middle.
LEAST_OVERLAP = 0.5
LEAST_FAR_FIELD_CORRELATION = 0.5
LARGEST_OFFSET = 1 / 12
"""Of the centre of mass from [N/2, N/2], of N."""
FEWEST_COUNTS_AROUND_DEAD = 50
HOT_TIMES = 20
"""How much brighter than its brightest neighbour a pixel is that nothing but a fault makes so
bright."""
FEWEST_AT_LARGEST = 8
"""Numbers that equal the largest: by chance hardly ever two do, of counts in the thousands."""
FEWEST_TELLING = 100
_EXPLAINS_NOTHING = 0.97
"""Residual over that with other patterns' positions; of simulated scans of 1000 photons a pattern,
mostly noise, it is 0.88."""
_NAMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the table.

    Attributes
    ----------
    severity
        `error`: training can't run. `warning`: it can, but on what is likely wrong. `note`: to be
        known.
    what
        What was found, with numbers.
    mend
        What to do.
    """

    severity: Severity
    what: str
    mend: str


def find(
    scan: Scan, statistics: PatternStatistics, *, nphotons: float | None, training_fails: bool
) -> list[Finding]:
    """Look at everything.

    Parameters
    ----------
    scan, statistics
        The scan, and what one pass over its patterns gave.
    nphotons
        What training takes for mean photons a pattern; None where nobody says.
    training_fails
        Whether training fails at a pattern. Numbers that are no measurement are an error then, else
        a warning: the subset leaves them out.
    """
    return [
        *_invalid_numbers(scan, statistics, "error" if training_fails else "warning"),
        *_measurement(scan, statistics),
        *_saturation(scan, statistics),
        *_faulty_pixels(scan, statistics),
        *_centre(scan, statistics),
        *_dark_patterns(statistics),
        *_photons(statistics, nphotons),
        *_positions(scan),
        *_probe(scan, statistics),
        *_object(scan, statistics),
    ]


def named(places: np.ndarray) -> str:
    """`[3, 5], [4, 5] and 7 others`, of an array (k, 2), or of numbers (k,)."""
    first = ", ".join(str(place) for place in places[:_NAMED].tolist())
    return f"{first} and {len(places) - _NAMED} others" if len(places) > _NAMED else first


def _invalid_numbers(
    scan: Scan, statistics: PatternStatistics, severity: Severity
) -> Iterator[Finding]:
    for word, number in statistics.num_invalid.items():
        pattern, row, column = statistics.first_invalid[word]
        yield Finding(
            severity=severity,
            what=f"{number} {word} numbers in {scan.key}, the first at pixel [{row}, {column}] of "
            f"pattern {pattern}",
            mend="Mask the pixels if they are always the same: --data.mask FILE, 1 where a pixel "
            "counts. Else leave the patterns out.",
        )


def _measurement(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    looks = looks_like(statistics)
    if looks is not None and looks != scan.measurement:
        numbers = "whole numbers" if looks == "counts" else "roots of whole numbers"
        yield Finding(
            severity="warning",
            what=f"said to hold {scan.measurement}, but the numbers are {numbers}: they look like "
            f"{looks}",
            mend=f"Ask who wrote the file. --data.measurement {looks}, or the metadata's, decides "
            "how every photon is counted.",
        )


def looks_like(statistics: PatternStatistics) -> Literal["counts", "amplitude"] | None:
    """What the numbers themselves suggest; None where they suggest nothing: too few, or scaled."""
    if statistics.num_telling < FEWEST_TELLING:
        return None
    if statistics.num_whole == statistics.num_telling:
        # Ones alone are their own squares.
        return "counts" if statistics.largest.max() > 1 else None
    return "amplitude" if statistics.num_whole_squares > 0.99 * statistics.num_telling else None


def _saturation(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    at_limit = np.argwhere(statistics.at_type_limit > 0)
    if len(at_limit):
        yield Finding(
            severity="warning",
            what=f"{statistics.at_type_limit.sum()} numbers are the largest of "
            f"{scan.diffraction.dtype}, at pixels {named(at_limit)}",
            mend="Saturated, or the detector's mark for what it did not measure: mask these "
            "pixels (--data.mask FILE), or expose less.",
        )
        return
    largest = statistics.largest.max()
    in_counts = largest**2 if scan.measurement == "amplitude" else largest
    if in_counts >= 1000 and statistics.num_at_largest >= FEWEST_AT_LARGEST:
        places = np.argwhere(statistics.largest == largest)
        yield Finding(
            severity="warning",
            what=f"{statistics.num_at_largest} numbers equal the largest, {largest:.6g}, at "
            f"pixels {named(places)}: clipped",
            mend="The detector saturates there: mask these pixels (--data.mask FILE), or measure "
            "with less exposure.",
        )


def _faulty_pixels(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    total = statistics.mean_pattern * scan.num_patterns
    counted = np.ones(total.shape, dtype=bool) if scan.mask is None else scan.mask
    mend = "Mask them: --data.mask FILE, 1 where a pixel counts and 0 where not."
    neighbours = np.ones((3, 3), dtype=bool)
    neighbours[1, 1] = False
    # Six of eight neighbours have light: at the edge of a bright disk only half of them do.
    third_darkest = ndimage.rank_filter(total, rank=2, footprint=neighbours, mode="reflect")
    is_dead = counted & (statistics.largest == 0) & (third_darkest >= FEWEST_COUNTS_AROUND_DEAD)
    if is_dead.any():
        yield Finding(
            severity="warning",
            what=f"{is_dead.sum()} pixels are 0 in every pattern, among bright ones: "
            f"{named(np.argwhere(is_dead))}",
            mend=mend,
        )
    for axis, name in ((1, "rows"), (0, "columns")):
        gap = _dark_lines(total.sum(axis=axis), np.any(counted, axis=axis))
        if len(gap):
            yield Finding(
                severity="warning",
                what=f"the {name} {named(gap)} are 0 in every pattern, with light on both sides: "
                "a gap between the detector's modules",
                mend=mend,
            )
    brightest = ndimage.maximum_filter(total, footprint=neighbours, mode="reflect")
    is_hot = counted & (
        total > HOT_TIMES * np.maximum(brightest, FEWEST_COUNTS_AROUND_DEAD / HOT_TIMES)
    )
    middle = scan.pattern_size // 2
    # the direct beam may be as sharp
    is_hot[middle - 2 : middle + 3, middle - 2 : middle + 3] = False
    if is_hot.any():
        yield Finding(
            severity="warning",
            what=f"{is_hot.sum()} pixels are over {HOT_TIMES} times brighter than all around "
            f"them: {named(np.argwhere(is_hot))}",
            mend=mend,
        )


def _dark_lines(light: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Numbers of lines without any light that lie between bright ones."""
    lit = np.flatnonzero(light > FEWEST_COUNTS_AROUND_DEAD)
    if len(lit) == 0:
        return np.empty(0, dtype=np.int64)
    between = np.arange(lit[0], lit[-1])
    return between[(light[between] == 0) & counted[between]]


def _centre(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    mean, size = statistics.mean_pattern, scan.pattern_size
    if not mean.any():
        return
    quarter = size // 4
    inner = slice(quarter, size - quarter)
    if np.fft.fftshift(mean)[inner, inner].sum() > 2 * mean[inner, inner].sum():
        yield Finding(
            severity="warning",
            what="the light is in the corners of the patterns: zero frequency looks to be at [0, "
            "0]",
            mend="Write them with numpy.fft.fftshift over the last two axes: the direct beam "
            f"belongs to [{size // 2}, {size // 2}].",
        )
        return
    row, column = centre_of_mass(mean)
    offset = max(abs(row - size // 2), abs(column - size // 2))
    if offset > max(LARGEST_OFFSET * size, 1):
        yield Finding(
            severity="warning",
            what=f"the mean pattern has its centre of mass at [{row:.1f}, {column:.1f}], expected "
            f"near [{size // 2}, {size // 2}]",
            mend="Look at the picture: is the direct beam in the middle? If not, --data.crop N "
            "--data.centre_px '[row, column]' takes a "
            "window about it.",
        )


def centre_of_mass(pattern: np.ndarray) -> tuple[float, float]:
    row, column = ndimage.center_of_mass(pattern)
    return float(row), float(column)


def _dark_patterns(statistics: PatternStatistics) -> Iterator[Finding]:
    dark = np.flatnonzero(statistics.counts == 0)
    if len(dark):
        yield Finding(
            severity="warning",
            what=f"{len(dark)} patterns have no count at all: {named(dark)}",
            mend="Leave them out: they say that the object is black there.",
        )
    typical = (
        np.median(statistics.counts[statistics.counts > 0])
        if (statistics.counts > 0).any()
        else 0.0
    )
    odd = np.flatnonzero(
        (statistics.counts > 0)
        & ((statistics.counts < typical / 10) | (statistics.counts > 10 * typical))
    )
    if len(odd):
        yield Finding(
            severity="note",
            what=f"{len(odd)} patterns have over ten times more or fewer counts than the median "
            f"of {typical:.6g}: {named(odd)}",
            mend="Was the shutter open, the beam there, the sample in it? Leave out what was not "
            "measured as the others were.",
        )


def _photons(statistics: PatternStatistics, nphotons: float | None) -> Iterator[Finding]:
    mean = float(statistics.counts.mean())
    if nphotons is None or mean == 0:
        return
    ratio = nphotons / mean
    if not 0.5 < ratio < 2:
        yield Finding(
            severity="warning",
            what=f"nphotons is {nphotons:.6g}, but the file's numbers add up to {mean:.6g} a "
            "pattern",
            mend="Right where the numbers are scaled counts; else correct the metadata, or "
            "--data.nphotons measured where there are none.",
        )
    elif abs(ratio - 1) > 0.05:
        yield Finding(
            severity="note",
            what=f"nphotons is {nphotons:.6g}, the file's numbers add up to {mean:.6g} a pattern",
            mend="Nothing, where nphotons is the dose before noise, mask and crop.",
        )


def _positions(scan: Scan) -> Iterator[Finding]:
    positions, size = scan.positions_px, scan.pattern_size
    extent = float(np.ptp(positions, axis=0).max())
    if scan.num_patterns > 1 and extent < 1:
        yield Finding(
            severity="warning",
            what=f"all positions lie within {extent:.3g} px: they look like metres",
            mend="Give pixels of the object, wavelength * distance / (N * detector pixel); or an "
            "HDF5 file with its unit and geometry.",
        )
        return
    num_again = scan.num_patterns - len(np.unique(positions, axis=0))
    if num_again:
        yield Finding(
            severity="warning",
            what=f"{num_again} of {scan.num_patterns} positions are those of an earlier pattern",
            mend="Fine where the scan stopped there to measure again; else the positions of these "
            "patterns were not recorded.",
        )
    distances = nearest_distances_px(positions)
    if len(distances) and np.median(distances) > size * (1 - LEAST_OVERLAP):
        most = max(0.0, 1 - np.median(distances) / size)
        yield Finding(
            severity="warning",
            what=f"neighbouring positions are {np.median(distances):.4g} px apart: even a beam "
            f"that fills the patch of {size} px overlaps "
            f"by {100 * most:.0f} % only",
            mend="Check energy, distance, detector pixel and the unit of the positions. Or is it "
            "near field? That is not modelled.",
        )
    elif len(distances) and len(scan.probe):
        diameter = beam_diameter_px(scan.probe)
        overlap = 1 - distances.mean() / diameter
        if overlap < LEAST_OVERLAP:
            yield Finding(
                severity="warning",
                what=f"overlap {100 * overlap:.0f} %: {distances.mean():.4g} px between "
                f"neighbours, a beam of {diameter:.4g} px",
                mend=f"At least {100 * LEAST_OVERLAP:.0f} % is wanted, better 70 %. Check the "
                "probe and the unit of the positions.",
            )
    if scan.num_patterns > 1 and scan.object_guess is None:
        yield Finding(
            severity="note",
            what="whether the axes of the positions are exchanged or reversed can't be told from "
            "a file without an object",
            mend="Reconstruct with infer.py --refine 20, also a copy with x and y exchanged and "
            "one with x reversed: the true axes give "
            "the least deviance_per_pixel.",
        )


def _probe(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    if len(scan.probe) == 0 or not statistics.mean_pattern.any():
        return
    correlation = far_field_correlation(scan.probe, statistics.mean_pattern, scan.mask)
    if correlation < LEAST_FAR_FIELD_CORRELATION:
        yield Finding(
            severity="warning",
            what="the probe's far field does not look like the mean pattern: correlation "
            f"{correlation:.2f}, of a sound scan over 0.9",
            mend="Is it the probe of this scan, of this energy and crop, in real space, and is "
            "the direct beam in the middle of the "
            "patterns? --data.probe FILE gives another; --model.probe_trainable true mends one "
            "that is only rough.",
        )


def _object(scan: Scan, statistics: PatternStatistics) -> Iterator[Finding]:
    if scan.object_guess is None:
        return
    outside = np.flatnonzero(~lies_on_object(scan))
    if len(outside):
        rows, columns = scan.object_guess.shape
        yield Finding(
            severity="warning",
            what=f"the patches of {len(outside)} patterns do not lie on the object of {rows} x "
            f"{columns} px: {named(outside)}",
            mend="Positions are pixels of the object, of a patch's centre; position (0, 0) lies "
            "on the object's pixel [0, 0].",
        )
    fit = None if statistics.num_invalid else fit_object(scan)
    if fit is None:
        return
    words, least = min(fit.residual_turned.items(), key=lambda item: item[1], default=("", np.inf))
    if least < 0.7 * fit.residual:
        yield Finding(
            severity="warning",
            what=f"the object explains the patterns better with {words}: residual {least:.3f}, as "
            f"the positions are {fit.residual:.3f}",
            mend="Exchange or reverse them in the file, or the object.",
        )
    elif fit.residual > _EXPLAINS_NOTHING * fit.residual_exchanged:
        yield Finding(
            severity="warning",
            what=f"the object does not explain the patterns: residual {fit.residual:.3f}, and "
            f"{fit.residual_exchanged:.3f} with the "
            "positions of other patterns",
            mend="Object, probe, positions and patterns may be of different scans, or the "
            "positions' axes are not the object's.",
        )
