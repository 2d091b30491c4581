"""What a file is, its content says; a file of no format is told what each would need; every rank
hears of what one of them meets."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_dist.config import DataConfig, Hdf5Config
from ptycho_dist.data.prepare import prepare
from ptycho_dist.data.readers import read_object, read_scan
from ptycho_dist.data.scan import ScanError
from ptycho_dist.distributed import FailedTogether, rank
from tests.data.readers.far_field import FarField, require_read, simulate
from tests.data.readers.writers import (
    write_cxi,
    write_npz_product,
    write_patterns,
    write_product,
    write_ptyd,
)

OnRanks = Callable[..., list[Any]]
WriteScan = Callable[..., Path]


@pytest.fixture
def truth() -> FarField:
    return simulate()


@pytest.mark.parametrize("suffix", [".npz", ".dat", ""])
def test_content_decides_not_the_name(tmp_path: Path, truth: FarField, suffix: str) -> None:
    np.save(tmp_path / "probe.npy", truth.probe)
    patterns = write_patterns(tmp_path / "patterns.tif", truth.counts)
    options = DataConfig(probe=str(tmp_path / "probe.npy"), diffraction=str(patterns))
    for number, write in enumerate((write_cxi, write_ptyd, write_product)):
        require_read(
            read_scan(write(tmp_path / f"scan{number}{suffix}", truth), options=options), truth
        )
    path = write_npz_product(tmp_path / "product.npz", truth, np.arange(30))
    require_read(read_scan(path.rename(tmp_path / f"other{suffix}"), options=options), truth)


def test_file_of_no_format_is_told_what_was_found_and_what_each_needs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/data/data"], file["measured_at"] = np.ones((3, 16, 16)), "night"
    with pytest.raises(ScanError) as refused:
        read_scan(tmp_path / "scan.h5")
    message = str(refused.value)
    assert message.startswith(
        f"{tmp_path / 'scan.h5'}: format: found HDF5 with ['entry', 'measured_at'], expected what "
        "one of the formats"
    )
    for needed in (
        "entry_1",
        "chunks/0/data",
        "probe_position_x_m",
        "dp, ppX and ppY",
        "x_para.hdf5",
        "--data.hdf5.diffraction",
    ):
        assert needed in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"",
            r"format: found b'' at its beginning, expected an NPZ archive \(PK\) or an HDF5 file",
        ),
        (
            b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(200),
            r"format: found a MATLAB file older than 7\.3, expected HDF5",
        ),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "file: found not a readable HDF5 file"),
        (b"\x89HDF\n", "format: found a damaged HDF5 file"),
    ],
)
def test_file_that_is_neither_zip_nor_hdf5(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "scan").write_bytes(content)
    for read in (read_scan, read_object):
        with pytest.raises(ScanError, match=message):
            read(tmp_path / "scan")


def test_object_is_asked_for_where_there_is_none(tmp_path: Path, truth: FarField) -> None:
    with pytest.raises(ScanError, match=r"object: found a scan without one, expected an object"):
        read_object(write_cxi(tmp_path / "scan.cxi", truth))


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"transpose": True}, r"data\.transpose"),
        (
            {"hdf5": Hdf5Config(diffraction="dp"), "transpose": False},
            r"data\.transpose and data\.hdf5",
        ),
    ],
)
def test_options_that_do_not_apply_are_refused(
    write_scan: WriteScan, options: dict[str, Any], keys: str
) -> None:
    with pytest.raises(
        ScanError,
        match=rf"format: found NPZ, PtychoPINN's keys, expected another format for {keys},",
    ):
        read_scan(write_scan(), "amplitude", options=DataConfig(**options))


@pytest.mark.parametrize("seed", range(2))
def test_truncated_and_altered_files_are_refused_by_name_or_read(
    tmp_path: Path, truth: FarField, seed: int
) -> None:
    """Wherever a file is cut, and whatever bits of its structure turn over: a scan, or the error
    that names the file; no other."""
    content = write_cxi(tmp_path / "scan.cxi", truth).read_bytes()
    dice = random.Random(seed)
    broken = tmp_path / "broken.cxi"
    for attempt in range(32):
        altered = bytearray(content)
        if attempt % 4 == 0:
            altered = altered[: dice.randrange(len(altered))]
        else:
            # structure, not counts: those are somewhere in the middle
            for _ in range(dice.randrange(1, 6)):
                place = (
                    dice.randrange(4000) if attempt % 2 else len(altered) - 1 - dice.randrange(4000)
                )
                altered[place] ^= 1 << dice.randrange(8)
        broken.write_bytes(altered)
        with suppress(ScanError):
            read_scan(broken)


# --- Several ranks


def _read(path: Path, options: DataConfig) -> Any:
    """What this rank read; the others' error where there is one."""
    try:
        scan = read_scan(path, options=options)
    except FailedTogether as error:
        return str(error)
    return scan.fingerprint, scan.diffraction[np.array([7, 1, 7])].tobytes()


def test_ranks_read_the_same(on_ranks: OnRanks, tmp_path: Path, truth: FarField) -> None:
    first, second, third = on_ranks(3, _read, write_cxi(tmp_path / "scan.cxi", truth), DataConfig())
    assert first == second == third
    assert first[1] == truth.counts[[7, 1, 7]].tobytes()


def _read_own(paths: list[Path]) -> Any:
    return _read(paths[rank()], DataConfig())


@pytest.mark.parametrize("broken", ["format", "geometry", "truncated"])
def test_file_that_one_rank_can_not_read_fails_all_with_its_message(
    on_ranks: OnRanks, tmp_path: Path, truth: FarField, broken: str
) -> None:
    good, bad = write_cxi(tmp_path / "good.cxi", truth), tmp_path / "bad.cxi"
    if broken == "truncated":
        bad.write_bytes(good.read_bytes()[:3000])
    else:
        write_cxi(
            bad,
            truth,
            lambda file: file.pop(
                "entry_1" if broken == "format" else "entry_1/instrument_1/source_1/energy"
            ),
        )
    messages = on_ranks(2, _read_own, [good, bad])
    assert messages[0] == messages[1]
    assert messages[0].startswith(
        f"rank 1: {bad}: "
        f"{'format' if broken == 'format' else 'geometry' if broken == 'geometry' else 'file'}: "
        "found"
    )


def _set_up_own(paths: list[Path]) -> str:
    config = DataConfig(path=str(paths[rank()]), nphotons="measured", group_size=1)
    try:
        return prepare(config).subset.fingerprint
    except FailedTogether as error:
        return str(error)


def test_ranks_whose_files_differ_are_found(
    on_ranks: OnRanks, tmp_path: Path, truth: FarField
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = write_cxi(tmp_path / "a" / "scan.cxi", truth)
    other = write_cxi(
        tmp_path / "b" / "scan.cxi",
        truth,
        lambda file: file["entry_1/data_1/data"].__setitem__((0, 0, 0), 9),
    )
    fingerprints = on_ranks(2, _set_up_own, [one, one])
    assert fingerprints[0] == fingerprints[1]
    assert not fingerprints[0].startswith("ranks differ")
    for message in on_ranks(2, _set_up_own, [one, other]):
        assert message.startswith("ranks differ: content of scan.cxi is ")


def test_training_data_without_a_probe_ask_for_one(tmp_path: Path, truth: FarField) -> None:
    path = write_cxi(
        tmp_path / "scan.cxi", truth, lambda file: file.pop("entry_1/instrument_1/source_1/probe")
    )
    config = DataConfig(path=str(path), nphotons="measured", group_size=1)
    with pytest.raises(
        ScanError, match=r"scan\.cxi: probe: found none in the file and no data\.probe"
    ):
        prepare(config)
