"""ptypy's prepared data, `.ptyd`.

Facts from ptypy's documentation of the format (chunks/N/data, positions, weights; meta/energy in
keV, distance and psize in metres, center in pixels) and its PtydScan and MoonFlowerScan: positions
are (row, column) in metres and grow with the rows and columns of the object; a weight of 0 masks a
pixel, others are all the same; frames are intensities about `center`, `fftshift`
being [N // 2, N // 2]; chunks that were saved as links lie in files beside the master.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File, hdf5_reader
from ptycho_dist.data.readers.hdf5_patterns import (
    Hdf5Patterns,
    SomePatterns,
    frame_of_all,
    open_patterns,
)


def _recognises(file: Hdf5File) -> bool:
    return any(file.has(f"chunks/{number}/data") for number in _chunk_numbers(file))


def _chunk_numbers(file: Hdf5File) -> list[str]:
    return sorted((name for name in file.names("chunks") if name.isdecimal()), key=int)


def _read(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read `chunks` in the order of their numbers, and `meta`."""
    if _text(file, "meta/propagation") == "nearfield":
        raise file.refused(
            "meta/propagation", "nearfield", "farfield: other propagation is not modelled"
        )
    is_transposed = bool(options.transpose)
    groups = [f"chunks/{number}" for number in _chunk_numbers(file)]
    chunks = [_read_chunk(file, group, is_transposed) for group in groups]
    patterns, positions, masks = zip(*chunks, strict=True)
    for group, one in zip(groups, patterns, strict=True):
        if one.shape[1:] != patterns[0].shape[1:]:
            expected = f"patterns of {patterns[0].shape[1:]}, as {groups[0]}"
            raise file.refused(f"{group}/data", f"shape {one.shape}", expected)
    energy_keV = _number(file, "meta/energy")
    pixels_m = _numbers(file, "meta/psize")
    if len(pixels_m) and pixels_m.max() > 1.001 * pixels_m.min():
        raise file.refused("meta/psize", np.unique(pixels_m).tolist(), "square pixels")
    return ScanContent(
        path=file.path,
        key=f"{groups[0]}/data",
        diffraction=patterns[0]
        if len(patterns) == 1
        else SomePatterns.one_after_the_other(patterns),
        positions_m=np.concatenate(positions),
        where={
            "energy_eV": "meta/energy",
            "distance_m": "meta/distance",
            "detector_pixel_m": "meta/psize",
        },
        energy_eV=None if energy_keV is None else 1e3 * energy_keV,
        distance_m=_number(file, "meta/distance"),
        detector_pixel_m=float(pixels_m.min()) if len(pixels_m) else None,
        centre_px=_centre_px(file) if not is_transposed else None,
        mask=_common_mask(file, masks, is_transposed),
        files=file.files,
    )


def _read_chunk(
    file: Hdf5File, group: str, is_transposed: bool
) -> tuple[Hdf5Patterns, np.ndarray, np.ndarray | None]:
    """Return patterns, positions and mask of a chunk."""
    patterns = open_patterns(file, f"{group}/data", is_transposed=is_transposed)
    positions = file.array(f"{group}/positions", kinds="fiu")
    if positions is None or positions.shape != (patterns.num_patterns, 2):
        found = f"shape {None if positions is None else positions.shape}"
        expected = f"({patterns.num_patterns}, 2): (row, column) of each, metres"
        raise file.refused(f"{group}/positions", found, expected)
    return patterns, positions.astype(np.float64), _mask(file, f"{group}/weights", is_transposed)


def _common_mask(
    file: Hdf5File, masks: Sequence[np.ndarray | None], is_transposed: bool
) -> np.ndarray | None:
    """Return the mask of all chunks, else that of the whole file."""
    first = masks[0]
    if not all(np.array_equal(mask, first) for mask in masks):  # type: ignore[arg-type]  # or None
        raise file.refused(
            "weights",
            "masks that differ from chunk to chunk",
            "one mask for all patterns; see data.mask",
        )
    if first is not None:
        return first
    common = (_mask(file, key, is_transposed) for key in ("meta/weight2d", "info/weight2d"))
    return next((mask for mask in common if mask is not None), None)


def _mask(file: Hdf5File, key: str, is_transposed: bool) -> np.ndarray | None:
    """Return where a weight is above 0; None where the file has no weights there, which ptypy
    writes as an empty array or a single flag."""
    dataset = file.dataset(key)
    if dataset is None or not dataset.shape or 0 in dataset.shape or len(dataset.shape) < 2:
        return None
    weights = frame_of_all(file, key, is_transposed=is_transposed)
    return None if weights is None else weights > 0


def _centre_px(file: Hdf5File) -> tuple[float, float] | None:
    text = _text(file, "meta/center")
    if text is not None and text not in ("fftshift", "None"):
        raise file.refused("meta/center", text, "fftshift, or a row and a column in pixels")
    numbers = _numbers(file, "meta/center")
    return (float(numbers[0]), float(numbers[-1])) if len(numbers) else None


def _text(file: Hdf5File, key: str) -> str | None:
    """Return a text: ptypy writes `None` and its words as such."""
    dataset = file.dataset(key)
    if dataset is None or dataset.dtype.kind not in "OS" or dataset.size != 1:
        return None
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _numbers(file: Hdf5File, key: str) -> np.ndarray:
    """Return one or two numbers, or none where the file has none."""
    dataset = file.dataset(key)
    if dataset is None or dataset.dtype.kind not in "fiu":
        return np.empty(0)
    numbers = np.asarray(file.array(key, kinds="fiu"), dtype=np.float64).reshape(-1)
    if len(numbers) > 2 or not np.isfinite(numbers).all():
        raise file.refused(key, numbers[:4].tolist(), "one or two finite numbers")
    return numbers


def _number(file: Hdf5File, key: str) -> float | None:
    numbers = _numbers(file, key)
    if len(numbers) > 1 and not math.isclose(numbers[0], numbers[1]):
        raise file.refused(key, numbers.tolist(), "one number")
    return float(numbers[0]) if len(numbers) else None


READER = hdf5_reader(
    "ptypy", needs="chunks/0/data and chunks/0/positions, meta", recognises=_recognises, read=_read
)
