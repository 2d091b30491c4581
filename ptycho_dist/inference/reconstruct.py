"""A scan's object from a trained network, in one process: arrays in, records out."""

from __future__ import annotations

import logging

import numpy as np
import torch

from ptycho_dist.bundle import Bundle, software_versions
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.scan import Scan
from ptycho_dist.inference.passes import correct_together, stitch_alone
from ptycho_dist.inference.records import (
    Corrections,
    Normalization,
    NormalizationSource,
    PhotonComparison,
    ProbeChoice,
    ProbeSource,
    Reconstruction,
    RefinementRecord,
    Summary,
    Units,
    timed,
)
from ptycho_dist.inference.refine import refine
from ptycho_dist.inference.scan_patterns import ScanPatterns
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.loss import poisson_deviance
from ptycho_dist.physics.mask import num_counted
from ptycho_dist.physics.probe import normalize_probe
from ptycho_dist.physics.propagation import diffracted_intensity
from ptycho_dist.scale.exact_sum import exact_energy_sum
from ptycho_dist.scale.normalization import rms_factor

logger = logging.getLogger(__name__)


@torch.inference_mode()
def reconstruct(
    bundle: Bundle,
    scan: Scan,
    *,
    normalization: NormalizationSource = "bundle",
    probe: ProbeSource | None = None,
    refine_iterations: int = 0,
    refine_probe: bool = False,
) -> Reconstruction:
    """Reconstruct the object of a scan with a trained network, on a GPU if there is one.

    The photon scale is the bundle's; none is derived. Patterns are held in memory where they take a
    small part of what is left. Otherwise they are streamed, and memory is that of the stitched
    object and some batches.

    Parameters
    ----------
    bundle
        The trained network.
    scan
        Its pattern size must be the bundle's.
    normalization
        Source of the RMS factor, and so of the flux that the object's amplitude is relative to: the
        training patterns (`bundle`) or the scan. Phases and counts are the same either way.
    probe
        `bundle` takes the bundle's probe: the one of this scan if training refined it, else that
        of the first training scan. `scan` takes the scan's own. None is `bundle` if training
        refined the probe, else `scan`; a scan without a probe needs `bundle`.
    refine_iterations
        Maximum-likelihood updates of the stitched object, each a pass over the patterns; see
        `refine`.
    refine_probe
        Update the probe too.

    Raises
    ------
    ValueError
        The pattern sizes differ, a pattern can't be used, or the number of updates is invalid.
    """
    _require_usable(bundle, scan, refine_iterations, refine_probe)
    modes, choice = _choose_probe(bundle, scan, probe)
    seconds: dict[str, float] = {}
    with timed(seconds, "normalize"):
        factor = _rms_factor(bundle, scan, normalization)
        patterns = ScanPatterns(scan, factor)
    with timed(seconds, "network_and_stitching"):
        units = _units(bundle, patterns, factor, normalization)
        known_probe = normalize_probe(torch.from_numpy(modes)).to(patterns.device)
        # The network reads patterns relative to their light, so the probe must be as bright as this
        # scan. The results are scaled back to a probe of energy (N/2)**2.
        stitched = StitchedObject(scan.positions_px, units.brightness * known_probe)
        corrections = _apply_network(bundle, patterns, stitched, units)
    refinement = None
    if refine_iterations:
        refinement = _refine(patterns, stitched, units, refine_iterations, refine_probe)
    with timed(seconds, "photons"):
        photons = _compare_photons(patterns, stitched, units)
    scans_own = normalize_probe(torch.from_numpy(scan.probe if len(scan.probe) else modes))
    used = stitched.probe / units.brightness if refine_probe else known_probe
    return Reconstruction(
        object=units.brightness * stitched.object(),
        origin_px=stitched.origin_px,
        positions_px=scan.positions_px,
        valid=stitched.valid(),
        illumination=stitched.illumination() / units.brightness**2,
        initial_probe=scans_own.numpy(),
        probe=used.cpu().numpy(),
        photons=photons,
        units=units,
        summary=Summary(
            calibration=bundle.calibration,
            gain=bundle.gain,
            mean_measured_photons=float(np.nansum(photons.mean_measured_pattern)),
            mean_predicted_photons=float(np.nansum(photons.mean_predicted_pattern)),
            deviance_per_pixel=photons.deviance_per_pixel,
            corrections=corrections,
            refinement=refinement,
            num_patterns=scan.num_patterns,
            pattern_size=scan.pattern_size,
            masked_pixels=scan.pattern_size**2 - scan.num_counted,
            normalization=Normalization(source=normalization, factor=factor),
            probe=choice,
            device=str(patterns.device),
            versions=software_versions(),
            seconds=seconds,
        ),
    )


def _require_usable(bundle: Bundle, scan: Scan, refine_iterations: int, refine_probe: bool) -> None:
    if refine_iterations < 0:
        raise ValueError(f"refine_iterations is {refine_iterations}, expected at least 0")
    if refine_probe and not refine_iterations:
        raise ValueError(
            "refine_probe is set and refine_iterations is 0, expected at least 1: the probe is "
            "updated in these iterations"
        )
    bundle.require_config()
    if scan.pattern_size != bundle.pattern_size:
        raise ValueError(
            f"{scan.path}: found patterns of {scan.pattern_size} x {scan.pattern_size}, "
            f"expected {bundle.pattern_size} x {bundle.pattern_size}, "
            "which the bundle's network was trained on"
        )


def _choose_probe(
    bundle: Bundle, scan: Scan, source: ProbeSource | None
) -> tuple[np.ndarray, ProbeChoice]:
    """Return the probe to reconstruct with, (modes, N, N), and the record of it."""
    source = source or ("bundle" if bundle.refined_probes else "scan")
    if source == "scan":
        scan.require_probe()
        modes = scan.probe
    else:
        modes = bundle.refined_probes.get(scan.fingerprint, bundle.probe)
    choice = ProbeChoice(
        source=source,
        refined=source == "bundle" and bool(bundle.refined_probes),
        of_this_scan=source == "scan" or scan.fingerprint in bundle.refined_probes,
        modes=len(modes),
    )
    logger.info(
        "probe: the %s's, %sof %s, %d mode(s)",
        source,
        "refined, " if choice.refined else "",
        "this scan" if choice.of_this_scan else "the first scan that was trained on",
        len(modes),
    )
    return modes, choice


def _rms_factor(bundle: Bundle, scan: Scan, source: NormalizationSource) -> float:
    factor = bundle.calibration.rms_factor
    if source == "scan":
        chunks = PatternSource([scan]).chunks(np.arange(scan.num_patterns))
        factor = rms_factor(exact_energy_sum(chunks), scan.pattern_size)
    logger.info("normalization: the %s's factor %r", source, factor)
    return factor


def _units(
    bundle: Bundle, patterns: ScanPatterns, factor: float, normalization: NormalizationSource
) -> Units:
    if normalization == "scan":  # its factor gives the patterns this energy by definition
        return Units.of(bundle, factor, (bundle.pattern_size / 2) ** 2)
    units = Units.of(bundle, factor, patterns.mean_energy())
    logger.info(
        "brightness: the scan's light has %.4g times the amplitude of that of the patterns "
        "trained on",
        units.brightness,
    )
    return units


def _apply_network(
    bundle: Bundle, patterns: ScanPatterns, stitched: StitchedObject, units: Units
) -> Corrections | None:
    """Put the network's object on an empty canvas."""
    network = bundle.build_model(patterns.device)
    if bundle.require_config().data.group_size > 1:
        return correct_together(network, stitched, patterns, units.measured_photons)
    stitch_alone(network, stitched, patterns)
    return None


def _refine(
    patterns: ScanPatterns,
    stitched: StitchedObject,
    units: Units,
    iterations: int,
    refine_probe: bool,
) -> RefinementRecord:
    """Refine the object on the canvas, and its probe if asked."""
    seconds: dict[str, float] = {}
    with timed(seconds, "refine"):
        refined = refine(
            stitched, patterns, units, iterations=iterations, refine_probe=refine_probe
        )
    if refine_probe:
        positions_px = torch.from_numpy(patterns.positions_px).to(patterns.device)
        stitched.replace(refined.object, refined.probe, positions_px)
    else:
        stitched.hold(refined.object)
    return RefinementRecord(
        iterations=iterations,
        refine_probe=refine_probe,
        deviance_per_pixel=refined.deviance_per_pixel,
        seconds=seconds["refine"],
    )


def _compare_photons(
    patterns: ScanPatterns, stitched: StitchedObject, units: Units
) -> PhotonComparison:
    """Compare the photons that the stitched object predicts with the measured ones, in one pass."""
    size, device, mask = stitched.patch_size, patterns.device, patterns.mask
    measured, predicted = torch.zeros(2, size, size, dtype=torch.float64, device=device)
    # Allocated at once: small arrays that stay between the large ones of each batch would keep the
    # allocator from reusing the room.
    deviance, done = torch.empty(patterns.num_patterns, dtype=torch.float64, device=device), 0
    for positions_px, x_norm in patterns.batches():
        corners, probe = stitched.place(positions_px)
        counts = units.measured_photons * x_norm.square()
        rate = units.predicted_photons * diffracted_intensity(
            stitched.extract(corners), probe, mask
        )
        measured += counts.sum(dim=0, dtype=torch.float64)
        predicted += rate.sum(dim=0, dtype=torch.float64)
        deviance[done : done + len(x_norm)] = poisson_deviance(rate, counts).sum(
            dim=(1, 2), dtype=torch.float64
        )
        done += len(x_norm)
    deviance_per_pixel = deviance.cpu().numpy() * (2 / num_counted(measured, mask))
    if mask is not None:
        measured[~mask] = predicted[~mask] = torch.nan
    return PhotonComparison(
        mean_measured_pattern=(measured / patterns.num_patterns).cpu().numpy(),
        mean_predicted_pattern=(predicted / patterns.num_patterns).cpu().numpy(),
        pattern_deviance_per_pixel=deviance_per_pixel.astype(np.float32),
        deviance_per_pixel=float(deviance_per_pixel.mean()),
    )
