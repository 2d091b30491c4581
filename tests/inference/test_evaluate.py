"""A reconstruction against the object in a scan file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ptycho_dist.inference.evaluate import evaluate
from ptycho_dist.physics.simulated_objects import make_object

SHAPE = (60, 64)


@pytest.fixture
def files(write_scan: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A reconstruction, and a scan file whose object it is."""
    truth = make_object(
        "dead_leaves", SHAPE, (0.5, 1.0), (-1.0, 1.0), np.random.default_rng(0)
    ).astype(np.complex64)
    path = tmp_path / "out" / "reconstruction.npz"
    path.parent.mkdir()
    np.savez(
        path,
        object=truth,
        origin_px=np.zeros(2),
        positions_px=np.array([[10.0, 10.0], [50.0, 52.0]]),
        valid=np.ones(SHAPE, dtype=bool),
        illumination=np.ones(SHAPE, dtype=np.float32),
    )
    return path, write_scan(objectGuess=2 * truth)


def test_files_and_numbers(files: tuple[Path, Path], tmp_path: Path) -> None:
    reconstruction, reference = files
    reconstruction.with_name("summary.json").write_text(json.dumps({"deviance_per_pixel": 1.25}))
    evaluate(reconstruction, reference, tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "comparison.png",
        "metrics.json",
    ]
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert numbers["phase_correlation"] == pytest.approx(1, abs=1e-5)
    assert numbers["amplitude_correlation"] == pytest.approx(1, abs=1e-5)
    assert numbers["amplitude_gain"] == pytest.approx(2, rel=1e-5)
    assert numbers["object_frc_half_bit_resolution_px"] == 2
    assert len(numbers["object_frc"]) == len(numbers["frc_frequency_cycles_per_px"]) == 20
    assert numbers["box_px"] == [10, 51, 10, 53]
    assert numbers["deviance_per_pixel"] == 1.25


def test_deviance_is_that_of_the_summary_or_none(files: tuple[Path, Path], tmp_path: Path) -> None:
    reconstruction, reference = files
    assert evaluate(reconstruction, reference, tmp_path / "report")["deviance_per_pixel"] is None
    reconstruction.with_name("summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"summary.json: found no deviance_per_pixel"):
        evaluate(reconstruction, reference, tmp_path / "report")
