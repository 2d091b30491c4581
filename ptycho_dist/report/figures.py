"""Draw objects, probes, patterns, scans and training curves as PNG: files, or streams where a `path` is a binary stream.

Figures are built without pyplot, so drawing neither needs a display nor touches the caller's own figures. A file
appears under its name only when it is complete.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.atomic_file import replacing
from ptycho_dist.report.alignment import fit_phase_ramp, mean_phase, relative_phase, remove_phase_ramp
from ptycho_dist.report.fourier_ring import FourierRingCorrelation

PngTarget: TypeAlias = str | os.PathLike[str] | BinaryIO
"""A file to write or to replace, or a binary stream to write into."""

_DPI = 150
_BLANK = "#e6e6e6"
_AMPLITUDE_MAP = "gray"
_PHASE_MAP = "viridis"
_CYCLIC_PHASE_MAP = "twilight"
_DIFFERENCE_MAP = "RdBu_r"
_PATTERN_MAP = "inferno"
_RESIDUAL_MAP = "magma_r"
# Colour limits leave out one pixel in a hundred at either end: a few bad pixels would flatten all the contrast.
_LIMIT_PERCENTILES = (1.0, 99.0)
# A spread beyond this wraps, or nearly: half of a cyclic map's colours would be lost on less.
_CYCLIC_ABOVE_RAD = 1.25 * math.pi
# Page layout, inches. Set by hand: automatic layout makes colour bars taller than their images and clips labels.
_LEFT, _BOTTOM, _RIGHT, _TOP, _GAP, _BAR = 0.8, 0.6, 1.0, 0.45, 0.12, 0.16
_CURVES_HEIGHT = 2.2
_QUARTERS = {"\u2212π": -2, "\u2212π/2": -1, "0": 0, "π/2": 1, "π": 2}
_CURVES = {"train": ("training", "tab:blue"), "val": ("validation", "tab:orange"), "step": ("training, single steps", "0.75")}


def draw_amplitude(
    object_: ArrayLike,
    origin_px: ArrayLike,
    valid: ArrayLike,
    path: PngTarget,
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
    path: PngTarget,
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
    ring_correlations: Mapping[str, FourierRingCorrelation],
    path: PngTarget,
    *,
    title: str = "",
) -> None:
    """Draw reconstruction, reference and difference, amplitude above phase, and below them Fourier ring correlations with thresholds.

    Both phases are relative to the mean phase of the reference where the two are compared. The difference of phases is
    ``angle(aligned * conj(reference))``, which does not see where either of them wraps.

    Parameters
    ----------
    aligned : array, complex, (y1 - y0, x1 - x0)
        The reconstruction, aligned with the reference (`comparison.compare_with_reference`); NaN where there is none.
    reference : array, complex, (y1 - y0, x1 - x0)
    box_px : tuple of int
        (y0, y1, x0, x1), half-open: the rows and columns that both cover, scan coordinates.
    ring_correlations : mapping of str to FourierRingCorrelation
        Curves by the name of what was correlated; at least one.
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
    below = _BOTTOM + _CURVES_HEIGHT + _GAP
    figure = Figure(figsize=(lefts[2] + width + _GAP + _BAR + _RIGHT, below + _BOTTOM + 2 * height + 2 * _GAP + top))
    bottoms = (below + _BOTTOM + height + 2 * _GAP, below + _BOTTOM)
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
    _plot_ring_correlations(_add_axes(figure, _LEFT, _BOTTOM, lefts[2] + width - _LEFT, _CURVES_HEIGHT), ring_correlations)
    if title:
        figure.suptitle(title, fontsize=12, y=1 - 0.12 / figure.get_figheight(), va="top")
    _write_png(figure, path)


def _plot_ring_correlations(ax: Axes, curves: Mapping[str, FourierRingCorrelation]) -> None:
    """Plot curves, each with its 1/2-bit threshold in the same colour, and say the periods at which they fall below."""
    for number, (name, curve) in enumerate(curves.items()):
        periods = [curve.resolution_px(threshold) for threshold in (curve.half_bit, 0.5)]
        half_bit, half = (f"{period:.2f} px" if math.isfinite(period) else "none" for period in periods)
        ax.plot(curve.frequency_cycles_per_px, curve.correlation, f"C{number}", label=f"{name}: {half_bit} at 1/2 bit, {half} at 0.5")
        ax.plot(curve.frequency_cycles_per_px, curve.half_bit, f"C{number}", linestyle=":", linewidth=1)
    ax.axhline(0.5, color="0.4", linewidth=1, linestyle="--")
    ax.plot([], [], color="0.4", linestyle=":", linewidth=1, label="1/2-bit thresholds")
    ax.set_xlim(0, 0.5)
    ax.set_ylim(min(-0.1, *(curve.correlation.min() for curve in curves.values())), 1.05)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    ax.set_xlabel("spatial frequency (cycles / px)", fontsize=10)
    ax.set_ylabel("Fourier ring correlation", fontsize=10)
    ax.legend(frameon=False, fontsize=9, loc="upper right", title="full period resolved", title_fontsize=9)


def draw_probe(before: ArrayLike, after: ArrayLike | None, path: PngTarget) -> None:
    """Draw a probe's modes, before and after its refinement where there was one: brightness is amplitude, colour is phase.

    Incoherent modes are defined up to a unitary mixture. They are drawn as the orthogonal ones of the same light (Thibault & Menzel,
    Nature 494, 68 (2013)), strongest first, each relative to its mean phase, as bright as it goes; its title tells its share of the energy.

    Parameters
    ----------
    before, after : array, complex, (modes, N, N)
        In any units; their numbers of modes may differ. `after` is None where the probe was not refined: one row is drawn then.
    path : path
        PNG file to write, or to replace; its directory is made if missing.

    Raises
    ------
    ValueError
        Not complex (modes, N, N), or not of one N; a value that is not finite; zeros only; a path that does not end in .png.
    """
    probes = {"before": before} if after is None else {"before": before, "after": after}
    rows = {name: _orthogonal_modes(probe, name) for name, probe in probes.items()}
    sizes = [modes.shape[-1] for modes, _ in rows.values()]
    if len(set(sizes)) > 1:
        raise ValueError(f"the probe has {sizes[0]} x {sizes[0]} pixels before and {sizes[1]} x {sizes[1]} after; expected one size")
    columns = max(len(modes) for modes, _ in rows.values())
    side, title = 2.2, 0.3
    width = _LEFT + columns * (side + _GAP) + _BAR + _RIGHT
    figure = Figure(figsize=(width, _BOTTOM + len(rows) * (side + title) + _GAP))
    lowest = list(rows)[-1]
    bottoms = [_BOTTOM + row * (side + title) for row in reversed(range(len(rows)))]
    for bottom, (name, (modes, shares)) in zip(bottoms, rows.items(), strict=True):
        for number, (mode, share) in enumerate(zip(modes, shares, strict=True)):
            ax = _add_axes(figure, _LEFT + number * (side + _GAP), bottom, side, side)
            ax.imshow(_amplitude_and_phase(mode, mean_phase(mode)))
            ax.tick_params(labelsize=9, labelbottom=name == lowest, labelleft=number == 0)
            ax.set_title(f"mode {number + 1}: {100 * share:.3g} %", fontsize=10)
        first = figure.axes[-len(modes)]
        first.set_ylabel("y (px)" if after is None else f"{name}\ny (px)", fontsize=10)
        _add_scale_bar(first, sizes[0])
    for ax in figure.axes[-len(rows[lowest][0]) :]:
        ax.set_xlabel("x (px)", fontsize=10)
    bar_ax = _add_axes(figure, width - _RIGHT - _BAR, _BOTTOM, _BAR, len(rows) * (side + title) - title)
    phases = np.linspace(-math.pi, math.pi, 256)[:, None]
    bar_ax.imshow(_amplitude_and_phase(np.exp(1j * phases), 0.0), aspect="auto", origin="lower", extent=(0, 1, -math.pi, math.pi))
    bar_ax.set_xticks([])
    bar_ax.yaxis.tick_right()
    bar_ax.yaxis.set_label_position("right")
    bar_ax.set_yticks([math.pi / 2 * quarter for quarter in _QUARTERS.values()], labels=list(_QUARTERS))
    bar_ax.set_ylabel("phase (rad)", fontsize=10)
    _write_png(figure, path)


def _orthogonal_modes(probe: ArrayLike, name: str) -> tuple[NDArray[np.complexfloating], NDArray[np.floating]]:
    """Orthogonal modes (modes, N, N) of the same incoherent light, strongest first, and their shares of the energy."""
    modes = np.asarray(probe)
    if modes.ndim != 3 or modes.shape[1] != modes.shape[2] or modes.dtype.kind != "c":
        raise ValueError(f"the probe {name} is {modes.dtype} {modes.shape}; expected a complex array (modes, N, N)")
    if not np.isfinite(modes).all() or not modes.any():
        raise ValueError(f"the probe {name} holds {'zeros only' if np.isfinite(modes).all() else 'NaN or infinity'}; expected light in it")
    _, strengths, orthogonal = np.linalg.svd(modes.reshape(len(modes), -1), full_matrices=False)
    return (strengths[:, None] * orthogonal).reshape(modes.shape), strengths**2 / np.sum(strengths**2)


def _amplitude_and_phase(field: NDArray[np.complexfloating], zero_rad: float) -> NDArray[np.floating]:
    """Colours (..., 3) of a field: brightness its amplitude over the largest, hue its phase relative to `zero_rad`."""
    amplitude = np.abs(field)
    hue = relative_phase(field, zero_rad) / (2 * math.pi) % 1
    return hsv_to_rgb(np.stack((hue, np.ones_like(hue), amplitude / (amplitude.max() or 1)), axis=-1))


def draw_mean_patterns(measured: ArrayLike, predicted: ArrayLike, path: PngTarget) -> None:
    """Draw the mean measured and the mean predicted diffraction pattern, logarithmically, with the same colours for the same counts.

    Parameters
    ----------
    measured, predicted : array, real, (N, N)
        Mean counts a pixel, zero frequency at [N // 2, N // 2]. Colours go from the first percentile of what was measured, dark pixels
        left out, to the brightest pixel of either; what is darker has the darkest colour. What is not finite, as pixels
        that a mask leaves out, is grey in both.
    path : path or binary stream
        PNG file to write, or to replace; its directory is made if missing.

    Raises
    ------
    ValueError
        Shapes that differ; a path that does not end in .png.
    """
    patterns = [np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)]
    if patterns[0].ndim != 2 or patterns[0].shape != patterns[1].shape:
        raise ValueError(f"the measured pattern is {patterns[0].shape} and the predicted one {patterns[1].shape}; expected the same (N, N)")
    low, high = _logarithmic_limits(patterns[0], np.stack(patterns))
    centre_yx = (-(patterns[0].shape[0] // 2), -(patterns[0].shape[1] // 2))
    width, height = _image_size_in(patterns[0].shape, 4.2)
    lefts = (_LEFT, _LEFT + width + 2 * _GAP)
    figure = Figure(figsize=(lefts[1] + width + _GAP + _BAR + _RIGHT, _BOTTOM + height + _TOP))
    for left, pattern, name in zip(lefts, patterns, ("measured", "predicted"), strict=True):
        ax = _add_axes(figure, left, _BOTTOM, width, height)
        # The lowest colour, not a blank, for pixels that no photon met; NaN stays NaN.
        shown = _show(ax, np.maximum(pattern, low), centre_yx, (low, high), _PATTERN_MAP)
        shown.set_norm(LogNorm(low, high))
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("x (detector px)", fontsize=10)
    figure.axes[0].set_ylabel("y (detector px)", fontsize=10)
    figure.axes[1].tick_params(labelleft=False)
    bar_ax = _add_axes(figure, lefts[1] + width + _GAP, _BOTTOM, _BAR, height)
    _colour_bar(figure, bar_ax, shown, np.stack(patterns), "mean counts a pixel")
    _write_png(figure, path)


def draw_scan(positions_px: ArrayLike, pattern_deviance_per_pixel: ArrayLike, path: PngTarget) -> None:
    """Draw the way of the scan beside what the object leaves unexplained at each of its positions.

    Parameters
    ----------
    positions_px : array, (n, 2)
        (y, x) of each pattern, in the order of the scan.
    pattern_deviance_per_pixel : array, (n,)
        Deviance per pixel of each pattern. Colours leave out one pattern in a hundred at either end; what is not finite is grey.
    path : path or binary stream
        PNG file to write, or to replace; its directory is made if missing.

    Raises
    ------
    ValueError
        Not one deviance a position; no position; a path that does not end in .png.
    """
    positions, deviance = np.asarray(positions_px, dtype=np.float64), np.asarray(pattern_deviance_per_pixel, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0 or deviance.shape != positions.shape[:1]:
        raise ValueError(f"positions_px are {positions.shape} and the deviances {deviance.shape}; expected (n, 2) and (n,), n at least 1")
    first, last = positions.min(axis=0), positions.max(axis=0)
    spacing_px = math.sqrt(np.prod(np.maximum(last - first, 1)) / len(positions))
    low_yx, high_yx = first - spacing_px, last + spacing_px
    width, height = _image_size_in(tuple(high_yx - low_yx), 4.2)
    points_a_px = 72 * width / (high_yx - low_yx)[1]
    diameter = min(max(0.85 * spacing_px * points_a_px, 1.5), 14)

    lefts = (_LEFT, _LEFT + width + _GAP + _BAR + _RIGHT + 0.1)
    figure = Figure(figsize=(lefts[1] + width + _GAP + _BAR + _RIGHT, _BOTTOM + height + _TOP))
    way, residual = (_add_axes(figure, left, _BOTTOM, width, height) for left in lefts)
    y, x = positions.T
    way.plot(x, y, color="0.6", linewidth=0.6, zorder=1)
    order = way.scatter(x, y, c=np.arange(len(positions)), cmap=_PHASE_MAP, s=(0.45 * diameter) ** 2, linewidths=0, zorder=2)
    way.plot(x[0], y[0], "o", color="none", markeredgecolor="tab:red", markersize=10)
    finite = np.isfinite(deviance)
    limits = _robust_limits(deviance) if finite.any() else (0.0, 1.0)
    residual.scatter(x[~finite], y[~finite], color=_BLANK, s=diameter**2, linewidths=0)
    shown = residual.scatter(
        x[finite], y[finite], c=deviance[finite], cmap=_RESIDUAL_MAP, vmin=limits[0], vmax=limits[1], s=diameter**2, linewidths=0
    )
    panels = (
        (way, order, np.arange(len(positions), dtype=np.float64), "way of the scan (circle: its first pattern)", "number of the pattern"),
        (residual, shown, deviance[finite], "what is left unexplained", "deviance per pixel"),
    )
    for left, (ax, points, values, title, label) in zip(lefts, panels, strict=True):
        ax.set(xlim=(low_yx[1], high_yx[1]), ylim=(high_yx[0], low_yx[0]))
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("x (px)", fontsize=10)
        ax.tick_params(labelsize=9)
        _colour_bar(figure, _add_axes(figure, left + width + _GAP, _BOTTOM, _BAR, height), points, values, label)
    way.set_ylabel("y (px)", fontsize=10)
    residual.tick_params(labelleft=False)
    _write_png(figure, path)


def draw_training_curve(rows: Sequence[Mapping[str, Any]], path: PngTarget) -> None:
    """Draw training and validation deviance per pixel, and the loss, which is half of it, against the optimiser step, logarithmically.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``metrics.csv``: ``train_deviance_per_pixel``, ``val_deviance_per_pixel`` and ``step_deviance_per_pixel`` (no unit;
        any may be absent) over ``step``, or over ``epoch`` where no row has a step. Cells may be numbers or text; a missing or
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
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
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
            marker = "o" if len(values) <= 60 and prefix != "step" else ""
            zorder = 1 if prefix == "step" else 2
            ax.plot(at, np.where(shown, values, np.nan), color=colour, marker=marker, markersize=4, label=name, zorder=zorder)
    if not ax.lines:
        expected = " or ".join(f"{prefix}_deviance_per_pixel" for prefix in _CURVES)
        raise ValueError(f"none of the {len(rows)} rows has a positive, finite {expected}; expected at least one value")
    _finish_deviance_axes(ax, abscissa)
    loss = ax.secondary_yaxis("right", functions=(_half, _double))
    loss.set_ylabel("loss (half the deviance)", fontsize=11)
    _label_logarithm(loss)
    _write_png(figure, path)


def draw_refinement_curve(deviance_per_pixel: Sequence[float], path: PngTarget) -> None:
    """Draw the deviance per pixel after each iteration of a refinement, the first value its start's, logarithmically.

    Raises
    ------
    ValueError
        No value, or one that no logarithm shows; a path that does not end in .png.
    """
    values = np.asarray(deviance_per_pixel, dtype=np.float64)
    if values.size == 0 or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"the deviances of the refinement are {values.tolist()}; expected positive, finite numbers, at least one")
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.plot(np.arange(len(values)), values, color="tab:green", marker="o" if len(values) <= 60 else "", markersize=4, label="whole scan")
    _finish_deviance_axes(ax, "iteration")
    _write_png(figure, path)


def _finish_deviance_axes(ax: Axes, abscissa: str) -> None:
    """Everything about a curve of deviance per pixel but the curve."""
    ax.axhline(1.0, color="0.4", linewidth=1, linestyle="--", label="shot noise at high counts")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _label_logarithm(ax)
    ax.set_xlabel(abscissa, fontsize=11)
    ax.set_ylabel("deviance per pixel", fontsize=11)
    ax.legend(frameon=False, fontsize=10)


def _label_logarithm(ax: Any) -> None:
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    ax.tick_params(labelsize=9)


def _half(deviance: ArrayLike) -> NDArray[np.floating]:
    return np.asarray(deviance) / 2


def _double(loss: ArrayLike) -> NDArray[np.floating]:
    return np.asarray(loss) * 2


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


def _logarithmic_limits(reference: NDArray[np.floating], shown: NDArray[np.floating]) -> tuple[float, float]:
    """Colour limits for a logarithm: from the first percentile of the reference's positive pixels to the largest finite one shown."""
    lit = reference[np.isfinite(reference) & (reference > 0)]
    if lit.size == 0:
        return 0.1, 1.0
    low = float(np.percentile(lit, _LIMIT_PERCENTILES[0]))
    return low, max(float(shown[np.isfinite(shown)].max()), 1.01 * low)


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
    path: PngTarget,
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


def _colour_bar(figure: Figure, ax: Axes, shown: ScalarMappable, values: NDArray[np.floating], label: str) -> None:
    """Fill axes with a colour bar, its ends pointed where some of the values lie beyond the colour limits."""
    low, high = shown.get_clim()
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = figure.colorbar(shown, cax=ax, extend=extend, extendfrac=0.03)
    bar.set_label(label, fontsize=10)
    ax.tick_params(labelsize=9)
    if shown.get_cmap().name == _CYCLIC_PHASE_MAP:
        bar.set_ticks([math.pi / 2 * quarter for quarter in _QUARTERS.values()], labels=list(_QUARTERS))


def _add_scale_bar(ax: Axes, width_px: int) -> None:
    """Add a bar of 1, 2 or 5 times a power of ten pixels, the longest that fits in a quarter of the width."""
    decade = 10 ** math.floor(math.log10(max(width_px / 4, 1)))
    length = max(factor * decade for factor in (1, 2, 5) if factor == 1 or factor * decade <= width_px / 4)
    bar = AnchoredSizeBar(ax.transData, length, f"{length} px", "lower right", pad=0.4, borderpad=0.6, sep=4, size_vertical=width_px / 150)
    bar.patch.set(alpha=0.8, edgecolor="none")
    ax.add_artist(bar)


def _write_png(figure: Figure, path: PngTarget) -> None:
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
