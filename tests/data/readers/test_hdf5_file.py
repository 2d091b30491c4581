"""Links are followed, those that lead nowhere are named, and nothing is read that is larger than it
should be."""

from __future__ import annotations

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
    """`experiment/processed/` with data in it, in `experiment/raw/` beside it, and links to these."""
    folder = tmp_path / "experiment" / "processed"
    for path in (folder / "below" / "data.h5", folder.parent / "raw" / "data.h5"):
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["entry/data"] = COUNTS
    (folder / "below" / "symbolic.h5").symlink_to(folder.parent / "raw" / "data.h5")
    with h5py.File(folder / "below" / "second.h5", "w") as file:
        file["data"] = h5py.ExternalLink("../../raw/data.h5", "/entry/data")
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


def test_links_are_followed_wherever_they_lead(folder: Path) -> None:
    raw = folder.parent / "raw" / "data.h5"
    links = {
        "below": h5py.ExternalLink("below/data.h5", "/entry/data"),
        "above": h5py.ExternalLink("../raw/data.h5", "/entry/data"),
        "absolute": h5py.ExternalLink(str(raw), "/entry/data"),
        "symbolic": h5py.ExternalLink("below/symbolic.h5", "/entry/data"),
        "second": h5py.ExternalLink("below/second.h5", "/data"),
        "group": h5py.ExternalLink("../raw/data.h5", "/entry"),
        "soft": h5py.SoftLink("/group/data"),
        "nested/soft": h5py.SoftLink("/soft"),
        "nested/relative": h5py.SoftLink("soft"),
    }
    path = master(folder, links)
    for key in (*links, "group/data", "/nested/relative"):
        if key != "group":
            assert np.array_equal(read(path, key), COUNTS[NUMBERS]), key
    with Hdf5File(path) as file:
        file.dataset("above")
        assert file.files == (path.resolve(), raw)


def test_link_to_where_the_data_once_lay_finds_them_beside(folder: Path) -> None:
    (folder / "below" / "data.h5").rename(folder / "data.h5")
    path = master(folder, {"data": h5py.ExternalLink("/old/place/data.h5", "/entry/data")})
    assert np.array_equal(read(path, "data"), COUNTS[NUMBERS])


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (
            h5py.ExternalLink("../raw/gone.h5", "/entry/data"),
            r"a link to \.\./raw/gone\.h5, which is not there, expected the file at .*raw/gone\.h5",
        ),
        (
            h5py.ExternalLink("/etc/passwd", "/entry/data"),
            r"a link to /etc/passwd that can't be followed \(.*not a readable HDF5 file",
        ),
        (
            h5py.ExternalLink("below/dangling.h5", "/data"),
            r"a link to below/dangling\.h5 that can't be followed .*a link to nowhere\.h5, which is",
        ),
    ],
)
@pytest.mark.parametrize("key", ["data", "through/soft"])
def test_link_that_can_not_be_followed_is_named_with_its_target(
    folder: Path, link: h5py.ExternalLink, message: str, key: str
) -> None:
    with h5py.File(folder / "below" / "dangling.h5", "w") as file:
        file["data"] = h5py.ExternalLink("nowhere.h5", "/data")
    links = {
        "data": link,
        "through/soft": h5py.SoftLink("other"),
        "through/other": h5py.SoftLink("/data"),
    }
    path = master(folder, links)
    with pytest.raises(ScanError, match=rf"master\.nxs: /data: found {message}"):
        read(path, key)


@pytest.mark.parametrize(
    "link", [h5py.SoftLink("/b"), h5py.ExternalLink("master.nxs", "/a")], ids=["soft", "external"]
)
def test_links_in_a_circle_are_refused(folder: Path, link: Any) -> None:
    path = master(folder, {"a": link, "b": h5py.SoftLink("/a")})
    with pytest.raises(ScanError, match="a: found links in a circle, expected links that lead to"):
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


@pytest.mark.parametrize("source", ["below/data.h5", "../raw/data.h5"])
def test_virtual_dataset_over_other_files(folder: Path, source: str) -> None:
    path = virtual(folder / "scan.h5", source)
    assert np.array_equal(read(path, "data"), COUNTS[NUMBERS])
    with Hdf5File(path) as file:
        file.dataset("data")
        assert file.files == (path.resolve(), (folder / source).resolve())


def test_sources_of_a_virtual_dataset_count_in_their_order(folder: Path) -> None:
    """Their sizes enter the fingerprint, which all ranks must agree on."""
    names = [f"part{number}.h5" for number in (3, 1, 4, 2, 0)]
    layout = h5py.VirtualLayout(shape=(5, 8, 8), dtype=COUNTS.dtype)
    for number, name in enumerate(names):
        with h5py.File(folder / name, "w") as file:
            file["data"] = COUNTS[:1]
        layout[number : number + 1] = h5py.VirtualSource(name, "data", shape=(1, 8, 8))
    with h5py.File(folder / "scan.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    with Hdf5File(folder / "scan.h5") as opened:
        opened.dataset("data")
        assert [path.name for path in opened.files] == ["scan.h5", *names]


@pytest.mark.parametrize(
    ("source", "key", "message"),
    [
        ("raw/gone.h5", "entry/data", "data: found a link to raw/gone.h5, which is not there"),
        (
            "below/data.h5",
            "entry/gone",
            "found entry/gone missing in below/data.h5, which the virtual dataset is made of",
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
    path = folder / "below" / "data.h5"
    before = path.read_bytes(), path.stat().st_mtime_ns
    read(path, "entry/data")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
