"""What lies in a file, whatever it is; nothing is followed, executed or read at length."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_dist.data.scan import ScanError
from ptycho_dist.preflight import contents as module
from ptycho_dist.preflight.contents import Entry, list_contents, printable

WriteScan = Callable[..., Path]


def by_name(path: Path) -> dict[str, tuple[str, str, str]]:
    return {entry.name: (entry.shape, entry.type, entry.stored) for entry in list_contents(path)}


def test_npz(write_scan: WriteScan) -> None:
    plain, packed = (
        by_name(write_scan()),
        by_name(write_scan("packed.npz", compressed=True, diff3d=np.zeros((4, 4, 9), order="F"))),
    )
    # 37 * 16 * 16 * 4 and a header of 128
    assert plain["diffraction"] == ("37 x 16 x 16", "float32", "38 kB, not compressed")
    assert plain["probeGuess"][:2] == ("16 x 16", "complex64")
    assert re.fullmatch(r"[\d.]+ kB, deflated [\d.]+ times", packed["diffraction"][2])
    assert packed["diff3d"][2].endswith(", Fortran order")


def test_npz_of_strangers(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "scan.npz",
        pickled=np.array({"a": 1}, dtype=object),
        **{"red\x1b[31m": np.zeros(3)},
    )
    assert by_name(tmp_path / "scan.npz")["red?[31m"][:2] == ("3", "float64")
    assert by_name(tmp_path / "scan.npz")["pickled"][:2] == ("one value", "object")


def test_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.attrs["beamline"], file.attrs["limits"] = "P25 \x1b[2J", np.arange(3)
        file.create_dataset(
            "entry/data",
            data=np.zeros((8, 6, 5), np.uint16),
            chunks=(2, 6, 5),
            compression="gzip",
            shuffle=True,
        )
        file["entry/energy"], file["entry/title"], file["entry/empty"] = (
            1.5e-15,
            "a scan",
            h5py.Empty("f4"),
        )
        file["entry/again"] = h5py.SoftLink("/entry/data")
        file["entry/elsewhere"] = h5py.ExternalLink("../secret.h5", "/data")
        file["entry/circle"] = file["entry"]
        layout = h5py.VirtualLayout(shape=(3,), dtype=np.float64)
        layout[:] = h5py.VirtualSource("other.h5", "data", shape=(3,))
        file.create_virtual_dataset("entry/virtual", layout)
        file.create_dataset("entry/raw", (1,), np.float32, external=[("/etc/hostname", 0, 4)])
    found = by_name(path)
    assert found["@beamline"] == ("", "", "P25 ?[2J")
    assert found["@limits"] == ("", "", "3 int64")
    shape, kind, stored = found["/entry/data"]
    assert (shape, kind) == ("8 x 6 x 5", "uint16")
    assert stored.endswith("chunks 2 x 6 x 5, shuffle, deflate")
    assert found["/entry/energy"] == ("one value", "float64", "1.5e-15")
    assert found["/entry/title"][1] == "text"
    assert found["/entry/again"] == ("", "link", "to /entry/data")
    assert found["/entry/elsewhere"] == ("", "link", "to /data in ../secret.h5")
    assert found["/entry/virtual"] == ("3", "float64", "virtual, of 1 file(s)")
    assert found["/entry/raw"] == ("1", "float32", "raw data in /etc/hostname")
    assert not any(name.startswith("/entry/circle/") for name in found)


def test_many_entries_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 3)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        for number in range(7):
            file[f"array{number}"] = number
    assert list_contents(tmp_path / "scan.h5")[2:] == [
        Entry(name="/array2", shape="one value", type="int64", stored="2"),
        Entry(name="and 4 others"),
    ]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 and no more", b"\x89HDF\r\n\x1a\n" + bytes(90), b"some text"]
)
def test_what_is_neither_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan").write_bytes(content)
    with pytest.raises(ScanError, match=r"scan: file: found "):
        list_contents(tmp_path / "scan")


def test_text_is_one_line() -> None:
    assert printable("a\nb\tc\x00d") == "a?b?c?d"
    assert printable("x" * 100) == "x" * 60 + "..."
