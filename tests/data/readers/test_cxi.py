"""CXI: energies in joules, masks of bits, the sample that moves, and the detector's own axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig
from ptycho_dist.data.readers import read_object, read_scan
from ptycho_dist.data.scan import ScanError
from tests.data.readers.far_field import FarField, require_read, simulate
from tests.data.readers.writers import DETECTOR, write_cxi


def write_again(file: h5py.File, key: str, value: Any) -> None:
    del file[key]
    if value is not None:
        file[key] = value


@pytest.fixture
def truth() -> FarField:
    return simulate(modes=2)


def test_patterns_positions_and_probe_belong_together(tmp_path: Path, truth: FarField) -> None:
    scan = read_scan(write_cxi(tmp_path / "scan.cxi", truth))
    require_read(scan, truth)
    assert scan.measurement == "counts"
    assert scan.geometry is not None
    assert scan.geometry.energy_eV == pytest.approx(truth.energy_eV, rel=1e-9)
    # the pixel is stored in float32
    assert scan.geometry.object_pixel_m(16) == pytest.approx(truth.object_pixel_m, rel=1e-6)
    assert scan.origin_m is not None
    back = np.array(scan.origin_m) + scan.positions_px * scan.geometry.object_pixel_m(16)
    assert np.allclose(back, truth.positions_m, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("vectors", "sign"),
    {
        "(2, 3)": ([[0, -1, 0], [-1, 0, 0]], (1, 1)),
        "rows go up": ([[0, 1, 0], [-1, 0, 0]], (-1, 1)),
        "columns go left": ([[0, -1, 0], [1, 0, 0]], (1, -1)),
    }.values(),
)
def test_basis_vectors_decide_the_signs(
    tmp_path: Path, truth: FarField, vectors: list[list[float]], sign: tuple[int, int]
) -> None:
    def change(file: h5py.File) -> None:
        write_again(file, f"{DETECTOR}/basis_vectors", truth.detector_pixel_m * np.array(vectors))
        stored = file["entry_1/sample_1/geometry_1/translation"]
        stored[:, 1] *= sign[0]
        stored[:, 0] *= sign[1]

    require_read(read_scan(write_cxi(tmp_path / "scan.cxi", truth, change)), truth)


def test_detector_on_its_side_has_rows_along_x(tmp_path: Path, truth: FarField) -> None:
    def change(file: h5py.File) -> None:
        write_again(
            file,
            f"{DETECTOR}/basis_vectors",
            truth.detector_pixel_m * np.array([[-1.0, 0, 0], [0, -1, 0]]),
        )
        stored = file["entry_1/sample_1/geometry_1/translation"]
        stored[:, :2] = stored[()][:, 1::-1]

    require_read(read_scan(write_cxi(tmp_path / "scan.cxi", truth, change)), truth)


def test_as_ptychodus_writes_it(tmp_path: Path, truth: FarField) -> None:
    """No basis vectors; probe and object as images, translation (x, y) of the light over the
    object, extras in a group of its own."""

    def change(file: h5py.File) -> None:
        for key in (
            f"{DETECTOR}/basis_vectors",
            "entry_1/instrument_1/source_1/probe",
            "entry_1/data_1/translation",
        ):
            del file[key]
        positions = truth.positions_m
        write_again(
            file,
            "entry_1/sample_1/geometry_1/translation",
            np.stack([positions[:, 1], positions[:, 0], 0 * positions[:, 0]], 1),
        )
        file["entry_1/image_1/data"] = truth.probe[None].astype(np.complex128)
        file["entry_1/instrument_1/source_1/illumination"] = h5py.SoftLink("/entry_1/image_1/data")
        file["entry_1/image_2/data"] = truth.object[None].astype(np.complex64)
        extras = file.create_group("entry_1/ptychodus")
        extras["object_pixel_width_m"] = extras["object_pixel_height_m"] = truth.object_pixel_m
        extras["object_center_y_m"], extras["object_center_x_m"] = truth.object_centre_m
        extras["probe_photon_count"] = 12345.0
        extras["probe_position_indexes"] = np.arange(len(positions))

    path = write_cxi(tmp_path / "scan.cxi", truth, change)
    scan = read_scan(path)
    require_read(scan, truth, has_object=True)
    assert scan.nphotons == 12345
    assert np.allclose(read_object(path), truth.object, atol=1e-6)


def test_mask_is_of_bits_and_what_it_hides_is_not_read(tmp_path: Path, truth: FarField) -> None:
    def change(file: h5py.File) -> None:
        bits = np.zeros((16, 16), dtype=np.uint32)
        bits[2, 3], bits[5, 6], bits[9, 1] = 1, 0x1000, 0x1001
        file[f"{DETECTOR}/mask"] = bits
        file[f"{DETECTOR}/data"][:, 2, 3] = 2**32 - 1

    scan = read_scan(write_cxi(tmp_path / "scan.cxi", truth, change))
    expected = np.ones((16, 16), dtype=bool)
    expected[2, 3] = expected[9, 1] = False  # 0x1000 alone says that there is signal
    assert scan.mask is not None
    assert np.array_equal(scan.mask, expected)
    assert np.array_equal(scan.amplitude(np.array([1]))[0][~expected], [0, 0])
    assert scan.amplitude(np.array([1]))[0, 5, 6] == np.float32(np.sqrt(truth.counts[1, 5, 6]))


@pytest.mark.parametrize(("keep", "key"), [(False, "wavelength"), (True, "energy")])
def test_wavelength_serves_where_there_is_no_energy(
    tmp_path: Path, truth: FarField, keep: bool, key: str
) -> None:
    def change(file: h5py.File) -> None:
        if not keep:
            del file["entry_1/instrument_1/source_1/energy"]
        file["entry_1/instrument_1/source_1/wavelength"] = 1.2398419843320026e-06 / truth.energy_eV

    require_read(read_scan(write_cxi(tmp_path / "scan.cxi", truth, change)), truth)


def test_missing_numbers_are_asked_for_by_file_and_key(tmp_path: Path, truth: FarField) -> None:
    def change(file: h5py.File) -> None:
        del file["entry_1/instrument_1/source_1/energy"]
        del file[f"{DETECTOR}/distance"]

    path = write_cxi(tmp_path / "scan.cxi", truth, change)
    with pytest.raises(ScanError) as refused:
        read_scan(path)
    message = str(refused.value)
    assert message.startswith(
        f"{path}: geometry: found positions in metres, but no energy_eV (looked for "
        "entry_1/instrument_1/source_1/energy)"
    )
    assert message.endswith("--data.energy_eV NUMBER --data.detector_distance_m NUMBER")
    given = DataConfig(energy_eV=truth.energy_eV, detector_distance_m=truth.distance_m)
    require_read(read_scan(path, options=given), truth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"energy_eV": 8800.0},
            r"energy_eV: found 8765 in the file but 8800 in data\.energy_eV, expected one answer",
        ),
        (
            {"detector_distance_m": 2.0},
            r"distance_m: found 1\.9 in the file but 2 in data\.detector_distance_m",
        ),
        (
            {"detector_pixel_m": 55e-6},
            r"detector_pixel_m: found 7\.5e-05 in the file but 5\.5e-05 in data\.detector_pixel_m",
        ),
    ],
)
def test_numbers_that_contradict_the_file_are_refused(
    tmp_path: Path, truth: FarField, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ScanError, match=message):
        read_scan(write_cxi(tmp_path / "scan.cxi", truth), options=DataConfig(**options))


def test_amplitude_contradicts_the_format(tmp_path: Path, truth: FarField) -> None:
    with pytest.raises(
        ScanError, match="measurement: found 'counts' in the file's metadata but 'amplitude'"
    ):
        read_scan(write_cxi(tmp_path / "scan.cxi", truth), "amplitude")


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "energy in electronvolts": (
        lambda file: write_again(file, "entry_1/instrument_1/source_1/energy", 8000.0),
        r"source_1/energy: found 8000\.0, expected joules",
    ),
    "energy not a number": (
        lambda file: write_again(file, "entry_1/instrument_1/source_1/energy", np.nan),
        r"source_1/energy: found nan, expected a finite number",
    ),
    "negative energy": (
        lambda file: write_again(file, "entry_1/instrument_1/source_1/energy", -1e-15),
        r"source_1/energy: found -\d+.*, expected a positive number",
    ),
    "two distances": (
        lambda file: write_again(file, f"{DETECTOR}/distance", np.ones(2)),
        r"detector_1/distance: found float64 \(2,\), expected one real number",
    ),
    "no translation": (
        lambda file: [file.pop(key) for key in ("entry_1/data_1/translation", "entry_1/sample_1")],
        r"translation: found entry_1 with \[.*\], expected where the sample was",
    ),
    "translation of one number": (
        lambda file: write_again(file, "entry_1/sample_1/geometry_1/translation", np.ones(30)),
        r"translation: found shape \(30,\), expected \(x, y, z\)",
    ),
    "translation too short": (
        lambda file: write_again(file, "entry_1/sample_1/geometry_1/translation", np.ones((29, 3))),
        r"positions: found 29 positions, expected 30, one a pattern of entry_1/data_1/data",
    ),
    "translation with NaN": (
        lambda file: file["entry_1/sample_1/geometry_1/translation"].write_direct(
            np.full((30, 3), np.nan)
        ),
        r"positions: found \[nan nan\], expected finite numbers",
    ),
    "oblong pixels": (
        lambda file: [
            write_again(file, f"{DETECTOR}/basis_vectors", None),
            write_again(file, f"{DETECTOR}/x_pixel_size", 50e-6),
        ],
        r"x_pixel_size, y_pixel_size: found \[7\.5e-05, 5e-05\], expected square pixels",
    ),
    "detector along the beam": (
        lambda file: write_again(
            file, f"{DETECTOR}/basis_vectors", 75e-6 * np.array([[0, 0, 1.0], [-1, 0, 0]])
        ),
        "basis_vectors: found .*, expected rows and columns at right angles, across the beam",
    ),
    "basis vectors of another shape": (
        lambda file: write_again(file, f"{DETECTOR}/basis_vectors", np.ones((2, 2))),
        r"basis_vectors: found shape \(2, 2\), expected two vectors",
    ),
    "patterns of one axis": (
        lambda file: write_again(file, f"{DETECTOR}/data", np.ones(30)),
        r"entry_1/data_1/data: found shape \(30,\) of float64, expected diffraction patterns",
    ),
    "data that are a group": (
        lambda file: [
            write_again(file, f"{DETECTOR}/data", None),
            file.create_group(f"{DETECTOR}/data"),
        ],
        "entry_1/data_1/data: found a group, expected a dataset",
    ),
    "probe of another size": (
        lambda file: write_again(
            file, "entry_1/instrument_1/source_1/probe", np.ones((1, 24, 24), dtype=np.complex64)
        ),
        r"source_1/probe: found shape \(1, 24, 24\), expected the patterns' size, 16 x 16",
    ),
    "masks that change": (
        lambda file: file.create_dataset(
            f"{DETECTOR}/mask",
            data=np.arange(30, dtype=np.uint32)[:, None, None] * np.ones((1, 16, 16), "u4"),
        ),
        "detector_1/mask: found frame 1 differs from frame 0, expected one mask for all patterns: "
        "leave it out and give data.mask",
    ),
    "mask that hides all": (
        lambda file: file.create_dataset(
            f"{DETECTOR}/mask", data=np.ones((16, 16), dtype=np.uint32)
        ),
        "mask: found no pixel that counts",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_refusal_names_file_key_found_and_expected(
    tmp_path: Path, truth: FarField, change: Callable[[h5py.File], Any], message: str
) -> None:
    path = write_cxi(tmp_path / "scan.cxi", truth, change)
    with pytest.raises(ScanError, match=message) as refused:
        read_scan(path)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.realdata
def test_real_near_field_scan_can_be_looked_at(realdata: Path) -> None:
    scan = read_scan(realdata / "petraiii_p25_near_field.cxi")
    assert scan.diffraction.shape == (200, 100, 100)
    assert scan.geometry is not None
    assert scan.geometry.energy_eV == pytest.approx(12658, abs=1)
    # The file has the wavelength too, in float32.
    assert scan.geometry.wavelength_m == pytest.approx(9.794912e-11, rel=1e-6)
    assert scan.mask is not None
    assert np.count_nonzero(~scan.mask) == 5
    with h5py.File(realdata / "petraiii_p25_near_field.cxi") as file:
        some = np.array([150, 3, 3, 199])
        counts = np.where(scan.mask, file["entry_1/data_1/data"][()][some], 0)
        moved_m = file["entry_1/data_1/translation"][()][:, 1::-1].astype(np.float64)
    assert np.allclose(scan.amplitude(some).astype(np.float64) ** 2, counts, rtol=1e-6)
    pixel_m = scan.geometry.object_pixel_m(100)
    # Rows down, columns to the right, by the file's basis vectors: the light goes as the sample's y
    # and x.
    assert np.allclose(
        (scan.positions_px - scan.positions_px[0]) * pixel_m, moved_m - moved_m[0], atol=1e-12
    )
    with pytest.raises(
        ScanError,
        match=r"near_field\.cxi: probe: found none in the file and no data\.probe, expected --data\.probe FILE",
    ):
        scan.require_probe()
