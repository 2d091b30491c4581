"""A scan's object from a trained network, in one process."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ptycho_dist.atomic_file import replacing
from ptycho_dist.bundle import Bundle, load_bundle, software_versions
from ptycho_dist.data.normalization import derive_rms_normalization, normalize
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Measurement, Scan
from ptycho_dist.data.subset import nearest_neighbours
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.first_estimate import first_estimate
from ptycho_dist.model.loss import poisson_deviance
from ptycho_dist.physics.probe import illumination, normalize_probe
from ptycho_dist.physics.propagation import diffracted_intensity
from ptycho_dist.progress import Progress
from ptycho_dist.report.figures import draw_amplitude, draw_phase

logger = logging.getLogger(__name__)

BATCH_PATTERNS = 64

NormalizationSource = Literal["bundle", "scan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """An object and how well it explains its scan.

    Attributes
    ----------
    object
        complex64 (H, W).
    origin_px
        float64 (2,) as (y, x): scan coordinate of object[0, 0]; the patch centred at y covers rows y - N/2 - origin_y onward.
    positions_px
        float64 (n, 2) as (y, x).
    valid
        bool (H, W): what was illuminated.
    summary
        Figures for `summary.json`.
    """

    object: np.ndarray
    origin_px: np.ndarray
    positions_px: np.ndarray
    valid: np.ndarray
    summary: dict[str, Any]


def infer(
    bundle_path: Path,
    scan_path: Path,
    out_dir: Path,
    *,
    normalization: NormalizationSource = "bundle",
    measurement: Measurement | None = None,
) -> Reconstruction:
    """Reconstruct a scan file with a bundle and write `reconstruction.npz`, the pictures and `summary.json`; see `reconstruct`."""
    started = time.perf_counter()
    bundle = load_bundle(bundle_path)
    scan = read_scan(scan_path, measurement, default_measurement=bundle.config.data.measurement)
    seconds_read = time.perf_counter() - started
    reconstruction = reconstruct(bundle, scan, normalization=normalization)
    summary = reconstruction.summary
    summary["bundle"], summary["data"] = str(bundle_path), str(scan_path)
    summary["seconds"] = {"read": round(seconds_read, 3), **summary["seconds"]}
    write_reconstruction(reconstruction, out_dir)
    return reconstruction


@torch.inference_mode()
def reconstruct(bundle: Bundle, scan: Scan, *, normalization: NormalizationSource = "bundle") -> Reconstruction:
    """Reconstruct the object of a scan with a trained network, on a GPU if there is one.

    The photon scale is the bundle's; none is derived. Patterns are streamed: memory is that of the stitched object and one batch.

    Parameters
    ----------
    bundle
        The trained network.
    scan
        Its pattern size must be the bundle's. Its own probe is used.
    normalization
        `bundle` normalises the input by the stored RMS factor; `scan` by the scan's own, for a scan of another dose. Counts are the same
        function of the measured amplitude either way.

    Raises
    ------
    ValueError
        The pattern sizes differ, or a pattern can't be used.
    """
    if scan.pattern_size != bundle.pattern_size:
        raise ValueError(
            f"{scan.path}: found patterns of {scan.pattern_size} x {scan.pattern_size}, "
            f"expected {bundle.pattern_size} x {bundle.pattern_size}, "
            "which the bundle's network was trained on"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds: dict[str, float] = {}

    started = time.perf_counter()
    rms_factor = bundle.rms_factor
    if normalization == "scan":
        rms_factor = derive_rms_normalization((amplitude for _, amplitude in _batches(scan)), scan.pattern_size).factor
    logger.info("normalization: the %s's factor %r", normalization, rms_factor)
    seconds["normalize"] = _since(started)

    started = time.perf_counter()
    network = bundle.build_model(device)
    probe = normalize_probe(torch.from_numpy(scan.probe)).to(device)
    stitched = StitchedObject(scan.positions_px, probe)
    # From the middle outwards, so that each patch meets others that lie there already and can tell its phase.
    distance = np.square(scan.positions_px - scan.positions_px.mean(axis=0)).sum(axis=1)
    groups = _overlapping_groups(scan, bundle.config.data.group_size)[np.argsort(distance, kind="stable")]
    for patterns, amplitude in _batches(scan, groups):
        x_norm = torch.from_numpy(normalize(amplitude, rms_factor)).to(device)
        corners, shifted_probe = stitched.place(scan.positions_px[patterns])
        estimate = first_estimate(x_norm, shifted_probe, corners)
        # Of each group only the pattern that it was made for: every other one has a group of its own.
        patches = network(x_norm[:, 0], shifted_probe[:, 0], estimate[:, 0])
        stitched.add(patches, illumination(shifted_probe[:, 0]), corners[:, 0])
    seconds["network_and_stitching"] = _since(started)

    started = time.perf_counter()
    # The prediction is in units of the normalisation that was used; the stored scale counts photons in those of the stored one.
    predicted_scale = bundle.intensity_scale * bundle.gain * bundle.rms_factor / rms_factor
    photons = _compare_photons(bundle, scan, stitched, predicted_scale)
    seconds["photons"] = _since(started)

    summary = {
        "intensity_scale": bundle.intensity_scale,
        "nphotons": bundle.scale.nphotons,
        "nphotons_source": bundle.nphotons_source,
        **photons,
        "num_patterns": scan.num_patterns,
        "pattern_size": scan.pattern_size,
        "normalization": {"source": normalization, "mode": "rms", "factor": rms_factor},
        "device": str(device),
        "versions": software_versions(),
        "seconds": seconds,
    }
    return Reconstruction(
        object=stitched.object(), origin_px=stitched.origin_px, positions_px=scan.positions_px, valid=stitched.valid(), summary=summary
    )


def write_reconstruction(reconstruction: Reconstruction, out_dir: Path) -> None:
    """Write `reconstruction.npz`, `amplitude.png`, `phase.png` and `summary.json` to a directory, which is made if missing."""
    started = time.perf_counter()
    with replacing(out_dir / "reconstruction.npz") as temporary:
        np.savez(
            temporary,
            object=reconstruction.object,
            origin_px=reconstruction.origin_px,
            positions_px=reconstruction.positions_px,
            valid=reconstruction.valid,
        )
    draw_amplitude(reconstruction.object, reconstruction.origin_px, reconstruction.valid, out_dir / "amplitude.png")
    draw_phase(reconstruction.object, reconstruction.origin_px, reconstruction.valid, out_dir / "phase.png")
    reconstruction.summary["seconds"]["write"] = _since(started)
    with replacing(out_dir / "summary.json") as temporary:
        temporary.write_text(json.dumps(reconstruction.summary, indent=2) + "\n")
    logger.info("wrote reconstruction.npz, amplitude.png, phase.png and summary.json to %s", out_dir)


def _compare_photons(bundle: Bundle, scan: Scan, stitched: StitchedObject, predicted_scale: float) -> dict[str, float]:
    """Photons that the stitched object predicts against those that were measured, over the whole scan.

    What was measured is counted by the training set's photons a unit of energy, so it does not depend on the scale that predicts.
    """
    measured_photons = predicted_photons = deviance = 0.0
    photons_per_energy = bundle.scale.nphotons / bundle.scale.mean_energy
    for patterns, amplitude in _batches(scan):
        corners, shifted_probe = stitched.place(scan.positions_px[patterns])
        counts = photons_per_energy * torch.from_numpy(normalize(amplitude, bundle.rms_factor)).to(shifted_probe.device).square()
        rate = predicted_scale**2 * diffracted_intensity(stitched.extract(corners), shifted_probe)
        measured_photons += float(counts.sum(dtype=torch.float64))
        predicted_photons += float(rate.sum(dtype=torch.float64))
        deviance += float(poisson_deviance(rate, counts).sum(dtype=torch.float64))
    return {
        "mean_measured_photons": measured_photons / scan.num_patterns,
        "mean_predicted_photons": predicted_photons / scan.num_patterns,
        "deviance_per_pixel": 2 * deviance / (scan.num_patterns * scan.pattern_size**2),
    }


def _overlapping_groups(scan: Scan, group_size: int) -> np.ndarray:
    """(n, C): each pattern and its nearest neighbours, as in training. It stands in itself for one too far away to overlap."""
    groups = nearest_neighbours(scan.positions_px, min(group_size, scan.num_patterns))
    offset = np.abs(scan.positions_px[groups] - scan.positions_px[groups[:, :1]]).max(axis=-1)
    return np.where(offset < scan.pattern_size, groups, groups[:, :1])


def _batches(scan: Scan, groups: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pattern numbers (k,) or, of groups, (k, C), and their measured amplitudes (k, N, N) or (k, C, N, N); a long pass says how far it is.

    In the order of the scan unless groups are given.
    """
    groups = np.arange(scan.num_patterns) if groups is None else groups
    progress = Progress(scan.path.name)
    step = max(BATCH_PATTERNS * len(groups) // groups.size, 1)
    for start in range(0, len(groups), step):
        patterns = groups[start : start + step]
        yield patterns, scan.amplitude(patterns.reshape(-1)).reshape(*patterns.shape, scan.pattern_size, scan.pattern_size)
        progress(start + len(patterns), len(groups))


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
