"""What a scan file says, and how the configuration completes it to a `Scan`: geometry, pixels,
window, probe, mask."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.geometry import Geometry
from ptycho_dist.data.readers.array_file import read_mask_file, read_probe_file
from ptycho_dist.data.readers.hdf5_patterns import window_of
from ptycho_dist.data.scan import Measurement, Patterns, Scan, ScanError, resolve_measurement
from ptycho_dist.distributed import rank
from ptycho_dist.physics.direct_beam import is_in_corners
from ptycho_dist.physics.scan_positions import nearest_distances_px

logger = logging.getLogger(__name__)

SAMPLE_PATTERNS = 64
LARGEST_SAMPLE_BYTES = 1 << 27
_SAME = 1e-3
"""How far a number of the file and one of the configuration may differ, relatively: people round
wavelengths and h c to four digits."""
_SAME_PIXEL = 1e-2
"""The same of the pixel of the object, a product of three such numbers."""

_OPTIONS = {
    "energy_eV": "energy_eV",
    "distance_m": "detector_distance_m",
    "detector_pixel_m": "detector_pixel_m",
}
"""Keys of the configuration for the numbers of a geometry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanContent:
    """A scan as its file has it: SI units, the whole detector, axes and signs those of `Scan`.

    Attributes
    ----------
    path, key
        The file that the user named, and its diffraction dataset.
    diffraction
        (n, rows, columns), not read yet.
    measurement
        What the format says of it, or None.
    positions_m, positions_px
        float64 (n, 2) as (y, x), one of the two: in metres, or in pixels of the object.
    where
        For messages: what holds `energy_eV`, `distance_m`, `detector_pixel_m` and `probe` in such a
        file.
    energy_eV, distance_m, detector_pixel_m
        As far as the file says them.
    object_pixel_m, object_pixel_of
        Pixel of the object, where the file says it itself, in the unit of `positions_m`, and the
        size of the patterns that it belongs to; `positions_px` count in it too, where the size is
        known, else in the pixel of whatever window is taken.
    origin_m
        (y, x) in metres of the position (0, 0) px, where the file says it beside `positions_px`.
    centre_px
        (row, column) of the direct beam on the detector, where the file says it.
    probe
        complex64 (modes, N, N) or None.
    mask
        bool (rows, columns), True where a pixel counts, or None.
    object_guess, object_corner_m
        complex64 (H, W) and the place of its pixel [0, 0] in `positions_m`; without a corner,
        positions count from that pixel already.
    nphotons
        Mean photons a pattern, or None.
    files
        All that was read, the user's own first.
    """

    path: Path
    key: str
    diffraction: Patterns
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
    files: tuple[Path, ...] = ()


def to_scan(
    content: ScanContent,
    options: ScanConfig,
    measurement: Measurement | None,
    default_measurement: Measurement | None,
) -> Scan:
    """Complete what a file says by the configuration, and look at a few patterns.

    Raises
    ------
    ScanError
        Something is missing, contradicts, or doesn't fit; the message says which key of the
        configuration mends it.
    """
    rows, columns = _window(content, options)
    pattern_size = rows.stop - rows.start
    diffraction = window_of(content.diffraction, rows, columns)
    said = resolve_measurement(content.path, content.measurement, measurement, default_measurement)
    geometry, missing, object_pixel_m = _geometry(content, options, pattern_size)
    positions_px, origin_m = _positions_px(content, object_pixel_m, pattern_size)
    mask = _mask(content, options, rows, columns)
    sample = _sample(diffraction)
    _require_marked_pixels_are_masked(content, sample, mask)
    probe = _probe(content, options, pattern_size)
    scan = Scan(
        path=content.path,
        key=content.key,
        diffraction=diffraction,
        measurement=said,
        positions_px=positions_px,
        probe=probe,
        object_guess=content.object_guess if pattern_size == _full_size(content) else None,
        nphotons=content.nphotons,
        fingerprint=_fingerprint(content, sample, positions_px, probe, mask),
        mask=mask,
        geometry=geometry,
        missing_geometry=missing,
        object_pixel_m=None if content.positions_m is None else object_pixel_m,
        origin_m=origin_m,
    )
    if rank() == 0:
        _log(scan, content, sample)
    return scan


def with_options(scan: Scan, options: ScanConfig) -> Scan:
    """A scan of a format that is complete in itself, its pixels included, seen through the
    configuration: window, probe, mask, geometry."""
    if options.transpose is not None or options.hdf5.diffraction is not None:
        raise ScanError(
            scan.path, "format", "PtychoPINN's NPZ", "an HDF5 file for data.transpose and data.hdf5"
        )
    said = {name: getattr(options, key) for name, key in _OPTIONS.items()}
    if scan.geometry is not None:
        for name, configured in said.items():
            _require_agreement(scan.path, name, getattr(scan.geometry, name), configured)
    elif None not in said.values():
        scan = replace(scan, geometry=Geometry(**said))
    else:
        scan = replace(
            scan,
            missing_geometry=tuple(_OPTIONS[name] for name, value in said.items() if value is None),
        )
    if (
        options.crop is None
        and options.centre_px is None
        and options.probe is None
        and options.mask is None
    ):
        return scan
    content = ScanContent(
        path=scan.path,
        key=scan.key,
        diffraction=scan.diffraction,
        positions_px=scan.positions_px,
        probe=scan.probe,
        mask=scan.mask,
    )
    rows, columns = _window(content, options)
    pattern_size = rows.stop - rows.start
    is_cropped = pattern_size != scan.pattern_size
    probe, mask = _probe(content, options, pattern_size), _mask(content, options, rows, columns)
    digest = hashlib.sha256(f"{scan.fingerprint} {rows} {columns}".encode())
    digest.update(probe.tobytes() + (b"" if mask is None else mask.tobytes()))
    return replace(
        scan,
        diffraction=window_of(scan.diffraction, rows, columns) if is_cropped else scan.diffraction,
        positions_px=scan.positions_px * (pattern_size / scan.pattern_size),
        probe=probe,
        object_guess=None if is_cropped else scan.object_guess,
        fingerprint=digest.hexdigest(),
        mask=mask,
    )


def _window(content: ScanContent, options: ScanConfig) -> tuple[slice, slice]:
    """Rows and columns of the detector that are used."""
    _, num_rows, num_columns = content.diffraction.shape
    middle = (num_rows // 2, num_columns // 2)
    said = content.centre_px
    if options.crop is None:
        if options.centre_px is not None:
            raise ScanError(content.path, "data.centre_px", options.centre_px, "data.crop with it")
        if num_rows != num_columns or num_rows % 2:
            raise ScanError(
                content.path,
                content.key,
                f"patterns of {num_rows} x {num_columns}",
                "square ones of an even size: --data.crop N takes N x N pixels, --data.centre_px "
                "'[row, column]' says about which",
            )
        if said is not None and max(abs(said[0] - middle[0]), abs(said[1] - middle[1])) > 0.5:
            raise ScanError(
                content.path,
                "centre",
                f"the direct beam at {said}",
                f"it at {middle}: --data.crop N takes N x N pixels about the beam",
            )
        return slice(0, num_rows), slice(0, num_columns)
    centre = options.centre_px or (middle if said is None else (round(said[0]), round(said[1])))
    half = options.crop // 2
    rows, columns = (slice(middle - half, middle + half) for middle in centre)
    if min(rows.start, columns.start) < 0 or rows.stop > num_rows or columns.stop > num_columns:
        found = (
            f"{options.crop} x {options.crop} about {centre} of a detector of {num_rows} x "
            f"{num_columns}"
        )
        raise ScanError(content.path, "data.crop", found, "a window that lies on the detector")
    return rows, columns


def _full_size(content: ScanContent) -> int | None:
    """Of the patterns that the file's own object and pixel belong to; None where they are not
    square."""
    _, rows, columns = content.diffraction.shape
    return content.object_pixel_of or (rows if rows == columns else None)


def _geometry(
    content: ScanContent, options: ScanConfig, pattern_size: int
) -> tuple[Geometry | None, tuple[str, ...], float | None]:
    """Energy, distance and pixel, or the keys of what is missing; the pixel of the object, None
    where positions are in pixels anyway."""
    numbers = {
        name: _agreed(content, name, getattr(options, key)) for name, key in _OPTIONS.items()
    }
    full_size = _full_size(content)
    object_pixel_m = content.object_pixel_m
    if object_pixel_m is not None and not (math.isfinite(object_pixel_m) and object_pixel_m > 0):
        raise ScanError(content.path, "object pixel", object_pixel_m, "a positive number")
    if object_pixel_m is not None and full_size is None:
        found = f"a pixel of the object and patterns of {content.diffraction.shape[1:]}"
        raise ScanError(content.path, content.key, found, "square patterns, which it belongs to")
    missing = [name for name, value in numbers.items() if value is None]
    if (
        object_pixel_m is not None
        and missing == ["detector_pixel_m"]
        and content.positions_m is not None
    ):
        assert numbers["energy_eV"] is not None
        assert numbers["distance_m"] is not None
        whole = Geometry(
            energy_eV=numbers["energy_eV"], distance_m=numbers["distance_m"], detector_pixel_m=1.0
        )
        assert full_size is not None
        numbers["detector_pixel_m"] = whole.object_pixel_m(full_size) / object_pixel_m
        missing = []
    if object_pixel_m is not None and full_size is not None and not missing:
        computed_m = Geometry(**numbers).object_pixel_m(full_size)  # type: ignore[arg-type]  # none of them is None
        if content.positions_m is not None and abs(computed_m / object_pixel_m - 1) > _SAME_PIXEL:
            found = (
                f"{object_pixel_m:.6g} in the file but {computed_m:.6g} from energy, "
                f"distance, detector pixel and {full_size} pixels"
            )
            raise ScanError(content.path, "object pixel", found, "one answer")
    if object_pixel_m is not None or content.positions_m is None:
        scaled = (
            object_pixel_m * full_size / pattern_size
            if object_pixel_m is not None and full_size is not None
            else None
        )
        if not missing:
            return Geometry(**numbers), (), scaled  # type: ignore[arg-type]
        if object_pixel_m is not None and content.positions_m is not None and len(missing) > 1:
            # follows from the other two
            missing = [name for name in missing if name != "detector_pixel_m"]
        return None, tuple(_OPTIONS[name] for name in missing), scaled
    if missing:
        found = ", ".join(
            f"no {name} (looked for {content.where.get(name, 'nothing: the format has none')})"
            for name in missing
        )
        options_needed = " ".join(f"--data.{_OPTIONS[name]} NUMBER" for name in missing)
        raise ScanError(
            content.path,
            "geometry",
            f"positions in metres, but {found}",
            f"the numbers that make pixels of them: {options_needed}",
        )
    geometry = Geometry(**numbers)  # type: ignore[arg-type]
    return geometry, (), geometry.object_pixel_m(pattern_size)


def _agreed(content: ScanContent, name: str, configured: float | None) -> float | None:
    in_file = getattr(content, name)
    if in_file is not None and not (math.isfinite(in_file) and in_file > 0):
        raise ScanError(content.path, content.where.get(name, name), in_file, "a positive number")
    if in_file is not None:
        _require_agreement(content.path, name, in_file, configured)
    return in_file if in_file is not None else configured


def _require_agreement(path: Path, name: str, in_file: float, configured: float | None) -> None:
    if configured is not None and abs(in_file / configured - 1) > _SAME:
        raise ScanError(
            path,
            name,
            f"{in_file:.6g} in the file but {configured:.6g} in data.{_OPTIONS[name]}",
            "one answer",
        )


def _positions_px(
    content: ScanContent, object_pixel_m: float | None, pattern_size: int
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Positions in pixels of the object, and the place in metres of the pixel that they count
    from."""
    if content.positions_m is None:
        assert content.positions_px is not None
        return content.positions_px * (
            pattern_size / (content.object_pixel_of or pattern_size)
        ), content.origin_m
    assert object_pixel_m is not None
    positions_m = content.positions_m
    if positions_m.shape != (content.diffraction.shape[0], 2):
        expected = f"{content.diffraction.shape[0]}, one a pattern of {content.key}"
        raise ScanError(content.path, "positions", f"{len(positions_m)} positions", expected)
    if not np.isfinite(positions_m).all():
        raise ScanError(
            content.path,
            "positions",
            f"{positions_m[~np.isfinite(positions_m).all(axis=1)][0]}",
            "finite numbers",
        )
    if content.object_corner_m is not None:
        corner = np.array(content.object_corner_m)
    elif content.object_guess is not None:
        corner = np.zeros(2)
    else:  # any: the first patches begin at the first row and column
        corner = positions_m.min(axis=0) - pattern_size / 2 * object_pixel_m
    return (positions_m - corner) / object_pixel_m, (float(corner[0]), float(corner[1]))


def _probe(content: ScanContent, options: ScanConfig, pattern_size: int) -> np.ndarray:
    """(modes, N, N) complex64; no mode where nobody has a probe."""
    probe = content.probe if options.probe is None else read_probe_file(options.probe)
    if probe is None or len(probe) == 0:
        return np.empty((0, pattern_size, pattern_size), dtype=np.complex64)
    if probe.shape[-1] == pattern_size:
        return probe
    if probe.shape[-1] == _full_size(content) and pattern_size < probe.shape[-1]:
        return _band_limited(probe, pattern_size)
    sizes = " or ".join(
        f"{size} x {size}"
        for size in dict.fromkeys((pattern_size, _full_size(content)))
        if size is not None
    )
    hint = "" if options.crop else "; or --data.crop N"
    where = options.probe or content.where.get("probe", "probe")
    raise ScanError(
        content.path, where, f"shape {probe.shape}", f"the patterns' size, {sizes}{hint}"
    )


def _band_limited(probe: np.ndarray, size: int) -> np.ndarray:
    """The probe on the coarser grid that belongs to a smaller detector: its far field, cut to the
    window. The field of view stays."""
    axes = (-2, -1)
    far_field = np.fft.fftshift(
        np.fft.fft2(probe.astype(np.complex128), axes=axes, norm="ortho"), axes=axes
    )
    start = probe.shape[-1] // 2 - size // 2
    far_field = far_field[..., start : start + size, start : start + size]
    return np.fft.ifft2(np.fft.ifftshift(far_field, axes=axes), axes=axes, norm="ortho").astype(
        np.complex64
    )


def _mask(
    content: ScanContent, options: ScanConfig, rows: slice, columns: slice
) -> np.ndarray | None:
    """Where a pixel counts, in the window; None where all do."""
    window = (rows.stop - rows.start, columns.stop - columns.start)
    whole = content.diffraction.shape[1:]
    counts = np.ones(window, dtype=bool)
    given = [
        ("mask", content.mask),
        ("data.mask", None if options.mask is None else read_mask_file(options.mask)),
    ]
    for name, mask in given:
        if mask is None:
            continue
        if mask.shape == whole:
            counts &= mask[rows, columns]
        elif mask.shape == window:
            counts &= mask
        else:
            raise ScanError(
                content.path,
                name,
                f"shape {mask.shape}",
                f"the detector's, {whole}" + (f", or {window}" if window != whole else ""),
            )
    return None if counts.all() else counts


def _sample(diffraction: Patterns) -> np.ndarray:
    """Patterns spread evenly over the scan."""
    pattern_bytes = math.prod(diffraction.shape[1:]) * diffraction.dtype.itemsize
    count = max(1, min(SAMPLE_PATTERNS, LARGEST_SAMPLE_BYTES // pattern_bytes))
    return np.asarray(
        diffraction[np.unique(np.linspace(0, diffraction.shape[0] - 1, count).astype(np.int64))]
    )


def _require_marked_pixels_are_masked(
    content: ScanContent, sample: np.ndarray, mask: np.ndarray | None
) -> None:
    """Detectors mark pixels without a count by the type's largest number, -1, -2 or NaN, the same
    ones in every pattern."""
    if sample.dtype.kind == "u":
        is_mark = sample == np.iinfo(sample.dtype).max
    else:
        with np.errstate(invalid="ignore"):
            is_mark = ~(sample >= 0)
    is_marked = is_mark.all(axis=0)
    if mask is not None:
        is_marked &= mask
    if is_marked.any():
        row, column = np.argwhere(is_marked)[0]
        found = (
            f"{sample[0, row, column]} at pixel [{row}, {column}] of every pattern looked at, "
            f"and at {is_marked.sum() - 1} others"
        )
        raise ScanError(
            content.path,
            content.key,
            found,
            "counts; say which pixels have none: --data.mask FILE (1 where a pixel counts)",
        )


def _fingerprint(
    content: ScanContent,
    sample: np.ndarray,
    positions_px: np.ndarray,
    probe: np.ndarray,
    mask: np.ndarray | None,
) -> str:
    """SHA-256 of sizes, positions, probe, mask and 64 patterns spread evenly: all patterns would
    take as long as an epoch."""
    shape, dtype = content.diffraction.shape, content.diffraction.dtype
    digest = hashlib.sha256(
        f"{shape} {dtype.str} {sample.shape} "
        f"{[path.stat().st_size for path in content.files]}".encode()
    )
    for array in (sample, positions_px, probe, *(() if mask is None else (mask,))):
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{little_endian.dtype.str}{little_endian.shape}".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()


def _log(scan: Scan, content: ScanContent, sample: np.ndarray) -> None:
    size = scan.pattern_size
    if scan.geometry is not None:
        pixel_m = scan.geometry.object_pixel_m(size)
        logger.info(
            "%s: %.6g eV, %.6g m to the detector, its pixels %.6g m: pixels of the object %.6g m",
            scan.path,
            scan.geometry.energy_eV,
            scan.geometry.distance_m,
            scan.geometry.detector_pixel_m,
            pixel_m,
        )
    if len(scan.probe) == 0:
        logger.warning(
            "%s: no probe in it and no data.probe: it can be looked at, not trained on", scan.path
        )
    if scan.mask is not None:
        logger.info(
            "%s: mask: %d of %d pixels do not count",
            scan.path,
            np.count_nonzero(~scan.mask),
            scan.mask.size,
        )
        if np.count_nonzero(scan.mask) < scan.mask.size / 2:
            logger.warning(
                "%s: more than half of the pixels do not count: 1 or true must stand for those "
                "that do",
                scan.path,
            )
    if scan.num_patterns > 1:
        nearest = nearest_distances_px(scan.positions_px)
        if np.median(nearest) > size:
            logger.warning(
                "%s: neighbouring positions are %.4g px apart, patches have %d px: no overlap in "
                "the far field. Check energy, distance, "
                "detector pixel and the unit of the positions; near-field data are not modelled",
                scan.path,
                np.median(nearest),
                size,
            )
    mean = sample.mean(axis=0, dtype=np.float64)
    if scan.mask is not None:
        mean = np.where(scan.mask, mean, 0)
    if is_in_corners(mean):
        logger.warning(
            "%s: the light is in the corners of the patterns, expected the direct beam at [N/2, "
            "N/2] (numpy.fft.fftshift)",
            scan.path,
        )
