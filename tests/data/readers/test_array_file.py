"""Probes in files of their own, as `data.probe` and `simulation.probe` name them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_dist.data.readers.array_file import read_probe_file, read_simulation_probe
from ptycho_dist.data.scan import ScanError

MODES = np.arange(3 * 16 * 16).reshape(3, 16, 16) / 7 + 1j


def test_modes_and_values_of_every_form(tmp_path: Path) -> None:
    """A simulation takes them in their own precision."""
    np.savez(tmp_path / "modes.npz", probeGuess=MODES, other=np.zeros(2))
    np.savez(tmp_path / "named.npz", probe=MODES)
    np.savez(tmp_path / "last_axis.npz", probeGuess=MODES[0][..., None])
    np.save(tmp_path / "one.npy", MODES[0])
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["a/b"] = MODES[None]
    for name, modes in {
        "modes.npz": MODES, "named.npz": MODES, "last_axis.npz": MODES[:1], "one.npy": MODES[:1],
        "scan.h5:/a/b": MODES,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(read_simulation_probe(str(tmp_path / name)), modes)
        read = read_probe_file(str(tmp_path / name))
        assert read.dtype == np.complex64
        np.testing.assert_array_equal(read, modes.astype(np.complex64))


def test_only_a_simulation_takes_real_probes(tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", MODES.real)
    np.testing.assert_array_equal(read_simulation_probe(str(tmp_path / "real.npy")), MODES.real)
    with pytest.raises(ScanError, match="float64, expected complex numbers"):
        read_probe_file(str(tmp_path / "real.npy"))


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("missing.npz", None, r"missing\.npz' is neither 'disk' nor 'defocused' nor a file that"),
        ("empty.npz", b"", r"empty\.npz: .*not a readable HDF5 file"),
        ("cut.npz", b"PK\x03\x04 and no more", "found not a readable NPZ archive"),
        ("cut.npy", b"\x93NUMPY and no more", r"found not a readable \.npy file"),
        (
            "other.npz",
            {"beam": np.ones((16, 16))},
            r"\['beam\.npy'\], expected arrays named probeGuess",
        ),
        ("pickled.npz", {"probeGuess": np.array([{"a": 1}])}, "probeGuess: found .*type object"),
        ("text.npz", {"probeGuess": np.full((16, 16), "a")}, "expected real or complex numbers"),
        ("no_modes.npz", {"probeGuess": np.ones((0, 16, 16))}, r"\(0, 16, 16\)"),
        (
            "oblong.npz",
            {"probeGuess": np.ones((16, 8))},
            r"\(16, 8\) of float64, expected a complex",
        ),
    ],
)
def test_bad_probe_files_are_refused(
    tmp_path: Path, name: str, arrays: dict[str, np.ndarray] | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        read_simulation_probe(str(path))
