"""What a reader provides: the content of a scan file, and a row in the table of readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.scan import Measurement, Patterns, ScanError


class PackedPatterns:
    """Patterns (n, rows, columns) that a node unpacks to a temporary file before they are read.

    `copy_in_order` runs on one rank per node. `open` then runs on every rank, with its result.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def copy_in_order(self) -> Path | None:
        """Write the patterns to a temporary file; return None where the scan file serves."""
        raise NotImplementedError

    def open(self, copy: Path | None) -> Patterns:
        """Open the patterns, in the copy if there is one."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanContent:
    """A scan as its file describes it: SI units, the whole detector, axes and signs of `Scan`.

    Attributes
    ----------
    path, key
        The file that the user named, and its diffraction dataset.
    diffraction
        (n, rows, columns), not read yet.
    measurement
        `amplitude` or `counts` where the file or its format says it, or None.
    positions_m, positions_px
        float64 (n, 2) as (y, x), one of the two: in metres, or in pixels of the object.
    where
        For messages: the names under which such a file holds `energy_eV`, `distance_m`,
        `detector_pixel_m` and `probe`.
    energy_eV, distance_m, detector_pixel_m
        As far as the file has them.
    object_pixel_m, object_pixel_of
        Pixel of the object, where the file has it, in the unit of `positions_m`, and the size of
        the patterns that it belongs to. `positions_px` count in this pixel too; where the size is
        None, in the pixel of the window in use.
    origin_m
        (y, x) in metres of the position (0, 0) px, where the file has it beside `positions_px`.
    centre_px
        (row, column) of the direct beam on the detector, where the file has it.
    probe
        complex64 (modes, N, N) or None.
    mask
        bool (rows, columns), False at masked pixels, or None.
    object_guess, object_corner_m
        complex64 (H, W) and the place of its pixel [0, 0] in `positions_m`; without a corner,
        positions count from that pixel.
    nphotons
        Mean photons per pattern, or None.
    fingerprint
        Digest of everything in the file, where the file holds checksums; None: a sample of the
        patterns is read for it, and checked.
    files
        All files that were read, the user's own first.
    """

    path: Path
    key: str
    diffraction: Patterns | PackedPatterns
    measurement: Measurement | None = "counts"
    positions_m: np.ndarray | None = None
    positions_px: np.ndarray | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    energy_eV: float | None = None
    distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    object_pixel_of: int | None = None
    origin_m: tuple[float, float] | None = None
    centre_px: tuple[float, float] | None = None
    probe: np.ndarray | None = None
    mask: np.ndarray | None = None
    object_guess: np.ndarray | None = None
    object_corner_m: tuple[float, float] | None = None
    nphotons: float | None = None
    fingerprint: str | None = None
    files: tuple[Path, ...] = ()

    def refused(self, key: str, found: object, expected: str) -> ScanError:
        return ScanError(self.path, key, found, expected)

    @property
    def full_size(self) -> int | None:
        """Size of the patterns that the file's object and its pixel belong to; None where they are
        not square."""
        _, rows, columns = self.diffraction.shape
        return self.object_pixel_of or (rows if rows == columns else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A row in the table of readers.

    Attributes
    ----------
    name
        Of the format, for the user.
    needs
        What a file of this format holds, for the message that refuses a file of none.
    recognises
        True for a file of this format; decides by its content, not its name.
    read
        Returns everything but the patterns.
    read_object
        Returns the object of a file that may lack the rest; None: `read` serves.
    accepts
        Which of the options `transpose` and `hdf5` apply; the others are refused.
    """

    name: str
    needs: str
    recognises: Callable[[Path, ScanConfig], bool]
    read: Callable[[Path, ScanConfig], ScanContent]
    read_object: Callable[[Path, ScanConfig], np.ndarray | None] | None = None
    accepts: frozenset[str] = frozenset({"transpose"})
