"""Hostile and broken inputs, tried through the scripts themselves: one message that says what is
wrong, status 1, and no result.

The scripts run in this process, as `python launch/train.py ...` would; a few rows also on two
ranks, and under torchrun.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ptycho_dist.bundle import save_bundle
from ptycho_dist.config import DataConfig
from ptycho_dist.data.prepare import prepare
from ptycho_dist.distributed import FailedTogether
from tests.bundles import example, npy, rewrite, write_zip
from tests.scans import small_scan_arrays
from tests.scripts import ROOT

Launch = Callable[..., subprocess.CompletedProcess[str]]
OnRanks = Callable[..., list[Any]]
Capture = pytest.CaptureFixture[str]
Make = Callable[[Path], Any]
"""Makes what is hostile: a file at this path."""

LEFT_BEHIND = {"train.log", ".lock"}
"""All that a run may write before its input is read."""

PATTERNS = small_scan_arrays()["diffraction"]


class Attack:
    """Makes a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.witness), "w")


def attack(path: Path, *, protocol: int = 4) -> bytes:
    """A pickle that makes `witness` beside `path`; every test looks for it at the end."""
    return pickle.dumps(Attack(path.parent / "witness"), protocol)


def object_array(payload: bytes) -> bytes:
    """NPY bytes of a 0-d object array with this pickle."""
    return header((), "|O") + payload


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


# --- Files to make


def scan(*, drop: str = "", compressed: bool = False, metadata: Any = None, **changed: Any) -> Make:
    """A small scan with some arrays changed; bytes stand for the raw content of a member, a
    function makes them for the file's path."""

    def make(path: Path) -> None:
        content = {**small_scan_arrays(), **changed}
        content.pop(drop, None)
        if metadata is not None:
            content["_metadata"] = np.array(
                metadata if isinstance(metadata, str) else json.dumps(metadata)
            )
        members = {}
        for key, value in content.items():
            value = value(path) if callable(value) else value
            members[f"{key}.npy"] = value if isinstance(value, bytes) else npy(np.asarray(value))
        write_zip(path, members, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)

    return make


def text(content: str | bytes) -> Make:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def pixel(value: float) -> Make:
    patterns = PATTERNS.astype(np.float64)
    patterns[7, 3, 5] = value
    return scan(diffraction=patterns)


def element(key: str, value: float) -> Make:
    array = small_scan_arrays()[key].copy()
    array[3] = value
    return scan(**{key: array})


def then(make: Make, damage: Callable[[bytearray], Any]) -> Make:
    """What another made, with its bytes changed in place."""

    def damaged(path: Path) -> None:
        make(path)
        damage(content := bytearray(path.read_bytes()))
        path.write_bytes(content)

    return damaged


def cut(content: bytearray) -> None:
    del content[int(0.7 * len(content)) :]


def zeros_in_the_middle(content: bytearray) -> None:
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)


def bundle(edit: Callable[[Path], Any] = lambda path: None) -> Make:
    def make(path: Path) -> None:
        save_bundle(path, example())
        edit(path)

    return make


def signed(member: str, content: Callable[[Path], bytes]) -> Make:
    """A forger's bundle: the checksums are those of what he put in."""
    return bundle(lambda path: rewrite(path, {member: content(path)}))


def record_text(content: Callable[[Path], str]) -> Make:
    return bundle(lambda path: rewrite(path, {"bundle.yaml": content(path).encode()}, sign=False))


def reconstruction(*, drop: str = "", compressed: bool = False, **changed: Any) -> Make:
    arrays: dict[str, Any] = {
        "object": np.exp((0.1 + 1j) * np.random.default_rng(0).normal(size=(36, 36))).astype(
            np.complex64
        ),
        "origin_px": np.zeros(2),
        "positions_px": np.random.default_rng(0).uniform(8, 24, (37, 2)),
        "valid": np.ones((36, 36), bool),
        "illumination": np.ones((36, 36), np.float32),
    }

    def make(path: Path) -> None:
        content = {**arrays, **changed}
        content.pop(drop, None)
        content = {key: value(path) if callable(value) else value for key, value in content.items()}
        members = {
            f"{key}.npy": value if isinstance(value, bytes) else npy(value)
            for key, value in content.items()
        }
        write_zip(path, members, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)

    return make


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
"""Two kilobytes that stand for 2^60 strings."""


# --- The table


@dataclass(frozen=True)
class Row:
    """A script, what is hostile (`{}` in the arguments stands for it), and the message.

    The message is a regular expression in which `FILE` is the hostile file's path.
    """

    script: str
    name: str
    make: Make
    arguments: tuple[str, ...]
    message: str
    ranks: bool = field(default=False, kw_only=True)
    """Tried on two ranks too."""


def trains(
    make: Make,
    message: str,
    *,
    name: str = "scan.npz",
    ranks: bool = False,
    told: tuple[str, ...] | None = None,
) -> Row:
    told = ("--data.measurement=amplitude", "--data.nphotons=1e5") if told is None else told
    return Row("train.py", name, make, ("--data.path={}", *told), message, ranks=ranks)


def says(metadata: Any, message: str, *, ranks: bool = False) -> Row:
    """A scan with this in its metadata, and nothing in the config that goes before it."""
    return trains(
        scan(metadata=metadata), message, told=("--data.measurement=amplitude",), ranks=ranks
    )


def configures(content: str | bytes, message: str) -> Row:
    return Row("train.py", "hostile.yaml", text(content), ("--config={}",), message)


def is_told(option: str, message: str) -> Row:
    return Row(
        "train.py",
        "scan.npz",
        scan(),
        ("--data.path={}", "--data.measurement=amplitude", option),
        message,
    )


def infers(make: Make, message: str) -> Row:
    return Row("infer.py", "bundle.zip", make, ("--bundle={}", "good.npz"), message)


def infers_from(make: Make, message: str, *more: str) -> Row:
    return Row("infer.py", "scan.npz", make, ("--bundle=good.zip", "{}", *more), message)


def evaluates(make: Make, message: str) -> Row:
    return Row(
        "evaluate.py",
        "reconstruction.npz",
        make,
        ("--reconstruction={}", "--reference=good.npz"),
        message,
    )


NOT_NPZ = r"FILE: file: found not a readable NPZ archive \(.*\), expected a zip archive as numpy.savez writes it"
NO_FORMAT = (
    r"FILE: format: found b.* at its beginning, expected an NPZ archive \(PK\) or an HDF5 file"
)
NOT_FINITE = r" at pixel \[3, 5\] of pattern 7, expected finite amplitude of at least 0"
POSITIVE = ", expected a positive number"

ROWS: dict[str, Row] = {
    # Scan files
    "no file": trains(
        lambda path: None, "FILE: file: found no such file, expected a scan file", ranks=True
    ),
    "a directory": trains(Path.mkdir, "FILE: file: found not a file, expected a scan file"),
    "an empty file": trains(text(""), NO_FORMAT),
    "text": trains(text("hello\n" * 99), NO_FORMAT),
    "a single array": trains(text(npy(PATTERNS)), NO_FORMAT),
    "a truncated scan": trains(then(scan(), cut), NOT_NPZ, ranks=True),
    "a zip directory that points to nowhere": trains(
        then(scan(), lambda content: content.__setitem__(-4, 0xFF)), NOT_NPZ
    ),
    "an HDF5 signature and nothing behind it": trains(
        text(b"\x89HDF\r\n\x1a\n"), "FILE: file: found not a readable HDF5 file", name="scan.h5"
    ),
    "other arrays": trains(
        lambda path: np.savez(path, a=np.ones(3)),
        r"FILE: file: found an archive of \['a.npy'\], expected arrays named",
    ),
    "no diffraction": trains(
        scan(drop="diffraction"),
        r"FILE: diffraction: found only the keys \[.*'xcoords'.*\], expected this key",
    ),
    "no ycoords": trains(
        scan(drop="ycoords"), r"FILE: ycoords: found only the keys \[.*\], expected this key"
    ),
    "a misspelt key": trains(
        scan(drop="probeGuess", probeguess=PATTERNS[0]),
        r"FILE: probeGuess: found only the keys .* expected this key",
    ),
    "one pattern without its axis": trains(
        scan(diffraction=PATTERNS[0]),
        r"FILE: diffraction: found shape \(16, 16\), .*, expected .*\(n, N, N\)",
    ),
    "patterns with four axes": trains(
        scan(diffraction=PATTERNS[None]),
        r"FILE: diffraction: found shape \(1, 37, 16, 16\), .*, expected",
    ),
    "odd N": trains(
        scan(diffraction=PATTERNS[:, :15, :15]),
        r"FILE: diffraction: found patterns of 15 x 15, expected .* of an even size",
    ),
    "N that the network can't halve": trains(
        scan(diffraction=np.ones((37, 24, 24)), probeGuess=np.ones((24, 24), complex)),
        "pattern_size must be a power of two .* not 24",
    ),
    "patterns that are not square": trains(
        scan(diffraction=PATTERNS[:, :, :14]),
        r"FILE: diffraction: found patterns of 16 x 14, expected",
    ),
    "no pattern": trains(
        scan(diffraction=PATTERNS[:0], xcoords=[], ycoords=[]),
        r"FILE: diffraction: found .*shape \(0, 16, 16\)",
    ),
    "complex patterns": trains(
        scan(diffraction=PATTERNS.astype(complex)),
        "FILE: diffraction: found .*type complex128, expected .*real",
    ),
    "boolean patterns": trains(
        scan(diffraction=PATTERNS > 1),
        "FILE: diffraction: found .*type bool, expected .*real numbers",
    ),
    "patterns of text": trains(
        scan(diffraction=PATTERNS.astype(str)),
        "FILE: diffraction: found .*type <U.*, expected .*real numbers",
    ),
    "NaN": trains(pixel(np.nan), "FILE: diffraction: found nan" + NOT_FINITE, ranks=True),
    "infinity": trains(pixel(np.inf), "FILE: diffraction: found inf" + NOT_FINITE),
    "a negative amplitude": trains(pixel(-1), r"FILE: diffraction: found -1\.0" + NOT_FINITE),
    "a number that float32 can't hold": trains(
        pixel(1e39), r"FILE: diffraction: found 1e\+39" + NOT_FINITE
    ),
    "counts that overflowed": trains(
        scan(diffraction=(np.full((37, 16, 16), 40000) + 0).astype(np.int16)),
        r"FILE: diffraction: found -25536\.0 at pixel \[0, 0\] of pattern \d+, expected finite counts of at least 0",
        told=("--data.measurement=counts", "--data.nphotons=measured"),
    ),
    "zeros only": trains(
        scan(diffraction=np.zeros((37, 16, 16), np.uint16)),
        r"all \d+ patterns are zero",
        ranks=True,
    ),
    "a header of more patterns than there are": trains(
        scan(diffraction=header((100, 16, 16)) + PATTERNS.tobytes()),
        r"FILE: diffraction: found 37888 bytes, expected 102400, as its header",
    ),
    "a header of 2^90 bytes": trains(
        scan(diffraction=header((2**30, 2**30, 2**28)) + bytes(99)),
        "FILE: diffraction: found 99 bytes, expected 1237940039285380274899124224",
    ),
    "a header of negative lengths": trains(
        scan(diffraction=header((-37, -16, 16)) + PATTERNS.tobytes()),
        r"FILE: diffraction: found shape \(-37, -16, 16\), expected lengths",
    ),
    "no header": trains(
        scan(diffraction=b"hello" * 99),
        r"FILE: diffraction.npy: found no NPY header \(.*\), expected an array",
    ),
    "corrupted compressed data": trains(
        then(scan(compressed=True), zeros_in_the_middle), r"FILE: \w+: found damaged data"
    ),
    "a zip bomb in place of a coordinate": trains(
        scan(compressed=True, xcoords=npy(np.zeros(20_000_000, np.float32))),
        "FILE: xcoords: found 80000000 bytes, expected at most",
    ),
    "coordinates of two lengths": trains(
        scan(xcoords=np.ones(36)),
        "FILE: ycoords, xcoords: found 37 and 36 values, expected as many",
    ),
    "fewer positions than patterns": trains(
        scan(xcoords=np.ones(36), ycoords=np.ones(36)),
        "FILE: positions: found 36 positions, expected 37, one a pattern",
    ),
    "a position that is NaN": trains(
        element("xcoords", np.nan), "FILE: positions: found NaN or infinity, expected finite pixels"
    ),
    "positions in nanometres": trains(
        element("ycoords", 4e6),
        r"FILE: positions: found a scan over 4e\+06 pixels, expected pixels of",
    ),
    "positions at the end of float64": trains(
        element("ycoords", 1.7e308), r"FILE: positions: found a scan over 1.7e\+308 pixels"
    ),
    "patches that don't overlap": trains(
        element("ycoords", 9999),
        "pattern 3 and its 3 nearest neighbours .* patches of 16 px don't overlap",
    ),
    "a probe without light": trains(
        scan(probeGuess=np.zeros((16, 16), complex)),
        "FILE: probe: found zeros only, expected a probe with light",
    ),
    "a probe that is NaN": trains(
        element("probeGuess", np.nan), "FILE: probe: found NaN or infinity, expected finite values"
    ),
    "a probe beyond float32": trains(
        scan(probeGuess=np.full((16, 16), 1e300 + 0j)),
        "FILE: probe: found NaN or infinity, expected finite",
    ),
    "a probe that float32 takes for dark": trains(
        scan(probeGuess=np.full((16, 16), 1e-300 + 0j)), "FILE: probe: found zeros only"
    ),
    "a probe of another size": trains(
        scan(probeGuess=np.ones((32, 32), complex)),
        r"FILE: probe: found shape \(1, 32, 32\), expected .*16 x 16",
    ),
    "code in place of patterns": trains(
        scan(diffraction=lambda path: object_array(attack(path))),
        "FILE: diffraction: found .*object.*expected",
    ),
    "code in place of positions": trains(
        scan(xcoords=lambda path: object_array(attack(path))),
        r"FILE: xcoords: found shape \(\) of object",
    ),
    "code in place of the probe": trains(
        scan(probeGuess=lambda path: object_array(attack(path))),
        "FILE: probeGuess: found .*type object",
    ),
    "code in place of the metadata": trains(
        scan(_metadata=lambda path: object_array(attack(path))),
        "FILE: _metadata: found a pickled object that is no JSON text, expected JSON",
    ),
    # Metadata
    "metadata that is not JSON": says(
        "nphotons = 3", r"FILE: _metadata: found 'nphotons = 3' \(.*\), expected JSON text"
    ),
    "metadata that is a list": says([1], "FILE: _metadata: found list, expected a JSON object"),
    "metadata nested without end": says(
        "[" * 100_000, r"FILE: _metadata: found .*\(.*\), expected JSON text"
    ),
    "metadata of 2 MB": says(
        "{" + " " * (1 << 19) + "}",
        "FILE: _metadata: found .* bytes, expected one JSON text of at most 1 MiB",
    ),
    "metadata that is a number": trains(
        scan(_metadata=3.0), "FILE: _metadata: found .*type float64, expected JSON text"
    ),
    "parameters that are no object": says(
        {"physics_parameters": 3},
        "FILE: _metadata physics_parameters: found int, expected a JSON object",
    ),
    "no nphotons anywhere": says(
        {},
        "nphotons: FILE has no _metadata physics_parameters.nphotons, and data.nphotons is None; "
        "set data.nphotons",
    ),
    **{
        f"nphotons {said} in the metadata": says(
            f'{{"physics_parameters": {{"nphotons": {said}}}}}',
            "FILE: _metadata physics_parameters.nphotons is .*" + POSITIVE,
            ranks=said == "NaN",
        )
        for said in (
            "0",
            "-5.0",
            "NaN",
            "Infinity",
            "1e999",
            '"1e6"',
            "true",
            "[1e6]",
            "{}",
            "1" + "0" * 400,
        )
    },
    "a measurement that nobody knows": trains(
        scan(metadata={"measurement": "intensity"}),
        "FILE: measurement: found 'intensity'.*expected",
        told=("--data.nphotons=1e5",),
    ),
    "a measurement that is a list": trains(
        scan(metadata={"measurement": ["counts"]}),
        r"FILE: measurement: found \['counts'\], expected",
        told=("--data.nphotons=1e5",),
    ),
    "two measurements": trains(
        scan(metadata={"measurement": "counts"}),
        "FILE: measurement: found 'counts' in the file's metadata but 'amplitude' in "
        "data.measurement",
    ),
    "no measurement": trains(
        scan(),
        "FILE: measurement: found nothing in the file's metadata nor in data.measurement",
        told=(),
    ),
    # The command line
    **{
        f"nphotons {said} on the command line": is_told(
            f"--data.nphotons={said}", r"(?s)data\.nphotons.*" + expected
        )
        for said, expected in {
            "0": POSITIVE,
            "-1e6": POSITIVE,
            ".nan": POSITIVE,
            ".inf": POSITIVE,
            "true": "True" + POSITIVE,
            "many": "'many'" + POSITIVE,
        }.items()
    },
    "more patterns than there are": is_told(
        "--data.subset_size=38", "data.subset_size is 38, but FILE has 37 patterns"
    ),
    "an unknown option": is_told("--data.subset=3", r"unrecognized arguments: --data\.subset=3"),
    "no path": Row("train.py", "scan.npz", scan(), (), r"data\.path is None, expected a scan file"),
    "a path with a null byte": Row(
        "train.py",
        "a.yaml",
        text('data: {path: "a\\0.npz"}'),
        ("--config={}",),
        r"a\x00\.npz: file: found no such file, expected a scan file",
    ),
    # YAML files
    "an unknown key": configures("data: {pathh: x}", "pathh"),
    "an unknown concern": configures("dato: {path: x}", "dato"),
    "a key at the top": configures("epochs: 3", "epochs"),
    "text for a number": configures(
        "train: {epochs: many}", "train.epochs is 'many', expected an integer"
    ),
    "a fraction for a whole number": configures(
        "train: {epochs: 2.5}", "train.epochs is 2.5, expected an integer"
    ),
    "a boolean for a number": configures(
        "data: {nphotons: true}", "data.nphotons is True" + POSITIVE
    ),
    "nothing for a number": configures(
        "train: {epochs: null}", "train.epochs is None, expected an integer"
    ),
    "a mapping for a path": configures(
        "data: {path: {a: 1}}", "data.path is {'a': 1}, expected a list of text, text or null"
    ),
    "a list for a concern": configures("data: [1, 2]", "data"),
    "aliases that stand for 2^60 strings": configures(
        BOMB + "data: {path: *a59}", r"line 2: found the alias '\*a0', expected YAML without"
    ),
    "an alias of itself": configures(
        "data: &a {path: *a}", r"line 1: found the alias '\*a', expected YAML without anchors"
    ),
    "a merged key": configures(
        "x: &x {epochs: 2}\ntrain: {<<: *x}",
        r"line 2: found the alias '\*x', expected YAML without anchors",
    ),
    "a key twice": configures(
        "data: {group_size: 1, group_size: 2}",
        "found the key 'group_size' for the second time in one mapping",
    ),
    "lists nested without end": configures(
        "data: {path: " + "[" * 5000, "line 1: found more than 20 levels of nesting"
    ),
    "code in a YAML tag": Row(
        "train.py",
        "hostile.yaml",
        lambda path: path.write_text(
            f"data: {{path: !!python/object/apply:builtins.open [{path.parent / 'witness'}, w]}}"
        ),
        ("--config={}",),
        "could not determine a constructor for the tag .*python/object/apply:builtins.open",
    ),
    "code in a YAML tag on the command line": is_told(
        "--data.nphotons=!!python/object/apply:os.abort []", r"data\.nphotons"
    ),
    "YAML that is no mapping": configures(
        "- 1\n- 2\n", "--config FILE: config: the configuration is .*, expected a mapping"
    ),
    "an empty YAML file": configures(
        "", "--config FILE: config: the configuration is None, expected a mapping"
    ),
    "broken YAML": configures("data: {path: [x", "(?is)config.*line 1"),
    "YAML that is not UTF-8": configures(b"data: {path: \xff\xfe}", "(?i)utf-?8"),
    "no YAML file": Row(
        "train.py", "hostile.yaml", lambda path: None, ("--config={}",), r"hostile\.yaml"
    ),
    "a directory for a YAML file": Row(
        "train.py", "hostile.yaml", Path.mkdir, ("--config={}",), r"hostile\.yaml"
    ),
    # Bundles; tests/test_bundle.py has many more
    "no bundle": infers(lambda path: None, "FILE: found no file, expected a bundle"),
    "a truncated bundle": infers(then(bundle(), cut), "FILE: truncated, altered or not a bundle"),
    "a checkpoint for a bundle": infers(
        lambda path: write_zip(path, {"archive/data.pkl": attack(path)}),
        r"FILE: found an archive of \['archive/data.pkl'\], expected",
    ),
    "a pickle for a bundle": infers(
        lambda path: path.write_bytes(attack(path)), "FILE: truncated, altered or not a bundle"
    ),
    "a pickle in the probe's array": infers(
        signed("probe.npy", lambda path: object_array(attack(path))),
        "FILE: .*Object arrays cannot be",
    ),
    "code in the record": infers(
        record_text(
            lambda path: (
                f"format: !!python/object/apply:builtins.open [{path.parent / 'witness'}, w]"
            )
        ),
        "FILE: bundle.yaml is not YAML",
    ),
    # Scans for inference
    "NaN for inference": infers_from(
        pixel(np.nan), "FILE: diffraction: found nan" + NOT_FINITE, "--data.measurement=amplitude"
    ),
    "patterns of another size": infers_from(
        scan(
            diffraction=np.ones((37, 32, 32)),
            probeGuess=np.ones((32, 32), complex),
            metadata={"measurement": "amplitude"},
        ),
        "FILE: found patterns of 32 x 32, expected 16 x 16, which the bundle's network was "
        "trained on",
    ),
    "zeros only, normalised by themselves": infers_from(
        scan(diffraction=np.zeros((37, 16, 16))),
        "all 37 patterns are zero",
        "--normalization=scan",
        "--data.measurement=amplitude",
    ),
    # Reconstructions to evaluate
    "no reconstruction": evaluates(
        lambda path: None, "FILE: not a reconstruction .*expected the arrays object"
    ),
    "a reconstruction that is text": evaluates(text("hello"), "FILE: not a reconstruction"),
    "an empty reconstruction": evaluates(text(""), "FILE: not a reconstruction"),
    "a pickle for a reconstruction": evaluates(
        lambda path: path.write_bytes(attack(path)), "FILE: not a reconstruction"
    ),
    "a truncated reconstruction": evaluates(
        then(reconstruction(), cut), "FILE: not a reconstruction"
    ),
    "a corrupted reconstruction": evaluates(
        then(reconstruction(compressed=True), zeros_in_the_middle), "FILE: not a reconstruction"
    ),
    "code in a reconstruction": evaluates(
        reconstruction(object=lambda path: object_array(attack(path))),
        "FILE: not a reconstruction .*Object arrays cannot be loaded",
    ),
    "no object": evaluates(reconstruction(drop="object"), "FILE: not a reconstruction .*object"),
    "an object that is real": evaluates(
        reconstruction(object=np.ones((36, 36))),
        r"object is float64 \(36, 36\); expected a complex array",
    ),
    "an object of 4 TB": evaluates(
        reconstruction(object=header((1 << 20, 1 << 19), "<c8")),
        "FILE: not a reconstruction .*object",
    ),
    "an object that is NaN": evaluates(
        reconstruction(object=np.full((36, 36), np.nan + 0j)),
        "holds NaN or infinity at 1296 of 1296 values",
    ),
    "an object that is dark": evaluates(
        reconstruction(object=np.zeros((36, 36), complex)),
        "the object is zero at all .* compared pixels",
    ),
    "a mask of another shape": evaluates(
        reconstruction(valid=np.ones((3, 3), bool)),
        r"valid mask is bool \(3, 3\); expected bool \(36, 36\)",
    ),
    "a mask of numbers": evaluates(
        reconstruction(valid=np.ones((36, 36))), r"valid mask is float64 \(36, 36\); expected bool"
    ),
    "a mask of nothing": evaluates(
        reconstruction(valid=np.zeros((36, 36), bool)),
        "no pixel .* is valid; expected at least one",
    ),
    "no illumination": evaluates(
        reconstruction(drop="illumination"), "FILE: not a reconstruction .*illumination"
    ),
    "an illumination of another shape": evaluates(
        reconstruction(illumination=np.ones((3, 3))),
        r"illumination is float64 \(3, 3\); expected real numbers \(36, 36\)",
    ),
    "an illumination that is NaN": evaluates(
        reconstruction(illumination=np.full((36, 36), np.nan)), "the illumination, .* holds NaN"
    ),
    "an origin that is NaN": evaluates(
        reconstruction(origin_px=np.full(2, np.nan)),
        r"origin_px is \[nan, nan\]; expected two finite",
    ),
    "an origin out of reach": evaluates(
        reconstruction(origin_px=np.full(2, 1e300)),
        r"origin_px is \[1e\+300, 1e\+300\]; expected two finite numbers",
    ),
    "an origin of text": evaluates(
        reconstruction(origin_px=np.array(["a", "b"])),
        "FILE: origin_px is <U1; expected real numbers",
    ),
    "no position": evaluates(
        reconstruction(positions_px=np.zeros((0, 2))),
        r"positions_px has shape \(0, 2\); expected \(n, 2\)",
    ),
    "positions that are NaN": evaluates(
        reconstruction(positions_px=np.full((3, 2), np.nan)), "positions_px holds NaN or infinity"
    ),
    "positions out of reach": evaluates(
        reconstruction(positions_px=np.full((3, 2), 1e300)),
        r"positions_px reach 1e\+300; expected pixels",
    ),
    "positions that are complex": evaluates(
        reconstruction(positions_px=np.ones((3, 2), complex)),
        "FILE: positions_px is complex128; expected real",
    ),
    "a reference without an object": Row(
        "evaluate.py",
        "scan.npz",
        scan(drop="objectGuess"),
        ("--reconstruction=good_reconstruction.npz", "--reference={}"),
        "FILE: object: found a scan without one, expected an object",
    ),
    "a reference that is NaN": Row(
        "evaluate.py",
        "scan.npz",
        scan(objectGuess=np.full((36, 36), np.nan + 0j)),
        ("--reconstruction=good_reconstruction.npz", "--reference={}"),
        "the reference, where it is compared, holds NaN or infinity",
    ),
    # Where to write to, and what to simulate
    "a file for the run directory": Row(
        "train.py",
        "taken",
        text("x"),
        (
            "--data.path=good.npz",
            "--data.measurement=amplitude",
            "--data.nphotons=9",
            "--train.run_dir={}",
        ),
        "FILE",
    ),
    "a file for the directory of a reconstruction": Row(
        "infer.py", "taken", text("x"), ("--bundle=good.zip", "good.npz", "--out={}"), "FILE"
    ),
    "a directory in a file": Row(
        "infer.py", "taken", text("x"), ("--bundle=good.zip", "good.npz", "--out={}/below"), "FILE"
    ),
    "a file for the directory of a comparison": Row(
        "evaluate.py",
        "taken",
        text("x"),
        ("--reconstruction=good_reconstruction.npz", "--reference=good.npz", "--out={}"),
        "FILE",
    ),
    "a scan to write that is no npz": Row(
        "simulate.py",
        "scan.txt",
        text("x"),
        ("--out={}",),
        r"--out is 'FILE', expected a name that ends in",
    ),
    "more photons than can be drawn": Row(
        "simulate.py",
        "x",
        text("x"),
        ("--simulation.nphotons=1e30", "--simulation.scan_shape=[2,2]", "--out=new.npz"),
        "photons in a pixel, expected at most 1e.18: lower nphotons",
    ),
    "an image that is none": Row(
        "simulate.py", "image.png", text("x"), ("--simulation.object={}", "--out=new.npz"), "FILE"
    ),
    "a pickle for an image": Row(
        "simulate.py",
        "image.npy",
        lambda path: path.write_bytes(object_array(attack(path))),
        ("--simulation.object={}", "--out=new.npz"),
        "FILE",
    ),
    "a pickle for a probe": Row(
        "simulate.py",
        "probe.npy",
        lambda path: path.write_bytes(object_array(attack(path))),
        ("--simulation.probe={}", "--out=new.npz"),
        "FILE",
    ),
}

assert len(ROWS) >= 40


# --- One process


@pytest.fixture(autouse=True)
def log_is_put_back() -> Iterator[None]:
    """The scripts add handlers to the package's log."""
    logger = logging.getLogger("ptycho_dist")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a good scan, bundle and reconstruction in it."""
    scan(metadata={"measurement": "amplitude"})(tmp_path / "good.npz")
    bundle()(tmp_path / "good.zip")
    reconstruction()(tmp_path / "good_reconstruction.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OUT = {
    "train.py": "--train.run_dir=out",
    "infer.py": "--out=out",
    "evaluate.py": "--out=out",
    "simulate.py": "--out=out.npz",
}


def run_here(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a script as `python launch/SCRIPT` does, but in this process; give its exit status."""
    option = OUT[script].split("=")[0]
    if not any(argument.startswith(option) for argument in arguments):
        arguments = [*arguments, OUT[script]]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "launch" / script), *arguments])
    try:
        runpy.run_path(str(ROOT / "launch" / script), run_name="__main__")
    except SystemExit as exit_:
        return exit_.code
    return 0


def make_row(row: Row, folder: Path) -> tuple[Path, list[str]]:
    path = folder / row.name
    row.make(path)
    return path, [argument.replace("{}", str(path)) for argument in row.arguments]


def require_one_message(said: str, message: str, path: Path) -> None:
    assert re.search(message.replace("FILE", re.escape(str(path))), said), said
    assert len(re.findall(r"\berror\b.*?: ", said.split("\n  ")[0])) == 1, said
    assert "Traceback" not in said
    assert "not foreseen" not in said, said
    assert len(said) < 3000


def files_below(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_one_message_status_1_and_no_result(
    row: Row,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    path, arguments = make_row(row, folder)
    before = files_below(folder)
    assert run_here(row.script, arguments, monkeypatch) == 1
    require_one_message(capfd.readouterr().err, row.message, path)
    assert [str(warning.message) for warning in recwarn if warning.category is RuntimeWarning] == []
    after = files_below(folder)
    assert {name: after.get(name) for name in before} == before
    assert {name.name for name in after.keys() - before.keys()} <= LEFT_BEHIND
    assert not (folder / "witness").exists()


def test_good_inputs_pass(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    """The table's rows fail by what is hostile in them, and by nothing else."""
    assert run_here("infer.py", ["--bundle=good.zip", "good.npz"], monkeypatch) == 0, (
        capfd.readouterr().err
    )
    assert (
        run_here(
            "evaluate.py",
            ["--reconstruction=good_reconstruction.npz", "--reference=good.npz"],
            monkeypatch,
        )
        == 0
    )
    told = (
        "--data.measurement=amplitude",
        "--data.nphotons=1e5",
        "--model.base_width=1",
        "--train.epochs=1",
    )
    assert (
        run_here("train.py", ["--data.path=good.npz", *told, "--train.run_dir=run"], monkeypatch)
        == 0
    ), capfd.readouterr().err
    assert (folder / "run" / "bundle.zip").exists()


def test_attacks_are_live(tmp_path: Path) -> None:
    """Whoever trusts these inputs runs their code."""
    witness = tmp_path / "witness"
    path = tmp_path / "hostile"
    for run in (
        lambda: pickle.loads(attack(path)).close(),
        lambda: np.load(io.BytesIO(object_array(attack(path))), allow_pickle=True).close(),
        lambda: yaml.unsafe_load(f"!!python/object/apply:builtins.open [{witness}, w]").close(),
    ):
        run()
        assert witness.exists()
        witness.unlink()


# --- Several ranks


def message_of_this_rank(path: Path, told: dict[str, Any]) -> str:
    with pytest.raises(FailedTogether) as failed:
        prepare(DataConfig(path=str(path), **told))
    return str(failed.value)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.ranks])
def test_both_ranks_say_the_same(on_ranks: OnRanks, tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    path, arguments = make_row(row, tmp_path)
    told = dict(argument.removeprefix("--data.").split("=") for argument in arguments[1:])
    if "nphotons" in told:
        told["nphotons"] = float(told["nphotons"])
    first, second = on_ranks(2, message_of_this_rank, path, told)
    assert first == second
    assert re.search(row.message.replace("FILE", re.escape(str(path))), first)


def test_torchrun_ends_with_one_message_of_ours(launch: Launch, tmp_path: Path) -> None:
    row = ROWS["zeros only"]
    path, arguments = make_row(row, tmp_path)
    failed = launch(
        row.script, *arguments, f"--train.run_dir={tmp_path / 'out'}", nproc=2, timeout=60
    )
    assert failed.returncode == 1
    assert len(re.findall(row.message.replace("FILE", re.escape(str(path))), failed.stdout)) == 1, (
        failed.stdout
    )
    # frames of ours; torchrun's own report has a traceback of its agent
    assert str(ROOT / "ptycho_dist") not in failed.stdout
    assert 'launch/train.py", line' not in failed.stdout
    assert not (tmp_path / "out" / "bundle.zip").exists()
