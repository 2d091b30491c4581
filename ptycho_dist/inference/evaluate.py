"""A reconstruction against a reference object."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_dist.atomic_file import replacing
from ptycho_dist.data.readers.npz import read_npz_object
from ptycho_dist.report.comparison import compare_with_reference
from ptycho_dist.report.figures import draw_comparison

logger = logging.getLogger(__name__)

_KEYS = ("object", "origin_px", "positions_px", "valid")


def evaluate(reconstruction_path: Path, reference_path: Path, out_dir: Path) -> dict[str, Any]:
    """Compare `reconstruction.npz` with the `objectGuess` of a scan file; write `metrics.json` and `comparison.png`.

    What ptychography can't tell, a complex factor and a phase ramp, is fitted first.

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
        positions_px=arrays["positions_px"],
        reference=read_npz_object(reference_path),
    )
    numbers = {"reconstruction": str(reconstruction_path), "reference": str(reference_path), **comparison.numbers()}
    with replacing(out_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2) + "\n")
    draw_comparison(comparison.aligned, comparison.reference, comparison.box_px, out_dir / "comparison.png")
    logger.info(
        "correlation with %s: phase %.4f, amplitude %.4f; wrote metrics.json and comparison.png to %s",
        reference_path,
        comparison.phase_correlation,
        comparison.amplitude_correlation,
        out_dir,
    )
    return numbers


def _read_reconstruction(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a reconstruction ({error}); expected the arrays {', '.join(_KEYS)}") from error
    for key in ("origin_px", "positions_px"):
        if arrays[key].dtype.kind not in "fiu":
            raise ValueError(f"{path}: {key} is {arrays[key].dtype}; expected real numbers")
    return arrays
