"""Complete a reader's content by the configuration to a `Scan`, and look at a few patterns."""

from __future__ import annotations

import hashlib
import logging
import math

import numpy as np

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.geometry import Geometry
from ptycho_dist.data.readers.array_file import read_mask_file, read_probe_file
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_patterns import window_of
from ptycho_dist.data.scan import Patterns, Scan
from ptycho_dist.distributed import rank
from ptycho_dist.physics.direct_beam import is_in_corners
from ptycho_dist.physics.scan_positions import nearest_distances_px

logger = logging.getLogger(__name__)

SAMPLE_PATTERNS = 64
LARGEST_SAMPLE_BYTES = 1 << 27
_SAME = 1e-3
"""Largest relative difference between a number of the file and one of the configuration: people
round wavelengths and h c to four digits."""
_SAME_PIXEL = 1e-2
"""The same for the pixel of the object, a product of three such numbers."""
_OPTIONS = {
    "energy_eV": "energy_eV",
    "distance_m": "detector_distance_m",
    "detector_pixel_m": "detector_pixel_m",
}
"""Keys of the configuration for the numbers of a geometry."""


def to_scan(content: ScanContent, patterns: Patterns, options: ScanConfig) -> Scan:
    """Complete the content of a file by the configuration.

    Raises
    ------
    ScanError
        Something is missing, contradicts, or doesn't fit; the message names the key of the
        configuration that fixes it.
    """
    rows, columns = _window(content, options)
    size = rows.stop - rows.start
    if patterns.shape[1:] != (size, size):
        patterns = window_of(patterns, rows, columns)
    geometry, missing, object_pixel_m = _geometry(content, options, size)
    positions_px, origin_m = _positions_px(content, object_pixel_m, size)
    mask = _mask(content, options, rows, columns)
    probe = _probe(content, options, size)
    sample = None
    if content.fingerprint is None:
        sample = _sample(patterns)
        _require_marked_pixels_are_masked(content, sample, mask)
        fingerprint = _fingerprint_of_sample(content, sample, positions_px, probe, mask)
    else:
        fingerprint = content.fingerprint
        if any((options.crop, options.centre_px, options.probe, options.mask)):
            digest = hashlib.sha256(f"{fingerprint} {rows} {columns}".encode())
            digest.update(probe.tobytes() + (b"" if mask is None else mask.tobytes()))
            fingerprint = digest.hexdigest()
    assert content.measurement is not None
    scan = Scan(
        path=content.path,
        key=content.key,
        diffraction=patterns,
        measurement=content.measurement,
        positions_px=positions_px,
        probe=probe,
        object_guess=content.object_guess if size == content.full_size else None,
        nphotons=content.nphotons,
        fingerprint=fingerprint,
        mask=mask,
        geometry=geometry,
        missing_geometry=missing,
        object_pixel_m=object_pixel_m,
        origin_m=origin_m,
    )
    if sample is not None and rank() == 0:
        _log(scan, sample)
    return scan


def _window(content: ScanContent, options: ScanConfig) -> tuple[slice, slice]:
    """Return the rows and columns of the detector that are used."""
    _, num_rows, num_columns = content.diffraction.shape
    middle = (num_rows // 2, num_columns // 2)
    in_file = content.centre_px
    if options.crop is None:
        if options.centre_px is not None:
            raise content.refused("data.centre_px", options.centre_px, "data.crop with it")
        if num_rows != num_columns or num_rows % 2:
            raise content.refused(
                content.key,
                f"patterns of {num_rows} x {num_columns}",
                "square ones of an even size: --data.crop N takes N x N pixels, --data.centre_px "
                "'[row, column]' gives their centre",
            )
        if in_file is not None and np.abs(np.subtract(in_file, middle)).max() > 0.5:
            raise content.refused(
                "centre",
                f"the direct beam at {in_file}",
                f"it at {middle}: --data.crop N takes N x N pixels about the beam",
            )
        return slice(0, num_rows), slice(0, num_columns)
    centre = options.centre_px or (
        middle if in_file is None else (round(in_file[0]), round(in_file[1]))
    )
    half = options.crop // 2
    rows, columns = (slice(middle - half, middle + half) for middle in centre)
    if min(rows.start, columns.start) < 0 or rows.stop > num_rows or columns.stop > num_columns:
        found = (
            f"{options.crop} x {options.crop} about {centre} of a detector of {num_rows} x "
            f"{num_columns}"
        )
        raise content.refused("data.crop", found, "a window that lies on the detector")
    return rows, columns


def _geometry(
    content: ScanContent, options: ScanConfig, size: int
) -> tuple[Geometry | None, tuple[str, ...], float | None]:
    """Return the geometry, or None and the keys that would complete it; and the pixel of the object
    where positions are in metres."""
    numbers = {
        name: _agreed(content, name, getattr(options, key)) for name, key in _OPTIONS.items()
    }
    own_pixel_m = None
    if content.positions_m is not None and content.object_pixel_m is not None:
        own_pixel_m = _agree_with_own_pixel(content, numbers) / size
    missing = [name for name, value in numbers.items() if value is None]
    geometry = None if missing else Geometry(**numbers)  # type: ignore[arg-type]  # none is None
    if own_pixel_m is not None and len(missing) > 1:
        # the detector's pixel follows from the other two
        missing = [name for name in missing if name != "detector_pixel_m"]
    keys = tuple(_OPTIONS[name] for name in missing)
    if content.positions_m is None or own_pixel_m is not None:
        return geometry, keys, own_pixel_m
    if geometry is None:
        found = ", ".join(
            f"no {name} (looked for {content.where.get(name, 'nothing: the format has none')})"
            for name in missing
        )
        raise content.refused(
            "geometry",
            f"positions in metres, but {found}",
            "the numbers that make pixels of them: "
            + " ".join(f"--data.{key} NUMBER" for key in keys),
        )
    return geometry, (), geometry.object_pixel_m(size)


def _agree_with_own_pixel(content: ScanContent, numbers: dict[str, float | None]) -> float:
    """Return the field of view by the file's own pixel of the object, in the unit of the positions.

    Complete `numbers` by the detector's pixel where only this is missing, else check that they give
    the same pixel of the object.
    """
    pixel_m, full_size = content.object_pixel_m, content.full_size
    assert pixel_m is not None
    if not (math.isfinite(pixel_m) and pixel_m > 0):
        raise content.refused("object pixel", pixel_m, "a positive number")
    if full_size is None:
        found = f"a pixel of the object and patterns of {content.diffraction.shape[1:]}"
        raise content.refused(content.key, found, "square patterns, which it belongs to")
    energy_eV, distance_m = numbers["energy_eV"], numbers["distance_m"]
    if energy_eV is not None and distance_m is not None:
        detector_pixel_m = numbers["detector_pixel_m"]
        computed_m = Geometry(
            energy_eV=energy_eV,
            distance_m=distance_m,
            detector_pixel_m=1.0 if detector_pixel_m is None else detector_pixel_m,
        ).object_pixel_m(full_size)
        if detector_pixel_m is None:
            numbers["detector_pixel_m"] = computed_m / pixel_m
        elif abs(computed_m / pixel_m - 1) > _SAME_PIXEL:
            found = (
                f"{pixel_m:.6g} in the file but {computed_m:.6g} from energy, distance, detector "
                f"pixel and {full_size} pixels"
            )
            raise content.refused("object pixel", found, "one answer")
    return pixel_m * full_size


def _agreed(content: ScanContent, name: str, configured: float | None) -> float | None:
    """Return a number of the file, else of the configuration; where both have it, they agree."""
    in_file = getattr(content, name)
    if in_file is None:
        return configured
    if not (math.isfinite(in_file) and in_file > 0):
        raise content.refused(content.where.get(name, name), in_file, "a positive number")
    if configured is not None and abs(in_file / configured - 1) > _SAME:
        found = f"{in_file:.6g} in the file but {configured:.6g} in data.{_OPTIONS[name]}"
        raise content.refused(name, found, "one answer")
    return in_file


def _positions_px(
    content: ScanContent, object_pixel_m: float | None, size: int
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return positions in pixels of the object, and in metres the place that they count from."""
    if object_pixel_m is None:
        assert content.positions_px is not None
        return content.positions_px * (size / (content.object_pixel_of or size)), content.origin_m
    positions_m = content.positions_m
    assert positions_m is not None
    count = content.diffraction.shape[0]
    if positions_m.shape != (count, 2):
        expected = f"{count}, one a pattern of {content.key}"
        raise content.refused("positions", f"{len(positions_m)} positions", expected)
    is_finite = np.isfinite(positions_m).all(axis=1)
    if not is_finite.all():
        raise content.refused("positions", positions_m[~is_finite][0], "finite numbers")
    if content.object_corner_m is not None:
        corner = np.array(content.object_corner_m)
    elif content.object_guess is not None:
        corner = np.zeros(2)
    else:  # any: the first patches begin at the first row and column
        corner = positions_m.min(axis=0) - size / 2 * object_pixel_m
    return (positions_m - corner) / object_pixel_m, (float(corner[0]), float(corner[1]))


def _probe(content: ScanContent, options: ScanConfig, size: int) -> np.ndarray:
    """Return complex64 (modes, N, N); no mode where neither file nor configuration has a probe."""
    probe = content.probe if options.probe is None else read_probe_file(options.probe)
    if probe is None or len(probe) == 0:
        return np.empty((0, size, size), dtype=np.complex64)
    full_size = content.full_size
    if probe.shape[-1] == size:
        return probe
    if probe.shape[-1] == full_size and size < probe.shape[-1]:
        return _band_limited(probe, size)
    sizes = " or ".join(f"{one} x {one}" for one in dict.fromkeys((size, full_size)) if one)
    hint = "" if options.crop else "; or --data.crop N"
    where = options.probe or content.where.get("probe", "probe")
    raise content.refused(where, f"shape {probe.shape}", f"the patterns' size, {sizes}{hint}")


def _band_limited(probe: np.ndarray, size: int) -> np.ndarray:
    """Return the probe on the coarser grid of a smaller detector: its far field, cut to the window.
    The field of view stays."""
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
    """Return the mask in the window; None where no pixel is masked."""
    window = (rows.stop - rows.start, columns.stop - columns.start)
    whole = content.diffraction.shape[1:]
    counts = np.ones(window, dtype=bool)
    configured = None if options.mask is None else read_mask_file(options.mask)
    for name, mask in (("mask", content.mask), ("data.mask", configured)):
        if mask is None:
            continue
        if mask.shape == whole:
            counts &= mask[rows, columns]
        elif mask.shape == window:
            counts &= mask
        else:
            raise content.refused(
                name,
                f"shape {mask.shape}",
                f"the detector's, {whole}" + (f", or {window}" if window != whole else ""),
            )
    return None if counts.all() else counts


def _sample(diffraction: Patterns) -> np.ndarray:
    """Return patterns spread evenly over the scan."""
    pattern_bytes = math.prod(diffraction.shape[1:]) * diffraction.dtype.itemsize
    count = max(1, min(SAMPLE_PATTERNS, LARGEST_SAMPLE_BYTES // pattern_bytes))
    return np.asarray(
        diffraction[np.unique(np.linspace(0, diffraction.shape[0] - 1, count).astype(np.int64))]
    )


def _require_marked_pixels_are_masked(
    content: ScanContent, sample: np.ndarray, mask: np.ndarray | None
) -> None:
    """Refuse unmasked pixels without a count: detectors mark them by the type's largest number, -1,
    -2 or NaN, in every pattern."""
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
        raise content.refused(
            content.key,
            found,
            "counts; say which pixels have none: --data.mask FILE (1 where a pixel counts)",
        )


def _fingerprint_of_sample(
    content: ScanContent,
    sample: np.ndarray,
    positions_px: np.ndarray,
    probe: np.ndarray,
    mask: np.ndarray | None,
) -> str:
    """Return the SHA-256 of sizes, positions, probe, mask and the sample: all patterns would take
    as long as an epoch."""
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


def _log(scan: Scan, sample: np.ndarray) -> None:
    size = scan.pattern_size
    if scan.geometry is not None:
        logger.info(
            "%s: %.6g eV, %.6g m to the detector, its pixels %.6g m: pixels of the object %.6g m",
            scan.path,
            scan.geometry.energy_eV,
            scan.geometry.distance_m,
            scan.geometry.detector_pixel_m,
            scan.geometry.object_pixel_m(size),
        )
    if scan.mask is not None:
        num_masked = scan.mask.size - scan.num_counted
        logger.info("%s: mask: %d of %d pixels do not count", scan.path, num_masked, scan.mask.size)
    if len(scan.probe) == 0:
        logger.warning(
            "%s: no probe in it and no data.probe: it can be looked at, not trained on", scan.path
        )
    if 2 * scan.num_counted < size**2:
        logger.warning(
            "%s: more than half of the pixels do not count: 1 or true must stand for those that do",
            scan.path,
        )
    if scan.num_patterns > 1:
        nearest = nearest_distances_px(scan.positions_px)
        if np.median(nearest) > size:
            logger.warning(
                "%s: neighbouring positions are %.4g px apart, patches have %d px: no overlap in "
                "the far field. Check energy, distance, detector pixel and the unit of the "
                "positions; near-field data are not modelled",
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
