"""ptypy's .ptyd: keV, metres, chunks in this file or in others, weights for a mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Scan, ScanError
from tests.data.readers.far_field import FarField, require_read, simulate
from tests.data.readers.writers import write_ptyd


@pytest.fixture
def truth() -> FarField:
    return simulate()


@pytest.fixture
def read(tmp_path: Path, truth: FarField) -> Callable[..., Scan]:
    """`read(path, **options)` with the probe in a file of its own."""
    np.save(tmp_path / "probe.npy", truth.probe.astype(np.complex64))
    return lambda path, **options: read_scan(
        path, options=DataConfig(**{"probe": str(tmp_path / "probe.npy"), **options})
    )


@pytest.mark.parametrize("linked", [False, True], ids=["appended", "linked"])
def test_patterns_positions_and_probe_belong_together(
    tmp_path: Path, truth: FarField, read: Callable[..., Scan], linked: bool
) -> None:
    scan = read(write_ptyd(tmp_path / "scan.ptyd", truth, linked=linked))
    require_read(scan, truth)
    assert scan.geometry is not None
    assert scan.geometry.energy_eV == pytest.approx(truth.energy_eV, rel=1e-12)


def test_ten_chunks_come_in_the_order_of_their_numbers(
    tmp_path: Path, truth: FarField, read: Callable[..., Scan]
) -> None:
    path = tmp_path / "scan.ptyd"

    def change(file: h5py.File) -> None:
        del file["chunks"]
        for number, start in enumerate(range(0, 30, 2)):  # chunks/10 sorts before chunks/2
            file[f"chunks/{number}/data"] = truth.counts[start : start + 2]
            file[f"chunks/{number}/positions"] = truth.positions_m[start : start + 2]

    require_read(read(write_ptyd(path, truth, change)), truth)


@pytest.mark.parametrize("where", ["in every chunk", "common"])
def test_weight_of_zero_is_no_count(
    tmp_path: Path, truth: FarField, read: Callable[..., Scan], where: str
) -> None:
    weights = np.ones((16, 16))
    weights[4, 9], weights[0, 0] = 0, 0.25

    def change(file: h5py.File) -> None:
        for number, chunk in enumerate(file["chunks"].values()):
            if where == "in every chunk":
                del chunk["weights"]
                chunk["weights"] = np.broadcast_to(weights, chunk["data"].shape)
            chunk["data"][:, 4, 9] = -1 - number
        if where == "common":
            file["meta/weight2d"] = weights

    scan = read(write_ptyd(tmp_path / "scan.ptyd", truth, change))
    assert scan.mask is not None
    assert np.argwhere(~scan.mask).tolist() == [[4, 9]]
    assert scan.amplitude(np.arange(30))[:, 4, 9].tolist() == [0] * 30


@pytest.mark.parametrize(
    ("value", "shape"),
    {
        "words": (b"fftshift", None),
        "one number": (8.0, None),
        "nobody knows": (b"None", None),
    }.values(),
)
def test_centre_in_the_middle_however_it_is_said(
    tmp_path: Path, truth: FarField, read: Callable[..., Scan], value: Any, shape: None
) -> None:
    def change(file: h5py.File) -> None:
        del file["meta/center"]
        file["meta/center"] = value

    require_read(read(write_ptyd(tmp_path / "scan.ptyd", truth, change)), truth)


def test_centre_elsewhere_needs_a_crop_and_serves_it(
    tmp_path: Path, truth: FarField, read: Callable[..., Scan]
) -> None:
    """Patterns of 24 x 20 pixels, the beam at [13, 9]."""

    def change(file: h5py.File) -> None:
        for chunk in file["chunks"].values():
            larger = np.zeros((len(chunk["data"]), 24, 20), dtype=np.int32)
            larger[:, 5:21, 1:17] = chunk["data"]
            del chunk["data"]
            chunk["data"] = larger
        file["meta/center"][()] = (13, 9)

    path = write_ptyd(tmp_path / "scan.ptyd", truth, change)
    with pytest.raises(
        ScanError,
        match=r"chunks/0/data: found patterns of 24 x 20, expected square ones .*--data\.crop N",
    ):
        read(path)
    require_read(read(path, crop=16), truth)


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "near field": (
        lambda file: file["meta"].create_dataset("propagation", data="nearfield"),
        "meta/propagation: found nearfield, expected farfield",
    ),
    "corner": (
        lambda file: [
            file["meta"].pop("center"),
            file["meta"].create_dataset("center", data="fft"),
        ],
        "meta/center: found fft, expected fftshift",
    ),
    "off the middle": (
        lambda file: file["meta/center"].write_direct(np.array([8.0, 6.0])),
        r"centre: found the direct beam at \(8\.0, 6\.0\), expected it at \(8, 8\): --data\.crop N",
    ),
    "oblong pixels": (
        lambda file: file["meta/psize"].write_direct(np.array([1e-4, 2e-4])),
        "meta/psize: found .*, expected square pixels",
    ),
    "NaN energy": (
        lambda file: file["meta/energy"].write_direct(np.array(np.nan)),
        r"meta/energy: found \[nan\], expected one or two finite numbers",
    ),
    "no energy": (
        lambda file: file["meta"].pop("energy"),
        r"no energy_eV \(looked for meta/energy\), expected .* --data\.energy_eV NUMBER",
    ),
    "no positions": (
        lambda file: file["chunks/1"].pop("positions"),
        r"chunks/1/positions: found shape None, expected \(13, 2\)",
    ),
    "positions transposed": (
        lambda file: [
            file["chunks/1"].pop("positions"),
            file["chunks/1"].create_dataset("positions", data=np.ones((2, 13))),
        ],
        r"chunks/1/positions: found shape \(2, 13\), expected \(13, 2\)",
    ),
    "sizes that change": (
        lambda file: [
            file["chunks/1"].pop("data"),
            file["chunks/1"].create_dataset("data", data=np.ones((13, 8, 8))),
        ],
        r"chunks/1/data: found shape \(13, 8, 8\), expected patterns of \(16, 16\), as chunks/0",
    ),
    "weights that change from frame to frame": (
        lambda file: [
            file["chunks/2"].pop("weights"),
            file["chunks/2"].create_dataset(
                "weights", data=np.arange(4)[:, None, None] * np.ones((4, 16, 16))
            ),
        ],
        "chunks/2/weights: found frame 1 differs from frame 0, expected one mask for all patterns",
    ),
    "weights in one chunk alone": (
        lambda file: [
            file["chunks/2"].pop("weights"),
            file["chunks/2"].create_dataset("weights", data=np.ones((4, 16, 16))),
        ],
        "weights: found masks that differ from chunk to chunk",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_refusal_names_file_key_found_and_expected(
    tmp_path: Path,
    truth: FarField,
    read: Callable[..., Scan],
    change: Callable[[h5py.File], Any],
    message: str,
) -> None:
    path = write_ptyd(tmp_path / "scan.ptyd", truth, change)
    with pytest.raises(ScanError, match=message) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_chunk_whose_file_is_gone_is_named(
    tmp_path: Path, truth: FarField, read: Callable[..., Scan]
) -> None:
    path = write_ptyd(tmp_path / "scan.ptyd", truth, linked=True)
    path.with_name("scan.ptyd.part001").unlink()
    with pytest.raises(
        ScanError,
        match=r"scan\.ptyd: /chunks/1: found a link to /home/somebody/scan\.ptyd\.part001",
    ):
        read(path)
