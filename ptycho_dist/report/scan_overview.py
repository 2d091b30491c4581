"""Overview of a scan before it is used: mean pattern and mask, positions on the object, counts per
pattern, and the probe."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ptycho_dist.report.drawing import (
    PngTarget,
    label_axes,
    logarithmic_limits,
    mean_spacing_px,
    plot_scan_path,
    write_png,
)
from ptycho_dist.report.probe_figure import orthogonal_modes, show_mode, show_phase_wheel

MOST_MODES = 4
_MASKED = "#2ca9b8"


def draw_scan_overview(
    *,
    title: str,
    mean_pattern: NDArray[np.floating],
    mask: NDArray[np.bool_] | None,
    centre_of_mass: tuple[float, float] | None,
    positions_px: NDArray[np.floating],
    object_guess: NDArray[np.complexfloating] | None,
    probe: NDArray[np.complexfloating],
    counts: NDArray[np.floating],
    nphotons: float | None,
    beam_diameter_px: float | None,
    path: PngTarget,
) -> None:
    """Draw one page.

    Parameters
    ----------
    title
        Headline.
    mean_pattern
        (N, N) mean counts, drawn logarithmically; pixels without a photon have the darkest colour.
    mask
        bool (N, N), True at unmasked pixels; masked ones have a colour of their own.
    centre_of_mass
        (row, column) of the mean pattern, drawn beside the cross at [N // 2, N // 2]; None if the
        pattern is dark.
    positions_px
        (n, 2) as (y, x), in the order of the scan.
    object_guess
        Complex (rows, columns), drawn behind the positions.
    probe
        Complex (modes, N, N). The strongest `MOST_MODES` orthogonal modes are drawn.
    counts
        (n,) of each pattern.
    nphotons
        Drawn into the histogram if known.
    beam_diameter_px
        Drawn about the first position if there is a probe.
    path
        PNG file.
    """
    heights = (5.4, 4.2)[: 2 if len(probe) else 1]
    figure = Figure(figsize=(15, sum(heights)), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=13)
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    cells = rows[0].subgridspec(1, 3)
    mean_ax, positions_ax, counts_ax = (figure.add_subplot(cells[0, n]) for n in range(3))
    _draw_mean(mean_ax, mean_pattern, mask, centre_of_mass)
    _draw_positions(
        positions_ax, positions_px, object_guess, mean_pattern.shape[-1], beam_diameter_px
    )
    _draw_counts(counts_ax, counts, nphotons)
    if len(probe):
        modes, shares = orthogonal_modes(probe, "probe")
        shown = min(len(modes), MOST_MODES)
        width_ratios = [1.0] * shown + [0.06] + [1.0] * (MOST_MODES - shown)
        cells = rows[1].subgridspec(1, MOST_MODES + 1, width_ratios=width_ratios)
        for number, (mode, share) in enumerate(zip(modes[:shown], shares, strict=False)):
            ax = figure.add_subplot(cells[0, number])
            show_mode(ax, mode, f"probe mode {number + 1}: {100 * share:.3g} % of the light")
            label_axes(ax, "px", y=number == 0)
        show_phase_wheel(figure.add_subplot(cells[0, shown]))
    write_png(figure, path)


def _draw_mean(
    ax: Axes,
    mean: NDArray[np.floating],
    mask: NDArray[np.bool_] | None,
    centre_of_mass: tuple[float, float] | None,
) -> None:
    counted = np.ones(mean.shape, dtype=bool) if mask is None else mask
    low, high = logarithmic_limits(mean[counted], mean[counted])
    image = ax.imshow(
        np.where(counted, np.maximum(mean, low), np.nan),
        cmap=colormaps["inferno"].with_extremes(bad=_MASKED),
        norm=LogNorm(low, high),
        interpolation="nearest",
    )
    middle = mean.shape[0] // 2
    (cross,) = ax.plot(middle, middle, "w+", markersize=14, label="[N/2, N/2]")
    cross.set_path_effects([withStroke(linewidth=3, foreground="black")])
    if centre_of_mass is not None:
        row, column = centre_of_mass
        ax.plot(column, row, "o", mfc="none", mec="lime", markersize=9, label="centre of mass")
    handles, _ = ax.get_legend_handles_labels()
    if mask is not None:
        handles.append(Patch(color=_MASKED, label=f"masked ({np.count_nonzero(~mask)} px)"))
    style = {"facecolor": "0.25", "labelcolor": "white", "edgecolor": "none", "framealpha": 0.85}
    ax.legend(handles=handles, fontsize=8, loc="upper right", **style)
    ax.set_title("mean pattern", fontsize=11)
    label_axes(ax, "detector px")
    ax.get_figure().colorbar(image, ax=ax, shrink=0.8, label="mean counts per pixel")  # type: ignore[union-attr]


def _draw_positions(
    ax: Axes,
    positions_px: NDArray[np.floating],
    object_guess: NDArray[np.complexfloating] | None,
    size: int,
    beam_diameter_px: float | None,
) -> None:
    low = corner = positions_px.min(axis=0) - size / 2
    extent_px = np.ptp(positions_px, axis=0) + size
    high = corner + extent_px
    if object_guess is not None:
        _show_behind(ax, np.abs(object_guess))
        low, high = np.minimum(low, -0.5), np.maximum(high, np.array(object_guess.shape) - 0.5)
    # what the patches cover
    (height, width), (y, x) = extent_px, corner
    ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="0.35", linestyle="--"))
    diameter_pt = 180 * mean_spacing_px(positions_px) / extent_px.max()
    order = plot_scan_path(
        ax,
        positions_px,
        diameter_pt=min(max(diameter_pt, 1.4), 6.3),
        mark_first=beam_diameter_px is None,
    )
    first = "the first"
    if beam_diameter_px is not None:
        first = "the beam on the first"
        y, x = positions_px[0]
        beam = Circle((x, y), beam_diameter_px / 2, fill=False)
        beam.set(edgecolor="tab:red", linewidth=1.5, zorder=3)
        ax.add_patch(beam)
    margin = 0.03 * (high - low).max()
    low, high = low - margin, high + margin
    ax.set(xlim=(low[1], high[1]), ylim=(high[0], low[0]), aspect="equal")
    on = "positions (no object in the file)"
    ax.set_title(on if object_guess is None else "positions on the file's object", fontsize=11)
    label_axes(ax, "px; dashed: covered by the patches")
    ax.set_ylabel("y (px)", fontsize=10)
    label = f"pattern number (red: {first})"
    ax.get_figure().colorbar(order, ax=ax, shrink=0.8, label=label)  # type: ignore[union-attr]


def _show_behind(ax: Axes, amplitude: NDArray[np.floating]) -> None:
    finite = amplitude[np.isfinite(amplitude)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0, 1)
    ax.imshow(amplitude, cmap="gray", vmin=low, vmax=high, alpha=0.6)


def _draw_counts(ax: Axes, counts: NDArray[np.floating], nphotons: float | None) -> None:
    finite = counts[np.isfinite(counts)]
    ax.hist(finite, bins=min(max(int(math.sqrt(len(finite))), 5), 60), color="tab:blue", alpha=0.8)
    ax.axvline(finite.mean(), color="k", linewidth=1.2, label=f"mean {finite.mean():.6g}")
    if nphotons is not None:
        label = f"nphotons {nphotons:.6g}"
        ax.axvline(nphotons, color="tab:red", linewidth=1.2, linestyle="--", label=label)
    ax.legend(fontsize=9, frameon=False)
    ax.set_title("counts per pattern", fontsize=11)
    ax.set_xlabel("sum of counts", fontsize=10)
    ax.set_ylabel("patterns", fontsize=10)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_box_aspect(1)
