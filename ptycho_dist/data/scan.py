"""One scan: its diffraction patterns, where they were taken and with which probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ptycho_dist.data.geometry import Geometry

Measurement = Literal["amplitude", "counts"]
LARGEST_EXTENT_PX = 32_768


class ScanError(ValueError):
    """A scan file that can't be used; the message names the file, the key, what was found and what
    was expected."""

    def __init__(self, path: Path, key: str, found: object, expected: str) -> None:
        super().__init__(f"{path}: {key}: found {found}, expected {expected}")


class Patterns(Protocol):
    """Diffraction patterns that are read by number: an array, or patterns that stay in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, patterns: np.ndarray, /) -> np.ndarray:
        """Return patterns by number, int64 (k,), in any order, also repeated: (k, rows,
        columns)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """A scan as its file holds it, checked.

    Attributes
    ----------
    path
        The file.
    key
        Name of the diffraction array in it, for messages.
    diffraction
        (n, N, N), any real dtype, usually left on disk; zero frequency at [N // 2, N // 2].
    measurement
        `amplitude` (sqrt of counts) or `counts`: what `diffraction` holds.
    positions_px
        (n, 2) float64 as (y, x) = (row, column): patch centres, pixels of the object grid. A larger
        y lies further down the object.
    probe
        (modes, N, N) complex64, in the file's units; no mode where neither the file nor the
        configuration has a probe.
    object_guess
        (H, W) complex64 or None: a reference, whose pixel [0, 0] has the position (0, 0).
    nphotons
        Mean photons per pattern by the file's metadata, or None.
    fingerprint
        Distinguishes contents at little cost: SHA-256 of the checksums that the file holds of its
        arrays, or of a sample.
    mask
        (N, N) bool, False at masked pixels, whose values are not used; or None: none is masked.
    geometry
        None where neither file nor configuration gives it: a file may hold pixels alone.
    missing_geometry
        Where `geometry` is None, the keys of the configuration that would complete it.
    object_pixel_m
        Pixel of the object by which the file's metres became `positions_px`; None where it holds
        pixels.
    origin_m
        (y, x) in metres, as the file has them, of the position (0, 0) px; None where it holds
        pixels.
    """

    path: Path
    key: str
    diffraction: Patterns
    measurement: Measurement
    positions_px: np.ndarray
    probe: np.ndarray
    object_guess: np.ndarray | None
    nphotons: float | None
    fingerprint: str
    mask: np.ndarray | None = None
    geometry: Geometry | None = None
    missing_geometry: tuple[str, ...] = ()
    object_pixel_m: float | None = None
    origin_m: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.diffraction.shape, self.diffraction.dtype
        self._require(
            len(shape) == 3 and shape[1] == shape[2] and shape[1] % 2 == 0 and shape[1] > 0,
            self.key,
            f"shape {shape}",
            "square patterns of an even size, (n, N, N); data.crop takes a part",
        )
        self._require(dtype.kind in "fiu", self.key, f"type {dtype}", "real numbers")
        self._require(shape[0] > 0, self.key, "no pattern", "at least one")
        positions, probe, mask = self.positions_px, self.probe, self.mask
        found, expected = f"{len(positions)} positions", f"{shape[0]}, one a pattern of {self.key}"
        self._require(positions.shape == (shape[0], 2), "positions", found, expected)
        self._require(
            bool(np.isfinite(positions).all()), "positions", "NaN or infinity", "finite pixels"
        )
        extent = np.ptp(positions, axis=0).max()
        self._require(
            max(extent, np.abs(positions).max()) <= LARGEST_EXTENT_PX,
            "positions",
            f"a scan over {extent:.3g} pixels",
            f"pixels of the object grid, at most {LARGEST_EXTENT_PX}",
        )
        expected = f"the patterns' size, (modes, {shape[1]}, {shape[2]})"
        fits = probe.ndim == 3 and probe.shape[1:] == shape[1:]
        self._require(fits, "probe", f"shape {probe.shape}", expected)
        self._require(bool(np.isfinite(probe).all()), "probe", "NaN or infinity", "finite values")
        is_lit = len(probe) == 0 or bool(np.any(probe))
        self._require(is_lit, "probe", "zeros only", "a probe with light in it")
        if mask is not None:
            fits = mask.shape == shape[1:] and mask.dtype == bool
            self._require(fits, "mask", f"{mask.dtype} {mask.shape}", f"bool {shape[1:]}")
            self._require(bool(mask.any()), "mask", "no pixel that counts", "some")

    def _require(self, condition: bool, key: str, found: str, expected: str) -> None:
        if not condition:
            raise ScanError(self.path, key, found, expected)

    @property
    def num_patterns(self) -> int:
        return self.diffraction.shape[0]

    @property
    def pattern_size(self) -> int:
        """N."""
        return self.diffraction.shape[-1]

    @property
    def num_bytes(self) -> int:
        """Size of all patterns as they are stored."""
        return math.prod(self.diffraction.shape) * self.diffraction.dtype.itemsize

    @property
    def num_counted(self) -> int:
        """Number of pixels that are not masked."""
        return self.pattern_size**2 if self.mask is None else int(np.count_nonzero(self.mask))

    def require_probe(self) -> None:
        """Raise ScanError where there is no probe: training and reconstruction need one."""
        if len(self.probe) == 0:
            raise ScanError(
                self.path,
                "probe",
                "none in the file and no data.probe",
                "--data.probe FILE (.npy, .npz or file.h5:/dataset)",
            )

    def amplitude(self, patterns: np.ndarray) -> np.ndarray:
        """Return the measured amplitude X by number: (k, N, N) float32, 0 at masked pixels.

        Raises
        ------
        ScanError
            An unmasked value is NaN, infinite (in float32 too) or negative.
        """
        measured = self.diffraction[patterns]
        if self.mask is not None:
            measured = np.where(self.mask, measured, measured.dtype.type(0))
        # float32 where it holds every value of the type: its square root rounds as that in float64
        # would, then rounded to float32.
        dtype = np.float32 if np.can_cast(measured.dtype, np.float32) else np.float64
        with np.errstate(invalid="ignore", over="ignore"):  # said below, with file and pixel
            amplitude = np.sqrt(measured, dtype=dtype) if self.measurement == "counts" else measured
            amplitude = amplitude.astype(np.float32, copy=False)
            # NaN is neither
            is_valid = measured.min(initial=0) >= 0 and amplitude.max(initial=0) < np.inf
        if not is_valid:
            where = tuple(np.argwhere(~(np.isfinite(amplitude) & (measured >= 0)))[0])
            found = (
                f"{float(measured[where])} at pixel [{where[1]}, {where[2]}] of pattern "
                f"{np.asarray(patterns)[where[0]]}"
            )
            raise ScanError(self.path, self.key, found, f"finite {self.measurement} of at least 0")
        return amplitude


def stack_masks(scans: Sequence[Scan]) -> np.ndarray | None:
    """Return the scans' masks, bool (scans, N, N), or None where no scan has one."""
    if all(scan.mask is None for scan in scans):
        return None
    size = scans[0].pattern_size
    no_mask = np.ones((size, size), dtype=bool)
    return np.stack([no_mask if scan.mask is None else scan.mask for scan in scans])


def resolve_measurement(
    path: Path, in_file: object, asked: Measurement | None, default: Measurement | None = None
) -> Measurement:
    """Return what the diffraction array holds, as the file or the user says it; never guessed."""
    if in_file and asked and in_file != asked:
        found = f"{in_file!r} in the file's metadata but {asked!r} in data.measurement"
        raise ScanError(path, "measurement", found, "one answer")
    measurement = in_file or asked or default
    if measurement == "amplitude" or measurement == "counts":
        return measurement  # type: ignore[return-value]
    nothing = "nothing in the file's metadata nor in data.measurement"
    raise ScanError(
        path,
        "measurement",
        repr(measurement) if measurement else nothing,
        "amplitude (the diffraction array holds sqrt of counts) or counts",
    )
