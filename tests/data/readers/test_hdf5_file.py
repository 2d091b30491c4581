"""Links end in the scan's folder or are refused; nothing is read that lies elsewhere or is larger
than it should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig, Hdf5Config
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.readers.hdf5_file import Hdf5File
from ptycho_dist.data.readers.hdf5_patterns import open_patterns
from ptycho_dist.data.scan import ScanError

COUNTS = np.random.default_rng(3).integers(0, 60000, (12, 8, 8)).astype(np.uint16)
NUMBERS = np.array([11, 0, 3, 3])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`experiment/` with data in `raw/`, and somebody else's file outside."""
    folder = tmp_path / "experiment"
    (folder / "raw").mkdir(parents=True)
    for path in (folder / "raw" / "data.h5", tmp_path / "private.h5"):
        with h5py.File(path, "w") as file:
            file["entry/data"] = COUNTS
    return folder


def read(path: Path, key: str) -> np.ndarray:
    with Hdf5File(path) as file:
        patterns = open_patterns(file, key)
    return patterns[NUMBERS]


def master(folder: Path, links: dict[str, Any]) -> Path:
    with h5py.File(folder / "master.nxs", "w") as file:
        for key, link in links.items():
            file[key] = link
    return folder / "master.nxs"


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    links = {
        "external": h5py.ExternalLink("raw/data.h5", "/entry/data"),
        "group": h5py.ExternalLink("raw/data.h5", "/entry"),
        "absolute": h5py.ExternalLink(str(folder / "raw" / "data.h5"), "/entry/data"),
        "soft": h5py.SoftLink("/group/data"),
        "nested/soft": h5py.SoftLink("/soft"),
        "nested/relative": h5py.SoftLink("soft"),
    }
    path = master(folder, links)
    for key in (
        "external",
        "group/data",
        "absolute",
        "soft",
        "nested/soft",
        "nested/relative",
        "/nested/relative",
    ):
        assert np.array_equal(read(path, key), COUNTS[NUMBERS]), key


def test_link_to_where_the_data_once_lay_finds_them_beside(folder: Path) -> None:
    (folder / "raw" / "data.h5").rename(folder / "data.h5")
    path = master(folder, {"data": h5py.ExternalLink("/old/place/data.h5", "/entry/data")})
    assert np.array_equal(read(path, "data"), COUNTS[NUMBERS])


OUTSIDE: dict[str, Callable[[Path], Any]] = {
    "upwards": lambda folder: h5py.ExternalLink("../private.h5", "/entry/data"),
    "absolute": lambda folder: h5py.ExternalLink(str(folder.parent / "private.h5"), "/entry/data"),
    "no HDF5 at all": lambda folder: h5py.ExternalLink("/etc/passwd", "/entry/data"),
    "through a symbolic link": lambda folder: h5py.ExternalLink("raw/symbolic.h5", "/entry/data"),
    "through the file linked to": lambda folder: h5py.ExternalLink("raw/second.h5", "/data"),
}


@pytest.mark.parametrize("link", OUTSIDE.values(), ids=OUTSIDE)
def test_links_that_lead_outside_are_refused(folder: Path, link: Callable[[Path], Any]) -> None:
    (folder / "raw" / "symbolic.h5").symlink_to(folder.parent / "private.h5")
    with h5py.File(folder / "raw" / "second.h5", "w") as file:
        file["data"] = h5py.ExternalLink("../../private.h5", "/entry/data")
    path = master(folder, {"data": link(folder)})
    with pytest.raises(
        ScanError,
        match=r"master\.nxs: /data: found a link to .*, expected links to files in .*experiment or below",
    ):
        read(path, "data")


def test_link_to_a_file_that_is_gone_is_named(folder: Path) -> None:
    path = master(folder, {"data": h5py.ExternalLink("raw/gone.h5", "/entry/data")})
    with pytest.raises(
        ScanError,
        match=r"/data: found a link to raw/gone\.h5, which is not there, expected the file at",
    ):
        read(path, "data")


def test_links_in_a_circle_are_refused(folder: Path) -> None:
    path = master(folder, {"a": h5py.SoftLink("/b"), "b": h5py.SoftLink("/a")})
    with pytest.raises(ScanError, match="more than 16 links"):
        read(path, "a")


@pytest.mark.parametrize("key", ["missing", "entry/missing", "data/below", "dangling"])
def test_name_of_nothing_is_none(folder: Path, key: str) -> None:
    with h5py.File(folder / "scan.h5", "w") as file:
        file["data"] = COUNTS
        file["dangling"] = h5py.SoftLink("/nowhere")
    with Hdf5File(folder / "scan.h5") as opened:
        assert not opened.has(key)
        assert opened.dataset(key) is None


def virtual(path: Path, source: str, key: str = "entry/data") -> Path:
    layout = h5py.VirtualLayout(shape=COUNTS.shape, dtype=COUNTS.dtype)
    layout[:] = h5py.VirtualSource(source, key, shape=COUNTS.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)
    return path


def test_virtual_dataset_over_files_of_the_folder(folder: Path) -> None:
    assert np.array_equal(read(virtual(folder / "scan.h5", "raw/data.h5"), "data"), COUNTS[NUMBERS])


@pytest.mark.parametrize(
    ("source", "key", "message"),
    [
        (
            "../private.h5",
            "entry/data",
            "found a link to ../private.h5, expected links to files in",
        ),
        ("raw/gone.h5", "entry/data", "found a link to raw/gone.h5, which is not there"),
        (
            "raw/data.h5",
            "entry/gone",
            "found entry/gone missing in raw/data.h5, which the virtual dataset is made of",
        ),
    ],
)
def test_virtual_dataset_over_anything_else_is_refused(
    folder: Path, source: str, key: str, message: str
) -> None:
    """The library would read zeros where a source is missing."""
    with pytest.raises(ScanError, match=message):
        read(virtual(folder / "scan.h5", source, key), "data")


def test_virtual_dataset_over_numbered_files_is_refused(folder: Path) -> None:
    with h5py.File(folder / "scan.h5", "w") as file:
        unlimited = h5py.h5s.UNLIMITED
        whole = h5py.h5s.create_simple(COUNTS.shape, (unlimited, 8, 8))
        whole.select_hyperslab((0, 0, 0), (unlimited, 1, 1), (12, 1, 1), COUNTS.shape)
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_virtual(
            whole, b"raw/data_%b.h5", b"entry/data", h5py.h5s.create_simple(COUNTS.shape)
        )
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, whole, properties)
    with pytest.raises(
        ScanError,
        match=r"data: found a virtual dataset over raw/data_%b\.h5, expected one that names its files",
    ):
        read(folder / "scan.h5", "data")


def test_raw_data_of_another_file_are_refused(folder: Path) -> None:
    """HDF5's external storage shows the bytes of any file as numbers."""
    with h5py.File(folder / "scan.h5", "w") as file:
        file.create_dataset(
            "data", shape=(2, 8, 8), dtype=np.uint8, external=[("/etc/passwd", 0, 128)]
        )
        assert file["data"][0, 0, 0] != 0  # the attack is a live one
    with pytest.raises(
        ScanError, match=r"data: found raw data in /etc/passwd, expected data in the file itself"
    ):
        read(folder / "scan.h5", "data")


def test_array_that_is_larger_than_it_should_be_is_not_read(folder: Path) -> None:
    with h5py.File(folder / "scan.h5", "w") as file:
        file["data"] = COUNTS
        file.create_dataset("y", shape=(1 << 40,), dtype=np.float64, chunks=(1024,))
        file.create_dataset("probe", shape=(1 << 17, 1 << 17), dtype=np.complex64, chunks=(64, 64))
        file["x"] = np.arange(12.0)
    names = {"diffraction": "data", "positions_y": "x", "positions_x": "x", "positions_unit": "px"}
    for changed, key in ({"positions_y": "y"}, "y"), ({"probe": "probe"}, "probe"):
        with pytest.raises(
            ScanError, match=rf"scan\.h5: {key}: found shape .* bytes, expected at most"
        ):
            read_scan(
                folder / "scan.h5", "counts", options=DataConfig(hdf5=Hdf5Config(**names | changed))
            )


def test_compression_that_nobody_knows_is_named(folder: Path) -> None:
    with h5py.File(folder / "scan.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, 8, 8))
        properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple(COUNTS.shape)
        h5py.h5d.create(
            file.id, b"data", h5py.h5t.NATIVE_UINT16, space, properties
        ).write_direct_chunk((0, 0, 0), b"x" * 128)
    with pytest.raises(
        ScanError,
        match=r"data: found chunks packed with filter 32999 .*, expected a compression that",
    ):
        read(folder / "scan.h5", "data")


def test_file_is_byte_for_byte_the_same_after_it_was_read(folder: Path) -> None:
    path = folder / "raw" / "data.h5"
    before = path.read_bytes(), path.stat().st_mtime_ns
    read(path, "entry/data")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
