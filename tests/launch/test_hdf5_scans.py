"""From a scan of another format to a bundle, a reconstruction and a comparison, by the scripts that
a user runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from tests.data.readers.far_field import simulate
from tests.data.readers.writers import write_cxi, write_patterns, write_product

Launch = Callable[..., subprocess.CompletedProcess[str]]
TRAINING = (
    "--data.nphotons",
    "measured",
    "--data.group_size",
    "1",
    "--model.base_width",
    "4",
    "--train.epochs",
    "1",
    "--train.precision",
    "32",
)


def test_cxi_scan_to_bundle_and_reconstruction(launch: Launch, tmp_path: Path) -> None:
    scan = write_cxi(tmp_path / "scan.cxi", simulate())
    arguments = ("--data.path", scan, *TRAINING, "--train.run_dir", tmp_path / "run")
    checked = launch("train.py", "--check", *arguments)
    assert checked.returncode == 0, checked.stdout
    assert f"{scan}: 30 patterns of 16 x 16 uint32" in " ".join(checked.stdout.split())
    trained = launch("train.py", *arguments)
    assert trained.returncode == 0, trained.stdout
    inferred = launch(
        "infer.py", "--bundle", tmp_path / "run" / "bundle.zip", scan, "--out", tmp_path / "out"
    )
    assert inferred.returncode == 0, inferred.stdout
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_patterns"] == 30


def test_plain_hdf5_with_a_crop_is_reconstructed_as_it_was_trained(
    launch: Launch, tmp_path: Path
) -> None:
    """The bundle's own `data` says how to read the next scan; a product of ptychodus says otherwise
    with `--data.KEY`, and has a reference."""
    truth = simulate()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        detector = np.zeros((30, 30, 40), dtype=np.uint32)
        detector[:, 7:23, 12:28] = truth.counts
        file["frames"], file["y"], file["x"] = (
            detector,
            1e9 * truth.positions_m[:, 0],
            1e9 * truth.positions_m[:, 1],
        )
    np.save(tmp_path / "probe.npy", truth.probe)
    keys = {
        "diffraction": "/frames",
        "positions_y": "/y",
        "positions_x": "/x",
        "positions_unit": "nm",
    }
    options = [f"--data.hdf5.{key}={value}" for key, value in keys.items()]
    options += [
        f"--data.probe={tmp_path / 'probe.npy'}",
        "--data.crop=16",
        "--data.centre_px=[15, 20]",
        "--data.measurement=counts",
    ]
    options += [
        f"--data.energy_eV={truth.energy_eV}",
        f"--data.detector_distance_m={truth.distance_m}",
    ]
    options += [
        f"--data.detector_pixel_m={truth.detector_pixel_m}",
        "--data.path",
        str(tmp_path / "scan.h5"),
    ]
    trained = launch("train.py", *options, *TRAINING, "--train.run_dir", tmp_path / "run")
    assert trained.returncode == 0, trained.stdout
    bundle = ("--bundle", tmp_path / "run" / "bundle.zip")
    inferred = launch("infer.py", *bundle, tmp_path / "scan.h5", "--out", tmp_path / "out")
    assert inferred.returncode == 0, inferred.stdout

    product = write_product(tmp_path / "product_para.hdf5", truth)
    write_patterns(tmp_path / "product_dp.hdf5", truth.counts)
    refused = launch("infer.py", *bundle, product, "--out", tmp_path / "second")
    assert refused.returncode == 1
    assert "/y: found no such dataset" in refused.stdout
    read = ("--data.hdf5.diffraction", "null", "--data.centre_px", "[8, 8]")
    inferred = launch("infer.py", *bundle, product, *read, "--out", tmp_path / "second")
    assert inferred.returncode == 0, inferred.stdout
    compared = launch(
        "evaluate.py",
        "--reconstruction",
        tmp_path / "second" / "reconstruction.npz",
        "--reference",
        product,
        "--out",
        tmp_path / "second",
    )
    assert compared.returncode == 0, compared.stdout
    assert "phase_correlation" in json.loads((tmp_path / "second" / "metrics.json").read_text())
