"""The report that a training run leaves: the run's own numbers, written once, and never at the cost
of the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ptycho_dist import load_bundle, read_scan, train
from ptycho_dist.config import parse_mapping
from ptycho_dist.training import report as report_module
from ptycho_dist.training.report import central_part
from tests.report.reading import ReadPage, assert_self_contained
from tests.scans import small_scan_arrays
from tests.training.runs import column, settings, train_one


def train_and_tell_who_reports(concerns: dict[str, Any]) -> int:
    """How often this rank wrote a report."""
    calls = 0
    write = report_module.write_training_report

    def count(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        write(*arguments)

    report_module.write_training_report = count  # this rank's process is used for nothing else
    train_one(concerns)
    return calls


def test_report_tells_what_the_files_tell(
    write_scan: Callable[..., Path], on_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    """On two ranks: rank 0 writes it, once, with the numbers of hparams.yaml, the bundle and
    metrics.csv to the last digit."""
    scan, run_dir = write_scan("<script>alert(1)<&script>.npz"), tmp_path / "run"
    # Odd numbers: a third of a million photons, and a gain that training moves.
    changes = {"data__nphotons": 1e6 / 3, "model__intensity_scale_trainable": True}
    assert on_ranks(2, train_and_tell_who_reports, settings(scan, run_dir, **changes)) == [1, 0]
    page = ReadPage(run_dir / "report.html")
    assert_self_contained(page)
    assert len(page.images()) == 6
    hparams, bundle = (
        yaml.safe_load((run_dir / "hparams.yaml").read_text()),
        load_bundle(run_dir / "bundle.zip"),
    )
    shown = {
        "nphotons": hparams["nphotons"],
        "r": hparams["calibration"]["rms_factor"],
        "mean energy": hparams["calibration"]["mean_energy"],
        "s (intensity_scale)": hparams["intensity_scale"],
        "g (gain)": bundle.gain,
        "patterns counted": hparams["calibration"]["num_patterns"],
    }
    assert {name: float(page.value(name)) for name in shown} == shown
    assert page.value("fingerprint") == hparams["calibration"]["subset_fingerprint"]
    assert page.value("versions, training") == ", ".join(
        f"{name} {version}" for name, version in hparams["versions"].items()
    )
    assert (
        float(page.value("closed form: s = √nphotons / (N/2)").split("\n")[1])
        == math.sqrt(1e6 / 3) / 8
    )
    assert "passes both checks" in page.text
    assert page.value("scans") == str(scan)
    assert page.value("patterns") == "33 trained on, 4 for validation, in groups of 4"
    assert page.value("processes") == "2, cpu, precision 32-true"
    assert page.value("steps") == "10 of 10 (2 epochs)"
    assert repr(column(run_dir, "val_nll")[-1]) in page.text
    assert f"validation: {column(run_dir, 'val_deviance_per_pixel')[-1]:.4g}" in page.text
    assert "Shown are all 37 patterns of the scan" in page.text
    (configuration,) = (
        part for part in page.text.split("Summary of what is shown") if "run_dir:" in part
    )
    assert (
        yaml.safe_load(configuration.partition("Configuration of the training run")[2])
        == hparams["config"]
    )
    assert (run_dir / "train.log").read_text().count(f"wrote {run_dir / 'report.html'}") == 1


def test_run_outlives_a_report_that_fails(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(report_module, "reconstruct", fail)
    bundle_path = train(parse_mapping(settings(write_scan(), tmp_path / "run", train__epochs=1)))
    assert load_bundle(bundle_path).pattern_size == 16
    assert not (tmp_path / "run" / "report.html").exists()
    log = (tmp_path / "run" / "train.log").read_text()
    cause = "not written: RuntimeError: out of memory. The bundle is not affected:"
    assert log.count(f"WARNING {tmp_path / 'run' / 'report.html'}: {cause} {bundle_path}") == 1


def test_only_the_middle_of_a_large_scan_is_shown(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "LARGEST_PIXELS", 9 * 16**2 + 100)
    scan = read_scan(write_scan(), "amplitude")
    part = central_part(scan, report_module.LARGEST_PIXELS)
    distance = np.linalg.norm(scan.positions_px - scan.positions_px.mean(axis=0), axis=1)
    nearest = sorted(np.argsort(distance)[:9])
    np.testing.assert_array_equal(part.positions_px, scan.positions_px[nearest])
    np.testing.assert_array_equal(part.amplitude(np.arange(9)), scan.amplitude(np.array(nearest)))
    assert (
        dataclasses.replace(part, diffraction=scan.diffraction, positions_px=scan.positions_px)
        == scan
    )

    scans = [
        str(write_scan(name, arrays=small_scan_arrays(seed=seed)))
        for seed, name in enumerate(("first.npz", "second.npz"))
    ]
    train(
        parse_mapping(
            settings(tmp_path / "scan.npz", tmp_path / "run", train__epochs=1, data__path=scans)
        )
    )
    text = ReadPage(tmp_path / "run" / "report.html").text
    assert (
        "Shown are the 9 of 37 patterns nearest to the centre of first.npz, the first of 2 scans"
        in text
    )


def test_scan_of_few_large_patterns_shows_one(write_scan: Callable[..., Path]) -> None:
    assert central_part(read_scan(write_scan(), "amplitude"), 10).num_patterns == 1
