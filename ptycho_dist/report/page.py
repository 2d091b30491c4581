"""`report.html`: a run or a reconstruction on one page, a single file that needs no server, no
network and no script.

All text goes through Jinja's autoescape: paths and configurations may hold anything.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ptycho_dist.atomic_file import replacing
from ptycho_dist.report.curve_figures import draw_refinement_curve, draw_training_curve
from ptycho_dist.report.object_figures import draw_amplitude, draw_phase
from ptycho_dist.report.probe_figure import draw_probe
from ptycho_dist.report.scan_figures import draw_mean_patterns, draw_scan
from ptycho_dist.scale.calibration import Calibration

LARGEST_PICTURE_BYTES = 1 << 19
"""Larger PNGs are full of fine grain. They are reduced to 256 colours, a third of the bytes, so
that the page can be mailed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Content of the page.

    Attributes
    ----------
    title
        Headline.
    run
        Facts of the run by name.
    calibration, gain
        The bundle's.
    summary
        Content of `summary.json`.
    object, origin_px, valid
        The object as in `reconstruction.npz`: complex (H, W), (2,) as (y, x), bool (H, W).
    positions_px
        (n, 2) as (y, x).
    mean_measured_pattern, mean_predicted_pattern
        Counts per pixel, (N, N).
    pattern_deviance_per_pixel
        (n,).
    probe
        complex (modes, N, N), any units.
    config
        Configuration of the training run.
    versions
        Versions of the software that trained.
    refined_probe
        The probe after its refinement, if it was refined.
    metrics
        Rows of `metrics.csv`; none for a reconstruction.
    note
        One sentence that says what is shown, if it is not the whole scan.
    """

    title: str
    run: Mapping[str, Any]
    calibration: Calibration
    gain: float
    summary: Mapping[str, Any]
    object: np.ndarray
    origin_px: np.ndarray
    valid: np.ndarray
    positions_px: np.ndarray
    mean_measured_pattern: np.ndarray
    mean_predicted_pattern: np.ndarray
    pattern_deviance_per_pixel: np.ndarray
    probe: np.ndarray
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    refined_probe: np.ndarray | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    note: str | None = None


def write_report(report: Report, path: Path) -> None:
    """Write the page, or replace it once the new one is whole; raises a `ValueError` if an array
    can't be drawn."""
    page = _template().render(
        report=report,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        checks=report.calibration.checks(),
        deviance=report.summary["deviance_per_pixel"],
        measured=report.summary["mean_measured_photons"],
        predicted=report.summary["mean_predicted_photons"],
        worst=_worst_pattern(report),
        last={
            name: float(value)
            for row in report.metrics
            for name, value in row.items()
            if value not in (None, "")
        },
        figures=_figures(report),
        config=yaml.safe_dump(dict(report.config), sort_keys=False, allow_unicode=True),
        summary=json.dumps(report.summary, indent=2, ensure_ascii=False),
    )
    with replacing(path) as temporary:
        # A path may hold bytes that are not UTF-8; they are shown escaped.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def _figures(report: Report) -> dict[str, str]:
    """Return the pictures as data URIs by name."""
    field = (report.object, report.origin_px, report.valid)
    figures = {
        "amplitude": _inline(draw_amplitude, *field, title="Amplitude\ntransparent: 1"),
        "phase": _inline(draw_phase, *field),
        "patterns": _inline(
            draw_mean_patterns, report.mean_measured_pattern, report.mean_predicted_pattern
        ),
        "scan": _inline(draw_scan, report.positions_px, report.pattern_deviance_per_pixel),
        "probe": _inline(draw_probe, report.probe, report.refined_probe),
    }
    if report.metrics:
        figures["training"] = _inline(draw_training_curve, report.metrics)
    if refinement := report.summary.get("refinement"):
        figures["refinement"] = _inline(draw_refinement_curve, refinement["deviance_per_pixel"])
    return figures


def _inline(draw: Callable[..., None], *what: Any, **options: Any) -> str:
    """Return a picture as a data URI."""
    stream = io.BytesIO()
    draw(*what, stream, **options)
    if stream.tell() > LARGEST_PICTURE_BYTES:
        picture = Image.open(stream).convert("RGB")
        stream = io.BytesIO()
        picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            stream, "PNG"
        )
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _worst_pattern(report: Report) -> dict[str, Any]:
    number = int(np.argmax(np.nan_to_num(report.pattern_deviance_per_pixel, nan=math.inf)))
    y, x = report.positions_px[number].tolist()
    return {"deviance": float(report.pattern_deviance_per_pixel[number]), "y": y, "x": x}


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["grouped"] = lambda value: f"{value:,.0f}".replace(
        ",", "\N{NARROW NO-BREAK SPACE}"
    )
    environment.filters["short"] = lambda value: f"{value:.4g}"
    environment.filters["exact"] = repr
    return environment.get_template("page.html.jinja")
