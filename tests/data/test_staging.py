"""Copies on a node's disk: once, whole and equal."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig
from ptycho_dist.data import staging
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Scan, ScanError
from ptycho_dist.data.staging import StagingError, stage_scans
from tests.data.readers.far_field import require_read, simulate
from tests.data.readers.writers import DETECTOR, write_cxi, write_patterns
from tests.scans import small_scan_arrays

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "store" / "scan.npz"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def identity(path: Path) -> tuple[int, int]:
    """Tells whether a file was written again."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_copy_has_the_content_and_the_log_its_hash(
    scan: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        (copy,) = stage_scans([scan], disk)
    assert copy == disk / "scan.npz"
    assert copy.read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in caplog.text


def test_what_lies_there_is_taken(scan: Path, disk: Path) -> None:
    (copy,) = stage_scans([scan], disk)
    before = identity(copy)
    assert stage_scans([scan], disk) == [copy]
    assert identity(copy) == before


@pytest.mark.parametrize(
    "damage",
    [
        "one bit",
        "truncated",
        "missing",
        "no record",
        "bad record",
        "another source",
        "newer source",
    ],
)
def test_what_differs_is_copied_again(scan: Path, disk: Path, tmp_path: Path, damage: str) -> None:
    (copy,) = stage_scans([scan], disk)
    record = disk / ".scan.npz.staged"
    before = identity(copy)
    expected = CONTENT
    if damage == "one bit":
        copy.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    elif damage == "truncated":
        copy.write_bytes(CONTENT[:-1])
    elif damage == "missing":
        copy.unlink()
    elif damage == "no record":
        record.unlink()
    elif damage == "bad record":
        record.write_text("[")
    elif damage == "another source":
        expected = CONTENT[::-1]
        scan = tmp_path / "scan.npz"
        scan.write_bytes(expected)
    else:
        expected = CONTENT[::-1]  # of the same size
        scan.write_bytes(expected)
        os.utime(scan, ns=(0, 1))
    stage_scans([scan], disk)
    assert copy.read_bytes() == expected
    assert identity(copy) != before


def test_disk_that_changes_what_is_written_is_found(
    scan: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_of = staging._sha256

    def rotten(reader, what, total_bytes, writer=None):  # type: ignore[no-untyped-def]
        digest = hash_of(reader, what, total_bytes, writer)
        return digest if writer is not None else digest[::-1]

    monkeypatch.setattr(staging, "_sha256", rotten)
    with pytest.raises(
        StagingError,
        match=r"scan\.npz: found SHA-256 \w+, expected \w+ as .*scan\.npz has: the disk of this node is not",
    ):
        stage_scans([scan], disk)
    assert not (disk / "scan.npz").exists()


def test_source_that_changes_meanwhile_is_refused(
    scan: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_of = staging._sha256

    def append_while_reading(reader, what, total_bytes, writer=None):  # type: ignore[no-untyped-def]
        with scan.open("ab") as stream:
            stream.write(b"one more pattern")
        return hash_of(reader, what, total_bytes, writer)

    monkeypatch.setattr(staging, "_sha256", append_while_reading)
    with pytest.raises(StagingError, match="found that it changed while it was copied"):
        stage_scans([scan], disk)
    assert not (disk / "scan.npz").exists()


def test_full_disk_is_said_before_anything_is_written(
    scan: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: namedtuple("usage", "free")(len(CONTENT) - 1)
    )
    with pytest.raises(
        StagingError,
        match=f"found {len(CONTENT)} bytes and {len(CONTENT) - 1} free in .*disk, expected room",
    ):
        stage_scans([scan], disk)
    assert not (disk / "scan.npz").exists()


def test_missing_scan_and_scans_of_one_name_are_refused(
    scan: Path, disk: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        StagingError, match=r"missing\.npz: found no file, expected a scan file to copy"
    ):
        stage_scans([tmp_path / "missing.npz"], disk)
    other = tmp_path / "scan.npz"
    other.write_bytes(b"")
    with pytest.raises(StagingError, match="found another scan of the same name"):
        stage_scans([scan, other], disk)
    assert not disk.exists()


def stage_and_tell(scan: Path, disk: Path, inodes: object) -> None:
    (copy,) = stage_scans([scan], disk)
    inodes.put(copy.stat().st_ino)  # type: ignore[attr-defined]


def test_processes_that_ask_at_once_get_one_copy(scan: Path, disk: Path) -> None:
    # 10 MB: long enough for the others to come while the first writes
    scan.write_bytes(CONTENT * 400)
    context = multiprocessing.get_context("forkserver")
    inodes = context.Queue()
    processes = [
        context.Process(target=stage_and_tell, args=(scan, disk, inodes)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    found = {inodes.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert (disk / "scan.npz").read_bytes() == scan.read_bytes()


def test_files_that_a_scan_links_to_come_along(tmp_path: Path, disk: Path) -> None:
    """To the same place beside the copy, where the links find them."""
    (tmp_path / "experiment" / "raw").mkdir(parents=True)
    layout = h5py.VirtualLayout(shape=(3,), dtype=np.float64)
    layout[:] = h5py.VirtualSource("raw/source.h5", "data", shape=(3,))
    master = tmp_path / "experiment" / "scan_dp.hdf5"
    with h5py.File(master, "w") as file:
        file.create_virtual_dataset("group/virtual", layout)
        file["group/here"] = file["group"]  # a circle
        file["linked"] = h5py.ExternalLink("raw/linked.h5", "/again")
        file["gone"] = h5py.ExternalLink("raw/gone.h5", "/data")
    contents = {
        "raw/source.h5": np.arange(3.0),
        "raw/linked.h5": h5py.ExternalLink("second.h5", "/data"),
        "raw/second.h5": np.ones(2),
        "scan_para.hdf5": 5,
    }
    for name, content in contents.items():
        with h5py.File(tmp_path / "experiment" / name, "w") as file:
            file["again" if name == "raw/linked.h5" else "data"] = content
    (copy,) = stage_scans([master], disk)
    found = sorted(str(path.relative_to(disk)) for path in disk.rglob("*.h*5"))
    assert found == sorted([*contents, "scan_dp.hdf5"])
    shutil.rmtree(tmp_path / "experiment")
    with h5py.File(copy) as file:
        assert file["group/virtual"][()].tolist() == [0, 1, 2]
        assert file["linked"][()].tolist() == [1, 1]


@pytest.mark.parametrize("is_absolute", [False, True])
def test_link_out_of_the_folder_asks_for_repack(
    tmp_path: Path, disk: Path, is_absolute: bool
) -> None:
    truth = simulate()
    (tmp_path / "processed").mkdir()
    (tmp_path / "raw").mkdir()
    raw = write_patterns(tmp_path / "raw" / "data.h5", truth.counts)
    master = write_cxi(tmp_path / "processed" / "scan.cxi", truth)
    with h5py.File(master, "a") as file:
        del file[f"{DETECTOR}/data"]
        file[f"{DETECTOR}/data"] = h5py.ExternalLink(
            str(raw) if is_absolute else "../raw/data.h5", "/dp"
        )
    with pytest.raises(
        StagingError, match=rf"scan\.cxi: found a link to {raw}, expected links .*--repack"
    ):
        stage_scans([master], disk)
    assert not disk.exists()
    (copy,) = stage_scans([master], disk, repack=DataConfig())
    require_read(read_scan(copy), truth)


# --- Repacked


def scan_of_any_layout(path: Path, **changed: Any) -> Path:
    metadata = np.array(
        json.dumps({"measurement": "counts", "physics_parameters": {"nphotons": 4321.5}})
    )
    np.savez_compressed(path, **{**small_scan_arrays(modes=2), "_metadata": metadata, **changed})
    return path


def interleaved(dtype: str) -> np.ndarray:
    counts = np.round(small_scan_arrays()["diffraction"] ** 2)
    return np.ascontiguousarray(np.moveaxis(counts, 0, 2)).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f4", ">u2", "<f8"])
def test_repacked_scan_is_the_same_one_and_is_read_in_place(
    tmp_path: Path, disk: Path, dtype: str
) -> None:
    original = read_scan(
        path := scan_of_any_layout(tmp_path / "scan.npz", diffraction=interleaved(dtype))
    )
    (copy,) = stage_scans([path], disk, repack=DataConfig())
    repacked = read_scan(copy)
    everything = np.arange(37)
    assert repacked.diffraction.dtype == original.diffraction.dtype == np.dtype(dtype)
    assert repacked.diffraction[everything].tobytes() == original.diffraction[everything].tobytes()
    np.testing.assert_array_equal(repacked.amplitude(everything), original.amplitude(everything))
    for name in ("measurement", "nphotons"):
        assert getattr(repacked, name) == getattr(original, name)
    for name in ("positions_px", "probe", "object_guess"):
        np.testing.assert_array_equal(getattr(repacked, name), getattr(original, name))
    assert str(copy) == os.readlink(f"/proc/self/fd/{repacked.diffraction._stream.fileno()}")  # type: ignore[attr-defined]


def test_scan_is_repacked_in_pieces_of_any_size(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scan_of_any_layout(tmp_path / "scan.npz")
    (whole,) = stage_scans([path], disk, repack=DataConfig())
    for most_pixels in (1, 5 * 16**2):
        monkeypatch.setattr("ptycho_dist.data.pieces.COPIED_PIXELS", most_pixels)
        (copy,) = stage_scans([path], tmp_path / f"pieces of {most_pixels}", repack=DataConfig())
        with np.load(copy) as one, np.load(whole) as other:
            assert all(np.array_equal(one[key], other[key]) for key in other.files)


def test_scan_is_repacked_once_and_again_where_anything_differs(tmp_path: Path, disk: Path) -> None:
    path = scan_of_any_layout(tmp_path / "scan.npz")
    (copy,) = stage_scans([path], disk, repack=DataConfig())
    before = identity(copy)
    assert stage_scans([path], disk, repack=DataConfig()) == [copy]
    assert identity(copy) == before
    content = copy.read_bytes()
    copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    stage_scans([path], disk, repack=DataConfig())
    assert copy.read_bytes() == content
    stage_scans([path], disk)  # a plain copy has the same name
    assert copy.read_bytes() == path.read_bytes()
    stage_scans([path], disk, repack=DataConfig())
    assert copy.read_bytes() == content


def test_repacked_scan_says_what_the_command_line_said(tmp_path: Path, disk: Path) -> None:
    path = scan_of_any_layout(tmp_path / "scan.npz", _metadata=np.array("{}"))
    with pytest.raises(ScanError, match="measurement: found nothing"):
        stage_scans([path], disk, repack=DataConfig())
    for measurement in ("amplitude", "counts"):
        (copy,) = stage_scans([path], disk, repack=DataConfig(measurement=measurement))  # type: ignore[arg-type]
        assert read_scan(copy).measurement == measurement
        assert read_scan(copy).nphotons is None


def test_what_the_options_say_is_in_the_repacked_scan(tmp_path: Path, disk: Path) -> None:
    """Window, probe and mask; and it is written again where the file that holds one of them is
    another."""
    path = scan_of_any_layout(tmp_path / "scan.npz")
    np.save(tmp_path / "probe.npy", small_scan_arrays(pattern_size=8)["probeGuess"])
    np.save(tmp_path / "mask.npy", np.arange(256).reshape(16, 16) % 7 > 0)
    options = DataConfig(crop=8, probe=str(tmp_path / "probe.npy"), mask=str(tmp_path / "mask.npy"))
    (copy,) = stage_scans([path], disk, repack=options)
    original, repacked = read_scan(path, options=options), read_scan(copy)
    np.testing.assert_array_equal(
        repacked.amplitude(np.arange(37)), original.amplitude(np.arange(37))
    )
    for name in ("positions_px", "probe", "mask"):
        np.testing.assert_array_equal(getattr(repacked, name), getattr(original, name))
    before = identity(copy)
    stage_scans([path], disk, repack=options)
    assert identity(copy) == before
    np.save(tmp_path / "mask.npy", np.ones((16, 16), bool))
    stage_scans([path], disk, repack=options)
    assert read_scan(copy).mask is None  # all pixels count


def test_disk_that_changes_what_is_repacked_is_found(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = staging.write_scan

    def rotten(scan: Scan, path: Path) -> None:
        write(scan, path)
        with path.open("r+b") as stream:
            stream.seek(2000)
            stream.write(b"rot")

    monkeypatch.setattr(staging, "write_scan", rotten)
    with pytest.raises(
        StagingError, match=r"scan\.npz: found that diffraction\.npy is not what was written"
    ):
        stage_scans([scan_of_any_layout(tmp_path / "scan.npz")], disk, repack=DataConfig())
    assert not (disk / "scan.npz").exists()


def test_scan_is_not_written_over_itself(scan: Path) -> None:
    before = identity(scan)
    assert stage_scans([scan], scan.parent) == [scan]
    with pytest.raises(StagingError, match=r"found that it lies in .* itself"):
        stage_scans([scan], scan.parent, repack=DataConfig())
    assert identity(scan) == before
