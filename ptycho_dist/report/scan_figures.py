"""Pictures of a scan: mean patterns, measured and predicted, and the deviance at each position.

Shapes that do not agree and a path that does not end in .png raise a ValueError.
"""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm
from numpy.typing import ArrayLike

from ptycho_dist.report.drawing import (
    BLANK,
    PngTarget,
    colour_bar,
    image_page,
    logarithmic_limits,
    mean_spacing_px,
    plot_scan_path,
    robust_limits,
    show,
    write_png,
)

_PATTERN_MAP = "inferno"
_RESIDUAL_MAP = "magma_r"


def draw_mean_patterns(measured: ArrayLike, predicted: ArrayLike, path: PngTarget) -> None:
    """Draw the mean measured and the mean predicted pattern with the same logarithmic colours.

    Parameters
    ----------
    measured, predicted : array, real, (N, N)
        Mean counts per pixel, zero frequency at [N // 2, N // 2]. Colours go from the first
        percentile of the measured counts, dark pixels left out, to the brightest pixel of either;
        darker pixels have the darkest colour. Masked pixels are NaN, and grey.
    path : PngTarget
    """
    patterns = [np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)]
    rows, columns = patterns[0].shape if patterns[0].ndim == 2 else (0, 0)
    if patterns[0].shape != (rows, columns) or patterns[1].shape != (rows, columns):
        raise ValueError(
            f"the measured pattern is {patterns[0].shape} and the predicted one "
            f"{patterns[1].shape}; expected the same (N, N)"
        )
    low, high = logarithmic_limits(patterns[0], np.stack(patterns))
    figure, (panels,) = image_page((rows, columns), 4.2, (False, True), unit="detector px")
    for panel, pattern, name in zip(panels, patterns, ("measured", "predicted"), strict=True):
        # Pixels without a photon get the lowest colour, not a blank; NaN stays NaN.
        shown_pattern = np.maximum(pattern, low)
        direct_beam = (-(rows // 2), -(columns // 2))
        shown = show(panel.ax, shown_pattern, direct_beam, (low, high), _PATTERN_MAP)
        shown.set_norm(LogNorm(low, high))
        panel.ax.set_title(name, fontsize=11)
    colour_bar(panels[1].bar_ax, shown, np.stack(patterns), "mean counts per pixel")
    write_png(figure, path)


def draw_scan(
    positions_px: ArrayLike, pattern_deviance_per_pixel: ArrayLike, path: PngTarget
) -> None:
    """Draw the scan path beside the deviance of each pattern at its position.

    Parameters
    ----------
    positions_px : array, (n, 2)
        (y, x) of each pattern, in the order of the scan.
    pattern_deviance_per_pixel : array, (n,)
        Deviance per pixel of each pattern. Colours leave out one pattern in a hundred at either
        end; NaN and infinite values are grey.
    path : PngTarget
    """
    positions = np.asarray(positions_px, dtype=np.float64)
    deviance = np.asarray(pattern_deviance_per_pixel, dtype=np.float64)
    num_patterns = positions.shape[:1]
    if positions.shape != (*num_patterns, 2) or deviance.shape != num_patterns or not deviance.size:
        raise ValueError(
            f"positions_px are {positions.shape} and the deviances {deviance.shape}; expected (n, "
            "2) and (n,), n at least 1"
        )
    spacing_px = mean_spacing_px(positions)
    low_yx, high_yx = positions.min(axis=0) - spacing_px, positions.max(axis=0) + spacing_px
    figure, ((path_panel, residual_panel),) = image_page(high_yx - low_yx, 4.2, (True, True))
    for ax in (path_panel.ax, residual_panel.ax):
        ax.set(xlim=(low_yx[1], high_yx[1]), ylim=(high_yx[0], low_yx[0]))
    width_pt = 72 * path_panel.ax.get_position().width * figure.get_figwidth()
    diameter_pt = min(max(0.85 * spacing_px * width_pt / (high_yx - low_yx)[1], 1.5), 14)

    order = plot_scan_path(path_panel.ax, positions, diameter_pt=0.45 * diameter_pt)
    path_panel.ax.set_title("scan path (circle: first pattern)", fontsize=11)
    colour_bar(path_panel.bar_ax, order, np.arange(1.0 * len(positions)), "pattern number")

    finite = np.isfinite(deviance)
    y, x = positions.T
    size = {"s": diameter_pt**2, "linewidths": 0}
    residual_panel.ax.scatter(x[~finite], y[~finite], color=BLANK, **size)
    shown = residual_panel.ax.scatter(
        x[finite], y[finite], c=deviance[finite], cmap=_RESIDUAL_MAP, **size
    )
    shown.set_clim(*(robust_limits(deviance) if finite.any() else (0.0, 1.0)))
    residual_panel.ax.set_title("deviance of each pattern", fontsize=11)
    colour_bar(residual_panel.bar_ax, shown, deviance[finite], "deviance per pixel")
    write_png(figure, path)
