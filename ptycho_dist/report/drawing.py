"""Layout, colours, limits and colour bars that the figures share, and whole PNG files.

Figures are built without pyplot: drawing needs no display and leaves the caller's figures alone. A
file appears under its name only when it is complete.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.atomic_file import replacing

PngTarget: TypeAlias = str | os.PathLike[str] | BinaryIO
"""A file to write or to replace, whose directory is made if missing, or a binary stream."""
_DPI = 150
BLANK = "#e6e6e6"
PHASE_MAP = "viridis"
CYCLIC_PHASE_MAP = "twilight"
# Colour limits leave out one pixel in a hundred at either end: a few bad pixels would flatten the
# contrast.
LIMIT_PERCENTILES = (1.0, 99.0)
# Page layout, inches. Set by hand: automatic layout makes colour bars taller than their images and
# clips labels.
LEFT, BOTTOM, RIGHT, TOP, GAP, BAR = 0.8, 0.6, 1.0, 0.45, 0.12, 0.16


class Panel(NamedTuple):
    """Axes of an image and of the colour bar at its right, if there is one."""

    ax: Axes
    bar_ax: Axes | None


def image_page(
    extent_yx: Sequence[float],
    longest: float,
    bars: Sequence[bool],
    *,
    rows: int = 1,
    below: float = 0.0,
    top: float = TOP,
    unit: str = "px",
) -> tuple[Figure, list[list[Panel]]]:
    """Return a figure with a grid of equal image axes, labelled at its left and lower edges.

    Parameters
    ----------
    extent_yx
        Height and width of an image in its own unit.
    longest
        Longer side of the axes, inches. A narrow strip keeps room for the labels beside it.
    bars
        True for each column that has a colour bar.
    rows
        Number of rows.
    below, top
        Room below and above the grid, inches.
    unit
        Unit of the coordinates.

    Returns
    -------
    figure, rows
        Panels row by row, from top to bottom.
    """
    height, width = (max(side * longest / max(extent_yx), 1.5) for side in extent_yx)
    lefts = [LEFT]
    for has_bar in bars:
        lefts.append(lefts[-1] + width + GAP + (BAR + RIGHT if has_bar else GAP))
    bottoms = [below + BOTTOM + row * (height + 2 * GAP) for row in reversed(range(rows))]
    figure = Figure(figsize=(lefts[-1], bottoms[0] + height + top))
    panels: list[list[Panel]] = []
    for bottom in bottoms:
        panels.append([])
        for left, has_bar in zip(lefts, bars, strict=False):
            ax = add_axes(figure, left, bottom, width, height)
            label_axes(ax, unit, x=bottom == bottoms[-1], y=left == LEFT)
            bar_left = left + width + GAP
            bar_ax = add_axes(figure, bar_left, bottom, BAR, height) if has_bar else None
            panels[-1].append(Panel(ax, bar_ax))
    return figure, panels


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes by their place on the page in inches."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes(
        (left / page_width, bottom / page_height, width / page_width, height / page_height)
    )


def label_axes(ax: Axes, unit: str, *, x: bool = True, y: bool = True) -> None:
    """Label the axes of an image, or hide the numbers of an axis."""
    ax.tick_params(labelsize=9, labelbottom=x, labelleft=y)
    if x:
        ax.set_xlabel(f"x ({unit})", fontsize=10)
    if y:
        ax.set_ylabel(f"y ({unit})", fontsize=10)


def finish_curves(ax: Axes) -> None:
    """Add what all plots of curves share: a grid behind the curves, no frame at the right."""
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def robust_limits(image: NDArray[np.floating]) -> tuple[float, float]:
    """Return colour limits from the finite pixels; a constant image gets a narrow range about its
    value."""
    finite = image[np.isfinite(image)]
    low, high = (float(limit) for limit in np.percentile(finite, LIMIT_PERCENTILES))
    margin = 1e-3 * max(abs(low), abs(high)) or 1e-3
    return (low, high) if high - low > margin else (low - margin, high + margin)


def logarithmic_limits(
    reference: NDArray[np.floating], shown: NDArray[np.floating]
) -> tuple[float, float]:
    """Return limits of logarithmic colours: from the first percentile of the reference's positive
    pixels to the largest finite one shown."""
    lit = reference[np.isfinite(reference) & (reference > 0)]
    if lit.size == 0:
        return 0.1, 1.0
    low = float(np.percentile(lit, LIMIT_PERCENTILES[0]))
    return low, max(float(shown[np.isfinite(shown)].max()), 1.01 * low)


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
    return ax.imshow(
        image,
        cmap=colormaps[colour_map].with_extremes(bad=BLANK),
        vmin=limits[0],
        vmax=limits[1],
        extent=(x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5),
        # Where pixels are finer than dots, average colours, not values: a wrap then makes no false
        # mean phase.
        interpolation_stage="rgba",
    )


def colour_bar(
    ax: Axes | None, shown: ScalarMappable, values: NDArray[np.floating], label: str
) -> None:
    """Fill axes with a colour bar; its ends are pointed if some values lie beyond the limits."""
    if ax is None:
        raise ValueError("this panel has no colour bar")
    low, high = shown.get_clim()
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = ax.get_figure().colorbar(shown, cax=ax, extend=extend, extendfrac=0.03)  # type: ignore[union-attr]
    bar.set_label(label, fontsize=10)
    ax.tick_params(labelsize=9)
    if shown.get_cmap().name == CYCLIC_PHASE_MAP:
        phase_ticks(ax.yaxis)


def phase_ticks(axis: Axis) -> None:
    """Label an axis of phases in quarters from -pi to pi."""
    quarters = {"\u2212π": -2, "\u2212π/2": -1, "0": 0, "π/2": 1, "π": 2}
    axis.set_ticks([math.pi / 2 * quarter for quarter in quarters.values()], labels=list(quarters))


def mean_spacing_px(positions_px: NDArray[np.floating]) -> float:
    """Return the spacing of as many positions on a square grid of the same extent."""
    extent = np.maximum(np.ptp(positions_px, axis=0), 1)
    return math.sqrt(np.prod(extent) / len(positions_px))


def plot_scan_path(
    ax: Axes, positions_px: ArrayLike, *, diameter_pt: float, mark_first: bool = True
) -> PathCollection:
    """Plot positions (n, 2) as (y, x), coloured by their order, on the line through them; a red
    circle marks the first."""
    y, x = np.asarray(positions_px, dtype=np.float64).T
    ax.plot(x, y, color="0.6", linewidth=0.6, zorder=1)
    if mark_first:
        ax.plot(x[0], y[0], "o", mfc="none", mec="tab:red", markersize=10, zorder=3)
    return ax.scatter(
        x, y, c=np.arange(len(x)), cmap=PHASE_MAP, s=diameter_pt**2, linewidths=0, zorder=2
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
