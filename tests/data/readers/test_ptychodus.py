"""ptychodus products, HDF5 and NPZ, with their patterns elsewhere; and the pairs of ptycho-vit,
which are such products."""

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
from tests.data.readers.writers import KEPT, write_npz_product, write_patterns, write_product


@pytest.fixture
def truth() -> FarField:
    return simulate(modes=2)


@pytest.mark.parametrize("numbers", [None, KEPT], ids=["all", "some"])
def test_product_with_its_patterns_named(
    tmp_path: Path, truth: FarField, numbers: np.ndarray | None
) -> None:
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    scan = read_scan(
        write_product(tmp_path / "product.h5", truth, numbers),
        options=DataConfig(diffraction=str(patterns)),
    )
    require_read(scan, truth, numbers=numbers, has_object=True)
    assert scan.nphotons == 54321
    assert scan.geometry is not None
    assert scan.geometry.energy_eV == truth.energy_eV
    # Not in the product: it follows from the pixel of the object.
    assert scan.geometry.detector_pixel_m == pytest.approx(truth.detector_pixel_m, rel=1e-9)


def test_energy_by_its_newer_name(tmp_path: Path, truth: FarField) -> None:
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    with h5py.File(write_product(tmp_path / "product.h5", truth), "a") as file:
        file.attrs["photon_energy_eV"] = file.attrs["probe_energy_eV"]
        del file.attrs["probe_energy_eV"]
    npz = write_npz_product(
        tmp_path / "product.npz", truth, KEPT, photon_energy_eV=truth.energy_eV, probe_energy_eV=0.0
    )
    for path in (tmp_path / "product.h5", npz):
        geometry = read_scan(path, options=DataConfig(diffraction=str(patterns))).geometry
        assert geometry is not None
        assert geometry.energy_eV == truth.energy_eV


def test_object_of_a_product_needs_no_patterns(tmp_path: Path, truth: FarField) -> None:
    for path in (
        write_product(tmp_path / "product.h5", truth),
        write_npz_product(tmp_path / "product.npz", truth, KEPT),
    ):
        assert np.allclose(read_object(path), truth.object)


def test_npz_product(tmp_path: Path, truth: FarField) -> None:
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts, "somewhere/else")
    options = DataConfig(diffraction=f"{patterns}:/somewhere/else")
    path = write_npz_product(tmp_path / "product.npz", truth, KEPT)
    scan = read_scan(path, options=options)
    require_read(scan, truth, numbers=KEPT, has_object=True)
    assert scan.path == path
    assert scan.nphotons == 54321
    with pytest.raises(
        ScanError,
        match=r"product\.npz: diffraction: found a product without patterns, .*--data\.diffraction FILE",
    ):
        read_scan(path)


@pytest.mark.parametrize("named", ["scan_dp.hdf5", "scan_para.hdf5"])
def test_pair_by_either_name(tmp_path: Path, truth: FarField, named: str) -> None:
    """As ptycho-vit's are: without indexes, energy, centre; positions count from the middle of the
    object."""
    write_patterns(tmp_path / "scan_dp.hdf5", truth.counts)
    with h5py.File(tmp_path / "scan_para.hdf5", "w") as file:
        file["object"], file["probe"] = (
            truth.object[None].astype(np.complex64),
            np.stack([truth.probe, 0.1 * truth.probe]),
        )
        file["object"].attrs["pixel_height_m"] = truth.object_pixel_m
        file["probe_position_y_m"], file["probe_position_x_m"] = (
            truth.positions_m - truth.object_centre_m
        ).T
    scan = read_scan(tmp_path / named)
    require_read(scan, truth, has_object=True)
    assert scan.path == tmp_path / named
    assert scan.geometry is None
    assert scan.nphotons is None
    given = read_scan(
        tmp_path / named,
        options=DataConfig(energy_eV=truth.energy_eV, detector_distance_m=truth.distance_m),
    )
    assert given.geometry is not None
    assert given.geometry.detector_pixel_m == pytest.approx(truth.detector_pixel_m, rel=1e-9)


def test_layers_of_the_object_multiply(tmp_path: Path, truth: FarField) -> None:
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    with h5py.File(write_product(tmp_path / "product.h5", truth), "a") as file:
        attributes = dict(file["object"].attrs)
        del file["object"]
        file["object"] = np.stack([truth.object**0.5, truth.object**0.5])
        file["object"].attrs.update(attributes)
    require_read(
        read_scan(tmp_path / "product.h5", options=DataConfig(diffraction=str(patterns))),
        truth,
        has_object=True,
    )


def test_larger_detector_is_cropped_to_the_product(tmp_path: Path, truth: FarField) -> None:
    """ptychodus crops before it reconstructs: the product's pixel and probe are those of the
    window."""
    detector = np.zeros((30, 40, 64), dtype=np.uint32)
    detector[:, 15 - 8 : 15 + 8, 40 - 8 : 40 + 8] = truth.counts
    patterns = write_patterns(tmp_path / "patterns.h5", detector)
    path = write_product(tmp_path / "product.h5", truth)
    options = DataConfig(diffraction=str(patterns), crop=16, centre_px=(15, 40))
    require_read(read_scan(path, options=options), truth, has_object=True)


def change(path: Path, action: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "a") as file:
        action(file)


def replaced(key: str, value: Any) -> Callable[[h5py.File], Any]:
    def action(file: h5py.File) -> None:
        del file[key]
        file[key] = value

    return action


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "number of no pattern": (
        replaced("probe_position_indexes", np.arange(1, 31)),
        "probe_position_indexes: found numbers from 1 to 30, expected numbers of the 30",
    ),
    "negative number": (
        replaced("probe_position_indexes", np.arange(-1, 29)),
        "probe_position_indexes: found numbers from -1 to 28",
    ),
    "fewer numbers": (
        replaced("probe_position_indexes", np.arange(5)),
        "positions: found 30 positions, expected 5",
    ),
    "x of another length": (
        replaced("probe_position_x_m", np.ones(3)),
        r"probe_position_x_m, .*: found \[\(\(3,\), 'float64'\), \(\(30,\), 'float64'\)\]",
    ),
    "real probe": (
        replaced("probe", np.ones((1, 1, 16, 16))),
        "probe: found type float64, expected complex numbers",
    ),
    "oblong probe": (
        replaced("probe", np.ones((16, 8), dtype=complex)),
        r"probe: found shape \(16, 8\) of complex128, expected a complex probe",
    ),
    "oblong pixels": (
        lambda file: file["object"].attrs.modify("pixel_width_m", 1e-9),
        "pixel_height_m, pixel_width_m: found .*, expected square pixels",
    ),
    "NaN energy": (
        lambda file: file.attrs.modify("probe_energy_eV", np.nan),
        "/ probe_energy_eV: found nan, expected a finite number",
    ),
    "pixel that energy and distance contradict": (
        lambda file: [
            file["object"].attrs.modify(f"pixel_{side}_m", 1e-9) for side in ("width", "height")
        ],
        r"object pixel: found 1e-09 in the file but .* from energy, distance, detector pixel",
    ),
}


@pytest.mark.parametrize(("action", "message"), BROKEN.values(), ids=BROKEN)
def test_refusal_names_file_key_found_and_expected(
    tmp_path: Path, truth: FarField, action: Callable[[h5py.File], Any], message: str
) -> None:
    patterns = write_patterns(tmp_path / "patterns.h5", truth.counts)
    change(path := write_product(tmp_path / "product.h5", truth), action)
    with pytest.raises(ScanError, match=message):
        read_scan(
            path,
            options=DataConfig(diffraction=str(patterns), detector_pixel_m=truth.detector_pixel_m),
        )


def test_product_alone_asks_for_its_patterns(tmp_path: Path, truth: FarField) -> None:
    with pytest.raises(
        ScanError,
        match=r"product\.h5: diffraction: found only \[.*\], expected the patterns: --data\.diffraction FILE",
    ):
        read_scan(write_product(tmp_path / "product.h5", truth))


@pytest.mark.parametrize(
    "key", ["probe_position_x_m", "probe_position_indexes", "probe_energy_eV", "probe", "object"]
)
def test_words_for_numbers_are_refused(tmp_path: Path, truth: FarField, key: str) -> None:
    path = write_npz_product(
        tmp_path / "product.npz", truth, KEPT, **{key: np.array(["a"] * len(KEPT))}
    )
    with pytest.raises(ScanError, match=key):
        read_scan(path, options=DataConfig(diffraction="patterns.h5"))


def test_npz_product_with_a_pickle_is_refused(tmp_path: Path, truth: FarField) -> None:
    path = write_npz_product(
        tmp_path / "product.npz", truth, KEPT, probe=np.array({"a": 1}, dtype=object)
    )
    with pytest.raises(ScanError, match=r"product\.npz: probe: found shape \(\), type object"):
        read_scan(path, options=DataConfig(diffraction="patterns.h5"))


def test_npz_product_that_unpacks_to_a_thousandfold_is_refused(
    tmp_path: Path, truth: FarField
) -> None:
    path = write_npz_product(tmp_path / "product.npz", truth, KEPT)
    with np.load(path) as stored:
        arrays = {**stored, "object": np.zeros((1, 3000, 3000), dtype=complex)}
    np.savez_compressed(path, **arrays)
    with pytest.raises(ScanError, match=r"object: found 144000000 bytes, expected at most"):
        read_scan(path, options=DataConfig(diffraction="patterns.h5"))
