"""What a run's bundle makes of the first scan: pictures while the run goes on, and the report at
its end."""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch

from ptycho_dist.bundle import Bundle, load_bundle
from ptycho_dist.data.prepare import PreparedData
from ptycho_dist.data.scan import Scan
from ptycho_dist.distributed import describe
from ptycho_dist.inference.reconstruct import reconstruct
from ptycho_dist.inference.report import report_reconstruction
from ptycho_dist.physics.scan_positions import central_positions
from ptycho_dist.report.object_figures import draw_amplitude, draw_phase
from ptycho_dist.training.run_directory import read_metrics

logger = logging.getLogger(__name__)

LARGEST_PIXELS = 1 << 23
"""Measured pixels that are reconstructed for the report, 2048 patterns of 64 x 64: some seconds on
one core, for which all ranks wait."""


def write_training_report(run_dir: Path, data: PreparedData, trainer: L.Trainer) -> None:
    """Write `report.html`, by rank 0 alone. The run is done and its bundle written: whatever goes
    wrong here is a warning."""
    path, bundle_path = run_dir / "report.html", run_dir / "bundle.zip"
    subset = data.subset
    try:
        bundle = load_bundle(bundle_path)
        scan = central_part(data.scans[0], LARGEST_PIXELS)
        report_reconstruction(
            bundle,
            reconstruct(bundle, scan),
            path,
            title=f"Training on {', '.join(scan.path.name for scan in data.scans)}",
            run={
                "run directory": run_dir.resolve(),
                "scans": ", ".join(str(scan.path) for scan in data.scans),
                "patterns": f"{len(subset.train)} trained on, {len(subset.validation)} for "
                "validation, "
                f"in groups of {data.config.group_size}",
                "steps": f"{trainer.global_step} of {trainer.estimated_stepping_batches} "
                f"({trainer.max_epochs} epochs)",
                "processes": f"{trainer.world_size}, {trainer.strategy.root_device.type}, "
                f"precision {trainer.precision}",
            },
            metrics=read_metrics(run_dir),
            note=_what_is_shown(scan, data.scans),
        )
    except Exception as error:
        logger.warning(
            "%s: not written: %s. The bundle is not affected: %s",
            path,
            describe(error),
            bundle_path,
        )
    else:
        logger.info("wrote %s", path)


def draw_object(bundle: Bundle, scan: Scan) -> dict[str, bytes]:
    """PNG files of what a bundle makes of a scan, by name. Leaves the random numbers that follow as
    they are."""
    # a network is made, and filled with random weights at first
    with torch.random.fork_rng(devices=[]), _without_log_lines():
        reconstruction = reconstruct(bundle, scan)
    pictures = {}
    for name, draw in (("object/amplitude", draw_amplitude), ("object/phase", draw_phase)):
        png = io.BytesIO()
        draw(reconstruction.object, reconstruction.origin_px, reconstruction.valid, png)
        pictures[name] = png.getvalue()
    return pictures


@contextmanager
def _without_log_lines() -> Iterator[None]:
    """A picture among many is no news."""
    inference_logger = logging.getLogger("ptycho_dist.inference")
    level = inference_logger.level
    inference_logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        inference_logger.setLevel(level)


def central_part(scan: Scan, largest_pixels: int) -> Scan:
    """The patterns nearest to the centre of a scan, in the scan's order, as many as have that many
    pixels in all; one at least."""
    num_patterns = max(1, largest_pixels // scan.pattern_size**2)
    patterns = central_positions(scan.positions_px, num_patterns)
    return dataclasses.replace(
        scan, diffraction=scan.diffraction[patterns], positions_px=scan.positions_px[patterns]
    )


def _what_is_shown(part: Scan, scans: tuple[Scan, ...]) -> str:
    first = scans[0]
    patterns = f"all {first.num_patterns} patterns"
    if part.num_patterns < first.num_patterns:
        patterns = f"the {part.num_patterns} of {first.num_patterns} patterns nearest to the centre"
    of_scan = (
        f"of {first.path.name}, the first of {len(scans)} scans"
        if len(scans) > 1
        else "of the scan"
    )
    return f"Shown are {patterns} {of_scan}, trained on or not, as the bundle reconstructs them."
