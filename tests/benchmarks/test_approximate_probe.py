"""The spoilt and the Gaussian probe of the benchmark, against what is known of them, and its
command, small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import approximate_probe
import numpy as np
import pytest

from tests.scans import write_simulated_scan

SIZE = 64


def offset_px() -> np.ndarray:
    return np.indices((SIZE, SIZE)) - SIZE // 2


def test_gaussian_has_the_width_of_the_light_and_nothing_else_of_the_probe():
    y, x = offset_px()
    # off centre, of two widths, with a phase
    light = np.exp(-((y - 3) ** 2) / (2 * 5.0**2) - (x + 2) ** 2 / (2 * 7.0**2))
    probe = approximate_probe.gaussian_of_its_width(np.sqrt(light) * np.exp(0.1j * x * y))
    found = np.abs(probe) ** 2 / np.sum(np.abs(probe) ** 2)
    for axis in (y, x):
        # the grid ends half a pixel earlier on one side
        assert np.sum(found * axis) == pytest.approx(0, abs=1e-4)
        # 4.5 sigma lie on the grid
        assert np.sum(found * axis**2) == pytest.approx((5.0**2 + 7.0**2) / 2, rel=2e-3)
    assert not probe.imag.any()


def test_spoilt_probe_is_a_gaussian_beam_out_of_focus_blurred_and_too_bright():
    """A Gaussian stays one: variances of the far field's and the blur's exponents add up, by
    hand."""
    y, x = offset_px()
    variance = 6.0**2  # of the amplitude
    found = approximate_probe.spoilt(np.exp(-(y**2 + x**2) / (2 * variance)).astype(complex))
    curvature = 3.0 / 0.5**2  # rad over (cycles per pixel)^2
    # exp(-2 pi^2 q^2 variance + 1j curvature q^2), back transformed
    complex_variance = variance - 1j * curvature / (2 * np.pi**2)
    blurred = complex_variance + approximate_probe.BLUR_PX**2
    expected = (
        approximate_probe.TOO_BRIGHT * variance / blurred * np.exp(-(y**2 + x**2) / (2 * blurred))
    )
    # the blur's kernel is sampled and ends at 4 sigma
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_command_tells_each_training_and_uses_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    scan = write_simulated_scan(
        tmp_path / "scan.npz", pattern_size=32, scan_shape=(8, 8), probe_diameter_px=14.0
    )
    small = ("--model.base_width=4", "--train.precision=32")
    monkeypatch.setattr(
        approximate_probe,
        "ROWS",
        (("spoilt", 1, small), ("gaussian", 1, (*approximate_probe.REFINED, *small))),
    )
    monkeypatch.setattr(
        sys, "argv", ["approximate_probe.py", f"--data={scan}", f"--out={tmp_path / 'out'}"]
    )
    told = []
    for _ in range(2):
        approximate_probe.main()
        told.append(json.loads((tmp_path / "out/approximate_probe.json").read_text()))
        assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == [
            "| spoilt",
            "| gaussian",
        ]
    assert told[0] == told[1]  # CPU seconds too: nothing was trained again
    spoilt, gaussian = (
        np.load(tmp_path / "out" / f"{name}.npz")["probeGuess"] for name in ("spoilt", "gaussian")
    )
    assert not np.allclose(spoilt, gaussian)
    folders = sorted(
        folder.parent.parent for folder in (tmp_path / "out").glob("*/reconstruction/summary.json")
    )
    for folder, row in zip(folders, sorted(told[0], key=lambda row: row["probe"]), strict=True):
        assert (
            row["deviance_per_pixel"]
            == json.loads((folder / "reconstruction/summary.json").read_text())[
                "deviance_per_pixel"
            ]
        )
        # drawn where it was refined
        assert (folder / "probe.png").exists() == (row["probe"] == "gaussian")
        assert row["cpu_seconds"] > 0
