"""Readers of pages, and small scans for the pages' commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.data.readers.far_field import simulate
from tests.data.readers.writers import write_cxi, write_patterns, write_product, write_ptyd
from tests.docs.blocks import Command
from tests.docs.reader import Reader, make_project
from tests.scans import small_scan_arrays


@pytest.fixture(scope="session")
def named_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that pages' commands need and do not make, including a
    trained RUN with its DIR."""
    folder = tmp_path_factory.mktemp("named_files")
    for seed, name in enumerate(("scan", "a", "b", "c")):
        metadata = np.array(
            '{"measurement": "amplitude", "physics_parameters": {"nphotons": 5000.0}}'
        )
        np.savez(folder / f"{name}.npz", **small_scan_arrays(seed=seed), _metadata=metadata)
    np.savez(folder / "siemens_velociprobe_N64.npz", **small_scan_arrays())

    truth = simulate()
    np.save(folder / "probe.npy", truth.probe.astype(np.complex64))
    write_cxi(folder / "scan.cxi", truth)
    write_ptyd(folder / "scan.ptyd", truth)
    for product, patterns in (("product.h5", "patterns.h5"), ("x_para.hdf5", "x_dp.hdf5")):
        write_product(folder / product, truth)
        write_patterns(folder / patterns, truth.counts)
    with h5py.File(folder / "data_roi0_dp.hdf5", "w") as file:
        file["dp"] = truth.counts
    with h5py.File(folder / "data_roi0_para.hdf5", "w") as file:
        file["ppX"], file["ppY"] = truth.positions_m[:, 1], truth.positions_m[:, 0]
        file["energy"], file["detector_distance"] = truth.energy_eV / 1e3, truth.distance_m

    project = tmp_path_factory.mktemp("project")
    make_project(project)
    first = Reader(project)
    for command in (
        f"python launch/train.py --data.path {folder}/scan.npz --train.run_dir {folder}/RUN",
        f"python launch/infer.py {folder}/scan.npz --bundle {folder}/RUN/bundle.zip --out "
        f"{folder}/DIR",
    ):
        first.run(
            Command(place="tests/docs/conftest.py", variables={}, words=tuple(command.split(" ")))
        )
    (folder / "RUN/printed").write_text(first.printed)
    return folder


@pytest.fixture
def reader(tmp_path: Path, named_files: Path) -> Callable[..., Reader]:
    """`reader(*names)` gives a new reader, whose folder holds those of the named files."""

    def new_reader(*names: str) -> Reader:
        make_project(tmp_path)
        for name in names:
            copy = shutil.copytree if (named_files / name).is_dir() else shutil.copy
            copy(named_files / name, tmp_path / name)
        return Reader(tmp_path)

    return new_reader
