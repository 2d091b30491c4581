"""Objects for synthetic scans: complex transmissions made of two contrast images in [0, 1].

One image gives the amplitude, the other the phase. Drawn objects have different values of the two
on (partly) the same shapes, so that leakage between amplitude and phase shows.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

# An edge with this blur has 0.7 % of its amplitude left at the Nyquist frequency: the drawing is
# band-limited in practice, so a subpixel shift of the probe equals the opposite one of the object.
EDGE_SIGMA_PX = 1.0
LEAF_RADIUS_RANGE_PX = (4.0, 40.0)


def make_object(
    source: str,
    shape: tuple[int, int],
    amplitude_range: tuple[float, float],
    phase_range_rad: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[np.complex128]:
    """Return the complex transmission of an object, complex128 of shape `shape`.

    Parameters
    ----------
    source
        `dead_leaves`, `lines`, or an image file (see `image_contrast`).
    shape
        Rows and columns of the canvas, pixels.
    amplitude_range, phase_range_rad
        Smallest and largest amplitude (dimensionless) and phase (radians) on the canvas; both are
        reached.
    rng
        Draws the shapes and their values; not used for an image file.

    Raises
    ------
    ValueError
        The source is unknown or unreadable, or a range is not an ordered pair of finite numbers
        (amplitudes of at least 0).
    """
    for name, (low, high) in (
        ("amplitude range", amplitude_range),
        ("phase range", phase_range_rad),
    ):
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(
                f"object: {name} is ({low}, {high}), expected two finite numbers, the smaller first"
            )
    if amplitude_range[0] < 0:
        raise ValueError(
            f"object: amplitude range is {tuple(amplitude_range)}, expected amplitudes of at "
            "least 0"
        )
    drawn = {"dead_leaves": dead_leaves, "lines": lines}.get(source)
    contrast = image_contrast(source, shape) if drawn is None else drawn(shape, rng)
    amplitude = _stretch(contrast[0], amplitude_range)
    return amplitude * np.exp(1j * _stretch(contrast[1], phase_range_rad))


def dead_leaves(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    radius_range_px: tuple[float, float] = LEAF_RADIUS_RANGE_PX,
) -> NDArray[np.float64]:
    """Dead leaves: opaque discs of all sizes that fell on each other until they cover the canvas.

    The occlusion model of natural images: radii with density r^-3 make it look alike at every
    magnification (Lee, Mumford and Huang, Int. J. Comput. Vision 41, 35, 2001). Discs are laid from
    the top of the heap down, each visible where nothing lies above it, until no pixel is left: an
    exact sample of the infinite heap (Kendall and Thonnes, Pattern Recognition 32, 1569, 1999).

    Returns
    -------
    NDArray
        float64 (2, rows, columns) in [0, 1]: contrast of amplitude and of phase, independent values
        on the same leaves.
    """
    smallest, largest = radius_range_px
    contrast = np.zeros((2, *shape))
    free = np.ones(shape, dtype=bool)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    while free.any():
        radius = (smallest**-2 + rng.random() * (largest**-2 - smallest**-2)) ** -0.5
        # centres beyond the border too, or leaves would be scarcer there
        centre_y, centre_x = rng.uniform(-largest, np.add(shape, largest))
        values = rng.random((2, 1))
        top, left = max(math.floor(centre_y - radius), 0), max(math.floor(centre_x - radius), 0)
        bottom = max(math.ceil(centre_y + radius) + 1, 0)
        right = max(math.ceil(centre_x + radius) + 1, 0)
        y, x = rows[top:bottom] - centre_y, columns[:, left:right] - centre_x
        inside = y**2 + x**2 <= radius**2
        seen = inside & free[top:bottom, left:right]
        contrast[:, top:bottom, left:right][:, seen] = values
        free[top:bottom, left:right] &= ~seen
    return gaussian_filter(contrast, (0, EDGE_SIGMA_PX, EDGE_SIGMA_PX), mode="nearest")


def lines(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Random one-pixel lines, blurred at several scales (`blurred_lines`).

    Their end points are uniformly random on a canvas of twice the object's side, of which the
    centre is kept; 400 lines for a side of 784 pixels. This is the `lines` data set of PtychoPINN
    (Hoidn, Mishra and Mehta, Sci. Rep. 13, 22789, 2023).

    Returns
    -------
    NDArray
        float64 (2, rows, columns) in [0, 1]: contrast of amplitude and of phase, which share half
        of their lines.
    """
    side = 2 * max(shape)
    count = max(round(400 * side / 784), 2)
    end_points = rng.integers(side, size=(count + count // 2, 2, 2))
    chosen = (end_points[:count], end_points[-count:])
    return np.stack(
        [_stretch(blurred_lines(shape, lines_drawn), (0.0, 1.0)) for lines_drawn in chosen]
    )


def blurred_lines(shape: tuple[int, int], end_points: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return G(1) + 2 G(5) + 5 G(10) of one-pixel lines of value 1, where G is a Gaussian blur by
    sigma pixels; not scaled to any range.

    Parameters
    ----------
    shape
        Rows and columns of the result, the centre of a canvas of twice the longer side.
    end_points
        (lines, 2, 2): two ends per line, each (y, x) on that canvas.
    """
    side = 2 * max(shape)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    drawing = np.zeros((side, side))
    for start, end in end_points:
        points = int(np.abs(end - start).max()) + 1
        row, column = np.linspace(start, end, points).round().astype(np.intp).T
        drawing[row, column] = 1.0
    blurred = (
        gaussian_filter(drawing, 1.0)
        + 2 * gaussian_filter(drawing, 5.0)
        + 5 * gaussian_filter(drawing, 10.0)
    )
    return blurred[top : top + shape[0], left : left + shape[1]]


def image_contrast(path: str | Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the contrast of an image file, resampled to the canvas; if the proportions differ, its
    centre.

    Parameters
    ----------
    path
        PNG, JPEG, TIFF (colours become grey), or `.npy` with a two-dimensional array. A real image
        gives amplitude and phase the same contrast, as an object of one material does; a complex
        `.npy` gives each its own.
    shape
        Rows and columns of the canvas, pixels.

    Returns
    -------
    NDArray
        float64 (2, rows, columns) in [0, 1]: contrast of amplitude and of phase.

    Raises
    ------
    ValueError
        The file is missing, is no image, or holds no contrast.
    """
    image = _read_image(Path(path))
    if image.ndim != 2 or min(image.shape) < 2:
        raise ValueError(
            f"object: {path} holds an array of shape {image.shape}, expected two dimensions of at "
            "least 2 pixels each"
        )
    if not np.isfinite(image).all():
        raise ValueError(f"object: {path} holds values that are not finite")
    pair = (np.abs(image), np.angle(image)) if np.iscomplexobj(image) else (image, image)
    if all(np.ptp(part) == 0 for part in pair):
        raise ValueError(
            f"object: {path} has the same value in every pixel, expected an image with contrast"
        )
    return np.stack([_stretch(_resample(part, shape), (0.0, 1.0)) for part in pair])


def _read_image(path: Path) -> NDArray:
    if not path.is_file():
        raise ValueError(
            f"object: {str(path)!r} is neither 'dead_leaves' nor 'lines' nor an image file that "
            "exists"
        )
    try:
        if path.suffix == ".npy":
            image = np.load(path, allow_pickle=False)
            # differences of unsigned or boolean pixels would wrap around
            return image if np.iscomplexobj(image) else image.astype(np.float64)
        with Image.open(path) as picture:
            # 16-bit and float pixels are grey already; the 8 bits of "L" would lose digits
            one_channel = picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16")
            return np.asarray(picture if one_channel else picture.convert("L")).astype(np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"object: cannot read the image {path} (expected PNG, JPEG, TIFF or .npy): {error}"
        ) from error


def _resample(image: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    rows, columns = image.shape
    zoom = min(rows / shape[0], columns / shape[1])
    height, width = zoom * shape[0], zoom * shape[1]
    top, left = (rows - height) / 2, (columns - width) / 2
    # float32 has too few digits for a small contrast on a large background: stretch first
    picture = Image.fromarray(_stretch(image, (0.0, 1.0)).astype(np.float32))
    # Pillow widens the kernel when it shrinks an image, so nothing aliases
    small = picture.resize(
        shape[::-1], Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    return np.asarray(small, dtype=np.float64)


def _stretch(image: NDArray, value_range: tuple[float, float]) -> NDArray[np.float64]:
    """Map an image's values linearly to `value_range`; a flat image to its first value."""
    low, high = value_range
    spread = np.ptp(image)
    if spread == 0:
        return np.full(image.shape, float(low))
    unit = (image - image.min()) / spread
    return (1 - unit) * low + unit * high
