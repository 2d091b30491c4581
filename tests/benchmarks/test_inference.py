"""The inference benchmark's own parts, small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import inference
import numpy as np
import pytest

from ptycho_dist import read_scan, train
from ptycho_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from ptycho_dist.data import placement


@pytest.fixture
def small(write_scan: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A bundle and its scan."""
    scan = write_scan()
    config = Config(
        data=DataConfig(path=str(scan), measurement="amplitude", nphotons=1e6),
        model=ModelConfig(base_width=4),
        train=TrainConfig(epochs=1, run_dir=str(tmp_path / "run")),
    )
    return Path(train(config)), scan


def test_a_tiled_scan_is_the_small_one_again_and_again(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, path = small
    tiled, scan = (
        read_scan(inference.tile(bundle, path, 100, tmp_path / "tiled.npz")),
        read_scan(path, "amplitude"),
    )
    assert tiled.num_patterns == 100
    patterns = np.arange(100)
    np.testing.assert_array_equal(tiled.amplitude(patterns), scan.amplitude(patterns % 37))
    offset = tiled.positions_px - scan.positions_px[patterns % 37]
    pitch = np.ptp(scan.positions_px, axis=0) + scan.pattern_size / 2
    # float64 sums
    np.testing.assert_allclose(
        offset / pitch, [(copy // 2, copy % 2) for copy in patterns // 37], atol=1e-12
    )


@pytest.mark.parametrize("state", list(inference.STATES))
def test_a_row_is_of_the_whole_tiled_scan(
    small: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
) -> None:
    bundle, path = small
    monkeypatch.setattr(placement, "LARGEST_PART", inference.STATES[state])
    one, two = (
        inference.end_to_end(
            bundle, inference.tile(bundle, path, count, tmp_path / f"{count}.npz"), tmp_path / "out"
        )
        for count in (37, 74)
    )
    # Two copies are two scans side by side, but for the beams' tails, and for the turn in which a
    # correction may be dropped for both.
    assert two["deviance_per_pixel"] == pytest.approx(one["deviance_per_pixel"], rel=0.1)
    assert two["patterns"] == 74
    # three digits are told
    assert two["held_megabytes"] == pytest.approx(
        4 * 74 * 16**2 / 1e6 if state == "held" else 0, rel=0.01
    )
    row = {"state": state, **two, **inference.rates_of_parts(bundle, tmp_path / "74.npz", 1)}
    assert all(row[f"{part}_patterns_per_s"] > 0 for part in inference.PARTS)
    inference.show(row, with_head=True)
    head, line = capsys.readouterr().out.splitlines()[-3::2]
    assert head.count("|") == line.count("|")


def test_peak_memory_is_that_of_what_was_taken_within() -> None:
    with inference.PeakMemory() as memory:
        taken = np.ones(30_000_000)
        del taken
    # looked at every 5 ms; to fill it takes ten times that
    assert memory.peak_bytes == pytest.approx(240e6, rel=0.1)
