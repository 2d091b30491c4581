"""Pictures of a probe: its modes, before and after its refinement."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.report.alignment import mean_phase, relative_phase
from ptycho_dist.report.drawing import (
    BAR,
    BOTTOM,
    GAP,
    LEFT,
    RIGHT,
    PngTarget,
    add_axes,
    add_scale_bar,
    label_axes,
    phase_ticks,
    write_png,
)

_SIDE, _TITLE = 2.2, 0.3


def draw_probe(before: ArrayLike, after: ArrayLike | None, path: PngTarget) -> None:
    """Draw the modes of a probe before and after its refinement.

    Parameters
    ----------
    before, after : array, complex, (modes, N, N)
        In any units; the numbers of modes may differ. `after` is None for a probe that was not
        refined; one row is drawn then.
    path : PngTarget

    Raises
    ------
    ValueError
        Not complex (modes, N, N), or not of one N; NaN or infinite values; zeros only; a path that
        does not end in .png.
    """
    probes = {"before": before} if after is None else {"before": before, "after": after}
    rows = {name: orthogonal_modes(probe, f"probe {name}") for name, probe in probes.items()}
    sizes = [modes.shape[-1] for modes, _ in rows.values()]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the probe has {sizes[0]} x {sizes[0]} pixels before and {sizes[1]} x {sizes[1]} "
            "after; expected one size"
        )
    width = LEFT + max(len(modes) for modes, _ in rows.values()) * (_SIDE + GAP) + BAR + RIGHT
    height = len(rows) * (_SIDE + _TITLE)
    figure = Figure(figsize=(width, BOTTOM + height + GAP))
    for row, (name, (modes, shares)) in enumerate(rows.items()):
        bottom = BOTTOM + (len(rows) - 1 - row) * (_SIDE + _TITLE)
        for number, (mode, share) in enumerate(zip(modes, shares, strict=True)):
            ax = add_axes(figure, LEFT + number * (_SIDE + GAP), bottom, _SIDE, _SIDE)
            show_mode(ax, mode, f"mode {number + 1}: {100 * share:.3g} %")
            label_axes(ax, "px", x=row == len(rows) - 1, y=number == 0)
            if number == 0:
                ax.set_ylabel("y (px)" if after is None else f"{name}\ny (px)", fontsize=10)
                add_scale_bar(ax, sizes[0])
    show_phase_wheel(add_axes(figure, width - RIGHT - BAR, BOTTOM, BAR, height - _TITLE))
    write_png(figure, path)


def orthogonal_modes(
    probe: ArrayLike, name: str
) -> tuple[NDArray[np.complexfloating], NDArray[np.floating]]:
    """Return orthogonal modes (modes, N, N) of the same incoherent light, strongest first, and
    their shares of the energy.

    Incoherent modes are defined up to a unitary mixture; the orthogonal ones are unique (Thibault &
    Menzel, Nature 494, 68 (2013)).
    """
    modes = np.asarray(probe)
    if modes.ndim != 3 or modes.shape[1] != modes.shape[2] or modes.dtype.kind != "c":
        raise ValueError(
            f"the {name} is {modes.dtype} {modes.shape}; expected a complex array (modes, N, N)"
        )
    if not np.isfinite(modes).all() or not modes.any():
        raise ValueError(
            f"the {name} holds "
            f"{'zeros only' if np.isfinite(modes).all() else 'NaN or infinity'}; expected light "
            "in it"
        )
    _, strengths, orthogonal = np.linalg.svd(modes.reshape(len(modes), -1), full_matrices=False)
    orthogonal_with_energy = (strengths[:, None] * orthogonal).reshape(modes.shape)
    return orthogonal_with_energy, strengths**2 / np.sum(strengths**2)


def show_mode(ax: Axes, mode: NDArray[np.complexfloating], title: str) -> None:
    """Show a mode (N, N): brightness is amplitude, hue is phase relative to its mean."""
    ax.imshow(_amplitude_and_phase(mode, mean_phase(mode)))
    ax.set_title(title, fontsize=10)


def show_phase_wheel(ax: Axes) -> None:
    """Fill axes with the legend of the hues, a colour bar from -pi to pi."""
    phases = np.linspace(-math.pi, math.pi, 256)[:, None]
    colours = _amplitude_and_phase(np.exp(1j * phases), 0.0)
    ax.imshow(colours, aspect="auto", origin="lower", extent=(0, 1, -math.pi, math.pi))
    ax.set_xticks([])
    ax.yaxis.tick_right()
    ax.yaxis.set_label_position("right")
    phase_ticks(ax.yaxis)
    ax.set_ylabel("phase (rad)", fontsize=10)


def _amplitude_and_phase(
    field: NDArray[np.complexfloating], zero_rad: float
) -> NDArray[np.floating]:
    amplitude = np.abs(field)
    hue = relative_phase(field, zero_rad) / (2 * math.pi) % 1
    brightness = amplitude / (amplitude.max() or 1)
    return hsv_to_rgb(np.stack((hue, np.ones_like(hue), brightness), axis=-1))
