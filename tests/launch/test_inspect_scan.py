"""`launch/inspect_scan.py` as a user runs it, and what the names of scripts must not be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Launch = Callable[..., subprocess.CompletedProcess[str]]
LAUNCH = Path(__file__).parents[2] / "launch"


def test_inspected_with_a_configuration_and_converted(
    launch: Launch, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scan = write_scan(_metadata=np.array(json.dumps({"measurement": "amplitude"})))
    (tmp_path / "own.yaml").write_text(
        "data: {nphotons: measured, group_size: 1}\nmodel: {base_width: 4}\n"
    )
    asked = (
        "inspect_scan.py",
        scan,
        "--config",
        tmp_path / "own.yaml",
        "--data.val_fraction",
        "0.2",
        "--out",
        tmp_path,
    )
    done = launch(*asked, "--convert", tmp_path / "copy.npz")
    assert done.returncode == 0, done.stdout
    assert "30 training patterns, 7 validation patterns, groups of 1" in " ".join(
        done.stdout.split()
    )
    assert (tmp_path / "scan.npz.inspect.png").is_file()
    assert f"wrote {tmp_path / 'copy.npz'}" in done.stdout
    refused = launch(*asked, "--convert", tmp_path / "copy.npz")
    assert refused.returncode == 1
    assert f"error: --convert: found {tmp_path / 'copy.npz'}, expected a new name" in refused.stdout


def test_scan_that_can_not_be_trained_on_ends_with_status_one(
    launch: Launch, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    done = launch("inspect_scan.py", write_scan(), "--out", tmp_path)
    assert done.returncode == 1
    assert "measurement: found nothing in the file's metadata" in " ".join(done.stdout.split())
    assert "error: 1 of 1 scans can't be trained on with these options" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("siemens_velociprobe_N64.npz", 0),
        ("petraiii_p25_near_field.cxi", 1),
        ("run1084_probe_object.npz", 1),
    ],
)
def test_measured_scans(
    launch: Launch, realdata: Path, tmp_path: Path, name: str, status: int
) -> None:
    measurement = ("--data.measurement", "amplitude") if name.endswith("npz") else ()
    done = launch(
        "inspect_scan.py",
        realdata / name,
        *measurement,
        "--data.nphotons",
        "measured",
        "--out",
        tmp_path,
    )
    assert done.returncode == status, done.stdout
    assert (tmp_path / f"{name}.inspect.png").exists() == (name != "run1084_probe_object.npz")


def test_no_script_has_the_name_of_a_module_that_python_would_then_import_instead() -> None:
    """The folder of a script comes first where it imports from: launch/inspect.py would break every
    script beside it."""
    assert {path.stem for path in LAUNCH.glob("*.py")} & set(sys.stdlib_module_names) == set()
