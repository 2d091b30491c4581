"""Pictures of objects: amplitude, phase, and a reconstruction beside its reference.

What can't be drawn raises a ValueError: shapes that do not agree, no pixel to show, values that are
NaN or infinite, a path that does not end in .png.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.report.alignment import (
    fit_phase_ramp,
    mean_phase,
    relative_phase,
    remove_phase_ramp,
)
from ptycho_dist.report.checks import checked_object
from ptycho_dist.report.drawing import (
    BOTTOM,
    CYCLIC_PHASE_MAP,
    GAP,
    LEFT,
    LIMIT_PERCENTILES,
    PHASE_MAP,
    TOP,
    Panel,
    PngTarget,
    add_axes,
    add_scale_bar,
    colour_bar,
    finish_curves,
    image_page,
    robust_limits,
    show,
    write_png,
)
from ptycho_dist.report.fourier_ring import FourierRingCorrelation

_AMPLITUDE_MAP = "gray"
_DIFFERENCE_MAP = "RdBu_r"
# Phases that spread wider wrap, or nearly; on less, half the colours of a cyclic map would be lost.
_CYCLIC_ABOVE_RAD = 1.25 * math.pi
_CURVES_HEIGHT = 2.2


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
        Pixels to show. The others are blank and do not enter the colour limits.
    path : PngTarget
    title : str, optional
        A second line is smaller.
    """
    field, mask, origin_yx = _drawable(object_, origin_px, valid)
    amplitude = np.where(mask, np.abs(field), np.nan)
    limits = robust_limits(amplitude)
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

    Phases that spread over much more than pi get a cyclic colour map from -pi to pi, in which a
    wrap is no false edge.

    Parameters
    ----------
    object_, origin_px, valid, path
        As for `draw_amplitude`.
    title : str, optional
        A second line says what was removed from the phase.
    remove_ramp : bool, optional
        Fit a linear phase ramp to the valid pixels and remove it too.
    """
    field, mask, origin_yx = _drawable(object_, origin_px, valid)
    field = np.where(mask, field, 0)
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
    """Draw reconstruction, reference and difference, amplitude above phase, and below them Fourier
    ring correlations with their thresholds.

    Both phases are relative to the mean phase of the reference over the compared pixels. Their
    difference is ``angle(aligned * conj(reference))``, which does not depend on wraps.

    Parameters
    ----------
    aligned : array, complex, (y1 - y0, x1 - x0)
        The reconstruction, aligned with the reference (`comparison.compare_with_reference`); NaN
        where there is none.
    reference : array, complex, (y1 - y0, x1 - x0)
    box_px : tuple of int
        (y0, y1, x0, x1), half-open: the rows and columns that both cover, scan coordinates.
    ring_correlations : mapping of str to FourierRingCorrelation
        Curves by name; at least one.
    path : PngTarget
    title : str, optional
        Headline, for example the scores.
    """
    aligned, reference = np.asarray(aligned), np.asarray(reference)
    both = _checked_pair(aligned, reference, box_px)
    y0, _, x0, _ = box_px
    zero_rad = mean_phase(reference[both])
    amplitudes = [np.abs(aligned), np.abs(reference)]
    phases = [relative_phase(field, zero_rad) for field in (aligned, reference)]
    top = TOP + (0.35 if title else 0.0)
    below = BOTTOM + _CURVES_HEIGHT + GAP
    figure, rows = image_page(
        reference.shape, 3.3, (False, True, True), rows=2, below=below, top=top
    )
    for panel, name in zip(
        rows[0], ("reconstruction", "reference", "reconstruction \u2212 reference"), strict=True
    ):
        panel.ax.set_title(name, fontsize=11)
    # The reference alone sets the limits, so they are the same for all reconstructions of it.
    limits = robust_limits(np.where(both, amplitudes[1], np.nan))
    difference = amplitudes[0] - amplitudes[1]
    _show_row(rows[0], amplitudes, difference, (y0, x0), limits, _AMPLITUDE_MAP, "amplitude")
    limits, colour_map = _phase_scale(np.where(both, phases[1], np.nan))
    difference = np.angle(aligned * reference.conj())
    _show_row(rows[1], phases, difference, (y0, x0), limits, colour_map, "phase (rad)")
    add_scale_bar(rows[0][0].ax, reference.shape[1])
    right = rows[1][2].ax.get_position().x1 * figure.get_figwidth()
    curves_ax = add_axes(figure, LEFT, BOTTOM, right - LEFT, _CURVES_HEIGHT)
    _plot_ring_correlations(curves_ax, ring_correlations)
    if title:
        figure.suptitle(title, fontsize=12, y=1 - 0.12 / figure.get_figheight(), va="top")
    write_png(figure, path)


def _show_row(
    panels: list[Panel],
    pair: list[NDArray[np.floating]],
    difference: NDArray[np.floating],
    origin_yx: tuple[int, int],
    limits: tuple[float, float],
    colour_map: str,
    label: str,
) -> None:
    """Show two images with one colour bar, and their difference with symmetric limits."""
    for panel, image in zip(panels, pair, strict=False):
        shown = show(panel.ax, image, origin_yx, limits, colour_map)
    colour_bar(panels[1].bar_ax, shown, np.stack(pair), label)
    finite = np.abs(difference[np.isfinite(difference)])
    # Equal images get small limits, so that rounding does not look like an error.
    bound = max(float(np.percentile(finite, LIMIT_PERCENTILES[1])), 1e-3)
    shown = show(panels[2].ax, difference, origin_yx, (-bound, bound), _DIFFERENCE_MAP)
    colour_bar(panels[2].bar_ax, shown, difference, f"difference of {label}")


def _plot_ring_correlations(ax: Axes, curves: Mapping[str, FourierRingCorrelation]) -> None:
    """Plot curves, each with its 1/2-bit threshold in the same colour; the legend names the periods
    at which they fall below the thresholds."""
    for number, (name, curve) in enumerate(curves.items()):
        periods = [curve.resolution_px(threshold) for threshold in (curve.half_bit, 0.5)]
        half_bit, half = (
            f"{period:.2f} px" if math.isfinite(period) else "none" for period in periods
        )
        label = f"{name}: {half_bit} at 1/2 bit, {half} at 0.5"
        frequency, colour = curve.frequency_cycles_per_px, f"C{number}"
        ax.plot(frequency, curve.correlation, colour, label=label)
        ax.plot(frequency, curve.half_bit, colour, linestyle=":", linewidth=1)
    ax.axhline(0.5, color="0.4", linewidth=1, linestyle="--")
    ax.plot([], [], color="0.4", linestyle=":", linewidth=1, label="1/2-bit thresholds")
    ax.set_xlim(0, 0.5)
    ax.set_ylim(min(-0.1, *(curve.correlation.min() for curve in curves.values())), 1.05)
    finish_curves(ax)
    ax.set_xlabel("spatial frequency (cycles / px)", fontsize=10)
    ax.set_ylabel("Fourier ring correlation", fontsize=10)
    ax.legend(
        frameon=False, fontsize=9, loc="upper right", title="full period resolved", title_fontsize=9
    )


def _drawable(
    object_: ArrayLike, origin_px: ArrayLike, valid: ArrayLike
) -> tuple[NDArray[np.complexfloating], NDArray[np.bool_], tuple[float, float]]:
    field, mask, (y, x) = checked_object(object_, origin_px, valid)
    if not mask.any():
        raise ValueError("no pixel of the object is valid; expected at least one to draw")
    return field, mask, (float(y), float(x))


def _checked_pair(
    aligned: NDArray, reference: NDArray, box_px: tuple[int, int, int, int]
) -> NDArray[np.bool_]:
    """Return the pixels, bool, that are finite in both."""
    y0, y1, x0, x1 = box_px
    if not aligned.shape == reference.shape == (y1 - y0, x1 - x0):
        raise ValueError(
            f"aligned is {aligned.shape} and the reference {reference.shape}; "
            f"expected {(y1 - y0, x1 - x0)} for the box (y0, y1, x0, x1) = {tuple(box_px)}"
        )
    both: NDArray[np.bool_] = np.isfinite(aligned) & np.isfinite(reference)
    if not both.any():
        raise ValueError(
            "no pixel is finite in both the reconstruction and the reference; expected at least one"
        )
    return both


def _phase_scale(phase: NDArray[np.floating]) -> tuple[tuple[float, float], str]:
    """Return colour limits and map of a phase: cyclic, -pi to pi, if it spreads that wide."""
    low, high = robust_limits(phase)
    if high - low > _CYCLIC_ABOVE_RAD:
        return (-math.pi, math.pi), CYCLIC_PHASE_MAP
    return (low, high), PHASE_MAP


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
    top = TOP + (0.2 if note else 0.0)
    figure, ((panel,),) = image_page(image.shape, 5.0, (True,), top=top)
    shown = show(panel.ax, image, origin_yx, limits, colour_map)
    colour_bar(panel.bar_ax, shown, image, label)
    add_scale_bar(panel.ax, image.shape[1])
    panel.ax.set_title(headline, fontsize=13, pad=20 if note else 6)
    above = (0.5, 1), (0, 6), "axes fraction", "offset points"
    panel.ax.annotate(note, *above, ha="center", fontsize=9, color="0.35")
    write_png(figure, path)
