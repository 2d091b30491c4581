"""What `report.html` shows of a reconstruction, gathered from the bundle, the scan and what was
reconstructed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho_dist.bundle import Bundle
from ptycho_dist.report.page import Report, write_report
from ptycho_dist.report.scale_audit import ScaleRecord

if TYPE_CHECKING:
    from ptycho_dist.inference.reconstruct import Reconstruction


def report_reconstruction(
    bundle: Bundle,
    reconstruction: Reconstruction,
    path: Path,
    *,
    title: str,
    run: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]] = (),
    note: str | None = None,
) -> None:
    """Write the page.

    Parameters
    ----------
    bundle, reconstruction
        As `reconstruct` took it, and what it gave.
    path
        HTML file to write, or to replace.
    title, run, metrics, note
        As in `Report`.
    """
    photons = reconstruction.photons
    probe, refined_probe = reconstruction.initial_probe, reconstruction.probe
    report = Report(
        title=title,
        run=run,
        scale=ScaleRecord(
            intensity_scale=bundle.intensity_scale,
            gain=bundle.gain,
            nphotons=bundle.calibration.nphotons,
            nphotons_source=bundle.calibration.nphotons_source,
            rms_factor=bundle.calibration.rms_factor,
            mean_energy=bundle.calibration.mean_energy,
            num_patterns=bundle.calibration.num_patterns,
            pattern_size=bundle.pattern_size,
            subset_fingerprint=bundle.calibration.subset_fingerprint,
        ),
        summary=reconstruction.summary,
        object=reconstruction.object,
        origin_px=reconstruction.origin_px,
        valid=reconstruction.valid,
        positions_px=reconstruction.positions_px,
        mean_measured_pattern=photons.mean_measured_pattern,
        mean_predicted_pattern=photons.mean_predicted_pattern,
        pattern_deviance_per_pixel=photons.pattern_deviance_per_pixel,
        probe=probe,
        config=bundle.require_config().to_dict(),
        versions=bundle.versions,
        metrics=metrics,
        refined_probe=None if np.array_equal(probe, refined_probe) else refined_probe,
        refinement_deviance_per_pixel=reconstruction.summary.get("refinement", {}).get(
            "deviance_per_pixel", ()
        ),
        note=note,
    )
    write_report(report, path)
