"""Draw reconstructed objects and training curves as PNG files.

Figures are built without pyplot, so drawing neither needs a display nor touches the caller's own figures. A file
appears under its name only when it is complete.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.atomic_file import replacing
from ptycho_dist.report.comparison import fit_phase_ramp, mean_phase, relative_phase, remove_phase_ramp

_DPI = 150
_BLANK = "#e6e6e6"
_AMPLITUDE_MAP = "gray"
_PHASE_MAP = "viridis"
_CYCLIC_PHASE_MAP = "twilight"
_DIFFERENCE_MAP = "RdBu_r"
# Colour limits leave out one pixel in a hundred at either end: a few bad pixels would flatten all the contrast.
_LIMIT_PERCENTILES = (1.0, 99.0)
# A spread beyond this wraps, or nearly: half of a cyclic map's colours would be lost on less.
_CYCLIC_ABOVE_RAD = 1.25 * math.pi
# Page layout, inches. Set by hand: automatic layout makes colour bars taller than their images and clips labels.
_LEFT, _BOTTOM, _RIGHT, _TOP, _GAP, _BAR = 0.8, 0.6, 1.0, 0.45, 0.12, 0.16
_CURVES = {"train": ("training", "tab:blue"), "val": ("validation", "tab:orange")}


def draw_amplitude(
    object_: ArrayLike,
    origin_px: ArrayLike,
    valid: ArrayLike,
    path: str | os.PathLike[str],
    *,
    title: str = "Amplitude",
) -> None:
    """Draw the amplitude of an object.

    Parameters
    ----------
    object_ : array, complex, (H, W)
    origin_px : array, (2,)
        Scan coordinate (y, x) of ``object_[0, 0]``, pixels.
    valid : array, bool, (H, W)
        Pixels to show; the others stay blank, whatever they hold, and do not count in the colour limits.
    path : path
        PNG file to write, or to replace; its directory is made if missing.
    title : str, optional

    Raises
    ------
    ValueError
        Shapes that do not agree; no valid pixel; a valid pixel that is not finite; a path that does not end in .png.
    """
    object_, mask, origin_yx = _checked_object(object_, origin_px, valid)
    amplitude = np.where(mask, np.abs(object_), np.nan)
    limits = _robust_limits(amplitude)
    _draw_image(amplitude, origin_yx, limits, _AMPLITUDE_MAP, "amplitude", title, path)


def draw_phase(
    object_: ArrayLike,
    origin_px: ArrayLike,
    valid: ArrayLike,
    path: str | os.PathLike[str],
    *,
    title: str = "Phase",
    remove_ramp: bool = False,
) -> None:
    """Draw the phase of an object relative to its circular mean over the valid pixels.

    Phases that spread over much more than pi get a cyclic colour map from -pi to pi: a wrap is then no false edge.

    Parameters
    ----------
    object_, origin_px, valid, path
        As for `draw_amplitude`.
    title : str, optional
        A second, smaller line of it says what was removed from the phase.
    remove_ramp : bool, optional
        Fit a linear phase ramp to the valid pixels and remove it too.

    Raises
    ------
    ValueError
        As for `draw_amplitude`.
    """
    object_, mask, origin_yx = _checked_object(object_, origin_px, valid)
    field = np.where(mask, object_, 0)
    removed = "global phase removed"
    if remove_ramp:
        field = remove_phase_ramp(field, fit_phase_ramp(field))
        removed = "global phase and linear ramp removed"
    phase = np.where(mask, relative_phase(field, mean_phase(field)), np.nan)
    limits, colour_map = _phase_scale(phase)
    _draw_image(phase, origin_yx, limits, colour_map, "phase (rad)", f"{title}\n{removed}", path)


def draw_comparison(
    aligned: ArrayLike,
    reference: ArrayLike,
    box_px: tuple[int, int, int, int],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Draw reconstruction, reference and difference, amplitude above phase.

    Both phases are relative to the mean phase of the reference where the two are compared. The difference of phases is
    ``angle(aligned * conj(reference))``, which does not see where either of them wraps.

    Parameters
    ----------
    aligned : array, complex, (y1 - y0, x1 - x0)
        The reconstruction, aligned with the reference (`comparison.compare_with_reference`); NaN where there is none.
    reference : array, complex, (y1 - y0, x1 - x0)
    box_px : tuple of int
        (y0, y1, x0, x1), half-open: the rows and columns that both cover, scan coordinates.
    path : path
        PNG file to write, or to replace; its directory is made if missing.
    title : str, optional
        Headline, for example the scores.

    Raises
    ------
    ValueError
        Shapes that do not agree with the box; no pixel where both fields are finite; a path that does not end in .png.
    """
    aligned, reference = np.asarray(aligned), np.asarray(reference)
    y0, y1, x0, x1 = box_px
    if not aligned.shape == reference.shape == (y1 - y0, x1 - x0):
        raise ValueError(
            f"aligned is {aligned.shape} and the reference {reference.shape}; "
            f"expected {(y1 - y0, x1 - x0)} for the box (y0, y1, x0, x1) = {tuple(box_px)}"
        )
    both = np.isfinite(aligned) & np.isfinite(reference)
    if not both.any():
        raise ValueError("no pixel is finite in both the reconstruction and the reference; expected at least one")

    zero_rad = mean_phase(reference[both])
    amplitudes = [np.abs(aligned), np.abs(reference)]
    phases = [relative_phase(aligned, zero_rad), relative_phase(reference, zero_rad)]
    # The reference alone sets the limits: they stay the same for every reconstruction compared with it.
    amplitude_limits = _robust_limits(np.where(both, amplitudes[1], np.nan))
    phase_limits, phase_map = _phase_scale(np.where(both, phases[1], np.nan))

    width, height = _image_size_in(reference.shape, 3.3)
    # Left edges of the columns: the pair shares one colour bar, the difference has its own.
    lefts = (_LEFT, _LEFT + width + 2 * _GAP, _LEFT + 2 * width + 3 * _GAP + _BAR + _RIGHT)
    top = _TOP + (0.35 if title else 0.0)
    figure = Figure(figsize=(lefts[2] + width + _GAP + _BAR + _RIGHT, _BOTTOM + 2 * height + 2 * _GAP + top))
    bottoms = (_BOTTOM + height + 2 * _GAP, _BOTTOM)
    rows = (
        (amplitudes, amplitudes[0] - amplitudes[1], amplitude_limits, _AMPLITUDE_MAP, "amplitude"),
        (phases, np.angle(aligned * reference.conj()), phase_limits, phase_map, "phase (rad)"),
    )
    for bottom, (images, difference, limits, colour_map, label) in zip(bottoms, rows, strict=True):
        bound = _robust_bound(difference)
        panels = (
            (images[0], limits, colour_map, None),
            (images[1], limits, colour_map, label),
            (difference, (-bound, bound), _DIFFERENCE_MAP, f"difference of {label}"),
        )
        names = ("reconstruction", "reference", "reconstruction \u2212 reference")
        for left, name, (image, colour_limits, panel_map, bar_label) in zip(lefts, names, panels, strict=True):
            ax = _add_axes(figure, left, bottom, width, height)
            shown = _show(ax, image, (y0, x0), colour_limits, panel_map)
            if bar_label is not None:
                # The pair's bar serves both of its images: its ends tell of pixels beyond the limits in either.
                values = difference if image is difference else np.stack(images)
                bar_ax = _add_axes(figure, left + width + _GAP, bottom, _BAR, height)
                _colour_bar(figure, bar_ax, shown, values, bar_label)
            if bottom == bottoms[0]:
                ax.set_title(name, fontsize=11)
                ax.tick_params(labelbottom=False)
            else:
                ax.set_xlabel("x (px)", fontsize=10)
            if left == _LEFT:
                ax.set_ylabel("y (px)", fontsize=10)
            else:
                ax.tick_params(labelleft=False)
    _add_scale_bar(figure.axes[0], x1 - x0)
    if title:
        figure.suptitle(title, fontsize=12, y=1 - 0.12 / figure.get_figheight(), va="top")
    _write_png(figure, path)


def draw_training_curve(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw training and validation deviance per pixel against the optimiser step, logarithmically.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``metrics.csv``: ``train_deviance_per_pixel`` and ``val_deviance_per_pixel`` (no unit; either may be
        absent) over ``step``, or over ``epoch`` where no row has a step. Cells may be numbers or text; a missing or
        empty cell is passed over. Values that no logarithm shows (NaN, infinity, zero, negative) break the line, and
        the legend counts them.
    path : path
        PNG file to write, or to replace; its directory is made if missing.

    Raises
    ------
    ValueError
        No deviance to draw; text that is no number; a path that does not end in .png.
    """
    abscissa = next((name for name in ("step", "epoch") if any(_cell(row, name) is not None for row in rows)), None)
    if abscissa is None:
        raise ValueError(f"none of the {len(rows)} rows has a step or an epoch; expected a column of either name")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    for prefix, (name, colour) in _CURVES.items():
        cells = [(_cell(row, abscissa), _cell(row, f"{prefix}_deviance_per_pixel")) for row in rows]
        points = sorted((at, value) for at, value in cells if at is not None and value is not None)
        if not points:
            continue
        at, values = np.array(points).T
        shown = np.isfinite(values) & (values > 0)
        if not shown.all():
            name += f" ({np.count_nonzero(~shown)} of {len(values)} values not shown)"
        if shown.any():
            # A line through hundreds of markers is a band: markers only where each can be told from the next.
            marker = "o" if len(values) <= 60 else ""
            ax.plot(at, np.where(shown, values, np.nan), color=colour, marker=marker, markersize=4, label=name)
    if not ax.lines:
        expected = " or ".join(f"{prefix}_deviance_per_pixel" for prefix in _CURVES)
        raise ValueError(f"none of the {len(rows)} rows has a positive, finite {expected}; expected at least one value")
    ax.axhline(1.0, color="0.4", linewidth=1, linestyle="--", label="shot noise at high counts")

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    ax.set_xlabel(abscissa, fontsize=11)
    ax.set_ylabel("deviance per pixel", fontsize=11)
    ax.legend(frameon=False, fontsize=10)
    _write_png(figure, path)


def _cell(row: Mapping[str, Any], name: str) -> float | None:
    """Number in a cell of metrics.csv; None where it is missing or empty."""
    cell = row.get(name)
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds {cell!r}; expected a number or nothing") from None


def _checked_object(
    object_: ArrayLike, origin_px: ArrayLike, valid: ArrayLike
) -> tuple[NDArray[np.complexfloating], NDArray[np.bool_], tuple[float, float]]:
    field, mask, origin = np.asarray(object_), np.asarray(valid), np.asarray(origin_px, dtype=np.float64)
    if field.ndim != 2 or field.dtype.kind != "c":
        raise ValueError(f"the object is {field.dtype} {field.shape}; expected a complex array (rows, columns)")
    if mask.dtype != np.bool_ or mask.shape != field.shape:
        raise ValueError(f"the valid mask is {mask.dtype} {mask.shape}; expected bool {field.shape}, as the object")
    if origin.shape != (2,) or not np.isfinite(origin).all():
        raise ValueError(f"origin_px is {origin.tolist()}; expected two finite numbers (y, x)")
    if not mask.any():
        raise ValueError("no pixel of the object is valid; expected at least one to draw")
    bad = np.count_nonzero(~np.isfinite(field[mask]))
    if bad:
        raise ValueError(f"the object holds NaN or infinity at {bad} of {mask.sum()} valid pixels; expected numbers")
    return field, mask, (float(origin[0]), float(origin[1]))


def _robust_limits(image: NDArray[np.floating]) -> tuple[float, float]:
    """Colour limits from the finite pixels; a constant image gets a narrow range about its value."""
    low, high = (float(limit) for limit in np.percentile(image[np.isfinite(image)], _LIMIT_PERCENTILES))
    margin = 1e-3 * max(abs(low), abs(high)) or 1e-3
    return (low, high) if high - low > margin else (low - margin, high + margin)


def _robust_bound(difference: NDArray[np.floating]) -> float:
    """Symmetric colour limit; equal images get a small one, so that rounding is not blown up to look like an error."""
    return max(float(np.percentile(np.abs(difference[np.isfinite(difference)]), _LIMIT_PERCENTILES[1])), 1e-3)


def _phase_scale(phase: NDArray[np.floating]) -> tuple[tuple[float, float], str]:
    """Colour limits and map for a phase: cyclic, over all of -pi to pi, where it spreads that wide."""
    low, high = _robust_limits(phase)
    if high - low > _CYCLIC_ABOVE_RAD:
        return (-math.pi, math.pi), _CYCLIC_PHASE_MAP
    return (low, high), _PHASE_MAP


def _draw_image(
    image: NDArray[np.floating],
    origin_yx: tuple[float, float],
    limits: tuple[float, float],
    colour_map: str,
    label: str,
    title: str,
    path: str | os.PathLike[str],
) -> None:
    headline, _, note = title.partition("\n")
    top = _TOP + (0.2 if note else 0.0)
    width, height = _image_size_in(image.shape, 5.0)
    figure = Figure(figsize=(_LEFT + width + _GAP + _BAR + _RIGHT, _BOTTOM + height + top))
    ax = _add_axes(figure, _LEFT, _BOTTOM, width, height)
    shown = _show(ax, image, origin_yx, limits, colour_map)
    _colour_bar(figure, _add_axes(figure, _LEFT + width + _GAP, _BOTTOM, _BAR, height), shown, image, label)
    _add_scale_bar(ax, image.shape[1])
    ax.set_xlabel("x (px)", fontsize=11)
    ax.set_ylabel("y (px)", fontsize=11)
    ax.set_title(headline, fontsize=13, pad=20 if note else 6)
    if note:
        ax.annotate(note, (0.5, 1), (0, 6), "axes fraction", "offset points", ha="center", fontsize=9, color="0.35")
    _write_png(figure, path)


def _image_size_in(shape: tuple[int, ...], longest: float) -> tuple[float, float]:
    """Width and height of an image's axes, inches; a narrow strip keeps room for the labels beside it."""
    scale = longest / max(shape)
    return max(shape[1] * scale, 1.5), max(shape[0] * scale, 1.5)


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes by their place on the page in inches."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes((left / page_width, bottom / page_height, width / page_width, height / page_height))


def _show(ax: Axes, image: NDArray[np.floating], origin_yx: tuple[float, float], limits: tuple[float, float], colour_map: str) -> AxesImage:
    """Show an image in scan coordinates, NaN blank; pixel centres, not edges, lie at the coordinates."""
    (height, width), (y, x) = image.shape, origin_yx
    ax.tick_params(labelsize=9)
    return ax.imshow(
        image,
        cmap=colormaps[colour_map].with_extremes(bad=_BLANK),
        vmin=limits[0],
        vmax=limits[1],
        extent=(x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5),
        # Where pixels are finer than dots, colours are averaged, not values: a wrap then makes no false mean phase.
        interpolation_stage="rgba",
    )


def _colour_bar(figure: Figure, ax: Axes, shown: AxesImage, values: NDArray[np.floating], label: str) -> None:
    """Fill axes with a colour bar, its ends pointed where some of the values lie beyond the colour limits."""
    low, high = shown.get_clim()
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = figure.colorbar(shown, cax=ax, extend=extend, extendfrac=0.03)
    bar.set_label(label, fontsize=10)
    ax.tick_params(labelsize=9)
    if shown.get_cmap().name == _CYCLIC_PHASE_MAP:
        quarters = {"\u2212π": -2, "\u2212π/2": -1, "0": 0, "π/2": 1, "π": 2}
        bar.set_ticks([math.pi / 2 * quarter for quarter in quarters.values()], labels=list(quarters))


def _add_scale_bar(ax: Axes, width_px: int) -> None:
    """Add a bar of 1, 2 or 5 times a power of ten pixels, the longest that fits in a quarter of the width."""
    decade = 10 ** math.floor(math.log10(max(width_px / 4, 1)))
    length = max(factor * decade for factor in (1, 2, 5) if factor == 1 or factor * decade <= width_px / 4)
    bar = AnchoredSizeBar(ax.transData, length, f"{length} px", "lower right", pad=0.4, borderpad=0.6, sep=4, size_vertical=width_px / 150)
    bar.patch.set(alpha=0.8, edgecolor="none")
    ax.add_artist(bar)


def _write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"the figure's path is {str(path)!r}; expected a name that ends in .png")
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
