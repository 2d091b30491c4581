"""PtychoShelves and fold_slice: one file or a pair, written by Python or by MATLAB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_dist.config import DataConfig
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import ScanError
from tests.data.readers.far_field import H_C_EV_M, FarField, require_read, simulate
from tests.data.readers.writers import positions_of, write_datasets


@pytest.fixture
def truth() -> FarField:
    return simulate()


@pytest.fixture
def probe_file(tmp_path: Path, truth: FarField) -> str:
    np.save(tmp_path / "probe.npy", truth.probe[0])
    return str(tmp_path / "probe.npy")


@pytest.mark.parametrize("named", ["data_roi0_dp.hdf5", "data_roi0_para.hdf5"])
def test_pair_by_either_name(tmp_path: Path, truth: FarField, probe_file: str, named: str) -> None:
    mask = np.ones((16, 16), dtype=bool)
    mask[3, 12] = False
    write_datasets(tmp_path / "data_roi0_dp.hdf5", {"dp": truth.counts, "det_pixel_mask": mask})
    write_datasets(
        tmp_path / "data_roi0_para.hdf5",
        {
            **positions_of(truth),
            "energy": truth.energy_eV / 1e3,
            "detector_distance": truth.distance_m,
            "angle": 0.0,
        },
    )
    options = DataConfig(probe=probe_file, detector_pixel_m=truth.detector_pixel_m)
    scan = read_scan(tmp_path / named, options=options)
    assert scan.mask is not None
    assert np.array_equal(scan.mask, mask)
    require_read_but_for(scan, truth, mask)
    with pytest.raises(
        ScanError,
        match=r"no detector_pixel_m \(looked for detector_pixel_size\).*--data\.detector_pixel_m NUMBER",
    ):
        read_scan(tmp_path / named)


def require_read_but_for(scan: Any, truth: FarField, mask: np.ndarray) -> None:
    assert np.allclose(
        scan.amplitude(np.arange(30)).astype(float) ** 2, np.where(mask, truth.counts, 0), rtol=1e-6
    )
    assert (
        np.abs(
            scan.positions_px - scan.positions_px[0] - (truth.corners_px - truth.corners_px[0])
        ).max()
        < 1e-3
    )


def test_one_file_with_its_own_pixel(tmp_path: Path, truth: FarField, probe_file: str) -> None:
    """`dx` and the positions may be in any unit, here angstroms: pixels are their quotient."""
    content = {
        "dp": truth.counts,
        "dx": 1e10 * truth.object_pixel_m,
        **{key: 1e10 * value for key, value in positions_of(truth).items()},
    }
    scan = read_scan(
        write_datasets(tmp_path / "data.hdf5", content), options=DataConfig(probe=probe_file)
    )
    require_read(scan, truth)
    assert scan.geometry is None


def test_wavelength_serves_where_there_is_no_energy(
    tmp_path: Path, truth: FarField, probe_file: str
) -> None:
    content = {
        "dp": truth.counts,
        **positions_of(truth),
        "lambda": H_C_EV_M / truth.energy_eV,
        "distance": truth.distance_m,
    }
    options = DataConfig(probe=probe_file, detector_pixel_m=truth.detector_pixel_m)
    require_read(read_scan(write_datasets(tmp_path / "data.hdf5", content), options=options), truth)


def of_matlab(truth: FarField) -> dict[str, Any]:
    """What MATLAB's dp (rows, columns, n), mask (rows, columns), probe (rows, columns) and ppX (n,
    1) look like from here."""
    complex_numbers = np.zeros(truth.probe.shape, dtype=[("real", "f8"), ("imag", "f8")])
    complex_numbers["real"], complex_numbers["imag"] = truth.probe.real, truth.probe.imag
    return {
        "dp": truth.counts.transpose(0, 2, 1),
        "probe": complex_numbers.transpose(0, 2, 1)[0],
        "ppX": truth.positions_m[None, :, 1],
        "ppY": truth.positions_m[None, :, 0],
        "dx": np.full((1, 1), truth.object_pixel_m),
    }


def test_mat_file_bears_its_header(tmp_path: Path, truth: FarField) -> None:
    path = write_datasets(tmp_path / "data.mat", of_matlab(truth), userblock_size=512)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(128))
    require_read(read_scan(path), truth)


def test_plain_file_of_matlab_needs_to_be_told(tmp_path: Path, truth: FarField) -> None:
    path = write_datasets(tmp_path / "data.hdf5", of_matlab(truth))
    require_read(read_scan(path, options=DataConfig(transpose=True)), truth)
    with pytest.raises(AssertionError):
        require_read(read_scan(path), truth)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ppX": np.ones(3)}, r"ppY, ppX: found 30 and 3 values, expected as many"),
        (
            {"det_pixel_mask": np.full((16, 16), 2)},
            r"det_pixel_mask: found .* values \[2\], expected .* 1 where a pixel counts",
        ),
        ({"dx": -1e-9}, "object pixel: found -1e-09, expected a positive number"),
        ({"dx": np.inf}, "dx: found inf, expected a finite number"),
        (
            {"dp": np.ones((30, 16, 16), dtype=complex)},
            "dp: found shape .* of complex128, expected diffraction patterns",
        ),
    ],
)
def test_refusals(tmp_path: Path, truth: FarField, changed: dict[str, Any], message: str) -> None:
    content = {"dp": truth.counts, **positions_of(truth), "dx": truth.object_pixel_m, **changed}
    with pytest.raises(ScanError, match=message):
        read_scan(write_datasets(tmp_path / "data.hdf5", content))
