"""Arrays that the user names in files of their own: a probe, a detector mask. Nothing in them is
executed, and pickles are refused."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptycho_dist.data.readers.hdf5_file import LARGEST_IMAGE_BYTES, Hdf5File
from ptycho_dist.data.scan import ScanError

PROBE_KEYS = ("probeGuess", "probe")
MASK_KEYS = ("mask", "det_pixel_mask")


def split_dataset(name: str) -> tuple[Path, str | None]:
    """`file.h5:/dataset` as file and dataset."""
    file, colon, dataset = name.rpartition(":/")
    return (Path(file), f"/{dataset}") if colon else (Path(name), None)


def read_probe_file(name: str) -> np.ndarray:
    """The probe of `data.probe`: complex64 (modes, N, N)."""
    return as_modes(
        Path(name), "data.probe", _read_array(name, "data.probe", PROBE_KEYS, kinds="c")
    )


def read_mask_file(name: str) -> np.ndarray:
    """The mask of `data.mask`: bool (rows, columns), True where a pixel counts."""
    return as_mask(Path(name), "data.mask", _read_array(name, "data.mask", MASK_KEYS, kinds="biu"))


def as_modes(path: Path, key: str, probe: np.ndarray) -> np.ndarray:
    """(N, N), (modes, N, N) or (variations, modes, N, N), of which the first is the mean probe, to
    complex64 (modes, N, N)."""
    if probe.ndim == 4:
        probe = probe[0]
    if probe.ndim not in (2, 3) or probe.shape[-1] != probe.shape[-2] or probe.dtype.kind != "c":
        raise ScanError(
            path,
            key,
            f"shape {probe.shape} of {probe.dtype}",
            "a complex probe, (N, N) or (modes, N, N)",
        )
    with np.errstate(over="ignore"):  # infinity is refused by the scan
        return probe.reshape(-1, *probe.shape[-2:]).astype(np.complex64)


def as_mask(path: Path, key: str, mask: np.ndarray) -> np.ndarray:
    """Booleans, or 1 where a pixel counts and 0 where not, to bool (rows, columns)."""
    if mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
        found = f"shape {mask.shape} of {mask.dtype}, values {np.unique(mask)[:5].tolist()}"
        raise ScanError(
            path, key, found, "(rows, columns) of 1 where a pixel counts and 0 where not"
        )
    return mask.astype(bool)


def _read_array(name: str, key: str, keys: Sequence[str], *, kinds: str) -> np.ndarray:
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
        array = _read_npz(path, key, keys)
    else:
        with Hdf5File(path) as file:
            chosen = dataset or file.first(keys)
            found = (
                file.array(chosen, kinds=kinds, largest_bytes=LARGEST_IMAGE_BYTES)
                if chosen
                else None
            )
            if found is None or chosen is None:
                raise ScanError(
                    path,
                    key,
                    f"no {dataset or ' or '.join(keys)} in {file.names()[:12]}",
                    f"{path.name}:/dataset",
                )
            stored = file.dataset(chosen)
            # MATLAB writes the first axis last.
            array = (
                found.swapaxes(-1, -2)
                if stored is not None and stored.dtype.names == ("real", "imag")
                else found
            )
    if array.dtype.kind not in kinds or array.size == 0:
        raise ScanError(
            path,
            key,
            f"shape {array.shape} of {array.dtype}",
            "complex numbers" if kinds == "c" else "booleans, or 0 and 1",
        )
    return array


def _read_npy(path: Path, key: str) -> np.ndarray:
    try:
        # mapped first: a header may promise more than the file holds
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise ScanError(
            path, key, f"not a readable .npy file ({error})", "an array as numpy.save writes it"
        ) from error


def _read_npz(path: Path, key: str, keys: Sequence[str]) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {
                info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()
            }
        chosen = next((name for name in keys if name in sizes), None)
        if chosen is None:
            raise ScanError(path, key, f"only the keys {sorted(sizes)[:12]}", " or ".join(keys))
        if sizes[chosen] > LARGEST_IMAGE_BYTES:
            raise ScanError(
                path, f"{key} {chosen}", f"{sizes[chosen]} bytes", f"at most {LARGEST_IMAGE_BYTES}"
            )
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[chosen]
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ScanError(
            path,
            key,
            f"not a readable NPZ archive ({error})",
            "a zip archive as numpy.savez writes it",
        ) from error
    except ScanError:
        raise
    except ValueError as error:  # a pickle, or a header that lies
        raise ScanError(
            path, key, f"no plain array ({error})", "an array as numpy.savez writes it"
        ) from error
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
