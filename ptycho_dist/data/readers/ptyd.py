"""ptypy's prepared data, `.ptyd`.

Facts from ptypy's documentation of the format (chunks/N/data, positions, weights; meta/energy in
keV, distance and psize in metres, center in pixels) and its PtydScan and MoonFlowerScan: positions
are (row, column) in metres and grow with the rows and columns of the object; a weight of 0 is a
pixel without a count, others are not told apart; frames are intensities about `center`, `fftshift`
being [N // 2, N // 2]; chunks that were saved as links lie in files beside the master.
"""

from __future__ import annotations

import math

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File
from ptycho_dist.data.readers.hdf5_patterns import SomePatterns, frame_of_all, open_patterns

NEEDS = "ptypy: chunks/0/data and chunks/0/positions, meta"


def is_ptyd(file: Hdf5File) -> bool:
    return any(file.has(f"chunks/{number}/data") for number in file.names("chunks"))


def read_ptyd(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read `chunks` in the order of their numbers, and `meta`."""
    if _text(file, "meta/propagation") == "nearfield":
        raise file.refused(
            "meta/propagation", "nearfield", "farfield: other propagation is not modelled"
        )
    chunks = sorted((name for name in file.names("chunks") if name.isdecimal()), key=int)
    patterns, positions, masks = [], [], []
    for chunk in chunks:
        group = f"chunks/{chunk}"
        patterns.append(open_patterns(file, f"{group}/data", is_transposed=bool(options.transpose)))
        place = file.array(f"{group}/positions", kinds="fiu")
        if place is None or place.shape != (patterns[-1].num_patterns, 2):
            found = None if place is None else place.shape
            raise file.refused(
                f"{group}/positions",
                f"shape {found}",
                f"({patterns[-1].num_patterns}, 2): (row, column) of each, metres",
            )
        positions.append(place.astype(np.float64))
        masks.append(_mask(file, f"{group}/weights", options))
        if patterns[-1].shape[1:] != patterns[0].shape[1:]:
            raise file.refused(
                f"{group}/data",
                f"shape {patterns[-1].shape}",
                f"patterns of {patterns[0].shape[1:]}, as chunks/{chunks[0]}",
            )
    if any(
        (mask is None) != (masks[0] is None) or (mask is not None and (mask != masks[0]).any())
        for mask in masks
    ):
        raise file.refused(
            "weights",
            "masks that differ from chunk to chunk",
            "one mask for all patterns; see data.mask",
        )
    common = next(
        (
            mask
            for key in ("meta/weight2d", "info/weight2d")
            if (mask := _mask(file, key, options)) is not None
        ),
        None,
    )
    energy_keV = _number(file, "meta/energy")
    pixels_m = np.unique(_numbers(file, "meta/psize"))
    if len(pixels_m) and pixels_m.max() > 1.001 * pixels_m.min():
        raise file.refused("meta/psize", pixels_m.tolist(), "square pixels")
    return ScanContent(
        path=file.path,
        key=f"chunks/{chunks[0]}/data",
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
        detector_pixel_m=float(pixels_m[0]) if len(pixels_m) else None,
        centre_px=_centre_px(file) if not options.transpose else None,
        mask=masks[0] if masks[0] is not None else common,
        files=file.files,
    )


def _mask(file: Hdf5File, key: str, options: ScanConfig) -> np.ndarray | None:
    """Where a weight is above 0; None where the file has no weights there, which ptypy writes as an
    empty array or a single flag."""
    dataset = file.dataset(key) if file.has(key) else None
    if dataset is None or not dataset.shape or 0 in dataset.shape or len(dataset.shape) < 2:
        return None
    weights = frame_of_all(file, key, is_transposed=bool(options.transpose))
    return None if weights is None else weights > 0


def _centre_px(file: Hdf5File) -> tuple[float, float] | None:
    text = _text(file, "meta/center")
    if text is not None and text not in ("fftshift", "None"):
        raise file.refused("meta/center", text, "fftshift, or a row and a column in pixels")
    numbers = _numbers(file, "meta/center")
    return (float(numbers[0]), float(numbers[-1])) if len(numbers) else None


def _text(file: Hdf5File, key: str) -> str | None:
    """ptypy writes `None` and its words as text."""
    dataset = file.dataset(key) if file.has(key) else None
    if dataset is None or dataset.dtype.kind not in "OS" or dataset.size != 1:
        return None
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _numbers(file: Hdf5File, key: str) -> np.ndarray:
    """One or two numbers, or none where the file says nothing."""
    dataset = file.dataset(key) if file.has(key) else None
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
