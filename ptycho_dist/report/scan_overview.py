"""Draw a scan before anything is made of it: mean pattern and mask, positions on the object, counts
of each pattern, the probe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ptycho_dist.report.drawing import QUARTERS, PngTarget, logarithmic_limits, write_png

MOST_MODES = 4
_BLANK, _MASKED = "#e6e6e6", "#2ca9b8"
_OUTLINE = "0.35"


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
        (N, N) mean counts; drawn logarithmically, what no photon met in the darkest colour.
    mask
        bool (N, N), True where a pixel counts; the others have a colour of their own. None: all
        count.
    centre_of_mass
        (row, column) of the mean pattern, drawn beside the cross at [N // 2, N // 2]; None where it
        is dark.
    positions_px
        (n, 2) as (y, x), in the order of the scan.
    object_guess
        Complex (rows, columns) behind the positions, or None: an outline of what the patches cover.
    probe
        Complex (modes, N, N): amplitude and phase of at most `MOST_MODES`, by their order; no mode:
        no row.
    counts
        (n,) of each pattern.
    nphotons
        Drawn into the histogram where it is known.
    beam_diameter_px
        Drawn about the first position, where there is a probe.
    path
        PNG file to write, or to replace, or a binary stream.

    Raises
    ------
    ValueError
        A path that does not end in .png.
    """
    modes = probe[:MOST_MODES]
    columns = 2 * max(len(modes), 2)
    heights = (5.4, 15 / columns + 1.1)[: 2 if len(modes) else 1]
    figure = Figure(figsize=(15, sum(heights)), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=13)
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    cells = rows[0].subgridspec(1, 3)
    top = [figure.add_subplot(cells[0, number]) for number in range(3)]
    _draw_mean(figure, top[0], mean_pattern, mask, centre_of_mass)
    _draw_positions(
        figure, top[1], positions_px, object_guess, mean_pattern.shape[-1], beam_diameter_px
    )
    _draw_counts(top[2], counts, nphotons)
    if len(modes):
        energies = (np.abs(probe.astype(np.complex128)) ** 2).sum(axis=(1, 2))
        cells = rows[1].subgridspec(1, columns)
        axes = [figure.add_subplot(cells[0, number]) for number in range(columns)]
        for ax in axes[2 * len(modes) :]:
            ax.set_axis_off()
        _draw_modes(figure, axes, modes, energies / energies.sum())
    write_png(figure, path)


def _draw_mean(
    figure: Figure,
    ax: Axes,
    mean: NDArray[np.floating],
    mask: NDArray[np.bool_] | None,
    centre_of_mass: tuple[float, float] | None,
) -> None:
    counted = np.ones(mean.shape, dtype=bool) if mask is None else mask
    low, high = logarithmic_limits(mean[counted], mean[counted])
    shown = np.where(counted, np.maximum(mean, low), np.nan)
    image = ax.imshow(
        shown,
        cmap=colormaps["inferno"].with_extremes(bad=_MASKED),
        norm=LogNorm(low, high),
        interpolation="nearest",
    )
    middle = mean.shape[0] // 2
    cross = {
        "color": "white",
        "markersize": 14,
        "linestyle": "none",
        "path_effects": [withStroke(linewidth=3, foreground="black")],
    }
    handles = [ax.plot(middle, middle, "+", label="[N/2, N/2]", **cross)[0]]  # type: ignore[arg-type]
    if centre_of_mass is not None:
        handles += ax.plot(
            *reversed(centre_of_mass),
            "o",
            mfc="none",
            mec="lime",
            markersize=9,
            label="centre of mass",
            linestyle="none",
        )
    if mask is not None:
        handles.append(Patch(color=_MASKED, label=f"masked ({np.count_nonzero(~mask)} px)"))  # type: ignore[arg-type]
    ax.legend(
        handles=handles,
        fontsize=8,
        loc="upper right",
        facecolor="0.25",
        labelcolor="white",
        edgecolor="none",
        framealpha=0.85,
    )
    ax.set_title("mean pattern", fontsize=11)
    _label(ax, "detector px")
    figure.colorbar(image, ax=ax, shrink=0.8, label="mean counts a pixel")


def _draw_positions(
    figure: Figure,
    ax: Axes,
    positions_px: NDArray[np.floating],
    object_guess: NDArray[np.complexfloating] | None,
    size: int,
    beam_diameter_px: float | None,
) -> None:
    y, x = positions_px.T
    if object_guess is not None:
        rows, columns = object_guess.shape
        finite = np.abs(object_guess[np.isfinite(object_guess)])
        limits = np.percentile(finite, (1, 99)) if finite.size else (0, 1)
        extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
        ax.imshow(
            np.abs(object_guess),
            cmap="gray",
            vmin=limits[0],
            vmax=limits[1],
            extent=extent,
            alpha=0.6,
        )
    corner = positions_px.min(axis=0) - size / 2
    extent_px = np.ptp(positions_px, axis=0) + size
    ax.add_patch(
        Rectangle(
            (corner[1], corner[0]),
            extent_px[1],
            extent_px[0],
            fill=False,
            edgecolor=_OUTLINE,
            linestyle="--",
        )
    )
    ax.plot(x, y, color="0.6", linewidth=0.5, zorder=1)
    spacing = math.sqrt(np.prod(np.maximum(np.ptp(positions_px, axis=0), 1)) / len(positions_px))
    dot = min(max((180 * spacing / extent_px.max()) ** 2, 2), 40)
    order = ax.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=dot, linewidths=0, zorder=2)
    if beam_diameter_px is None:
        ax.plot(x[0], y[0], "o", mfc="none", mec="tab:red", markersize=10, zorder=3)
    else:
        ax.add_patch(
            Circle(
                (x[0], y[0]),
                beam_diameter_px / 2,
                fill=False,
                edgecolor="tab:red",
                linewidth=1.5,
                zorder=3,
            )
        )
    low, high = corner, corner + extent_px
    if object_guess is not None:
        low, high = np.minimum(low, -0.5), np.maximum(high, np.array(object_guess.shape) - 0.5)
    margin = 0.03 * (high - low).max()
    ax.set(
        xlim=(low[1] - margin, high[1] + margin),
        ylim=(high[0] + margin, low[0] - margin),
        aspect="equal",
    )
    behind = "the file's object" if object_guess is not None else "no object in the file"
    ax.set_title(
        f"positions on {behind}" if object_guess is not None else f"positions ({behind})",
        fontsize=11,
    )
    _label(ax, "px; dashed: what the patches cover")
    ax.set_ylabel("y (px)", fontsize=10)
    figure.colorbar(
        order,
        ax=ax,
        shrink=0.8,
        label="number of the pattern (red: "
        f"{'the first' if beam_diameter_px is None else 'the beam on the first'})",
    )


def _draw_counts(ax: Axes, counts: NDArray[np.floating], nphotons: float | None) -> None:
    finite = counts[np.isfinite(counts)]
    ax.hist(finite, bins=min(max(int(math.sqrt(len(finite))), 5), 60), color="tab:blue", alpha=0.8)
    ax.axvline(finite.mean(), color="k", linewidth=1.2, label=f"mean {finite.mean():.6g}")
    if nphotons is not None:
        ax.axvline(
            nphotons,
            color="tab:red",
            linewidth=1.2,
            linestyle="--",
            label=f"nphotons {nphotons:.6g}",
        )
    ax.legend(fontsize=9, frameon=False)
    ax.set_title("counts of each pattern", fontsize=11)
    ax.set_xlabel("sum of counts", fontsize=10)
    ax.set_ylabel("patterns", fontsize=10)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_box_aspect(1)


def _draw_modes(
    figure: Figure,
    axes: Sequence[Axes],
    modes: NDArray[np.complexfloating],
    shares: NDArray[np.floating],
) -> None:
    """Amplitude and phase side by side; the phase fades to grey where there is no light to have
    one."""
    for number, (mode, share) in enumerate(zip(modes, shares, strict=False)):
        amplitude, phase = axes[2 * number : 2 * number + 2]
        light = np.abs(mode)
        shown = amplitude.imshow(light, cmap="gray", interpolation="nearest")
        amplitude.set_title(
            f"probe mode {number + 1}: amplitude\n{100 * share:.3g} % of the light", fontsize=10
        )
        figure.colorbar(shown, ax=amplitude, orientation="horizontal", shrink=0.8, pad=0.02)
        lit = np.clip(light / (0.05 * light.max() or 1), 0, 1)
        phase.set_facecolor(_BLANK)
        shown = phase.imshow(
            np.angle(mode),
            cmap="twilight",
            vmin=-math.pi,
            vmax=math.pi,
            alpha=lit,
            interpolation="nearest",
        )
        phase.set_title("phase\nwhere there is light", fontsize=10)
        bar = figure.colorbar(shown, ax=phase, orientation="horizontal", shrink=0.8, pad=0.02)
        assert bar.solids is not None
        bar.solids.set_alpha(1)
        bar.set_ticks(
            [math.pi / 2 * quarter for quarter in QUARTERS.values()], labels=list(QUARTERS)
        )
        for ax in (amplitude, phase):
            ax.tick_params(labelsize=8)


def _label(ax: Axes, unit: str) -> None:
    ax.set_xlabel(f"x ({unit})", fontsize=10)
    ax.set_ylabel(f"y ({unit})", fontsize=10)
    ax.tick_params(labelsize=9)
