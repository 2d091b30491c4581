"""What the configuration adds to a file: window, probe, mask, geometry; and what a look at a few
patterns tells."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig, Hdf5Config
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Scan, ScanError
from tests.data.readers.far_field import FarField, require_read, simulate
from tests.scans import small_scan_arrays

WriteScan = Callable[..., Path]
NAMES = Hdf5Config(diffraction="dp", positions="positions", positions_unit="m", probe="probe")


@pytest.fixture
def truth() -> FarField:
    return simulate()


def write(path: Path, truth: FarField, **changed: Any) -> Path:
    content = {"dp": truth.counts, "positions": truth.positions_m, "probe": truth.probe, **changed}
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value
    return path


def geometry(truth: FarField) -> dict[str, Any]:
    return {
        "energy_eV": truth.energy_eV,
        "detector_distance_m": truth.distance_m,
        "detector_pixel_m": truth.detector_pixel_m,
    }


def read(path: Path, truth: FarField, **options: Any) -> Scan:
    return read_scan(
        path, "counts", options=DataConfig(**{"hdf5": NAMES, **geometry(truth), **options})
    )


# --- Window


@pytest.mark.parametrize("centre", [(40, 90), None])
def test_window_of_a_large_detector(
    tmp_path: Path, truth: FarField, centre: tuple[int, int] | None
) -> None:
    """514 x 1030 pixels, as detectors have them; the object's pixel is that of the window."""
    row, column = centre or (257, 515)
    detector = np.full((30, 514, 1030), 7, dtype=np.uint16)
    detector[:, row - 8 : row + 8, column - 8 : column + 8] = truth.counts
    truth.counts[:] = truth.counts.astype(np.uint16)
    path = write(tmp_path / "scan.h5", truth, dp=detector)
    with pytest.raises(
        ScanError,
        match=r"dp: found patterns of 514 x 1030, expected square ones .*--data\.crop N .*--data\.centre_px",
    ):
        read(path, truth)
    scan = read(path, truth, crop=16, centre_px=centre)
    assert np.array_equal(scan.diffraction[np.array([3, 29])], truth.counts[[3, 29]])
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m(16) == pytest.approx(truth.object_pixel_m)
    assert (
        np.abs(
            scan.positions_px - scan.positions_px[0] - (truth.corners_px - truth.corners_px[0])
        ).max()
        < 1e-6
    )


def test_centre_needs_a_window(tmp_path: Path, truth: FarField) -> None:
    with pytest.raises(
        ScanError, match=r"data\.centre_px: found \(8, 8\), expected data\.crop with it"
    ):
        read(write(tmp_path / "scan.h5", truth), truth, centre_px=(8, 8))


def test_probe_follows_the_window(tmp_path: Path) -> None:
    """Cut a detector in half: a smooth object under the band-limited probe, on a grid twice as
    coarse, gives the counts in the window."""
    size, half = 64, 32
    y, x = np.indices((size, size)) - size // 2
    probe = np.exp(-(y**2 + (x - 3) ** 2) / 60 + 0.02j * y * y + 0.3j * x)
    positions_px = np.array([[32.0, 32.0], [34.0, 40.0], [44.0, 36.0]])
    rows, columns = np.indices((90, 90))
    transmission = np.exp(0.8j * np.sin(rows / 9) * np.cos(columns / 13))
    wave = np.stack(
        [
            probe * transmission[int(r) - 32 : int(r) + 32, int(c) - 32 : int(c) + 32]
            for r, c in positions_px
        ]
    )
    counts = 1e4 * np.abs(np.fft.fftshift(np.fft.fft2(wave, norm="ortho"), axes=(-2, -1))) ** 2
    truth = simulate()
    names = Hdf5Config(diffraction="dp", positions="positions", positions_unit="m", probe="probe")
    pixel_m = (
        1.2398419843320026e-06
        / truth.energy_eV
        * truth.distance_m
        / (size * truth.detector_pixel_m)
    )
    path = write(
        tmp_path / "scan.h5", truth, dp=counts, positions=positions_px * pixel_m, probe=probe
    )
    scan = read_scan(path, "counts", options=DataConfig(hdf5=names, crop=half, **geometry(truth)))
    assert scan.probe.shape == (1, half, half)
    coarse = transmission[::2, ::2]
    moved = np.round(scan.positions_px - scan.positions_px[0]).astype(int)
    assert np.allclose(
        scan.positions_px - scan.positions_px[0], (positions_px - positions_px[0]) / 2
    )
    patches = np.stack([coarse[r : r + half, c : c + half] for r, c in moved])
    predicted = (
        1e4
        * np.abs(np.fft.fftshift(np.fft.fft2(scan.probe * patches, norm="ortho"), axes=(-2, -1)))
        ** 2
    )
    read_counts = scan.diffraction[np.arange(3)]
    # The light outside the window is 1e-4 of all of it, and aliases.
    assert np.abs(predicted - read_counts).sum() < 2e-2 * read_counts.sum()
    assert np.abs(scan.probe).sum() > 0


def test_window_of_an_npz_scan(write_scan: WriteScan) -> None:
    whole = read_scan(write_scan(), "amplitude")
    scan = read_scan(write_scan(), "amplitude", options=DataConfig(crop=8))
    numbers = np.array([5, 2, 2])
    assert np.array_equal(scan.diffraction[numbers], whole.diffraction[numbers][:, 4:12, 4:12])
    assert np.array_equal(scan.positions_px, whole.positions_px / 2)
    assert scan.probe.shape == (1, 8, 8)
    assert scan.object_guess is None
    assert scan.fingerprint != whole.fingerprint


def test_fingerprint_of_an_npz_scan_is_of_what_is_used(
    tmp_path: Path, write_scan: WriteScan
) -> None:
    options: list[dict[str, Any]] = [{}, {"crop": 8}, {"crop": 8, "centre_px": (7, 8)}]
    for number in (1, 2):
        mask = np.ones((16, 16), dtype=bool)
        mask[0, number] = False
        np.save(tmp_path / f"mask{number}.npy", mask)
        np.save(tmp_path / f"probe{number}.npy", number * small_scan_arrays()["probeGuess"])
        options += [{key: str(tmp_path / f"{key}{number}.npy")} for key in ("mask", "probe")]
    path = write_scan()
    found = {read_scan(path, "amplitude", options=DataConfig(**one)).fingerprint for one in options}
    assert len(found) == len(options)


# --- Probe and mask of other files


@pytest.mark.parametrize("kind", ["npy", "npz", "hdf5", "hdf5 by name"])
def test_probe_of_another_file(tmp_path: Path, truth: FarField, kind: str) -> None:
    path = write(tmp_path / "scan.h5", truth, probe=np.ones((16, 16), dtype=complex))
    name = {"npy": "p.npy", "npz": "p.npz", "hdf5": "p.h5", "hdf5 by name": "p.h5:/a/b"}[kind]
    if kind == "npy":
        np.save(tmp_path / name, truth.probe)
    elif kind == "npz":
        np.savez(tmp_path / name, probeGuess=truth.probe[0, :, :, None])
    else:
        with h5py.File(tmp_path / "p.h5", "w") as file:
            file["probe" if kind == "hdf5" else "a/b"] = truth.probe[None]
    require_read(read(path, truth, probe=str(tmp_path / name)), truth)


def test_npz_scan_without_a_probe_takes_another_files(
    tmp_path: Path, write_scan: WriteScan
) -> None:
    np.save(tmp_path / "probe.npy", small_scan_arrays()["probeGuess"])
    scan = read_scan(
        write_scan(drop=("probeGuess",)),
        "amplitude",
        options=DataConfig(probe=str(tmp_path / "probe.npy")),
    )
    assert np.array_equal(scan.probe, read_scan(write_scan("whole.npz"), "amplitude").probe)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((16, 16)), "data.probe: found shape .* of float64, expected complex numbers"),
        (np.ones((16, 8), dtype=complex), "data.probe: found shape .*, expected a complex probe"),
        (
            np.ones((24, 24), dtype=complex),
            r"found shape \(1, 24, 24\), expected the patterns' size, 16 x 16; or --data\.crop N",
        ),
        (np.full((16, 16), np.nan + 0j), "probe: found NaN or infinity"),
        (np.zeros((16, 16), dtype=complex), "probe: found zeros only"),
        (np.array({"a": 1}, dtype=object), "data.probe: found not a readable .npy file"),
    ],
)
def test_probe_that_can_not_be_used_is_refused(
    tmp_path: Path, truth: FarField, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(ScanError, match=message):
        read(write(tmp_path / "scan.h5", truth), truth, probe=str(tmp_path / "p.npy"))


def test_missing_probe_file_is_named(tmp_path: Path, truth: FarField) -> None:
    with pytest.raises(
        ScanError,
        match=r"nowhere\.npy: data\.probe: found no such file, expected a \.npy, \.npz or HDF5 file",
    ):
        read(write(tmp_path / "scan.h5", truth), truth, probe=str(tmp_path / "nowhere.npy"))


def test_scan_without_a_probe_can_be_looked_at(tmp_path: Path, truth: FarField) -> None:
    path = write(tmp_path / "scan.h5", truth)
    scan = read(
        path, truth, hdf5=Hdf5Config(diffraction="dp", positions="positions", positions_unit="m")
    )
    assert scan.probe.shape == (0, 16, 16)
    with pytest.raises(
        ScanError,
        match=r"probe: found none in the file and no data\.probe, expected --data\.probe FILE",
    ):
        scan.require_probe()


MARKS: dict[str, tuple[Any, float]] = {
    "largest uint32": (np.uint32, 2**32 - 1),
    "largest uint16": (np.uint16, 2**16 - 1),
    "minus one": (np.int32, -1),
    "NaN": (np.float32, np.nan),
}


@pytest.mark.parametrize(("dtype", "mark"), MARKS.values(), ids=MARKS)
def test_marked_pixels_ask_for_a_mask_and_are_then_zero(
    tmp_path: Path, truth: FarField, dtype: Any, mark: float
) -> None:
    counts = np.minimum(truth.counts, 1000).astype(dtype)
    counts[:, 2, 11] = mark
    path = write(tmp_path / "scan.h5", truth, dp=counts)
    with pytest.raises(
        ScanError,
        match=r"at pixel \[2, 11\] of every pattern looked at, and at 0 others, expected counts; .*--data\.mask",
    ):
        read(path, truth)
    mask = np.ones((16, 16), dtype=np.uint8)
    mask[2, 11] = 0
    np.save(tmp_path / "mask.npy", mask)
    scan = read(path, truth, mask=str(tmp_path / "mask.npy"))
    assert scan.mask is not None
    assert np.array_equal(scan.mask, mask.astype(bool))
    assert scan.amplitude(np.arange(30))[:, 2, 11].tolist() == [0] * 30
    assert np.array_equal(
        scan.amplitude(np.array([4]))[0, 0], np.sqrt(counts[4, 0].astype(float)).astype(np.float32)
    )


def test_saturated_pixel_of_one_pattern_is_a_count(tmp_path: Path, truth: FarField) -> None:
    counts = np.minimum(truth.counts, 1000).astype(np.uint16)
    counts[3, 2, 11] = 2**16 - 1
    assert read(write(tmp_path / "scan.h5", truth, dp=counts), truth).amplitude(np.array([3]))[
        0, 2, 11
    ] == np.float32(np.sqrt(65535))


def test_masks_of_file_and_configuration_hold_both(tmp_path: Path, truth: FarField) -> None:
    own, other = np.ones((2, 16, 16), dtype=bool)
    own[1, 1], other[2, 2] = False, False
    np.save(tmp_path / "mask.npy", other)
    names = Hdf5Config(
        diffraction="dp", positions="positions", positions_unit="m", probe="probe", mask="mask"
    )
    scan = read(
        write(tmp_path / "scan.h5", truth, mask=own),
        truth,
        hdf5=names,
        mask=str(tmp_path / "mask.npy"),
    )
    assert scan.mask is not None
    assert np.argwhere(~scan.mask).tolist() == [[1, 1], [2, 2]]


def test_mask_is_of_the_detector_or_of_the_window(tmp_path: Path, truth: FarField) -> None:
    path = write(tmp_path / "scan.h5", truth)
    whole = np.ones((16, 16), dtype=bool)
    whole[5, 6] = False
    for name, mask in {"whole": whole, "window": whole[1:9, 5:13]}.items():
        np.save(tmp_path / f"{name}.npy", mask)
        scan = read(path, truth, crop=8, centre_px=(5, 9), mask=str(tmp_path / f"{name}.npy"))
        assert scan.mask is not None
        assert np.argwhere(~scan.mask).tolist() == [[4, 1]]
    with pytest.raises(
        ScanError, match=r"data\.mask: found shape \(8, 8\), expected the detector's, \(16, 16\)"
    ):
        read(path, truth, mask=str(tmp_path / "window.npy"))


@pytest.mark.parametrize(
    "mask",
    [np.full((16, 16), 2), np.ones((16, 16)), np.ones(16, dtype=bool)],
    ids=["2", "real", "one axis"],
)
def test_mask_of_anything_but_0_and_1_is_refused(
    tmp_path: Path, truth: FarField, mask: np.ndarray
) -> None:
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(ScanError, match=r"data\.mask: found shape"):
        read(write(tmp_path / "scan.h5", truth), truth, mask=str(tmp_path / "mask.npy"))


# --- What is said


def test_positions_that_do_not_overlap_are_warned_of(
    tmp_path: Path, truth: FarField, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ptycho_dist"):
        read(write(tmp_path / "scan.h5", truth, positions=100 * truth.positions_m), truth)
    assert "px apart, patches have 16 px: no overlap in the far field" in caplog.text


def test_light_in_the_corners_is_warned_of(
    tmp_path: Path, truth: FarField, caplog: pytest.LogCaptureFixture
) -> None:
    y, x = np.indices((16, 16)) - 8
    beam = (1000 * np.exp(-(y**2 + x**2) / 8)).astype(np.uint32) * np.ones(
        (30, 1, 1), dtype=np.uint32
    )
    with caplog.at_level(logging.WARNING, "ptycho_dist"):
        read(write(tmp_path / "good.h5", truth, dp=beam), truth)
        assert caplog.text == ""
        read(write(tmp_path / "bad.h5", truth, dp=np.fft.ifftshift(beam, axes=(1, 2))), truth)
    assert "the light is in the corners of the patterns" in caplog.text


def test_mask_that_hides_most_is_warned_of(
    tmp_path: Path, truth: FarField, caplog: pytest.LogCaptureFixture
) -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[8] = True
    np.save(tmp_path / "mask.npy", mask)
    with caplog.at_level(logging.WARNING, "ptycho_dist"):
        read(write(tmp_path / "scan.h5", truth), truth, mask=str(tmp_path / "mask.npy"))
    assert "more than half of the pixels do not count" in caplog.text


# --- Fingerprint


CHANGES: dict[str, Callable[[FarField, dict[str, Any]], None]] = {
    "a count": lambda truth, content: content["dp"].__setitem__((17, 3, 4), 5),
    "a position": lambda truth, content: content["positions"].__setitem__(
        (3, 0), content["positions"][3, 0] + 1e-9
    ),
    "the probe": lambda truth, content: content["probe"].__setitem__((0, 3, 4), 0.5),
    "a type": lambda truth, content: content.__setitem__("dp", content["dp"].astype(np.int32)),
    "a pattern more": lambda truth, content: content.update(
        dp=np.concatenate([content["dp"], content["dp"][:1]]),
        positions=np.concatenate([content["positions"], content["positions"][:1]]),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_fingerprint_tells_contents_apart(
    tmp_path: Path, truth: FarField, change: Callable[[FarField, dict[str, Any]], None]
) -> None:
    content = {
        "dp": truth.counts.copy(),
        "positions": truth.positions_m.copy(),
        "probe": truth.probe.copy(),
    }
    original = read(write(tmp_path / "scan.h5", truth, **content), truth).fingerprint
    assert read(write(tmp_path / "same.h5", truth, **content), truth).fingerprint == original
    change(truth, content)
    assert read(write(tmp_path / "other.h5", truth, **content), truth).fingerprint != original


def test_fingerprint_is_of_what_is_used(tmp_path: Path, truth: FarField) -> None:
    path = write(tmp_path / "scan.h5", truth)
    mask = np.ones((16, 16), dtype=bool)
    mask[0, 0] = False
    np.save(tmp_path / "mask.npy", mask)
    different = [
        read(path, truth),
        read(path, truth, crop=8),
        read(path, truth, mask=str(tmp_path / "mask.npy")),
    ]
    assert len({scan.fingerprint for scan in different}) == 3
