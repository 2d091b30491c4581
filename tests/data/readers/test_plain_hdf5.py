"""HDF5 of no format: the configuration says where things are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig, Hdf5Config
from ptycho_dist.data.readers import read_object, read_scan
from ptycho_dist.data.scan import Scan, ScanError
from tests.data.readers.far_field import FarField, require_read, simulate

NAMES = {
    "diffraction": "/entry/detector/frames",
    "positions_y": "/entry/stage/up_down",
    "positions_x": "entry/stage/left_right",
    "positions_unit": "um",
    "probe": "/entry/optics/probe",
    "energy_eV": "/entry/energy",
    "distance_m": "/entry/detector/distance",
    "detector_pixel_m": "/entry/detector/pixel",
}


@pytest.fixture
def truth() -> FarField:
    return simulate()


@pytest.fixture
def path(tmp_path: Path, truth: FarField) -> Path:
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        file["entry/detector/frames"] = truth.counts
        file["entry/stage/up_down"], file["entry/stage/left_right"] = 1e6 * truth.positions_m.T
        file["entry/stage/both_px"] = truth.corners_px + 8.0
        file["entry/optics/probe"], file["entry/object"] = truth.probe[0], truth.object
        file["entry/energy"] = np.array([truth.energy_eV])
        file["entry/detector/distance"], file["entry/detector/pixel"] = (
            truth.distance_m,
            truth.detector_pixel_m,
        )
        file["entry/detector/good"] = np.ones((16, 16), dtype=np.uint8)
        file["entry/detector/good"][1, 2] = 0
    return tmp_path / "scan.nxs"


def read(
    path: Path, measurement: Any = "counts", *, hdf5: dict[str, Any] | None = None, **options: Any
) -> Scan:
    return read_scan(
        path,
        measurement,
        options=DataConfig(hdf5=Hdf5Config(**{**NAMES, **(hdf5 or {})}), **options),
    )


def test_named_datasets_are_read(path: Path, truth: FarField) -> None:
    require_read(read(path), truth)


def test_pixels_need_no_geometry(path: Path, truth: FarField) -> None:
    both = {
        "positions_y": None,
        "positions_x": None,
        "positions": "/entry/stage/both_px",
        "positions_unit": "px",
    }
    both |= {"energy_eV": None, "object": "/entry/object"}
    scan = read(path, hdf5=both)
    require_read(scan, truth, has_object=True)
    assert scan.geometry is None
    assert scan.origin_m is None
    options = DataConfig(measurement="counts", hdf5=Hdf5Config(**{**NAMES, **both}))
    assert np.allclose(read_object(path, options=options), truth.object)


def test_numbers_may_be_in_the_configuration(path: Path, truth: FarField) -> None:
    none = {"energy_eV": None, "distance_m": None, "detector_pixel_m": None}
    given = {
        "energy_eV": truth.energy_eV,
        "detector_distance_m": truth.distance_m,
        "detector_pixel_m": truth.detector_pixel_m,
    }
    require_read(read(path, hdf5=none, **given), truth)
    with pytest.raises(
        ScanError, match=r"no energy_eV \(looked for nothing: no data\.hdf5\.energy_eV\)"
    ):
        read(path, hdf5=none)


def test_mask_is_true_where_a_pixel_counts(path: Path) -> None:
    mask = read(path, hdf5={"mask": "/entry/detector/good"}).mask
    assert mask is not None
    assert np.argwhere(~mask).tolist() == [[1, 2]]


def test_what_the_numbers_are_must_be_said(path: Path) -> None:
    with pytest.raises(
        ScanError,
        match=r"measurement: found nothing in the file's metadata nor in data\.measurement",
    ):
        read(path, None)
    assert read(path, "amplitude").measurement == "amplitude"


@pytest.mark.parametrize(
    ("hdf5", "message"),
    [
        (
            {"diffraction": "/entry/nowhere"},
            r"/entry/nowhere: found no such dataset; the file has \['entry'\], expected diffraction patterns",
        ),
        (
            {"positions_y": "/entry/nowhere"},
            r"/entry/nowhere: found no such dataset; the file has \['entry'\], expected the dataset that",
        ),
        (
            {"positions_y": None},
            r"data\.hdf5: found .*, expected either data\.hdf5\.positions, or data\.hdf5\.positions_y and",
        ),
        ({"positions": "/entry/stage/both_px"}, r"data\.hdf5: found .*, expected either"),
        (
            {"positions_unit": None},
            r"data\.hdf5\.positions_unit: found none, expected px, m, mm, um, nm",
        ),
        ({"positions_unit": "m"}, "positions: found a scan over .* pixels"),
        (
            {"positions_y": "/entry/energy"},
            "found 1 and 30 values, expected as many of one as of the other",
        ),
        (
            {"positions_y": None, "positions_x": None, "positions": "/entry/stage/up_down"},
            r"found shape \(30,\), expected \(n, 2\)",
        ),
        ({"energy_eV": "/entry/stage/up_down"}, r"found float64 \(30,\), expected one real number"),
        ({"energy_eV": "/entry/nowhere"}, "found no such dataset"),
        (
            {"probe": "/entry/detector/frames"},
            "/entry/detector/frames: found type uint32, expected complex numbers",
        ),
        ({"mask": "/entry/object"}, "/entry/object: found type complex128, expected real numbers"),
        ({"diffraction": "/entry/stage"}, "/entry/stage: found a group, expected a dataset"),
    ],
)
def test_refusal_names_file_key_found_and_expected(
    path: Path, hdf5: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScanError, match=message) as refused:
        read(path, hdf5=hdf5)
    assert str(refused.value).startswith(f"{path}: ")
