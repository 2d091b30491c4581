"""A scan of any format, written in ours and read back: the same to the bit; nothing written over,
nothing half written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig, Hdf5Config
from ptycho_dist.data import pieces
from ptycho_dist.data.readers import read_object, read_scan
from ptycho_dist.data.scan import Scan
from ptycho_dist.preflight.conversion import convert
from tests.data.readers.far_field import FarField, require_read, simulate
from tests.data.readers.writers import (
    DETECTOR,
    KEPT,
    positions_of,
    write_cxi,
    write_datasets,
    write_npz_product,
    write_patterns,
    write_product,
    write_ptyd,
)
from tests.scans import small_scan_arrays

WriteScan = Callable[..., Path]
OUTPUTS = pytest.mark.parametrize("output", ["out.npz", "out.h5", "out.hdf5"])


def require_same(read: Scan, original: Scan) -> None:
    numbers = np.arange(original.num_patterns)
    assert read.diffraction.dtype == original.diffraction.dtype
    assert read.diffraction[numbers].tobytes() == original.diffraction[numbers].tobytes()
    for name in ("positions_px", "probe", "object_guess", "mask"):
        one, other = getattr(read, name), getattr(original, name)
        assert (one is None) == (other is None), name
        assert one is None or (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        ), name
    for name in ("measurement", "nphotons", "geometry", "origin_m"):
        assert getattr(read, name) == getattr(original, name), name


def masked(file: h5py.File) -> None:
    file[f"{DETECTOR}/mask"] = (np.arange(256).reshape(16, 16) % 7 == 0).astype(np.uint32)


def write_pair(folder: Path, truth: FarField) -> Path:
    write_patterns(folder / "scan_dp.hdf5", truth.counts)
    return write_product(folder / "scan_para.hdf5", truth)


def write_fold_slice(folder: Path, truth: FarField) -> Path:
    content = {
        "dp": truth.counts.astype(">u4"),
        **positions_of(truth),
        "energy": truth.energy_eV / 1e3,
        "probe": truth.probe,
    }
    return write_datasets(folder / "scan.mat", {**content, "detector_distance": truth.distance_m})


def write_plain(folder: Path, truth: FarField) -> Path:
    y, x = 1e9 * truth.positions_m.T
    return write_datasets(
        folder / "scan.nxs",
        {"frames": truth.counts.astype(np.float64), "y": y, "x": x, "p": truth.probe},
    )


PLAIN = Hdf5Config(
    diffraction="frames", positions_y="y", positions_x="x", positions_unit="nm", probe="p"
)
FORMATS: dict[str, tuple[Callable[[Path, FarField], Path], dict[str, Any]]] = {
    "cxi": (lambda folder, truth: write_cxi(folder / "scan.cxi", truth, masked), {}),
    "cxi, a window": (
        lambda folder, truth: write_cxi(folder / "scan.cxi", truth, masked),
        {"crop": 8},
    ),
    "cxi without a probe": (
        lambda folder, truth: write_cxi(
            folder / "scan.cxi", truth, lambda file: file.pop("entry_1/instrument_1/source_1/probe")
        ),
        {},
    ),
    "ptyd": (lambda folder, truth: write_ptyd(folder / "scan.ptyd", truth), {"probe": "probe.npy"}),
    "ptyd, linked": (
        lambda folder, truth: write_ptyd(folder / "scan.ptyd", truth, linked=True),
        {"probe": "probe.npy"},
    ),
    "ptychodus": (
        lambda folder, truth: write_product(folder / "scan.h5", truth, KEPT),
        {"diffraction": "patterns.h5", "detector_pixel_m": 75e-6},
    ),
    "ptychodus NPZ": (
        lambda folder, truth: write_npz_product(folder / "scan.npz", truth, KEPT),
        {"diffraction": "patterns.h5"},
    ),
    "ptycho-vit": (write_pair, {}),
    "fold_slice": (write_fold_slice, {"detector_pixel_m": 75e-6, "transpose": False}),
    "plain": (
        write_plain,
        {
            "hdf5": PLAIN,
            "measurement": "counts",
            "energy_eV": 8765.0,
            "detector_distance_m": 1.9,
            "detector_pixel_m": 75e-6,
        },
    ),
}


@OUTPUTS
@pytest.mark.parametrize(("write", "options"), FORMATS.values(), ids=FORMATS)
def test_what_is_read_back_is_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, FarField], Path],
    options: dict[str, Any],
    output: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pieces, "COPIED_PIXELS", 1500)  # pieces, the last one smaller
    truth = simulate(modes=2)
    np.save("probe.npy", truth.probe)
    write_patterns(tmp_path / "patterns.h5", truth.counts)
    settings = DataConfig(**options)
    original = read_scan(write(tmp_path, truth), options=settings)
    convert(original, settings, tmp_path / output)
    (tmp_path / "elsewhere").mkdir()
    # of itself, without options or neighbours
    read = read_scan((tmp_path / output).rename(tmp_path / "elsewhere" / output))
    require_same(read, original)
    if len(original.probe) and original.mask is None and original.pattern_size == 16:
        numbers = KEPT if "diffraction" in options else np.arange(30)
        require_read(read, truth, numbers=numbers)


@OUTPUTS
@pytest.mark.parametrize(
    "changed", [{}, {"mask": np.arange(256).reshape(16, 16) % 3 > 0}], ids=["bare", "masked"]
)
def test_npz_too(
    write_scan: WriteScan, tmp_path: Path, output: str, changed: dict[str, Any]
) -> None:
    metadata = np.array(
        json.dumps({"measurement": "amplitude", "physics_parameters": {"nphotons": 4321.5}})
    )
    original = read_scan(
        write_scan(arrays=small_scan_arrays(modes=2), _metadata=metadata, **changed)
    )
    convert(original, DataConfig(), tmp_path / output)
    require_same(read_scan(tmp_path / output), original)
    assert np.array_equal(read_object(tmp_path / output), original.object_guess)


@OUTPUTS
def test_window_is_taken_of_a_converted_scan_as_of_the_original(
    tmp_path: Path, output: str
) -> None:
    """The pixel of the object grows, and so the positions shrink; they count from the object's
    pixel [0, 0] still."""
    truth = simulate()
    original = read_scan(write_pair(tmp_path, truth), options=DataConfig(detector_pixel_m=75e-6))
    convert(original, DataConfig(), tmp_path / output)
    whole, part = (
        read_scan(tmp_path / output),
        read_scan(tmp_path / output, options=DataConfig(crop=8)),
    )
    other = read_scan(
        tmp_path / "scan_para.hdf5", options=DataConfig(crop=8, detector_pixel_m=75e-6)
    )
    np.testing.assert_allclose(part.positions_px, whole.positions_px / 2, rtol=1e-15)
    np.testing.assert_allclose(part.positions_px, other.positions_px, rtol=1e-12)
    assert np.array_equal(part.diffraction[np.arange(30)], other.diffraction[np.arange(30)])
    assert part.origin_m == whole.origin_m == other.origin_m


@OUTPUTS
def test_dose_of_the_options_is_written_where_the_file_has_none(
    write_scan: WriteScan, tmp_path: Path, output: str
) -> None:
    scan = read_scan(write_scan(), "amplitude")
    convert(scan, DataConfig(nphotons=1e5), tmp_path / output)
    assert read_scan(tmp_path / output).nphotons == 1e5
    convert(scan, DataConfig(nphotons="measured"), tmp_path / f"second_{output}")
    assert read_scan(tmp_path / f"second_{output}").nphotons is None


@OUTPUTS
def test_nothing_is_written_over(write_scan: WriteScan, tmp_path: Path, output: str) -> None:
    scan = read_scan(write_scan(), "amplitude")
    (tmp_path / output).write_text("a scan that somebody needs")
    with pytest.raises(
        ValueError, match=rf"--convert: found {tmp_path / output}, expected a new name"
    ):
        convert(scan, DataConfig(), tmp_path / output)
    assert (tmp_path / output).read_text() == "a scan that somebody needs"


def test_name_tells_the_format(write_scan: WriteScan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in '\.mat', expected \.npz, \.h5, \.hdf5"):
        convert(read_scan(write_scan(), "amplitude"), DataConfig(), tmp_path / "out.mat")


@OUTPUTS
def test_failure_leaves_nothing(write_scan: WriteScan, tmp_path: Path, output: str) -> None:
    path = write_scan()
    scan = read_scan(path, "amplitude")
    with path.open("r+b") as stream:
        stream.truncate(5000)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"scan\.npz: diffraction: found 5000 bytes"):
        convert(scan, DataConfig(), tmp_path / "out" / output)
    assert list((tmp_path / "out").iterdir()) == []


def test_patterns_of_hdf5_are_read_one_by_one(write_scan: WriteScan, tmp_path: Path) -> None:
    convert(read_scan(write_scan(), "amplitude"), DataConfig(), tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["diffraction"].chunks == (1, 16, 16)
        assert file["positions"].attrs["units"] == "px"
        assert file.attrs["measurement"] == "amplitude"


@pytest.mark.realdata
@OUTPUTS
@pytest.mark.parametrize("name", ["siemens_velociprobe_N64.npz", "petraiii_p25_near_field.cxi"])
def test_measured_scans(realdata: Path, tmp_path: Path, name: str, output: str) -> None:
    options = DataConfig(measurement="amplitude" if name.endswith("npz") else None)
    original = read_scan(realdata / name, options=options)
    convert(original, options, tmp_path / output)
    require_same(read_scan(tmp_path / output), original)


# --- What the readers refuse


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "newer version": (
        lambda file: file.attrs.modify("version", 2),
        r"version: found 2\.0, expected 1: written by another release",
    ),
    "no version": (lambda file: file.attrs.pop("version"), r"version: found None, expected 1"),
    "no measurement": (
        lambda file: file.attrs.pop("measurement"),
        r"measurement: found None, expected amplitude or counts",
    ),
    "unknown measurement": (
        lambda file: file.attrs.modify("measurement", "lux"),
        r"measurement: found 'lux'",
    ),
    "no positions": (
        lambda file: file.pop("positions"),
        r"positions: found shape None, expected \(37, 2\)",
    ),
    "no patterns": (lambda file: file.pop("diffraction"), r"diffraction: found no such dataset"),
    "origin of text": (
        lambda file: file["positions"].attrs.create("origin_m", "here"),
        r"positions origin_m: found here",
    ),
    "origin of three": (
        lambda file: file["positions"].attrs.create("origin_m", np.ones(3)),
        r"positions origin_m: found \[1\.0, 1\.0, 1\.0\]",
    ),
    "negative energy": (
        lambda file: file.create_dataset("energy_eV", data=-1.0),
        r"energy_eV: found -1\.0, expected a positive number",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_own_hdf5_that_was_changed_is_refused_by_name(
    write_scan: WriteScan, tmp_path: Path, change: Callable[[h5py.File], Any], message: str
) -> None:
    convert(read_scan(write_scan(), "amplitude"), DataConfig(), tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "a") as file:
        change(file)
    with pytest.raises(ValueError, match=message):
        read_scan(tmp_path / "out.h5")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"geometry": {"energy_eV": 8000.0}},
            r"_metadata geometry: found \{'energy_eV': 8000\.0\}, expected detector_pixel_m, distance_m",
        ),
        (
            {"geometry": {"energy_eV": 8000.0, "distance_m": -2, "detector_pixel_m": 1e-4}},
            r"_metadata geometry: found .*, positive numbers",
        ),
        ({"geometry": 5}, r"_metadata geometry: found 5"),
        ({"origin_m": [1.0]}, r"_metadata origin_m: found \[1\.0\], expected \(y, x\) in metres"),
        ({"origin_m": [float("nan"), 1.0]}, r"_metadata origin_m: found \[nan, 1\.0\]"),
    ],
)
def test_npz_metadata_of_a_geometry_are_checked(
    write_scan: WriteScan, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_scan(write_scan(_metadata=np.array(json.dumps(metadata))), "amplitude")


@OUTPUTS
def test_geometry_that_the_options_contradict_is_refused(tmp_path: Path, output: str) -> None:
    scan = read_scan(write_cxi(tmp_path / "scan.cxi", simulate()))
    convert(scan, DataConfig(), tmp_path / output)
    with pytest.raises(
        ValueError,
        match=r"energy_eV: found 8765 in the file but 9000 in data\.energy_eV, expected one answer",
    ):
        read_scan(tmp_path / output, options=DataConfig(energy_eV=9000.0))
