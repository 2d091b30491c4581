"""PtychoPINN's NPZ files: every form that its users have is read, in place where that can be, and
what is no scan is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_dist.data.pattern_file import PatternFile
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.readers.npz import NpzPatterns
from ptycho_dist.data.scan import Scan, ScanError
from ptycho_dist.distributed import FailedTogether, rank
from tests.scans import small_scan_arrays

WriteScan = Callable[..., Path]
OnRanks = Callable[..., list[Any]]
ALL = np.arange(37)


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def temporary_folder(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where members are unpacked to, here and nowhere else. (Not for `on_ranks`, whose fork server
    keeps its socket there.)"""
    monkeypatch.setattr(tempfile, "tempdir", str(empty_folder))
    return empty_folder


def arrays(**changed: Any) -> dict[str, Any]:
    return {**small_scan_arrays(), **changed}


def require_same_scan(one: Scan, other: Scan) -> None:
    for field in dataclasses.fields(Scan):
        if field.name != "path":
            found, expected = getattr(one, field.name), getattr(other, field.name)
            if field.name == "diffraction":
                found, expected = found[ALL], expected[ALL]
            assert type(found) is type(expected) or isinstance(found, np.ndarray), field.name
            assert np.array_equal(found, expected), field.name
            assert getattr(found, "dtype", None) == getattr(expected, "dtype", None), field.name


def open_file(scan: Scan) -> Path:
    """The file that the patterns are read from; a name that was taken away ends in ` (deleted)`."""
    assert isinstance(scan.diffraction, PatternFile)
    return Path(os.readlink(f"/proc/self/fd/{scan.diffraction._stream.fileno()}"))


# --- In place, or from one copy a node

IN_PLACE = {
    "patterns first": lambda patterns: patterns,
    "patterns last, Fortran": lambda patterns: np.asfortranarray(np.moveaxis(patterns, 0, 2)),
}
INTERLEAVED = {
    "patterns first, Fortran": np.asfortranarray,
    "patterns last": lambda patterns: np.ascontiguousarray(np.moveaxis(patterns, 0, 2)),
}


@pytest.mark.parametrize("form", IN_PLACE.values(), ids=IN_PLACE)
def test_patterns_that_lie_one_after_the_other_are_read_from_the_scan_file(
    write_scan: WriteScan, temporary_folder: Path, form: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The proof that there is no copy: write to the file after it was opened."""
    patterns = small_scan_arrays()["diffraction"]
    patterns[11, 3, 5] = marker = np.float32(12345.678)
    scan = read_scan(path := write_scan(diffraction=form(patterns)), "amplitude")
    assert open_file(scan) == path
    assert list(temporary_folder.iterdir()) == []
    content = path.read_bytes()
    assert content.count(marker.tobytes()) == 1
    with path.open("r+b") as stream:
        stream.seek(content.index(marker.tobytes()))
        stream.write(np.float32(7).tobytes())
    assert scan.diffraction[np.array([11])][0, 3, 5] == 7
    assert scan.amplitude(np.array([11]))[0, 3, 5] == 7


def test_patterns_are_not_mapped(write_scan: WriteScan) -> None:
    """Pages of a map count as memory of every process that has touched them."""
    for path in (write_scan("stored.npz"), write_scan("compressed.npz", compressed=True)):
        scan = read_scan(path, "amplitude")
        scan.amplitude(ALL)
        assert not any(
            name in Path("/proc/self/maps").read_text() for name in (path.name, "ptycho_dist_")
        )


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
@pytest.mark.parametrize(
    "form", [*INTERLEAVED.values(), np.ascontiguousarray], ids=[*INTERLEAVED, "patterns first"]
)
def test_copy_is_said_and_leaves_no_name(
    write_scan: WriteScan,
    temporary_folder: Path,
    caplog: pytest.LogCaptureFixture,
    form: Callable[[np.ndarray], np.ndarray],
    compressed: bool,
) -> None:
    patterns = small_scan_arrays()["diffraction"]
    with caplog.at_level("INFO"):
        scan = read_scan(
            path := write_scan(diffraction=form(patterns), compressed=compressed), "amplitude"
        )
    is_copied = compressed or form is not np.ascontiguousarray
    assert (open_file(scan).parent, open_file(scan).name.endswith("(deleted)")) == (
        (temporary_folder, True) if is_copied else (path.parent, False)
    )
    assert list(temporary_folder.iterdir()) == []
    assert np.array_equal(scan.diffraction[ALL], patterns)
    passes = {"unpacking": compressed, "bringing into order": form is not np.ascontiguousarray}
    where = (
        f"diffraction (0 MB) in {temporary_folder}; saved with numpy.savez as (n, N, N) in C "
        "order it would be read in place"
    )
    said = [f"{path}: {what} {where}" for what, is_done in passes.items() if is_done]
    assert [record.getMessage() for record in caplog.records] == said


@pytest.mark.parametrize("patterns_a_block", [1, 5, 36, 37])
@pytest.mark.parametrize("form", INTERLEAVED.values(), ids=INTERLEAVED)
def test_blocks_of_any_size_bring_the_same_order(
    write_scan: WriteScan,
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[[np.ndarray], np.ndarray],
    patterns_a_block: int,
) -> None:
    monkeypatch.setattr(
        "ptycho_dist.data.pattern_file.BLOCK_BYTES", 2 * 4 * 16**2 * patterns_a_block
    )
    patterns = small_scan_arrays()["diffraction"]
    assert np.array_equal(
        read_scan(write_scan(diffraction=form(patterns)), "amplitude").amplitude(ALL), patterns
    )


def test_compressed_and_uncompressed_give_the_same_scan(write_scan: WriteScan) -> None:
    metadata = json.dumps({"physics_parameters": {"nphotons": 5000.0}, "measurement": "amplitude"})
    one = read_scan(write_scan("one.npz", _metadata=np.array(metadata)))
    other = read_scan(write_scan("other.npz", _metadata=np.array(metadata), compressed=True))
    require_same_scan(one, other)


def _read_and_list_temporary_files(path: Path, folder: Path) -> dict[str, Any]:
    tempfile.tempdir = str(folder)
    while_opened: list[list[str]] = []
    open_patterns = NpzPatterns.open

    def listing(*arguments: Any) -> PatternFile:
        while_opened.append(sorted(os.listdir(folder)))
        return open_patterns(*arguments)

    NpzPatterns.open = listing  # type: ignore[method-assign]  # this process ends with the test
    scan = read_scan(path, "amplitude")
    return {
        "while opened": while_opened,
        "afterwards": os.listdir(folder),
        "file": str(open_file(scan)),
        "bytes": scan.diffraction[ALL].tobytes(),
    }


@pytest.mark.parametrize(
    "form", [*INTERLEAVED.values(), np.ascontiguousarray], ids=[*INTERLEAVED, "compressed"]
)
def test_two_ranks_of_a_node_share_one_copy(
    on_ranks: OnRanks,
    write_scan: WriteScan,
    empty_folder: Path,
    form: Callable[[np.ndarray], np.ndarray],
) -> None:
    patterns = small_scan_arrays()["diffraction"]
    path = write_scan(diffraction=form(patterns), compressed=form is np.ascontiguousarray)
    found = on_ranks(2, _read_and_list_temporary_files, path, empty_folder)
    assert [rank["bytes"] for rank in found] == [patterns.tobytes()] * 2
    ((only_file,),) = found[0]["while opened"]
    assert found[1]["while opened"] == [[only_file]]
    assert {rank["file"] for rank in found} == {f"{empty_folder / only_file} (deleted)"}
    assert [rank["afterwards"] for rank in found] == [[], []]


def test_two_ranks_read_an_uncompressed_file_in_place(
    on_ranks: OnRanks, write_scan: WriteScan, empty_folder: Path
) -> None:
    found = on_ranks(2, _read_and_list_temporary_files, path := write_scan(), empty_folder)
    assert [rank["while opened"] for rank in found] == [[[]], [[]]]
    assert {rank["file"] for rank in found} == {str(path)}


@pytest.mark.parametrize(
    "form", [*INTERLEAVED.values(), np.ascontiguousarray], ids=[*INTERLEAVED, "compressed"]
)
def test_no_room_for_the_copy_is_said(
    write_scan: WriteScan,
    monkeypatch: pytest.MonkeyPatch,
    temporary_folder: Path,
    form: Callable[[np.ndarray], np.ndarray],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ScanError, match=r"and 1000 free in .*set TMPDIR"):
        read_scan(
            write_scan(
                diffraction=form(small_scan_arrays()["diffraction"]),
                compressed=form is np.ascontiguousarray,
            ),
            "amplitude",
        )
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_file_is_byte_for_byte_the_same_after_it_was_read(
    write_scan: WriteScan, compressed: bool
) -> None:
    path = write_scan(compressed=compressed)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    read_scan(path, "amplitude").amplitude(ALL)
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before
    assert [other for other in path.parent.iterdir() if other.is_file()] == [path]


# --- Layouts


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("layout", ["patterns first", "patterns last"])
@pytest.mark.parametrize("key", ["diffraction", "diff3d"])
def test_every_layout_gives_the_same_patterns(
    write_scan: WriteScan, key: str, layout: str, order: Any, compressed: bool
) -> None:
    patterns = small_scan_arrays()["diffraction"]
    stored = np.asarray(
        patterns if layout == "patterns first" else np.moveaxis(patterns, 0, 2), order=order
    )
    content = {name: array for name, array in small_scan_arrays().items() if name != "diffraction"}
    scan = read_scan(
        write_scan(compressed=compressed, arrays={**content, key: stored}), "amplitude"
    )
    assert scan.key == key
    assert scan.diffraction.shape == (37, 16, 16)
    assert np.array_equal(scan.amplitude(ALL), patterns)


def test_diffraction_goes_before_diff3d(write_scan: WriteScan) -> None:
    scan = read_scan(write_scan(diff3d=np.zeros((37, 16, 16))), "amplitude")
    assert scan.key == "diffraction"


def test_cube_has_its_patterns_first(write_scan: WriteScan) -> None:
    content = small_scan_arrays(num_patterns=16)
    scan = read_scan(write_scan(arrays=content), "amplitude")
    assert np.array_equal(scan.amplitude(np.arange(16)), content["diffraction"])


def test_one_pattern_in_either_layout(write_scan: WriteScan) -> None:
    content = small_scan_arrays(num_patterns=1)
    first = read_scan(write_scan("first.npz", arrays=content), "amplitude")
    last = read_scan(
        write_scan(
            "last.npz", arrays={**content, "diffraction": np.moveaxis(content["diffraction"], 0, 2)}
        ),
        "amplitude",
    )
    assert np.array_equal(first.amplitude(np.array([0])), content["diffraction"])
    assert np.array_equal(last.amplitude(np.array([0])), content["diffraction"])


def test_big_endian_arrays_are_read(write_scan: WriteScan) -> None:
    content = {
        key: value.astype(value.dtype.newbyteorder(">"))
        for key, value in small_scan_arrays().items()
    }
    require_values_of_the_small_scan(read_scan(write_scan(arrays=content), "amplitude"))


def require_values_of_the_small_scan(scan: Scan) -> None:
    content = small_scan_arrays()
    assert np.array_equal(scan.amplitude(ALL), content["diffraction"])
    assert np.array_equal(scan.positions_px[:, 0], content["ycoords"])
    assert np.array_equal(scan.positions_px[:, 1], content["xcoords"])
    assert np.array_equal(scan.probe, content["probeGuess"][None])
    assert scan.object_guess is not None
    assert np.array_equal(scan.object_guess, content["objectGuess"])


def test_ycoords_are_rows_and_xcoords_columns(write_scan: WriteScan) -> None:
    scan = read_scan(write_scan(), "amplitude")
    require_values_of_the_small_scan(scan)
    assert scan.positions_px.dtype == np.float64
    assert scan.positions_px.shape == (37, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
def test_coordinates_may_be_of_any_real_type(write_scan: WriteScan, dtype: type) -> None:
    rows, columns = np.arange(37).astype(dtype), np.arange(37, 74).astype(dtype)
    scan = read_scan(write_scan(ycoords=rows, xcoords=columns), "amplitude")
    assert np.array_equal(scan.positions_px, [[number, number + 37.0] for number in range(37)])


PROBES = {
    "(N, N)": (lambda modes: modes[0], 1),
    "(N, N, 1)": (lambda modes: modes[0][..., None], 1),
    "(1, N, N)": (lambda modes: modes[:1], 1),
    "(P, N, N)": (lambda modes: modes, 3),
    "(P, N, N) Fortran": (np.asfortranarray, 3),
    "(variations, P, N, N)": (lambda modes: np.stack([modes, modes[::-1]]), 3),
    "complex128": (lambda modes: modes.astype(np.complex128), 3),
}


@pytest.mark.parametrize(("form", "num_modes"), PROBES.values(), ids=PROBES)
def test_every_form_of_the_probe_is_modes_first(
    write_scan: WriteScan, form: Callable[[np.ndarray], np.ndarray], num_modes: int
) -> None:
    modes = small_scan_arrays(modes=3)["probeGuess"]
    scan = read_scan(write_scan(probeGuess=form(modes)), "amplitude")
    assert scan.probe.dtype == np.complex64
    assert np.array_equal(scan.probe, modes[:num_modes])


def test_object_is_optional(write_scan: WriteScan) -> None:
    assert read_scan(write_scan(drop=("objectGuess",)), "amplitude").object_guess is None


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_mask_says_which_pixels_count(write_scan: WriteScan, dtype: type) -> None:
    mask = np.ones((16, 16), dtype)
    mask[3, 5] = 0
    patterns = small_scan_arrays()["diffraction"]
    patterns[:, 3, 5] = np.nan
    scan = read_scan(write_scan(diffraction=patterns, mask=mask), "amplitude")
    assert scan.mask is not None
    np.testing.assert_array_equal(scan.mask, mask == 1)
    np.testing.assert_array_equal(scan.amplitude(ALL), np.where(mask == 1, patterns, 0))


def test_keys_that_nobody_reads_are_left_alone(write_scan: WriteScan) -> None:
    """PtychoPINN's files hold arrays of objects among them, which are pickles."""
    path = write_scan(
        scan_index=np.zeros(37),
        Y=np.array({"a": 1}, dtype=object),
        coords_nominal=np.array([None, 1], dtype=object),
    )
    require_values_of_the_small_scan(read_scan(path, "amplitude"))


# --- Counts and amplitude

COUNTS = {
    "uint8": np.uint8([0, 1, 2, 200, 255]),
    "uint16": np.uint16([0, 1, 300, 60000, 65535]),  # the squares from 256 on overflow
    # three are no float32; the last has another root there
    "int32": np.int32([0, 3, 2**24 + 1, 2**31 - 1, 16785411]),
    "int64": np.int64([0, 5, 2**40 + 1, (2**20 + 1) ** 2, 2**52 + 1]),
    "uint64": np.uint64([0, 5, 2**40 + 1, (2**20 + 1) ** 2, 2**52 + 1]),
    "float32": np.float32([0, 0.5, 2.25, 1e9, 1e-3]),
    "float64": np.float64([0, 0.1, 1 / 3, 1e12 + 1, 1e-9]),
}


def patterns_of(values: np.ndarray) -> np.ndarray:
    """37 patterns that hold the values in turn."""
    return np.resize(values, (37, 16, 16))


@pytest.mark.parametrize("values", COUNTS.values(), ids=COUNTS)
def test_amplitude_is_the_root_of_the_counts_in_float64_rounded_once(
    write_scan: WriteScan, values: np.ndarray
) -> None:
    scan = read_scan(write_scan(diffraction=patterns_of(values)), "counts")
    expected = patterns_of(np.float32([math.sqrt(value) for value in values.tolist()]))
    assert scan.amplitude(ALL).dtype == np.float32
    assert np.array_equal(scan.amplitude(ALL), expected)


def test_roots_in_float32_are_those_of_float64_rounded_once(write_scan: WriteScan) -> None:
    """All counts of 16 bits, and float32 of every exponent, where no value loses anything in
    float32."""
    every = np.resize(np.arange(2**16, dtype=np.uint16), (256, 16, 16))
    bits = np.random.default_rng(0).integers(
        0, np.float32(np.inf).view(np.uint32), (256, 16, 16), dtype=np.uint32
    )
    positions = {"xcoords": np.arange(256.0), "ycoords": np.arange(256.0)}
    for values in (every, bits.view(np.float32)):
        scan = read_scan(write_scan(diffraction=values, **positions), "counts")
        assert np.array_equal(
            scan.amplitude(np.arange(256)), np.sqrt(values.astype(np.float64)).astype(np.float32)
        )


@pytest.mark.parametrize("values", COUNTS.values(), ids=COUNTS)
def test_amplitude_of_an_amplitude_is_itself_in_float32(
    write_scan: WriteScan, values: np.ndarray
) -> None:
    scan = read_scan(write_scan(diffraction=patterns_of(values)), "amplitude")
    assert np.array_equal(
        scan.amplitude(ALL), patterns_of(np.float32([float(value) for value in values.tolist()]))
    )


def test_energy_of_uint16_amplitudes_does_not_overflow(write_scan: WriteScan) -> None:
    scan = read_scan(write_scan(diffraction=patterns_of(np.uint16([60000]))), "amplitude")
    assert float((scan.amplitude(np.array([0])).astype(np.float64) ** 2).sum()) == 256 * 60000**2


def test_patterns_come_in_the_order_asked_for(write_scan: WriteScan) -> None:
    order = np.array([5, 0, 36, 5])
    assert np.array_equal(
        read_scan(write_scan(), "amplitude").amplitude(order),
        small_scan_arrays()["diffraction"][order],
    )


# --- Metadata

METADATA = json.dumps(
    {
        "physics_parameters": {"nphotons": 1.5e6},
        "note": "Poisson counts, λ = 1.24 Å",
        "measurement": "amplitude",
    }
)


def test_metadata_in_a_unicode_array(write_scan: WriteScan) -> None:
    assert read_scan(write_scan(_metadata=np.array(METADATA)), "amplitude").nphotons == 1.5e6


def test_metadata_in_a_bytes_array_of_one(write_scan: WriteScan) -> None:
    assert (
        read_scan(write_scan(_metadata=np.array([METADATA.encode()])), "amplitude").nphotons
        == 1.5e6
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_metadata_in_an_object_array_as_numpy_saves_it(
    write_scan: WriteScan, compressed: bool
) -> None:
    path = write_scan(_metadata=np.array(METADATA, dtype=object), compressed=compressed)
    with np.load(path) as archive, pytest.raises(ValueError, match="allow_pickle"):
        archive["_metadata"]  # it is a pickle indeed
    assert read_scan(path, "amplitude").nphotons == 1.5e6


def object_member(payload: bytes) -> bytes:
    """NPY bytes of a 0-d object array with this pickle."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    return stream.getvalue() + payload


def write_members(
    path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_with(path: Path, **replaced: bytes) -> Path:
    """A scan whose members have these raw bytes."""
    members = {key: npy(array) for key, array in small_scan_arrays().items()} | replaced
    return write_members(path, {f"{key}.npy": content for key, content in members.items()})


@pytest.mark.parametrize("protocol", range(6))
def test_metadata_in_a_pickle_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    payload = pickle.dumps(np.array(METADATA, dtype=object), protocol)
    assert (
        read_scan(
            write_with(tmp_path / "scan.npz", _metadata=object_member(payload)), "amplitude"
        ).nphotons
        == 1.5e6
    )


class Attack:
    """Makes a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.witness), "w")


def attack(witness: Path, *others: object) -> bytes:
    payload = pickle.dumps([Attack(witness), *others])
    # the attack is a live one: NumPy with allow_pickle=True runs it
    pickle.loads(payload)[0].close()
    assert witness.exists()
    witness.unlink()
    return object_member(payload)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = write_with(tmp_path / "scan.npz", _metadata=attack(tmp_path / "witness"))
    with pytest.raises(ScanError, match="_metadata: found a pickled object that is no JSON text"):
        read_scan(path, "amplitude")
    assert not (tmp_path / "witness").exists()


def test_code_in_a_pickle_is_not_run_also_beside_a_json_text(tmp_path: Path) -> None:
    path = write_with(tmp_path / "scan.npz", _metadata=attack(tmp_path / "witness", METADATA))
    assert read_scan(path, "amplitude").nphotons == 1.5e6
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("key", ["diffraction", "xcoords", "ycoords", "probeGuess", "objectGuess"])
def test_code_in_any_other_array_is_refused_and_not_run(tmp_path: Path, key: str) -> None:
    path = write_with(tmp_path / "scan.npz", **{key: attack(tmp_path / "witness")})
    with pytest.raises(ScanError, match=f"{key}: found"):
        read_scan(path, "amplitude")
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    "metadata", ["{}", '{"physics_parameters": {}}', '{"physics_parameters": {"nphotons": null}}']
)
def test_metadata_may_say_nothing_of_nphotons(write_scan: WriteScan, metadata: str) -> None:
    assert read_scan(write_scan(_metadata=np.array(metadata)), "amplitude").nphotons is None


def test_scan_without_metadata_has_no_nphotons(write_scan: WriteScan) -> None:
    assert read_scan(write_scan(), "amplitude").nphotons is None


# --- Measurement


@pytest.mark.parametrize(
    ("in_file", "asked", "default", "expected"),
    [
        ("counts", None, None, "counts"),
        ("counts", "counts", None, "counts"),
        ("counts", None, "amplitude", "counts"),
        (None, "amplitude", None, "amplitude"),
        (None, "amplitude", "counts", "amplitude"),
        (None, None, "counts", "counts"),
    ],
)
def test_measurement_is_the_files_then_the_users_then_the_default(
    write_scan: WriteScan, in_file: str | None, asked: Any, default: Any, expected: str
) -> None:
    metadata = {"_metadata": np.array(json.dumps({"measurement": in_file}))} if in_file else {}
    assert (
        read_scan(write_scan(**metadata), asked, default_measurement=default).measurement
        == expected
    )


def metadata(content: object) -> dict[str, Any]:
    return {"_metadata": np.array(json.dumps(content))}


@pytest.mark.parametrize(
    ("content", "asked", "found"),
    [
        (
            {"measurement": "counts"},
            "amplitude",
            "'counts' in the file's metadata but 'amplitude' in data.measurement",
        ),
        ({}, None, "nothing in the file's metadata nor in data.measurement"),
        ({"measurement": "intensity"}, None, "'intensity'"),
        ({"measurement": ["counts"]}, None, r"\['counts'\]"),
        ({"measurement": 3}, None, "3"),
        ({}, "intensity", "'intensity'"),
    ],
)
def test_measurement_is_never_guessed(
    write_scan: WriteScan, content: object, asked: Any, found: str
) -> None:
    path = write_scan(**metadata(content))
    with pytest.raises(ScanError, match=f"^{path}: measurement: found {found}, expected"):
        read_scan(path, asked)


# --- Refusals: each names file, key, what was found and what was expected

Broken = Callable[[Path], object]
"""Makes a broken file at a path."""


def saved(*, drop: tuple[str, ...] = (), compressed: bool = False, **changed: Any) -> Broken:
    def write(path: Path) -> None:
        content = {key: value for key, value in arrays(**changed).items() if key not in drop}
        (np.savez_compressed if compressed else np.savez)(path, **content)

    return write


def raw(**replaced: bytes) -> Broken:
    return lambda path: write_with(path, **replaced)


def truncated(share: float) -> Broken:
    def write(path: Path) -> None:
        saved()(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return write


def corrupted_stream(key: str) -> Broken:
    def write(path: Path) -> None:
        saved(compressed=True)(path)
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{key}.npy")
        middle = info.header_offset + info.compress_size // 2
        content[middle : middle + 64] = bytes(64)
        path.write_bytes(content)

    return write


def damaged_central_directory(path: Path) -> None:
    """The archive's last bytes point to a place before its beginning, which the system refuses to
    seek."""
    saved()(path)
    content = bytearray(path.read_bytes())
    # of the offset of the central directory; a comment's length, 2 bytes, follows it
    content[-4] ^= 0xFF
    path.write_bytes(content)


def changed(key: str, index: Any, value: Any) -> Broken:
    array = small_scan_arrays()[key].copy()
    array[index] = value
    return saved(**{key: array})


def claims_more(path: Path) -> None:
    """Header of 100 patterns, data of 37."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (100, 16, 16)}
    )
    write_with(path, diffraction=stream.getvalue() + small_scan_arrays()["diffraction"].tobytes())


def short_data(path: Path) -> None:
    write_with(path, diffraction=npy(small_scan_arrays()["diffraction"])[:-4])


PATTERNS = small_scan_arrays()["diffraction"]
NOT_JSON = "JSON text"
NOT_NPZ = "a zip archive as numpy.savez writes it"

# fmt: off
BROKEN: dict[str, tuple[Broken, str, str, str]] = {
    "missing file": (lambda path: None, "file", "no such file", "a scan file"),
    "directory": (Path.mkdir, "file", "not a file", "a scan file"),
    "empty file": (lambda path: path.write_bytes(b""), "format", "at its beginning", "an NPZ archive (PK) or an HDF5 file"),
    "text file": (
        lambda path: path.write_text("hello\n" * 99),
        "format",
        "at its beginning",
        "an NPZ archive (PK) or an HDF5 file",
    ),
    "npy in place of npz": (
        lambda path: path.write_bytes(npy(PATTERNS)),
        "format",
        "at its beginning",
        "an NPZ archive (PK) or an HDF5 file",
    ),
    "truncated": (truncated(0.6), "file", "not a readable NPZ archive", NOT_NPZ),
    "truncated by little": (truncated(0.9999), "file", "not a readable NPZ archive", NOT_NPZ),
    "damaged directory": (damaged_central_directory, "file", "not a readable NPZ archive", NOT_NPZ),
    "other arrays": (lambda path: np.savez(path, a=np.ones(3)), "file", "['a.npy']", "diffraction, diff3d, xcoords"),
    "empty archive": (lambda path: write_members(path, {}), "file", "an archive of []", "diffraction, diff3d, xcoords"),
    "no diffraction": (
        saved(drop=("diffraction",)),
        "diffraction",
        "'objectGuess', 'probeGuess', 'xcoords', 'ycoords'",
        "this key",
    ),
    "no xcoords": (saved(drop=("xcoords",)), "xcoords", "only the keys ['diffraction'", "this key"),
    "no ycoords": (saved(drop=("ycoords",)), "ycoords", "only the keys ['diffraction'", "this key"),
    "no probe": (saved(drop=("probeGuess",)), "probeGuess", "only the keys ['diffraction'", "this key"),
    "misspelt probe": (
        saved(drop=("probeGuess",), probeguess=PATTERNS[0]),
        "probeGuess",
        "only the keys ['diffraction'",
        "probeGuess",
    ),
    "no NPY header": (raw(diffraction=b"hello" * 99), "diffraction.npy", "no NPY header", "numpy.savez"),
    "empty member": (raw(diffraction=b""), "diffraction.npy", "no NPY header", "numpy.savez"),
    "header claims more": (
        claims_more,
        "diffraction",
        f"{PATTERNS.nbytes} bytes",
        f"{100 * 1024}, as its header says: (100, 16, 16)",
    ),
    "data short of a value": (
        short_data,
        "diffraction",
        f"{PATTERNS.nbytes - 4} bytes",
        f"{PATTERNS.nbytes}, as its header says",
    ),
    "corrupted patterns": (corrupted_stream("diffraction"), "diffraction", "damaged data", "an intact archive"),
    "corrupted object": (corrupted_stream("objectGuess"), "objectGuess", "damaged data", "an intact archive"),
    "odd N": (saved(diffraction=PATTERNS[:, :15, :15]), "diffraction", "patterns of 15 x 15", "square ones of an even size"),
    "not square": (saved(diffraction=PATTERNS[:, :, :14]), "diffraction", "patterns of 16 x 14", "square ones"),
    "2-d": (saved(diffraction=PATTERNS[0]), "diffraction", "shape (16, 16)", "(n, N, N)"),
    "4-d": (saved(diffraction=PATTERNS[None]), "diffraction", "shape (1, 37, 16, 16)", "(n, N, N)"),
    "no pattern": (
        saved(diffraction=PATTERNS[:0], xcoords=[], ycoords=[]),
        "diffraction",
        "shape (0, 16, 16)",
        "diffraction patterns",
    ),
    "objects": (saved(diffraction=PATTERNS.astype(object)), "diffraction", "type object", "real numbers"),
    "complex patterns": (saved(diffraction=PATTERNS.astype(complex)), "diffraction", "type complex128", "real numbers"),
    "boolean patterns": (saved(diffraction=PATTERNS > 1), "diffraction", "type bool", "real numbers"),
    "text patterns": (saved(diffraction=PATTERNS.astype(str)), "diffraction", "type <U", "real numbers"),
    "coordinates of other lengths": (saved(xcoords=np.ones(36)), "ycoords, xcoords", "37 and 36 values", "as many of one"),
    "fewer positions": (
        saved(xcoords=np.ones(36), ycoords=np.ones(36)),
        "positions",
        "36 positions",
        "37, one a pattern of diffraction",
    ),
    "mask of another size": (saved(mask=np.ones((8, 8), bool)), "mask", "shape (8, 8)", "the detector's, (16, 16)"),
    "mask of other numbers": (saved(mask=np.full((16, 16), 2)), "mask", "values [2]", "1 where a pixel counts"),
    "2-d coordinates": (saved(xcoords=np.ones((37, 1))), "xcoords", "shape (37, 1)", "one real number per pattern"),
    "complex coordinates": (saved(ycoords=np.ones(37, complex)), "ycoords", "complex128", "one real number per pattern"),
    "NaN position": (changed("xcoords", 5, np.nan), "positions", "NaN or infinity", "finite pixels"),
    "infinite position": (changed("ycoords", 5, -np.inf), "positions", "NaN or infinity", "finite pixels"),
    "positions in nanometres": (changed("xcoords", 5, 4e6), "positions", "a scan over 4e+06 pixels", "pixels of the object grid"),
    "positions far away": (saved(xcoords=np.full(37, 1e7)), "positions", "a scan over", "pixels of the object grid"),
    "zero probe": (saved(probeGuess=np.zeros((16, 16), complex)), "probe", "zeros only", "a probe with light in it"),
    "NaN probe": (changed("probeGuess", (3, 4), np.nan), "probe", "NaN or infinity", "finite values"),
    "probe of another size": (
        saved(probeGuess=np.ones((32, 32), complex)),
        "probe",
        "shape (1, 32, 32)",
        "the patterns' size, 16 x 16",
    ),
    "1-d probe": (saved(probeGuess=np.ones(16, complex)), "probeGuess", "shape (16,)", "(modes, N, N)"),
    "5-d probe": (
        saved(probeGuess=np.ones((1, 1, 2, 16, 16), complex)),
        "probeGuess",
        "shape (1, 1, 2, 16, 16)",
        "(modes, N, N)",
    ),
    "integer probe": (saved(probeGuess=np.ones((16, 16), int)), "probeGuess", "type int64", "complex numbers"),
    "3-d object": (saved(objectGuess=np.ones((1, 40, 40), complex)), "objectGuess", "shape (1, 40, 40)", "(H, W)"),
    "metadata not JSON": (saved(_metadata=np.array("nphotons = 3")), "_metadata", "'nphotons = 3'", NOT_JSON),
    "metadata not UTF-8": (saved(_metadata=np.array(b"\xff\xfe{")), "_metadata", "xff", NOT_JSON),
    "metadata a list": (saved(_metadata=np.array("[1, 2]")), "_metadata", "list", "a JSON object"),
    "metadata a number": (saved(_metadata=np.array(3.0)), "_metadata", "type float64", NOT_JSON),
    "metadata of two": (saved(_metadata=np.array(["{}", "{}"])), "_metadata", "shape (2,)", "one JSON text"),
    "metadata too long": (
        saved(_metadata=np.array("{" + " " * (1 << 20) + "}")),
        "_metadata",
        "bytes",
        "one JSON text of at most 1 MiB",
    ),
    "metadata a pickled dict": (saved(_metadata=np.array({"a": 1}, dtype=object)), "_metadata", "a pickled object", NOT_JSON),
    "metadata a broken pickle": (
        raw(_metadata=object_member(b"\x80\x04hello")),
        "_metadata",
        "an object that can't be read",
        NOT_JSON,
    ),
    "metadata an empty pickle": (raw(_metadata=object_member(b"")), "_metadata", "an object that can't be read", NOT_JSON),
    "broken JSON in a pickle": (raw(_metadata=object_member(pickle.dumps("{'a': 1"))), "_metadata", "{'a': 1", NOT_JSON),
    "parameters no object": (
        saved(**metadata({"physics_parameters": 3})),
        "_metadata physics_parameters",
        "int",
        "a JSON object",
    ),
}
# fmt: on


@pytest.mark.parametrize(("broken", "key", "found", "expected"), BROKEN.values(), ids=BROKEN)
def test_refusal_names_file_key_found_and_expected(
    tmp_path: Path, temporary_folder: Path, broken: Broken, key: str, found: str, expected: str
) -> None:
    broken(path := tmp_path / "broken.npz")
    with pytest.raises(ScanError) as refused:
        read_scan(path, "amplitude")
    message = str(refused.value)
    start, separator, end = message.rpartition(", expected ")
    assert message.startswith(f"{path}: {key}: found ")
    assert found in start
    assert expected in separator + end
    assert list(temporary_folder.iterdir()) == []


def test_content_decides_not_the_name(write_scan: WriteScan) -> None:
    path = write_scan()
    require_same_scan(
        read_scan(path, "amplitude"), read_scan(path.rename(path.with_suffix(".h5")), "amplitude")
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, -1e-30])
@pytest.mark.parametrize("measurement", ["amplitude", "counts"])
def test_bad_value_is_met_when_it_is_read_and_its_place_is_named(
    tmp_path: Path, measurement: Any, value: float
) -> None:
    changed("diffraction", (7, 3, 5), value)(path := tmp_path / "scan.npz")
    scan = read_scan(path, measurement)
    scan.amplitude(np.array([6, 8]))
    with pytest.raises(ScanError) as refused:
        scan.amplitude(np.array([2, 7, 9]))
    message = str(refused.value)
    assert message.startswith(
        f"{path}: diffraction: found {np.float64(np.float32(value))} at pixel [3, 5] of pattern "
        "7, expected finite "
    )
    assert measurement in message


def test_value_that_float32_can_not_hold_is_refused(tmp_path: Path) -> None:
    patterns = PATTERNS.astype(np.float64)
    patterns[7, 3, 5] = 1e39
    saved(diffraction=patterns)(path := tmp_path / "scan.npz")
    with pytest.raises(ScanError, match=r"found 1e\+39 at pixel \[3, 5\] of pattern 7"):
        read_scan(path, "amplitude").amplitude(ALL)
    assert np.isfinite(read_scan(path, "counts").amplitude(ALL)).all()


def test_negative_integer_is_refused(write_scan: WriteScan) -> None:
    patterns = patterns_of(np.int16([3]))
    patterns[0, 0, 0] = -1
    with pytest.raises(
        ScanError,
        match=r"found -1\.0 at pixel \[0, 0\] of pattern 0, expected finite counts of at least 0",
    ):
        read_scan(write_scan(diffraction=patterns), "counts").amplitude(ALL)


# --- Several ranks


def _read_own_path(paths: list[Path]) -> str:
    path = paths[rank()]
    try:
        read_scan(path, "amplitude")
    except FailedTogether as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("case", ["missing file", "no probe", "NaN probe", "4-d"])
def test_file_that_one_rank_can_not_read_fails_both_with_its_message(
    on_ranks: OnRanks, write_scan: WriteScan, tmp_path: Path, case: str
) -> None:
    broken, key, _, _ = BROKEN[case]
    broken(bad := tmp_path / "bad.npz")
    for bad_rank in (0, 1):
        paths = [write_scan("good.npz")] * 2
        paths[bad_rank] = bad
        first, second = on_ranks(2, _read_own_path, paths)
        assert first == second
        assert first.startswith(f"rank {bad_rank}: {bad}: {key}: found ")


def test_patterns_that_can_not_be_unpacked_fail_both_ranks(
    on_ranks: OnRanks, tmp_path: Path
) -> None:
    """Only the first rank of the node unpacks."""
    corrupted_stream("diffraction")(path := tmp_path / "scan.npz")
    first, second = on_ranks(2, _read_own_path, [path, path])
    assert first == second
    assert first.startswith(f"rank 0: {path}: diffraction: found damaged data")
