"""`report.html` of a reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptycho_dist.bundle import Bundle
from ptycho_dist.inference.records import Reconstruction
from ptycho_dist.report.page import Report, write_report


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
        Argument and result of `reconstruct`.
    path
        HTML file to write, or to replace.
    title, run, metrics, note
        As in `Report`.
    """
    photons = reconstruction.photons
    report = Report(
        title=title,
        run=run,
        calibration=reconstruction.summary.calibration,
        gain=reconstruction.summary.gain,
        summary=reconstruction.summary.to_dict(),
        object=reconstruction.object,
        origin_px=reconstruction.origin_px,
        valid=reconstruction.valid,
        positions_px=reconstruction.positions_px,
        mean_measured_pattern=photons.mean_measured_pattern,
        mean_predicted_pattern=photons.mean_predicted_pattern,
        pattern_deviance_per_pixel=photons.pattern_deviance_per_pixel,
        probe=reconstruction.initial_probe,
        refined_probe=reconstruction.refined_probe,
        config=bundle.require_config().to_dict(),
        versions=bundle.versions,
        metrics=metrics,
        note=note,
    )
    write_report(report, path)
