"""Arrays that the user names in files of their own: a probe, a detector mask. Nothing in them is
executed, and pickles are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptycho_dist.data.readers.arrays import as_complex64, as_mask, modes_first
from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File
from ptycho_dist.data.readers.npz_file import read_npz_headers
from ptycho_dist.data.scan import ScanError

_PROBE_KEYS = ("probeGuess", "probe")
_MASK_KEYS = ("mask", "det_pixel_mask")


def split_dataset(name: str) -> tuple[Path, str | None]:
    """Return file and dataset of `file.h5:/dataset`."""
    file, colon, dataset = name.rpartition(":/")
    return (Path(file), f"/{dataset}") if colon else (Path(name), None)


def read_probe_file(name: str) -> np.ndarray:
    """Return the probe of `data.probe`: complex64 (modes, N, N)."""
    return as_complex64(_read_probe(name, "data.probe", "c", "complex numbers"))


def read_simulation_probe(name: str) -> np.ndarray:
    """Return the probe of `simulation.probe`: real or complex (modes, N, N), as it is stored."""
    if not split_dataset(name)[0].is_file():
        raise ValueError(
            f"probe: {name!r} is neither 'disk' nor 'defocused' nor a file that exists"
        )
    return _read_probe(name, "simulation.probe", "cf", "real or complex numbers")


def _read_probe(name: str, key: str, kinds: str, expected: str) -> np.ndarray:
    return modes_first(Path(name), key, _read_array(name, key, _PROBE_KEYS, kinds, expected))


def read_mask_file(name: str) -> np.ndarray:
    """Return the mask of `data.mask`: bool (rows, columns), False at masked pixels."""
    mask = as_mask(
        Path(name),
        "data.mask",
        _read_array(name, "data.mask", _MASK_KEYS, "biu", "booleans, or 0 and 1"),
    )
    assert mask is not None
    return mask


def _read_array(
    name: str, key: str, datasets: Sequence[str], kinds: str, expected: str
) -> np.ndarray:
    path, dataset = split_dataset(name)
    if not path.is_file():
        raise ScanError(
            path,
            key,
            "no such file" if not path.exists() else "not a file",
            "a .npy, .npz or HDF5 file, or file.h5:/dataset",
        )
    with path.open("rb") as stream:
        magic = stream.read(8)
    if magic.startswith(b"\x93NUMPY"):
        array = _read_npy(path, key)
    elif magic.startswith(b"PK"):
        array = next(iter(read_npz_headers(path, datasets).values())).read(
            kinds, LARGEST_IMAGE_BYTES, expected
        )
    else:
        array = _read_hdf5(path, key, datasets if dataset is None else [dataset], kinds)
    if array.dtype.kind not in kinds or array.size == 0:
        raise ScanError(path, key, f"shape {array.shape} of {array.dtype}", expected)
    return array


def _read_npy(path: Path, key: str) -> np.ndarray:
    try:
        # mapped first: a header may promise more than the file holds
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise ScanError(
            path, key, f"not a readable .npy file ({error})", "an array as numpy.save writes it"
        ) from error


def _read_hdf5(path: Path, key: str, datasets: Sequence[str], kinds: str) -> np.ndarray:
    with Hdf5File(path) as file:
        chosen = file.first(datasets)
        if chosen is None:
            raise ScanError(
                path,
                key,
                f"no {' or '.join(datasets)} in {file.names()[:12]}",
                f"{path.name}:/dataset",
            )
        array = file.array(chosen, kinds=kinds, largest_bytes=LARGEST_IMAGE_BYTES)
        stored = file.dataset(chosen)
        assert array is not None
        assert stored is not None
        # MATLAB writes the first axis last
        is_matlab = stored.dtype.names == ("real", "imag")
        return array.swapaxes(-1, -2) if is_matlab else array
