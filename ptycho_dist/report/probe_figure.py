"""A picture of a probe, before and after it was refined."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ptycho_dist.report.alignment import mean_phase, relative_phase
from ptycho_dist.report.drawing import (
    BAR,
    BOTTOM,
    GAP,
    LEFT,
    QUARTERS,
    RIGHT,
    PngTarget,
    add_axes,
    add_scale_bar,
    write_png,
)


def draw_probe(before: ArrayLike, after: ArrayLike | None, path: PngTarget) -> None:
    """Draw a probe's modes, before and after its refinement where there was one: brightness is
    amplitude, colour is phase.

    Incoherent modes are defined up to a unitary mixture. They are drawn as the orthogonal ones of
    the same light (Thibault & Menzel, Nature 494, 68 (2013)), strongest first, each relative to its
    mean phase, as bright as it goes; its title tells its share of the energy.

    Parameters
    ----------
    before, after : array, complex, (modes, N, N)
        In any units; their numbers of modes may differ. `after` is None where the probe was not
        refined: one row is drawn then.
    path : str or os.PathLike
        PNG file to write, or to replace; its directory is made if missing.

    Raises
    ------
    ValueError
        Not complex (modes, N, N), or not of one N; a value that is not finite; zeros only; a path
        that does not end in .png.
    """
    probes = {"before": before} if after is None else {"before": before, "after": after}
    rows = {name: _orthogonal_modes(probe, name) for name, probe in probes.items()}
    sizes = [modes.shape[-1] for modes, _ in rows.values()]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the probe has {sizes[0]} x {sizes[0]} pixels before and {sizes[1]} x {sizes[1]} "
            "after; expected one size"
        )
    columns = max(len(modes) for modes, _ in rows.values())
    side, title = 2.2, 0.3
    width = LEFT + columns * (side + GAP) + BAR + RIGHT
    figure = Figure(figsize=(width, BOTTOM + len(rows) * (side + title) + GAP))
    lowest = list(rows)[-1]
    bottoms = [BOTTOM + row * (side + title) for row in reversed(range(len(rows)))]
    for bottom, (name, (modes, shares)) in zip(bottoms, rows.items(), strict=True):
        for number, (mode, share) in enumerate(zip(modes, shares, strict=True)):
            ax = add_axes(figure, LEFT + number * (side + GAP), bottom, side, side)
            ax.imshow(_amplitude_and_phase(mode, mean_phase(mode)))
            ax.tick_params(labelsize=9, labelbottom=name == lowest, labelleft=number == 0)
            ax.set_title(f"mode {number + 1}: {100 * share:.3g} %", fontsize=10)
        first = figure.axes[-len(modes)]
        first.set_ylabel("y (px)" if after is None else f"{name}\ny (px)", fontsize=10)
        add_scale_bar(first, sizes[0])
    for ax in figure.axes[-len(rows[lowest][0]) :]:
        ax.set_xlabel("x (px)", fontsize=10)
    bar_ax = add_axes(figure, width - RIGHT - BAR, BOTTOM, BAR, len(rows) * (side + title) - title)
    phases = np.linspace(-math.pi, math.pi, 256)[:, None]
    bar_ax.imshow(
        _amplitude_and_phase(np.exp(1j * phases), 0.0),
        aspect="auto",
        origin="lower",
        extent=(0, 1, -math.pi, math.pi),
    )
    bar_ax.set_xticks([])
    bar_ax.yaxis.tick_right()
    bar_ax.yaxis.set_label_position("right")
    bar_ax.set_yticks(
        [math.pi / 2 * quarter for quarter in QUARTERS.values()], labels=list(QUARTERS)
    )
    bar_ax.set_ylabel("phase (rad)", fontsize=10)
    write_png(figure, path)


def _orthogonal_modes(
    probe: ArrayLike, name: str
) -> tuple[NDArray[np.complexfloating], NDArray[np.floating]]:
    """Orthogonal modes (modes, N, N) of the same incoherent light, strongest first, and their
    shares of the energy."""
    modes = np.asarray(probe)
    if modes.ndim != 3 or modes.shape[1] != modes.shape[2] or modes.dtype.kind != "c":
        raise ValueError(
            f"the probe {name} is {modes.dtype} {modes.shape}; expected a complex array (modes, "
            "N, N)"
        )
    if not np.isfinite(modes).all() or not modes.any():
        raise ValueError(
            f"the probe {name} holds "
            f"{'zeros only' if np.isfinite(modes).all() else 'NaN or infinity'}; expected light "
            "in it"
        )
    _, strengths, orthogonal = np.linalg.svd(modes.reshape(len(modes), -1), full_matrices=False)
    return (strengths[:, None] * orthogonal).reshape(modes.shape), strengths**2 / np.sum(
        strengths**2
    )


def _amplitude_and_phase(
    field: NDArray[np.complexfloating], zero_rad: float
) -> NDArray[np.floating]:
    """Colours (..., 3) of a field: brightness its amplitude over the largest, hue its phase
    relative to `zero_rad`."""
    amplitude = np.abs(field)
    hue = relative_phase(field, zero_rad) / (2 * math.pi) % 1
    return hsv_to_rgb(
        np.stack((hue, np.ones_like(hue), amplitude / (amplitude.max() or 1)), axis=-1)
    )
