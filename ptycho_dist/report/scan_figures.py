"""Pictures of a scan: mean pattern, measured and predicted, and where its patterns are
explained."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ptycho_dist.report.drawing import (
    BAR,
    BLANK,
    BOTTOM,
    GAP,
    LEFT,
    PHASE_MAP,
    RIGHT,
    TOP,
    PngTarget,
    add_axes,
    colour_bar,
    image_size_in,
    logarithmic_limits,
    robust_limits,
    show,
    write_png,
)

_PATTERN_MAP = "inferno"
_RESIDUAL_MAP = "magma_r"


def draw_mean_patterns(measured: ArrayLike, predicted: ArrayLike, path: PngTarget) -> None:
    """Draw the mean measured and the mean predicted diffraction pattern, logarithmically, with the
    same colours for the same counts.

    Parameters
    ----------
    measured, predicted : array, real, (N, N)
        Mean counts a pixel, zero frequency at [N // 2, N // 2]. Colours go from the first
        percentile of what was measured, dark pixels left out, to the brightest pixel of either;
        what is darker has the darkest colour. What is not finite, as pixels that a mask leaves out,
        is grey in both.
    path : str, os.PathLike or binary stream
        PNG file to write, or to replace; its directory is made if missing.

    Raises
    ------
    ValueError
        Shapes that differ; a path that does not end in .png.
    """
    patterns = [np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)]
    if patterns[0].ndim != 2 or patterns[0].shape != patterns[1].shape:
        raise ValueError(
            f"the measured pattern is {patterns[0].shape} and the predicted one "
            f"{patterns[1].shape}; expected the same (N, N)"
        )
    low, high = logarithmic_limits(patterns[0], np.stack(patterns))
    centre_yx = (-(patterns[0].shape[0] // 2), -(patterns[0].shape[1] // 2))
    width, height = image_size_in(patterns[0].shape, 4.2)
    lefts = (LEFT, LEFT + width + 2 * GAP)
    figure = Figure(figsize=(lefts[1] + width + GAP + BAR + RIGHT, BOTTOM + height + TOP))
    for left, pattern, name in zip(lefts, patterns, ("measured", "predicted"), strict=True):
        ax = add_axes(figure, left, BOTTOM, width, height)
        # The lowest colour, not a blank, for pixels that no photon met; NaN stays NaN.
        shown = show(ax, np.maximum(pattern, low), centre_yx, (low, high), _PATTERN_MAP)
        shown.set_norm(LogNorm(low, high))
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("x (detector px)", fontsize=10)
    figure.axes[0].set_ylabel("y (detector px)", fontsize=10)
    figure.axes[1].tick_params(labelleft=False)
    bar_ax = add_axes(figure, lefts[1] + width + GAP, BOTTOM, BAR, height)
    colour_bar(figure, bar_ax, shown, np.stack(patterns), "mean counts a pixel")
    write_png(figure, path)


def draw_scan(
    positions_px: ArrayLike, pattern_deviance_per_pixel: ArrayLike, path: PngTarget
) -> None:
    """Draw the way of the scan beside what the object leaves unexplained at each of its positions.

    Parameters
    ----------
    positions_px : array, (n, 2)
        (y, x) of each pattern, in the order of the scan.
    pattern_deviance_per_pixel : array, (n,)
        Deviance per pixel of each pattern. Colours leave out one pattern in a hundred at either
        end; what is not finite is grey.
    path : str, os.PathLike or binary stream
        PNG file to write, or to replace; its directory is made if missing.

    Raises
    ------
    ValueError
        Not one deviance a position; no position; a path that does not end in .png.
    """
    positions, deviance = (
        np.asarray(positions_px, dtype=np.float64),
        np.asarray(pattern_deviance_per_pixel, dtype=np.float64),
    )
    if (
        positions.ndim != 2
        or positions.shape[1] != 2
        or len(positions) == 0
        or deviance.shape != positions.shape[:1]
    ):
        raise ValueError(
            f"positions_px are {positions.shape} and the deviances {deviance.shape}; expected (n, "
            "2) and (n,), n at least 1"
        )
    first, last = positions.min(axis=0), positions.max(axis=0)
    spacing_px = math.sqrt(np.prod(np.maximum(last - first, 1)) / len(positions))
    low_yx, high_yx = first - spacing_px, last + spacing_px
    width, height = image_size_in(tuple(high_yx - low_yx), 4.2)
    points_a_px = 72 * width / (high_yx - low_yx)[1]
    diameter = min(max(0.85 * spacing_px * points_a_px, 1.5), 14)

    lefts = (LEFT, LEFT + width + GAP + BAR + RIGHT + 0.1)
    figure = Figure(figsize=(lefts[1] + width + GAP + BAR + RIGHT, BOTTOM + height + TOP))
    way, residual = (add_axes(figure, left, BOTTOM, width, height) for left in lefts)
    y, x = positions.T
    way.plot(x, y, color="0.6", linewidth=0.6, zorder=1)
    order = way.scatter(
        x,
        y,
        c=np.arange(len(positions)),
        cmap=PHASE_MAP,
        s=(0.45 * diameter) ** 2,
        linewidths=0,
        zorder=2,
    )
    way.plot(x[0], y[0], "o", color="none", markeredgecolor="tab:red", markersize=10)
    finite = np.isfinite(deviance)
    limits = robust_limits(deviance) if finite.any() else (0.0, 1.0)
    residual.scatter(x[~finite], y[~finite], color=BLANK, s=diameter**2, linewidths=0)
    shown = residual.scatter(
        x[finite],
        y[finite],
        c=deviance[finite],
        cmap=_RESIDUAL_MAP,
        vmin=limits[0],
        vmax=limits[1],
        s=diameter**2,
        linewidths=0,
    )
    panels = (
        (
            way,
            order,
            np.arange(len(positions), dtype=np.float64),
            "way of the scan (circle: its first pattern)",
            "number of the pattern",
        ),
        (residual, shown, deviance[finite], "what is left unexplained", "deviance per pixel"),
    )
    for left, (ax, points, values, title, label) in zip(lefts, panels, strict=True):
        ax.set(xlim=(low_yx[1], high_yx[1]), ylim=(high_yx[0], low_yx[0]))
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("x (px)", fontsize=10)
        ax.tick_params(labelsize=9)
        colour_bar(
            figure, add_axes(figure, left + width + GAP, BOTTOM, BAR, height), points, values, label
        )
    way.set_ylabel("y (px)", fontsize=10)
    residual.tick_params(labelleft=False)
    write_png(figure, path)
