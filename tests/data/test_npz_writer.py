"""The scan file: what stands in it, and that it is there whole or not at all."""

import json
import os
import zipfile

import numpy as np
import pytest

from ptycho_dist.data.npz_writer import write_npz_scan


def scan(modes=1, count=5, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "diffraction": np.sqrt(rng.poisson(20.0, size=(count, size, size))),
        "positions_px": rng.uniform(size / 2, size, size=(count, 2)),
        "probe": rng.normal(size=(modes, size, size)) + 1j * rng.normal(size=(modes, size, size)),
        "transmission": rng.normal(size=(20, 22)) + 1j * rng.normal(size=(20, 22)),
        "nphotons": 1280.0,
        "settings": {"object": "lines", "scan_shape": (1, 5), "seed": 7},
    }


def read(path):
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_file_holds_ptychopinns_keys(tmp_path):
    written = scan()
    write_npz_scan(tmp_path / "scan.npz", **written)
    found = read(tmp_path / "scan.npz")
    assert {
        name: (array.shape, array.dtype.name)
        for name, array in found.items()
        if name != "_metadata"
    } == {
        "diffraction": ((5, 8, 8), "float32"),
        "xcoords": ((5,), "float64"),
        "ycoords": ((5,), "float64"),
        "xcoords_start": ((5,), "float64"),
        "ycoords_start": ((5,), "float64"),
        "scan_index": ((5,), "int64"),
        "probeGuess": ((8, 8), "complex64"),
        "objectGuess": ((20, 22), "complex64"),
    }
    # (y, x) = (row, column): y is the first of the pair.
    np.testing.assert_array_equal(found["ycoords"], written["positions_px"][:, 0])
    np.testing.assert_array_equal(found["xcoords"], written["positions_px"][:, 1])
    np.testing.assert_array_equal(found["xcoords_start"], found["xcoords"])
    np.testing.assert_array_equal(found["ycoords_start"], found["ycoords"])
    # The rest is stored as it is, in single precision.
    np.testing.assert_array_equal(found["diffraction"], written["diffraction"].astype(np.float32))
    np.testing.assert_array_equal(found["probeGuess"], written["probe"][0].astype(np.complex64))
    np.testing.assert_array_equal(
        found["objectGuess"], written["transmission"].astype(np.complex64)
    )


def test_several_modes_stay_a_stack(tmp_path):
    written = scan(modes=3)
    write_npz_scan(tmp_path / "scan.npz", **written)
    np.testing.assert_array_equal(
        read(tmp_path / "scan.npz")["probeGuess"], written["probe"].astype(np.complex64)
    )


def test_metadata_is_json_text_that_needs_no_pickle(tmp_path):
    write_npz_scan(tmp_path / "scan.npz", **scan())
    text = read(tmp_path / "scan.npz")["_metadata"]
    assert (text.shape, text.dtype.kind) == ((), "U")
    metadata = json.loads(text.item())
    assert metadata["physics_parameters"]["nphotons"] == 1280.0
    assert metadata["measurement"] == "amplitude"
    assert metadata["software"].startswith("ptycho_dist ")
    assert metadata["simulation"] == {"object": "lines", "scan_shape": [1, 5], "seed": 7}


def test_members_are_stored_uncompressed(tmp_path):
    write_npz_scan(tmp_path / "scan.npz", **scan())
    with zipfile.ZipFile(tmp_path / "scan.npz") as archive:
        assert archive.testzip() is None
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_files_truth_reproduces_the_expected_intensities(tmp_path):
    """Probe times patch, as they stand in the file, gives the means of the file's counts. Whole
    positions, so no interpolation."""
    from ptycho_dist.physics.simulation import simulate_scan

    simulated = simulate_scan(
        object="lines",
        amplitude_range=(0.5, 1.0),
        phase_range_rad=(-1.0, 1.0),
        probe="defocused",
        probe_diameter_px=14.0,
        probe_defocus_rad=6.0,
        pattern_size=32,
        scan_shape=(5, 6),
        step_px=3.0,
        jitter_px=0.0,
        nphotons=1e6,
        seed=0,
    )
    write_npz_scan(
        tmp_path / "scan.npz",
        diffraction=simulated.diffraction,
        positions_px=simulated.positions_px,
        probe=simulated.probe,
        transmission=simulated.object,
        nphotons=1e6,
        settings={},
    )
    found = read(tmp_path / "scan.npz")
    totals, chi_squared = [], []
    for amplitude, y, x in zip(
        found["diffraction"],
        found["ycoords"].astype(int),
        found["xcoords"].astype(int),
        strict=True,
    ):
        wave = (
            found["probeGuess"].astype(complex)
            * found["objectGuess"][y - 16 : y + 16, x - 16 : x + 16]
        )
        rate = np.fft.fftshift(np.abs(np.fft.fft2(wave, norm="ortho")) ** 2)
        totals.append(rate.sum())
        bright = rate > 20
        chi_squared.append((amplitude.astype(np.float64) ** 2 - rate)[bright] ** 2 / rate[bright])
    # float32 rounding of probe and object, 6e-8 a pixel
    assert np.mean(totals) == pytest.approx(1e6, rel=1e-6)
    chi_squared = np.concatenate(chi_squared)
    # (k - rate)^2 / rate has the mean 1 and the variance 2 + 1 / rate: five standard errors.
    assert abs(chi_squared.mean() - 1) < 5 * np.sqrt(2.05 / len(chi_squared))


def test_existing_file_is_replaced(tmp_path):
    path = tmp_path / "scan.npz"
    write_npz_scan(path, **scan(seed=0))
    write_npz_scan(path, **scan(seed=1))
    np.testing.assert_array_equal(read(path)["ycoords"], scan(seed=1)["positions_px"][:, 0])
    assert os.listdir(tmp_path) == ["scan.npz"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_failure_midway_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "scan.npz"
    write_npz_scan(path, **scan(seed=0))
    before = path.read_bytes()

    def fail(stream, array, allow_pickle):
        raise error

    monkeypatch.setattr(np.lib.format, "write_array", fail)  # after the patterns were written
    with pytest.raises(type(error)):
        write_npz_scan(path, **scan(seed=1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["scan.npz"]


def test_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    path = tmp_path / "scan.npz"
    calls = []
    true_fsync, true_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_size))
        true_fsync(descriptor)

    def replace(source, target):
        # a rename is atomic within one file system only
        assert os.path.dirname(source) == str(tmp_path)
        calls.append(("replace", os.path.getsize(source)))
        true_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_npz_scan(path, **scan())
    size = path.stat().st_size
    assert calls[:2] == [("fsync", size), ("replace", size)]


def test_failure_without_an_old_file_leaves_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "replace", lambda source, target: (_ for _ in ()).throw(OSError("read-only"))
    )
    with pytest.raises(OSError, match="read-only"):
        write_npz_scan(tmp_path / "scan.npz", **scan())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"diffraction": np.ones((5, 8, 7))},
            r"diffraction: found shape \(5, 8, 7\), expected square patterns",
        ),
        ({"diffraction": np.ones((0, 8, 8))}, r"diffraction: found no pattern"),
        ({"diffraction": np.full((5, 8, 8), np.nan)}, "diffraction: found NaN or infinite values"),
        (
            {"positions_px": np.ones((4, 2))},
            r"positions: found 4 positions, expected 5, one a pattern",
        ),
        (
            {"probe": np.ones((1, 9, 9))},
            r"probe: found shape \(1, 9, 9\), expected the patterns' size, \(modes, 8, 8\)",
        ),
        (
            {"transmission": np.ones((1, 20, 20))},
            r"object: found shape \(1, 20, 20\), expected \(rows, columns\)",
        ),
        ({"nphotons": np.nan}, "not JSON compliant"),
    ],
)
def test_bad_arrays_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_npz_scan(tmp_path / "scan.npz", **scan() | change)
    assert os.listdir(tmp_path) == []


def test_other_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '.h5', expected .npz"):
        write_npz_scan(tmp_path / "scan.h5", **scan())
