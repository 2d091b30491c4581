"""Curves of the deviance, over training and over refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ptycho_dist.report.drawing import PngTarget, finish_curves, write_png

_CURVES = {
    "train": ("training", "tab:blue"),
    "val": ("validation", "tab:orange"),
    "step": ("training, single steps", "0.75"),
}
_DEVIANCE = "deviance_per_pixel"
_MOST_MARKERS = 60
"""More of them on one curve would merge into a band."""


def draw_training_curve(rows: Sequence[Mapping[str, Any]], path: PngTarget) -> None:
    """Draw training and validation deviance per pixel, and the loss, which is half of it, against
    the optimiser step, logarithmically. Where training minimised another loss, draw what that loss
    reports beside the deviance of the validation.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``metrics.csv``: ``train_deviance_per_pixel``, ``val_deviance_per_pixel`` and
        ``step_deviance_per_pixel`` (no unit; any may be absent; another loss reports another
        quantity for training) over ``step``, or over ``epoch`` if no row has a step. Cells may be
        numbers or text; empty ones are skipped. Values that are not positive and finite break the
        line, and the legend counts them.
    path : PngTarget

    Raises
    ------
    ValueError
        No deviance to draw; text that is no number; a path that does not end in .png.
    """
    axes_named = (
        name for name in ("step", "epoch") if any(_cell(row, name) is not None for row in rows)
    )
    abscissa = next(axes_named, None)
    if abscissa is None:
        raise ValueError(
            f"none of the {len(rows)} rows has a step or an epoch; expected a column of either name"
        )
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    ax = figure.subplots()
    metric = _loss_metric(rows)
    columns = {prefix: f"{prefix}_{_DEVIANCE if prefix == 'val' else metric}" for prefix in _CURVES}
    for prefix, (name, colour) in _CURVES.items():
        if not columns[prefix].endswith(_DEVIANCE):
            name += f": {metric.replace('_', ' ')}"
        cells = [(_cell(row, abscissa), _cell(row, columns[prefix])) for row in rows]
        points = sorted((at, value) for at, value in cells if at is not None and value is not None)
        if points:
            at, values = np.array(points).T
            _plot_curve(ax, at, values, name, colour, is_background=prefix == "step")
    if not ax.lines:
        raise ValueError(
            f"none of the {len(rows)} rows has a positive, finite "
            f"{' or '.join(columns.values())}; expected at least one value"
        )
    _finish_deviance_axes(ax, abscissa)
    if metric == _DEVIANCE:
        halved, doubled = (lambda deviance: deviance / 2), (lambda loss: loss * 2)
        loss = ax.secondary_yaxis("right", functions=(halved, doubled))
        loss.set_ylabel("loss (half the deviance)", fontsize=11)
        _label_logarithm(loss)
    write_png(figure, path)


def draw_refinement_curve(deviance_per_pixel: Sequence[float], path: PngTarget) -> None:
    """Draw the deviance per pixel before a refinement and after each of its iterations,
    logarithmically.

    Raises
    ------
    ValueError
        No value; a value that is not positive and finite; a path that does not end in .png.
    """
    values = np.asarray(deviance_per_pixel, dtype=np.float64)
    if values.size == 0 or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"the deviances of the refinement are {values.tolist()}; expected positive, finite "
            "numbers, at least one"
        )
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    ax = figure.subplots()
    _plot_curve(ax, np.arange(len(values)), values, "whole scan", "tab:green")
    _finish_deviance_axes(ax, "iteration")
    write_png(figure, path)


def _loss_metric(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of what the loss of a run reports, after which its columns are named."""
    columns = (column for row in rows for column in row if column.startswith("train_"))
    return next(columns, f"train_{_DEVIANCE}").removeprefix("train_")


def _plot_curve(
    ax: Axes,
    at: np.ndarray,
    values: np.ndarray,
    name: str,
    colour: str,
    *,
    is_background: bool = False,
) -> None:
    shown = np.isfinite(values) & (values > 0)
    if not shown.any():
        return
    if not shown.all():
        name += f" ({np.count_nonzero(~shown)} of {len(values)} values not shown)"
    ax.plot(
        at,
        np.where(shown, values, np.nan),
        color=colour,
        marker="o" if len(values) <= _MOST_MARKERS and not is_background else "",
        markersize=4,
        label=name,
        zorder=1 if is_background else 2,
    )


def _finish_deviance_axes(ax: Axes, abscissa: str) -> None:
    ax.axhline(1.0, color="0.4", linewidth=1, linestyle="--", label="shot noise at high counts")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    finish_curves(ax)
    _label_logarithm(ax)
    ax.set_xlabel(abscissa, fontsize=11)
    ax.set_ylabel("deviance per pixel", fontsize=11)
    ax.legend(frameon=False, fontsize=10)


def _label_logarithm(ax: Any) -> None:
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    ax.tick_params(labelsize=9)


def _cell(row: Mapping[str, Any], name: str) -> float | None:
    """Return the number in a cell of metrics.csv, or None if it is missing or empty."""
    cell = row.get(name)
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds {cell!r}; expected a number or nothing") from None
