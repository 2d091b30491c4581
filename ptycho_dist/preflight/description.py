"""A scan in words: what its file is, holds and measures."""

from __future__ import annotations

import numpy as np

from ptycho_dist.data.scan import Scan
from ptycho_dist.memory_supply import size_in_words
from ptycho_dist.physics.scan_positions import nearest_distances_px
from ptycho_dist.physics.simulated_probes import beam_diameter_px
from ptycho_dist.preflight.findings import looks_like
from ptycho_dist.preflight.illumination import beam_overlap, far_field_correlation, fit_object
from ptycho_dist.preflight.statistics import PatternStatistics


def describe_scan(
    scan: Scan, statistics: PatternStatistics | None, *, measurement_is_said: bool
) -> dict[str, str]:
    """Return descriptions by name; without `statistics`, those that need no pass over the
    patterns."""
    size = scan.pattern_size
    described = {
        "patterns": f"{scan.num_patterns} of {size} x {size} px, {scan.diffraction.dtype}, "
        f"{size_in_words(scan.num_bytes)} unpacked",
        "measurement": _measurement(scan, statistics, measurement_is_said),
    }
    if statistics is not None:
        counts, largest = statistics.counts, statistics.largest.max()
        in_counts = largest**2 if scan.measurement == "amplitude" else largest
        described["counts a pattern"] = (
            f"mean {counts.mean():.6g}, from {counts.min():.6g} to {counts.max():.6g}"
        )
        described["counts a pixel"] = (
            f"largest {in_counts:.6g}; {100 * statistics.zero_fraction:.3g} % are 0"
        )
    described["nphotons"] = (
        "the file does not say" if scan.nphotons is None else f"{scan.nphotons:.6g} by the file"
    )
    described["mask"] = (
        "none: all pixels count"
        if scan.mask is None
        else f"{np.count_nonzero(~scan.mask)} of {scan.mask.size} pixels do not count"
    )
    described["geometry"] = _geometry(scan)
    return described | _positions(scan) | _probe(scan, statistics) | _object(scan, statistics)


def _measurement(scan: Scan, statistics: PatternStatistics | None, is_said: bool) -> str:
    looks = None if statistics is None else looks_like(statistics)
    numbers = "whole" if looks == "counts" else "roots of whole numbers"
    suggestion = f"the numbers are {numbers}: they look like {looks}" if looks else ""
    if is_said:
        return f"{scan.measurement}{f'; {suggestion}' if suggestion else ''}"
    return (
        f"nobody says; {suggestion or 'the numbers do not tell'}. Shown here as {scan.measurement}"
    )


def _geometry(scan: Scan) -> str:
    geometry = scan.geometry
    if geometry is None:
        return "the file does not say: pixels alone, which is enough for training"
    return (
        f"{geometry.energy_eV:.6g} eV ({1e9 * geometry.wavelength_m:.4g} nm), "
        f"{geometry.distance_m:.6g} m to a detector of {1e6 * geometry.detector_pixel_m:.6g} um "
        f"pixels; pixel of the object {1e9 * geometry.object_pixel_m(scan.pattern_size):.6g} nm"
    )


def _positions(scan: Scan) -> dict[str, str]:
    distances = nearest_distances_px(scan.positions_px)
    if len(distances) == 0:
        return {"positions": "one"}
    rows, columns = np.ptp(scan.positions_px, axis=0)
    extent = f"over {rows:.4g} x {columns:.4g} px (y, x)"
    if scan.geometry is not None:
        pixel_um = 1e6 * scan.geometry.object_pixel_m(scan.pattern_size)
        extent += f", {rows * pixel_um:.3g} x {columns * pixel_um:.3g} um"
    described = {
        "positions": f"{extent}; nearest neighbours {distances.mean():.4g} px apart in the mean, "
        f"up to {distances.max():.4g}"
    }
    if len(scan.probe):
        overlap, diameter = beam_overlap(distances, scan.probe)
        described["overlap"] = (
            f"{100 * overlap:.0f} %: {distances.mean():.4g} px a step, beam of {diameter:.4g} px"
        )
    return described


def _probe(scan: Scan, statistics: PatternStatistics | None) -> dict[str, str]:
    if len(scan.probe) == 0:
        return {"probe": "none in the file and no data.probe"}
    energies = (np.abs(scan.probe.astype(np.complex128)) ** 2).sum(axis=(1, 2))
    shares = ", ".join(f"{100 * share:.3g} %" for share in energies / energies.sum())
    said = (
        f"{len(scan.probe)} mode{'s' if len(scan.probe) > 1 else ''} ({shares}), diameter "
        f"{beam_diameter_px(scan.probe):.4g} px"
    )
    if statistics is not None and statistics.mean_pattern.any():
        correlation = far_field_correlation(scan.probe, statistics.mean_pattern, scan.mask)
        said += f"; far field like the mean pattern: correlation {correlation:.3f}"
    return {"probe": said}


def _object(scan: Scan, statistics: PatternStatistics | None) -> dict[str, str]:
    if scan.object_guess is None:
        return {"object": "none: nothing to compare a reconstruction with"}
    rows, columns = scan.object_guess.shape
    said = f"{rows} x {columns} px"
    fit = None if statistics is None or statistics.num_invalid else fit_object(scan)
    if fit is not None:
        said += (
            f"; explains the patterns to {fit.residual:.3f} (with other patterns' positions "
            f"{fit.residual_exchanged:.3f})"
        )
    return {"object": said}
