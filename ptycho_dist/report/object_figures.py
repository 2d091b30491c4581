"""Pictures of objects: amplitude, phase, and a reconstruction beside its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.report.alignment import (
    fit_phase_ramp,
    mean_phase,
    relative_phase,
    remove_phase_ramp,
)
from ptycho_dist.report.drawing import (
    BAR,
    BOTTOM,
    CYCLIC_PHASE_MAP,
    GAP,
    LEFT,
    LIMIT_PERCENTILES,
    PHASE_MAP,
    RIGHT,
    TOP,
    PngTarget,
    add_axes,
    add_scale_bar,
    colour_bar,
    image_size_in,
    robust_limits,
    show,
    write_png,
)
from ptycho_dist.report.fourier_ring import FourierRingCorrelation

_AMPLITUDE_MAP = "gray"
_DIFFERENCE_MAP = "RdBu_r"
# A spread beyond this wraps, or nearly: half of a cyclic map's colours would be lost on less.
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
        Pixels to show; the others stay blank, whatever they hold, and do not count in the colour
        limits.
    path : str or os.PathLike
        PNG file to write, or to replace; its directory is made if missing.
    title : str, optional

    Raises
    ------
    ValueError
        Shapes that do not agree; no valid pixel; a valid pixel that is not finite; a path that does
        not end in .png.
    """
    object_, mask, origin_yx = _checked_object(object_, origin_px, valid)
    amplitude = np.where(mask, np.abs(object_), np.nan)
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

    Phases that spread over much more than pi get a cyclic colour map from -pi to pi: a wrap is then
    no false edge.

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
    """Draw reconstruction, reference and difference, amplitude above phase, and below them Fourier
    ring correlations with thresholds.

    Both phases are relative to the mean phase of the reference where the two are compared. The
    difference of phases is ``angle(aligned * conj(reference))``, which does not see where either of
    them wraps.

    Parameters
    ----------
    aligned : array, complex, (y1 - y0, x1 - x0)
        The reconstruction, aligned with the reference (`comparison.compare_with_reference`); NaN
        where there is none.
    reference : array, complex, (y1 - y0, x1 - x0)
    box_px : tuple of int
        (y0, y1, x0, x1), half-open: the rows and columns that both cover, scan coordinates.
    ring_correlations : mapping of str to FourierRingCorrelation
        Curves by the name of what was correlated; at least one.
    path : str or os.PathLike
        PNG file to write, or to replace; its directory is made if missing.
    title : str, optional
        Headline, for example the scores.

    Raises
    ------
    ValueError
        Shapes that do not agree with the box; no pixel where both fields are finite; a path that
        does not end in .png.
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
        raise ValueError(
            "no pixel is finite in both the reconstruction and the reference; expected at least one"
        )

    zero_rad = mean_phase(reference[both])
    amplitudes = [np.abs(aligned), np.abs(reference)]
    phases = [relative_phase(aligned, zero_rad), relative_phase(reference, zero_rad)]
    # The reference alone sets the limits: they stay the same for every reconstruction compared with
    # it.
    amplitude_limits = robust_limits(np.where(both, amplitudes[1], np.nan))
    phase_limits, phase_map = _phase_scale(np.where(both, phases[1], np.nan))

    width, height = image_size_in(reference.shape, 3.3)
    # Left edges of the columns: the pair shares one colour bar, the difference has its own.
    lefts = (LEFT, LEFT + width + 2 * GAP, LEFT + 2 * width + 3 * GAP + BAR + RIGHT)
    top = TOP + (0.35 if title else 0.0)
    below = BOTTOM + _CURVES_HEIGHT + GAP
    figure = Figure(
        figsize=(lefts[2] + width + GAP + BAR + RIGHT, below + BOTTOM + 2 * height + 2 * GAP + top)
    )
    bottoms = (below + BOTTOM + height + 2 * GAP, below + BOTTOM)
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
        for left, name, (image, colour_limits, panel_map, bar_label) in zip(
            lefts, names, panels, strict=True
        ):
            ax = add_axes(figure, left, bottom, width, height)
            shown = show(ax, image, (y0, x0), colour_limits, panel_map)
            if bar_label is not None:
                # The pair's bar serves both of its images: its ends tell of pixels beyond the
                # limits in either.
                values = difference if image is difference else np.stack(images)
                bar_ax = add_axes(figure, left + width + GAP, bottom, BAR, height)
                colour_bar(figure, bar_ax, shown, values, bar_label)
            if bottom == bottoms[0]:
                ax.set_title(name, fontsize=11)
                ax.tick_params(labelbottom=False)
            else:
                ax.set_xlabel("x (px)", fontsize=10)
            if left == LEFT:
                ax.set_ylabel("y (px)", fontsize=10)
            else:
                ax.tick_params(labelleft=False)
    add_scale_bar(figure.axes[0], x1 - x0)
    _plot_ring_correlations(
        add_axes(figure, LEFT, BOTTOM, lefts[2] + width - LEFT, _CURVES_HEIGHT), ring_correlations
    )
    if title:
        figure.suptitle(title, fontsize=12, y=1 - 0.12 / figure.get_figheight(), va="top")
    write_png(figure, path)


def _plot_ring_correlations(ax: Axes, curves: Mapping[str, FourierRingCorrelation]) -> None:
    """Plot curves, each with its 1/2-bit threshold in the same colour, and say the periods at which
    they fall below."""
    for number, (name, curve) in enumerate(curves.items()):
        periods = [curve.resolution_px(threshold) for threshold in (curve.half_bit, 0.5)]
        half_bit, half = (
            f"{period:.2f} px" if math.isfinite(period) else "none" for period in periods
        )
        ax.plot(
            curve.frequency_cycles_per_px,
            curve.correlation,
            f"C{number}",
            label=f"{name}: {half_bit} at 1/2 bit, {half} at 0.5",
        )
        ax.plot(
            curve.frequency_cycles_per_px, curve.half_bit, f"C{number}", linestyle=":", linewidth=1
        )
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
    ax.legend(
        frameon=False, fontsize=9, loc="upper right", title="full period resolved", title_fontsize=9
    )


def _checked_object(
    object_: ArrayLike, origin_px: ArrayLike, valid: ArrayLike
) -> tuple[NDArray[np.complexfloating], NDArray[np.bool_], tuple[float, float]]:
    field, mask, origin = (
        np.asarray(object_),
        np.asarray(valid),
        np.asarray(origin_px, dtype=np.float64),
    )
    if field.ndim != 2 or field.dtype.kind != "c":
        raise ValueError(
            f"the object is {field.dtype} {field.shape}; expected a complex array (rows, columns)"
        )
    if mask.dtype != np.bool_ or mask.shape != field.shape:
        raise ValueError(
            f"the valid mask is {mask.dtype} {mask.shape}; expected bool {field.shape}, as the "
            "object"
        )
    if origin.shape != (2,) or not np.isfinite(origin).all():
        raise ValueError(f"origin_px is {origin.tolist()}; expected two finite numbers (y, x)")
    if not mask.any():
        raise ValueError("no pixel of the object is valid; expected at least one to draw")
    bad = np.count_nonzero(~np.isfinite(field[mask]))
    if bad:
        raise ValueError(
            f"the object holds NaN or infinity at {bad} of {mask.sum()} valid pixels; expected "
            "numbers"
        )
    return field, mask, (float(origin[0]), float(origin[1]))


def _robust_bound(difference: NDArray[np.floating]) -> float:
    """Symmetric colour limit; equal images get a small one, so that rounding is not blown up to
    look like an error."""
    return max(
        float(np.percentile(np.abs(difference[np.isfinite(difference)]), LIMIT_PERCENTILES[1])),
        1e-3,
    )


def _phase_scale(phase: NDArray[np.floating]) -> tuple[tuple[float, float], str]:
    """Colour limits and map for a phase: cyclic, over all of -pi to pi, where it spreads that
    wide."""
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
    width, height = image_size_in(image.shape, 5.0)
    figure = Figure(figsize=(LEFT + width + GAP + BAR + RIGHT, BOTTOM + height + top))
    ax = add_axes(figure, LEFT, BOTTOM, width, height)
    shown = show(ax, image, origin_yx, limits, colour_map)
    colour_bar(
        figure, add_axes(figure, LEFT + width + GAP, BOTTOM, BAR, height), shown, image, label
    )
    add_scale_bar(ax, image.shape[1])
    ax.set_xlabel("x (px)", fontsize=11)
    ax.set_ylabel("y (px)", fontsize=11)
    ax.set_title(headline, fontsize=13, pad=20 if note else 6)
    if note:
        ax.annotate(
            note,
            (0.5, 1),
            (0, 6),
            "axes fraction",
            "offset points",
            ha="center",
            fontsize=9,
            color="0.35",
        )
    write_png(figure, path)
