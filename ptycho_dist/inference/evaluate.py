"""Comparison of a reconstruction with a reference object, from files to files."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_dist.atomic_file import replacing
from ptycho_dist.config import DataConfig
from ptycho_dist.data.readers import read_object
from ptycho_dist.report.comparison import compare_with_reference
from ptycho_dist.report.object_figures import draw_comparison

logger = logging.getLogger(__name__)

_NO_OPTIONS = DataConfig()
_KEYS = ("object", "origin_px", "positions_px", "valid", "illumination")


def evaluate(
    reconstruction_path: Path,
    reference_path: Path,
    out_dir: Path,
    *,
    options: DataConfig = _NO_OPTIONS,
) -> dict[str, Any]:
    """Compare `reconstruction.npz` with the object in a scan file; write `metrics.json` and
    `comparison.png`.

    The ambiguities of ptychography are fitted first: see `compare_with_reference`. The deviance is
    that of the object against all measured patterns. Inference found it with the bundle's photon
    scale and left it in `summary.json` beside the reconstruction; the reference's file need not
    hold these patterns, and does not hold that scale. `options` give what the reference's file does
    not say of itself, such as `data.hdf5.object`.

    Raises
    ------
    ValueError
        A file can't be used, or the two do not cover a common area.
    """
    arrays = _read_reconstruction(reconstruction_path)
    comparison = compare_with_reference(
        arrays["object"],
        origin_px=arrays["origin_px"],
        valid=arrays["valid"],
        illumination=arrays["illumination"],
        positions_px=arrays["positions_px"],
        reference=read_object(reference_path, options=options),
    )
    numbers = {
        "reconstruction": str(reconstruction_path),
        "reference": str(reference_path),
        **comparison.numbers(),
        "deviance_per_pixel": _deviance_per_pixel(reconstruction_path.with_name("summary.json")),
    }
    with replacing(out_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    draw_comparison(
        comparison.aligned,
        comparison.reference,
        comparison.box_px,
        comparison.ring_correlations(),
        out_dir / "comparison.png",
        title=f"correlation of phase {comparison.phase.correlation:.3f}, of amplitude "
        f"{comparison.amplitude.correlation:.3f}",
    )
    logger.info(
        "against %s: correlation of phase %.4f, of amplitude %.4f; resolution %.2f px (Fourier "
        "ring correlation, 1/2 bit); "
        "moved by (%.2f, %.2f) px; wrote metrics.json and comparison.png to %s",
        reference_path,
        comparison.phase.correlation,
        comparison.amplitude.correlation,
        comparison.frc.resolution_px(comparison.frc.half_bit),
        *comparison.shift_px,
        out_dir,
    )
    return numbers


def _deviance_per_pixel(summary_path: Path) -> float | None:
    """Return the deviance that inference found; None without a summary."""
    if not summary_path.is_file():
        return None
    try:
        return float(json.loads(summary_path.read_text())["deviance_per_pixel"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{summary_path}: found no deviance_per_pixel in it ({error}); expected the summary "
            "that inference writes"
        ) from error


def _read_reconstruction(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS}
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path}: not a reconstruction ({error}); expected the arrays {', '.join(_KEYS)}"
        ) from error
    for key in ("origin_px", "positions_px"):
        if arrays[key].dtype.kind not in "fiu":
            raise ValueError(f"{path}: {key} is {arrays[key].dtype}; expected real numbers")
    return arrays
