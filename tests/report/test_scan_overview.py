"""The picture of a scan: one page, whatever is missing."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ptycho_dist.report import scan_overview
from ptycho_dist.report.scan_overview import draw_scan_overview


def arguments(**changed: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    mask = np.ones((16, 16), dtype=bool)
    mask[3:5] = False
    known = {
        "title": "scan.npz $x_1$",
        "mean_pattern": random.uniform(0, 9, (16, 16)),
        "mask": mask,
        "centre_of_mass": (8.5, 7.0),
        "positions_px": random.uniform(8, 30, (20, 2)),
        "object_guess": random.normal(size=(40, 44)) + 1j,
        "probe": (random.normal(size=(2, 16, 16)) + 1j).astype(np.complex64),
        "counts": random.uniform(900, 1100, 20),
        "nphotons": 1000.0,
        "beam_diameter_px": 7.0,
    }
    return {**known, **changed}


def drawn(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(scan_overview, "write_png", lambda figure, path: figures.append(figure))
    draw_scan_overview(**arguments(**changed), path=io.BytesIO())
    FigureCanvasAgg(figures[0]).draw()
    return figures[0]


def texts(figure: Figure) -> list[str]:
    found = [ax.get_title() for ax in figure.axes] + [ax.get_ylabel() for ax in figure.axes]
    for ax in figure.axes:
        legend = ax.get_legend()
        found += [text.get_text() for text in legend.get_texts()] if legend else []
    return found


def test_everything_known_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch)
    found = texts(figure)
    for text in (
        "mean pattern",
        "masked (32 px)",
        "centre of mass",
        "positions on the file's object",
        "nphotons 1000",
        "phase (rad)",
    ):
        assert text in found
    assert any(title.startswith("probe mode 2: ") for title in found)
    mean = figure.axes[0].images[0]
    shown = mean.get_array()
    assert np.ma.getmaskarray(shown)[3:5].all() or np.isnan(np.ma.getdata(shown)[3:5]).all()
    order = figure.axes[1].collections[0]
    np.testing.assert_array_equal(order.get_array(), np.arange(20))
    # drawn as (x, y)
    np.testing.assert_allclose(order.get_offsets(), arguments()["positions_px"][:, ::-1])
    low, high = figure.axes[1].get_ylim()
    assert low > high  # y grows downward


@pytest.mark.parametrize(
    "changed",
    [
        {
            "mask": None,
            "object_guess": None,
            "probe": np.empty((0, 16, 16), np.complex64),
            "nphotons": None,
            "beam_diameter_px": None,
        },
        {"mean_pattern": np.zeros((16, 16)), "centre_of_mass": None, "counts": np.zeros(20)},
        {"positions_px": np.full((1, 2), 9.0), "counts": np.array([5.0])},
        {"positions_px": np.full((20, 2), 9.0)},
        {"probe": np.ones((9, 16, 16), np.complex64)},
        {"object_guess": np.full((40, 44), np.nan + 0j)},
        {"mean_pattern": np.eye(16)},
    ],
    ids=[
        "bare",
        "dark",
        "one pattern",
        "one place",
        "many modes",
        "no object at all",
        "mostly dark",
    ],
)
def test_page_is_drawn_whatever_is_missing(changed: dict[str, Any]) -> None:
    stream = io.BytesIO()
    draw_scan_overview(**arguments(**changed), path=stream)
    with Image.open(stream) as image:
        assert image.format == "PNG"
        assert image.width == 2250


def test_at_most_four_modes_are_drawn_with_their_share_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe = np.repeat(np.eye(8, dtype=np.complex64), 32, axis=1).reshape(8, 16, 16)  # orthogonal
    found = texts(drawn(monkeypatch, probe=probe))
    titles = [title for title in found if title.startswith("probe mode")]
    assert titles == [f"probe mode {number}: 12.5 % of the light" for number in range(1, 5)]
