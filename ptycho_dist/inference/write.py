"""Files of a reconstruction, but for `report.html` and the product."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ptycho_dist.atomic_file import replacing
from ptycho_dist.inference.records import Reconstruction, Summary
from ptycho_dist.report.object_figures import draw_amplitude, draw_phase
from ptycho_dist.report.probe_figure import draw_probe


def write_arrays(reconstruction: Reconstruction, path: Path) -> None:
    """Write `reconstruction.npz`."""
    with replacing(path) as temporary:
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


def write_pictures(reconstruction: Reconstruction, out_dir: Path) -> None:
    """Write `amplitude.png`, `phase.png` and `probe.png`."""
    field = (reconstruction.object, reconstruction.origin_px, reconstruction.valid)
    draw_amplitude(*field, out_dir / "amplitude.png")
    draw_phase(*field, out_dir / "phase.png")
    draw_probe(reconstruction.initial_probe, reconstruction.refined_probe, out_dir / "probe.png")


def write_summary(summary: Summary, path: Path) -> None:
    """Write `summary.json`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(summary.to_dict(), indent=2) + "\n")
