"""A scan's object from a trained network, in one process."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.atomic_file import replacing
from ptycho_dist.bundle import Bundle, load_bundle, software_versions
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Measurement, Scan
from ptycho_dist.inference.alignment import stitching_order
from ptycho_dist.inference.passes import correct_together, stitch_alone
from ptycho_dist.inference.product import require_geometry, write_product
from ptycho_dist.inference.refine import refine
from ptycho_dist.inference.report import report_reconstruction
from ptycho_dist.inference.scan_patterns import ScanPatterns
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.loss import poisson_deviance
from ptycho_dist.physics.mask import num_counted
from ptycho_dist.physics.probe import normalize_probe
from ptycho_dist.physics.propagation import diffracted_intensity
from ptycho_dist.report.object_figures import draw_amplitude, draw_phase
from ptycho_dist.report.probe_figure import draw_probe
from ptycho_dist.scale.calibration import brightness as brightness_of
from ptycho_dist.scale.exact_sum import exact_energy_sum
from ptycho_dist.scale.normalization import rms_factor as derive_rms_factor

logger = logging.getLogger(__name__)

PRODUCT = "product.h5"
"""As ptychodus names it."""

NormalizationSource = Literal["bundle", "scan"]
ProbeSource = Literal["bundle", "scan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotonComparison:
    """Photons that an object predicts against those that were measured.

    Attributes
    ----------
    mean_measured_pattern, mean_predicted_pattern
        float64 (N, N): counts a pixel, mean over patterns, zero frequency at [N // 2, N // 2]; NaN
        at pixels that do not count.
    pattern_deviance_per_pixel
        float32 (n,): twice the mean Poisson deviance over the pixels of each pattern that count, in
        the order of the scan.
    deviance_per_pixel
        Its mean.
    """

    mean_measured_pattern: np.ndarray
    mean_predicted_pattern: np.ndarray
    pattern_deviance_per_pixel: np.ndarray
    deviance_per_pixel: float

    def numbers(self) -> dict[str, float]:
        """Figures for `summary.json`: of the pixels that count."""
        return {
            "mean_measured_photons": float(np.nansum(self.mean_measured_pattern)),
            "mean_predicted_photons": float(np.nansum(self.mean_predicted_pattern)),
            "deviance_per_pixel": self.deviance_per_pixel,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """An object and how well it explains its scan.

    Attributes
    ----------
    object
        complex64 (H, W).
    origin_px
        float64 (2,) as (y, x): scan coordinate of object[0, 0]; the patch centred at y covers rows
        y - N/2 - origin_y onward.
    positions_px
        float64 (n, 2) as (y, x).
    valid
        bool (H, W): what was illuminated.
    illumination
        float32 (H, W): the probe's intensity summed over all positions, normalised units.
    initial_probe, probe
        complex64 (modes, N, N), normalised units: the scan's own, and the one that was used in the
        end; equal where neither training nor inference refined it.
    photons
        The photons that the object predicts against those measured.
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
    summary: dict[str, Any]


def infer(
    bundle_path: Path,
    scan_path: Path,
    out_dir: Path,
    *,
    normalization: NormalizationSource = "bundle",
    probe: ProbeSource | None = None,
    measurement: Measurement | None = None,
    read: Mapping[str, Any] | None = None,
    refine_iterations: int = 0,
    refine_probe: bool = False,
    product: bool = False,
) -> Reconstruction:
    """Reconstruct a scan file with a bundle, and write what `write_reconstruction` writes and
    `report.html`; see `reconstruct`.

    With `product`, write a ptychodus product too, `product.h5`; a scan without geometry is then
    refused before anything is computed.

    What the scan file does not say of itself (`data.energy_eV`, `data.hdf5` and so on) is what the
    bundle was trained with, but for the keys in `read`, a nested mapping. `data.diffraction` is of
    one scan alone, and `data.measurement` only a default.
    """
    started = time.perf_counter()
    bundle = load_bundle(bundle_path)
    trained_with = bundle.require_config(bundle_path).data
    given = dict(read or {})
    hdf5 = dataclasses.replace(trained_with.hdf5, **given.pop("hdf5", {}))
    options = dataclasses.replace(
        trained_with,
        **{"path": str(scan_path), "measurement": None, "diffraction": None, **given, "hdf5": hdf5},
    )
    scan = read_scan(
        scan_path, measurement, options=options, default_measurement=trained_with.measurement
    )
    if product:
        require_geometry(scan)
        if (out_dir / PRODUCT).exists() and (out_dir / PRODUCT).samefile(scan_path):
            raise ValueError(
                f"{scan_path}: found the file that the product would replace, expected another "
                "directory to write to"
            )
    seconds_read = time.perf_counter() - started
    reconstruction = reconstruct(
        bundle,
        scan,
        normalization=normalization,
        probe=probe,
        refine_iterations=refine_iterations,
        refine_probe=refine_probe,
    )
    summary = reconstruction.summary
    summary["bundle"], summary["data"] = str(bundle_path), str(scan_path)
    summary["seconds"] = {"read": round(seconds_read, 3), **summary["seconds"]}
    write_reconstruction(reconstruction, out_dir)
    if product:
        write_product(reconstruction, bundle, scan, out_dir / PRODUCT)
        logger.info("wrote %s", out_dir / PRODUCT)
    report_reconstruction(
        bundle,
        reconstruction,
        out_dir / "report.html",
        title=f"Reconstruction of {scan_path.name}",
        run={
            "scan": scan_path.resolve(),
            "bundle": bundle_path.resolve(),
            "normalization": f"factor {summary['normalization']['factor']!r}, of the "
            f"{normalization}",
            "device": summary["device"],
            "seconds": ", ".join(
                f"{stage} {seconds}" for stage, seconds in summary["seconds"].items()
            ),
        },
    )
    logger.info("wrote %s", out_dir / "report.html")
    return reconstruction


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

    The photon scale is the bundle's; none is derived. Patterns are held where they take a small
    part of the memory that is left; else they are streamed, and memory is that of the stitched
    object and some batches.

    Parameters
    ----------
    bundle
        The trained network.
    scan
        Its pattern size must be the bundle's.
    normalization
        Whose RMS factor, and so in whose light the object's amplitude is told: that of the patterns
        trained on, or of the scan. Phases and counts are the same either way.
    probe
        `bundle` takes the bundle's probe: the one of this scan where training refined it, else that
        of the first scan trained on. `scan` takes the scan's own. None is `bundle` where training
        refined the probe, else `scan`; a scan without one needs the bundle's.
    refine_iterations
        Maximum-likelihood updates of the stitched object, each a pass over the patterns; see
        `refine`.
    refine_probe
        Update the probe in them too.

    Raises
    ------
    ValueError
        The pattern sizes differ, a pattern can't be used, or the number of updates is none.
    """
    if refine_iterations < 0:
        raise ValueError(f"refine_iterations is {refine_iterations}, expected at least 0")
    if refine_probe and not refine_iterations:
        raise ValueError(
            "refine_probe is set and refine_iterations is 0, expected at least 1: the probe is "
            "updated in these iterations"
        )
    config = bundle.require_config()
    if scan.pattern_size != bundle.pattern_size:
        raise ValueError(
            f"{scan.path}: found patterns of {scan.pattern_size} x {scan.pattern_size}, "
            f"expected {bundle.pattern_size} x {bundle.pattern_size}, "
            "which the bundle's network was trained on"
        )
    seconds: dict[str, float] = {}

    started = time.perf_counter()
    rms_factor = bundle.calibration.rms_factor
    if normalization == "scan":
        amplitudes = PatternSource([scan]).chunks(np.arange(scan.num_patterns))
        rms_factor = derive_rms_factor(exact_energy_sum(amplitudes), scan.pattern_size)
    logger.info("normalization: the %s's factor %r", normalization, rms_factor)
    patterns = ScanPatterns(scan, rms_factor)
    seconds["normalize"] = _since(started)

    started = time.perf_counter()
    device = patterns.device
    network = bundle.build_model(device)
    mask = None if scan.mask is None else torch.from_numpy(scan.mask).to(device)
    modes, probe_record = _choose_probe(bundle, scan, probe)
    known_probe = normalize_probe(torch.from_numpy(modes)).to(device)
    # The network reads patterns relative to their light, so the light must be this scan's. What
    # comes of it is told in the light of the patterns that the normalisation was derived from:
    # there a probe has the energy (N/2)^2.
    brightness = 1.0
    if normalization == "bundle":
        brightness = brightness_of(patterns.mean_energy(), (scan.pattern_size / 2) ** 2)
    if normalization == "bundle":
        logger.info(
            "brightness: the scan's light has %.4g times the amplitude of that of the patterns "
            "trained on",
            brightness,
        )
    stitched = StitchedObject(scan.positions_px, brightness * known_probe)
    # Intensities are in units of the normalisation that was used; what is stored counts photons in
    # those of the stored one.
    in_stored_units = (bundle.calibration.rms_factor / rms_factor) ** 2
    predicted_photons = bundle.predicted_scale(rms_factor) ** 2
    # Of the training set, so what counts photons that were measured does not depend on the scale
    # that predicts.
    measured_photons = (
        bundle.calibration.nphotons / bundle.calibration.mean_energy * in_stored_units
    )

    corrections = {}
    if config.data.group_size == 1:
        order = stitching_order(scan.positions_px, scan.pattern_size)
        stitch_alone(network, stitched, lambda: patterns.batches(order), mask=mask)
    else:
        corrections["corrections"] = correct_together(
            network,
            stitched,
            patterns.batches,
            num_patterns=scan.num_patterns,
            photons_per_intensity=measured_photons,
            mask=mask,
        )
    seconds["network_and_stitching"] = _since(started)

    refinement = {}
    if refine_iterations:
        refined = refine(
            stitched,
            lambda: (
                (positions_px, measured_photons * x_norm.square())
                for positions_px, x_norm in patterns.batches()
            ),
            num_patterns=scan.num_patterns,
            photons_per_intensity=predicted_photons,
            iterations=refine_iterations,
            refine_probe=refine_probe,
            mask=mask,
        )
        if refine_probe:
            stitched.replace(
                refined.object, refined.probe, torch.from_numpy(scan.positions_px).to(device)
            )
        else:
            stitched.hold(refined.object)
        refinement = {"refinement": refined.summary}

    started = time.perf_counter()
    photons = _compare_photons(patterns, stitched, predicted_photons, measured_photons, mask)
    seconds["photons"] = _since(started)

    summary = {
        "intensity_scale": bundle.intensity_scale,
        "nphotons": bundle.calibration.nphotons,
        "nphotons_source": bundle.calibration.nphotons_source,
        "trained_on": {
            "num_patterns": bundle.calibration.num_patterns,
            "mean_energy": bundle.calibration.mean_energy,
            "rms_factor": bundle.calibration.rms_factor,
            "subset_fingerprint": bundle.calibration.subset_fingerprint,
        },
        **photons.numbers(),
        **corrections,
        **refinement,
        "num_patterns": scan.num_patterns,
        "pattern_size": scan.pattern_size,
        "masked_pixels": scan.pattern_size**2 - scan.num_counted,
        "normalization": {"source": normalization, "mode": "rms", "factor": rms_factor},
        "probe": probe_record,
        "device": str(device),
        "versions": software_versions(),
        "seconds": seconds,
    }
    return Reconstruction(
        object=brightness * stitched.object(),
        origin_px=stitched.origin_px,
        positions_px=scan.positions_px,
        valid=stitched.valid(),
        illumination=stitched.illumination() / brightness**2,
        initial_probe=normalize_probe(
            torch.from_numpy(scan.probe if len(scan.probe) else modes)
        ).numpy(),
        probe=(stitched.probe / brightness if refine_probe else known_probe).cpu().numpy(),
        photons=photons,
        summary=summary,
    )


def _choose_probe(
    bundle: Bundle, scan: Scan, source: ProbeSource | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """The probe to reconstruct with, (modes, N, N), and what `summary.json` tells of it."""
    source = source or ("bundle" if bundle.refined_probes else "scan")
    if source == "scan":
        scan.require_probe()
    of_this_scan = source == "scan" or scan.fingerprint in bundle.refined_probes
    modes = (
        scan.probe
        if source == "scan"
        else bundle.refined_probes.get(scan.fingerprint, bundle.probe)
    )
    refined = source == "bundle" and bool(bundle.refined_probes)
    whose = "of this scan" if of_this_scan else "of the first scan that was trained on"
    logger.info(
        "probe: the %s's, %s%s, %d mode(s)",
        source,
        "refined, " if refined else "",
        whose,
        len(modes),
    )
    return modes, {
        "source": source,
        "refined": refined,
        "of_this_scan": of_this_scan,
        "modes": len(modes),
    }


def write_reconstruction(reconstruction: Reconstruction, out_dir: Path) -> None:
    """Write `reconstruction.npz`, `summary.json` and pictures of amplitude, phase and probe to a
    directory, which is made if missing."""
    started = time.perf_counter()
    with replacing(out_dir / "reconstruction.npz") as temporary:
        np.savez(
            temporary,
            object=reconstruction.object,
            origin_px=reconstruction.origin_px,
            positions_px=reconstruction.positions_px,
            valid=reconstruction.valid,
            illumination=reconstruction.illumination,
            probe=reconstruction.probe,
            pattern_deviance_per_pixel=reconstruction.photons.pattern_deviance_per_pixel,
        )
    draw_amplitude(
        reconstruction.object,
        reconstruction.origin_px,
        reconstruction.valid,
        out_dir / "amplitude.png",
    )
    draw_phase(
        reconstruction.object, reconstruction.origin_px, reconstruction.valid, out_dir / "phase.png"
    )
    before, after = reconstruction.initial_probe, reconstruction.probe
    draw_probe(before, None if np.array_equal(before, after) else after, out_dir / "probe.png")
    reconstruction.summary["seconds"]["write"] = _since(started)
    with replacing(out_dir / "summary.json") as temporary:
        temporary.write_text(json.dumps(reconstruction.summary, indent=2) + "\n")
    logger.info(
        "wrote reconstruction.npz, amplitude.png, phase.png, probe.png and summary.json to %s",
        out_dir,
    )


def _compare_photons(
    patterns: ScanPatterns,
    stitched: StitchedObject,
    predicted_photons: float,
    measured_photons: float,
    mask: Tensor | None,
) -> PhotonComparison:
    """Photons that the stitched object predicts against those that were measured, over the whole
    scan; both a unit of intensity."""
    size, device = stitched.patch_size, stitched.probe.device
    measured, predicted = torch.zeros(2, size, size, dtype=torch.float64, device=device)
    # All at once: small arrays that stay, between the large ones of each batch, would keep the
    # allocator from using the room again.
    deviance, done = torch.empty(patterns.num_patterns, dtype=torch.float64, device=device), 0
    for positions_px, x_norm in patterns.batches():
        corners, shifted_probe = stitched.place(positions_px)
        counts = measured_photons * x_norm.square()
        rate = predicted_photons * diffracted_intensity(
            stitched.extract(corners), shifted_probe, mask
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
        mean_measured_pattern=(measured / len(deviance_per_pixel)).cpu().numpy(),
        mean_predicted_pattern=(predicted / len(deviance_per_pixel)).cpu().numpy(),
        pattern_deviance_per_pixel=deviance_per_pixel.astype(np.float32),
        deviance_per_pixel=float(deviance_per_pixel.mean()),
    )


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
