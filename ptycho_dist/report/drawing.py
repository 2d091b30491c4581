"""What the figures share: colours, layout in inches, limits, colour bars, and a PNG that is whole
or not there.

Figures are built without pyplot, so drawing neither needs a display nor touches the caller's own
figures. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ptycho_dist.atomic_file import replacing

PngTarget: TypeAlias = str | os.PathLike[str] | BinaryIO
"""A file to write or to replace, or a binary stream to write into."""
_DPI = 150
BLANK = "#e6e6e6"
PHASE_MAP = "viridis"
CYCLIC_PHASE_MAP = "twilight"
# Colour limits leave out one pixel in a hundred at either end: a few bad pixels would flatten all
# the contrast.
LIMIT_PERCENTILES = (1.0, 99.0)
# Page layout, inches. Set by hand: automatic layout makes colour bars taller than their images and
# clips labels.
LEFT, BOTTOM, RIGHT, TOP, GAP, BAR = 0.8, 0.6, 1.0, 0.45, 0.12, 0.16
QUARTERS = {"\u2212π": -2, "\u2212π/2": -1, "0": 0, "π/2": 1, "π": 2}


def robust_limits(image: NDArray[np.floating]) -> tuple[float, float]:
    """Colour limits from the finite pixels; a constant image gets a narrow range about its
    value."""
    low, high = (
        float(limit) for limit in np.percentile(image[np.isfinite(image)], LIMIT_PERCENTILES)
    )
    margin = 1e-3 * max(abs(low), abs(high)) or 1e-3
    return (low, high) if high - low > margin else (low - margin, high + margin)


def logarithmic_limits(
    reference: NDArray[np.floating], shown: NDArray[np.floating]
) -> tuple[float, float]:
    """Colour limits for a logarithm: from the first percentile of the reference's positive pixels
    to the largest finite one shown."""
    lit = reference[np.isfinite(reference) & (reference > 0)]
    if lit.size == 0:
        return 0.1, 1.0
    low = float(np.percentile(lit, LIMIT_PERCENTILES[0]))
    return low, max(float(shown[np.isfinite(shown)].max()), 1.01 * low)


def image_size_in(shape: tuple[int, ...], longest: float) -> tuple[float, float]:
    """Width and height of an image's axes, inches; a narrow strip keeps room for the labels beside
    it."""
    scale = longest / max(shape)
    return max(shape[1] * scale, 1.5), max(shape[0] * scale, 1.5)


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes by their place on the page in inches."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes(
        (left / page_width, bottom / page_height, width / page_width, height / page_height)
    )


def show(
    ax: Axes,
    image: NDArray[np.floating],
    origin_yx: tuple[float, float],
    limits: tuple[float, float],
    colour_map: str,
) -> AxesImage:
    """Show an image in scan coordinates, NaN blank; pixel centres, not edges, lie at the
    coordinates."""
    (height, width), (y, x) = image.shape, origin_yx
    ax.tick_params(labelsize=9)
    return ax.imshow(
        image,
        cmap=colormaps[colour_map].with_extremes(bad=BLANK),
        vmin=limits[0],
        vmax=limits[1],
        extent=(x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5),
        # Where pixels are finer than dots, colours are averaged, not values: a wrap then makes no
        # false mean phase.
        interpolation_stage="rgba",
    )


def colour_bar(
    figure: Figure, ax: Axes, shown: ScalarMappable, values: NDArray[np.floating], label: str
) -> None:
    """Fill axes with a colour bar, its ends pointed where some of the values lie beyond the colour
    limits."""
    low, high = shown.get_clim()
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = figure.colorbar(shown, cax=ax, extend=extend, extendfrac=0.03)
    bar.set_label(label, fontsize=10)
    ax.tick_params(labelsize=9)
    if shown.get_cmap().name == CYCLIC_PHASE_MAP:
        bar.set_ticks(
            [math.pi / 2 * quarter for quarter in QUARTERS.values()], labels=list(QUARTERS)
        )


def add_scale_bar(ax: Axes, width_px: int) -> None:
    """Add a bar of 1, 2 or 5 times a power of ten pixels, the longest that fits in a quarter of the
    width."""
    decade = 10 ** math.floor(math.log10(max(width_px / 4, 1)))
    length = max(
        factor * decade for factor in (1, 2, 5) if factor == 1 or factor * decade <= width_px / 4
    )
    bar = AnchoredSizeBar(
        ax.transData,
        length,
        f"{length} px",
        "lower right",
        pad=0.4,
        borderpad=0.6,
        sep=4,
        size_vertical=width_px / 150,
    )
    bar.patch.set(alpha=0.8, edgecolor="none")
    ax.add_artist(bar)


def write_png(figure: Figure, path: PngTarget) -> None:
    """Write a PNG; a file is there whole or not at all."""
    FigureCanvasAgg(figure)
    if not isinstance(path, str | os.PathLike):
        figure.savefig(path, format="png", dpi=_DPI)
        return
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"the figure's path is {str(path)!r}; expected a name that ends in .png")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
