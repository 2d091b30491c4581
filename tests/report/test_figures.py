"""Figures are complete PNG files that show the valid pixels, and only those."""

import io
import math

import numpy as np
import pytest
from matplotlib import image as png
from matplotlib.colors import LogNorm
from scipy import ndimage

from ptycho_dist.report import curve_figures, drawing, object_figures, probe_figure, scan_figures
from ptycho_dist.report.fourier_ring import fourier_ring_correlation

SHAPE = (60, 80)
BLANK_RGB = np.array([0xE6] * 3) / 255


@pytest.fixture
def field():
    rng = np.random.default_rng(0)
    amplitude, phase = (ndimage.gaussian_filter(rng.normal(size=SHAPE), 2) for _ in range(2))
    return ((0.5 + amplitude) * np.exp(2j * phase)).astype(np.complex64)


@pytest.fixture
def left_half():
    valid = np.zeros(SHAPE, dtype=bool)
    valid[:, :40] = True
    return valid


def read_rgb(path):
    """Read a PNG: proves that it is one, whole."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return png.imread(path)[..., :3]


def blank_area_in2(rgb):
    # 8-bit colours: equal within half a level of 255.
    return np.count_nonzero((np.abs(rgb - BLANK_RGB) < 0.002).all(axis=-1)) / 150**2


def hide_scale_bar(monkeypatch):
    monkeypatch.setattr(object_figures, "add_scale_bar", lambda *_: None)


@pytest.mark.parametrize("draw", [object_figures.draw_amplitude, object_figures.draw_phase])
def test_object_figure_is_written_and_not_blank(tmp_path, field, draw):
    path = tmp_path / "object.png"
    draw(field, (-3.0, 7.5), np.ones(SHAPE, dtype=bool), path)
    rgb = read_rgb(path)
    # A page with labels only has few colours and little contrast; a smooth image has hundreds of
    # shades.
    assert len(np.unique(rgb.reshape(-1, 3), axis=0)) > 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["object.png"]


@pytest.mark.parametrize("draw", [object_figures.draw_amplitude, object_figures.draw_phase])
def test_invalid_pixels_are_blank_whatever_they_hold(tmp_path, monkeypatch, field, left_half, draw):
    hide_scale_bar(monkeypatch)
    pictures = []
    for name, garbage in (("zero", 0), ("huge", 1e9 + 1e9j), ("nan", np.nan)):
        field[~left_half] = garbage
        draw(field, (0, 0), left_half, tmp_path / f"{name}.png")
        pictures.append(read_rgb(tmp_path / f"{name}.png"))
    # Not the blank area alone: colour limits, mean phase and labels must not change either.
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])

    draw(field, (0, 0), left_half, tmp_path / "left.png")
    # Half of axes of 5 x 3.75 inches; frame and edges take less than 2 %.
    assert blank_area_in2(read_rgb(tmp_path / "left.png")) == pytest.approx(
        0.5 * 5 * 3.75, rel=0.02
    )


def test_single_pixels_are_shown_where_they_lie(tmp_path, monkeypatch):
    hide_scale_bar(monkeypatch)
    # One dark valid pixel among bright ones, at row 1 and column 3 of 6 x 8.
    field = np.ones((6, 8), dtype=np.complex64)
    field[1, 3] = 0
    object_figures.draw_amplitude(field, (0, 0), np.ones((6, 8), dtype=bool), tmp_path / "one.png")
    rgb = read_rgb(tmp_path / "one.png")
    height, width = rgb.shape[:2]
    # Axes start 0.8 inches from the left and 0.45 from the top; pixels are 5/8 inches wide; 150
    # dots an inch.
    row, column = (np.array([1.5, 3.5]) * 5 / 8 + (0.45, 0.8)) * 150
    assert (height, width) == (
        round((0.6 + 3.75 + 0.45) * 150),
        round((0.8 + 5 + 0.12 + 0.16 + 1) * 150),
    )
    assert rgb[int(row), int(column)].max() < 0.05
    assert rgb[int(row), int(column) + 94].min() > 0.95
    assert rgb[int(row) + 94, int(column)].min() > 0.95


def recorded_images(monkeypatch):
    """Record what is shown: list of (image, origin, limits, colour map)."""
    shown, show = [], drawing.show

    def record(ax, image, origin_yx, limits, colour_map):
        shown.append((image, origin_yx, limits, colour_map))
        return show(ax, image, origin_yx, limits, colour_map)

    monkeypatch.setattr(object_figures, "show", record)
    return shown


def test_phase_is_relative_to_its_mean_and_keeps_its_ramp(tmp_path, monkeypatch, field):
    shown = recorded_images(monkeypatch)
    valid = np.ones(SHAPE, dtype=bool)
    tilted = 3 * np.exp(2j) * field * np.exp(0.02j * np.arange(80))
    object_figures.draw_phase(tilted, (0, 0), valid, tmp_path / "kept.png")
    object_figures.draw_phase(tilted, (0, 0), valid, tmp_path / "removed.png", remove_ramp=True)
    (kept, *_), (removed, *_) = shown

    def slope(phase):
        return np.polyfit(np.arange(80), phase.mean(axis=0), 1)[0]

    # The field has a slope of its own of some 1e-3 rad a pixel, and the fit weighs by amplitude.
    assert slope(kept) == pytest.approx(0.02, abs=3e-3)
    assert slope(removed) == pytest.approx(0, abs=3e-3)
    for phase in (kept, removed):
        # Circular and plain mean agree but for the amplitude weights.
        assert abs(phase.mean()) < 0.1


def test_wrapping_phase_gets_a_cyclic_map(tmp_path, monkeypatch):
    shown = recorded_images(monkeypatch)
    valid = np.ones(SHAPE, dtype=bool)
    for fringes in (0.3, 3):
        phase = np.broadcast_to(2 * np.pi * fringes * np.arange(80) / 80, SHAPE)
        object_figures.draw_phase(np.exp(1j * phase), (0, 0), valid, tmp_path / "phase.png")
    (_, _, narrow, sequential), (_, _, wide, cyclic) = shown
    assert sequential == "viridis"
    assert narrow[1] - narrow[0] < math.pi
    assert cyclic == "twilight"
    assert wide == (-math.pi, math.pi)


def test_colour_limits_ignore_a_few_bad_pixels(tmp_path, monkeypatch, field):
    shown = recorded_images(monkeypatch)
    field[0, :3] = 1e6
    object_figures.draw_amplitude(
        field, (0, 0), np.ones(SHAPE, dtype=bool), tmp_path / "amplitude.png"
    )
    assert shown[0][2][1] < 2


def test_constant_object_and_single_pixel_can_be_drawn(tmp_path):
    for shape in ((30, 30), (1, 1), (2, 300)):
        flat = np.ones(shape, dtype=np.complex64)
        object_figures.draw_amplitude(
            flat, (0, 0), np.ones(shape, dtype=bool), tmp_path / "amplitude.png"
        )
        object_figures.draw_phase(flat, (0, 0), np.ones(shape, dtype=bool), tmp_path / "phase.png")
        read_rgb(tmp_path / "phase.png")


def curves(field):
    return {"object": fourier_ring_correlation(field, field, np.ones(SHAPE, dtype=bool))}


def test_comparison_shows_both_and_their_difference(tmp_path, monkeypatch, field, left_half):
    shown = recorded_images(monkeypatch)
    aligned = np.where(left_half, field * 1.1 * np.exp(0.3j), np.nan)
    path = tmp_path / "comparison.png"
    object_figures.draw_comparison(
        aligned, field, (5, 65, 10, 90), curves(field), path, title="a title"
    )
    read_rgb(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["comparison.png"]
    (
        amplitude,
        amplitude_reference,
        amplitude_difference,
        phase,
        phase_reference,
        phase_difference,
    ) = shown
    assert {entry[1] for entry in shown} == {(5, 10)}
    # The pairs share limits and map, so that equal colours are equal values.
    assert amplitude[2:] == amplitude_reference[2:]
    assert phase[2:] == phase_reference[2:]
    # Rounding of complex64.
    np.testing.assert_allclose(
        amplitude_difference[0][left_half], 0.1 * np.abs(field[left_half]), atol=1e-6
    )
    np.testing.assert_allclose(phase_difference[0][left_half], 0.3, atol=1e-5)
    assert np.isnan(amplitude_difference[0][~left_half]).all()
    assert np.isfinite(amplitude_reference[0]).all()


def test_comparison_shows_ring_correlations_with_their_thresholds(tmp_path, monkeypatch, field):
    lines, labels, write = {}, [], drawing.write_png

    def record(figure, path):
        ax = figure.axes[-1]
        lines.update(
            {line.get_label(): line.get_ydata() for line in ax.lines if len(line.get_ydata()) > 2}
        )
        labels.extend(text.get_text() for text in ax.get_legend().get_texts())
        write(figure, path)

    monkeypatch.setattr(object_figures, "write_png", record)
    everywhere = np.ones(SHAPE, dtype=bool)
    noise = np.random.default_rng(1).normal(size=SHAPE)
    curves = {
        name: fourier_ring_correlation(image, field.real, everywhere)
        for name, image in (("same", field.real), ("noise", noise))
    }
    object_figures.draw_comparison(
        field, field, (0, 60, 0, 80), curves, tmp_path / "comparison.png"
    )
    assert labels == [
        "same: 2.00 px at 1/2 bit, 2.00 px at 0.5",
        "noise: none at 1/2 bit, none at 0.5",
        "1/2-bit thresholds",
    ]
    for label, curve in zip(labels, curves.values(), strict=False):
        np.testing.assert_array_equal(lines[label], curve.correlation)
    assert sum(np.array_equal(shown, curves["same"].half_bit) for shown in lines.values()) == len(
        curves
    )
    read_rgb(tmp_path / "comparison.png")


def training_rows():
    rows = []
    for epoch in range(5):
        loss = 20.0 / (epoch + 1)
        rows.append({"step": 10 * epoch, "epoch": epoch, "train_deviance_per_pixel": loss})
        rows.append(
            {
                "step": str(10 * epoch + 9),
                "epoch": str(epoch),
                "train_deviance_per_pixel": "",
                "val_deviance_per_pixel": str(1.1 * loss),
            }
        )
    return rows


def recorded_curves(monkeypatch):
    """Record the lines of the figure that is written: dict of label to (x, y)."""
    curves, write = {}, drawing.write_png

    def record(figure, path):
        for line in figure.axes[0].lines:
            curves[line.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
        assert figure.axes[0].get_yscale() == "log"
        write(figure, path)

    monkeypatch.setattr(curve_figures, "write_png", record)
    return curves


def test_training_curve_passes_over_empty_cells(tmp_path, monkeypatch):
    curves = recorded_curves(monkeypatch)
    curve_figures.draw_training_curve(training_rows(), tmp_path / "curve.png")
    read_rgb(tmp_path / "curve.png")
    assert curves["training"] == ([0, 10, 20, 30, 40], [20, 10, 20 / 3, 5, 4])
    assert curves["validation"][0] == [9, 19, 29, 39, 49]


def test_training_curve_tells_of_values_it_cannot_show(tmp_path, monkeypatch):
    curves = recorded_curves(monkeypatch)
    rows = training_rows()
    rows[4]["train_deviance_per_pixel"] = "nan"
    rows[6]["train_deviance_per_pixel"] = "inf"
    curve_figures.draw_training_curve(rows, tmp_path / "curve.png")
    x, y = curves["training (2 of 5 values not shown)"]
    assert x == [0, 10, 20, 30, 40]
    assert np.isnan(y).tolist() == [False, False, True, True, False]


def test_training_curve_names_what_another_loss_reports(tmp_path, monkeypatch):
    curves = recorded_curves(monkeypatch)
    rows = [
        {
            key.replace("train_deviance", "train_amplitude_error"): value
            for key, value in row.items()
        }
        for row in training_rows()
    ]
    curve_figures.draw_training_curve(rows, tmp_path / "curve.png")
    assert curves["training: amplitude error per pixel"][1] == [20, 10, 20 / 3, 5, 4]
    assert curves["validation"][0] == [9, 19, 29, 39, 49]


def test_training_curve_falls_back_to_epochs(tmp_path, monkeypatch):
    curves = recorded_curves(monkeypatch)
    rows = [
        {"step": "", "epoch": epoch, "val_deviance_per_pixel": 3.0 - epoch} for epoch in range(2)
    ]
    curve_figures.draw_training_curve(rows, tmp_path / "curve.png")
    assert curves["validation"] == ([0, 1], [3, 2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "none of the 0 rows has a step or an epoch"),
        (
            [{"step": 1, "loss": 2.0}],
            "none of the 1 rows has a positive, finite train_deviance_per_pixel or val",
        ),
        (
            [{"step": 1, "val_deviance_per_pixel": "nan"}],
            "none of the 1 rows has a positive, finite",
        ),
        (
            [{"step": 1, "val_deviance_per_pixel": "high"}],
            "val_deviance_per_pixel holds 'high'; expected a number",
        ),
    ],
)
def test_training_curve_refuses_rows_without_a_curve(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        curve_figures.draw_training_curve(rows, tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"object_": np.ones(SHAPE)},
            r"the object is float64 \(60, 80\); expected a complex array",
        ),
        (
            {"valid": np.ones((2, 2), dtype=bool)},
            r"mask is bool \(2, 2\); expected bool \(60, 80\)",
        ),
        ({"valid": np.zeros(SHAPE, dtype=bool)}, "no pixel of the object is valid"),
        ({"origin_px": (1, 2, 3)}, "origin_px is .*expected two finite numbers"),
        (
            {"object_": np.full(SHAPE, np.nan, np.complex64)},
            "NaN or infinity at 4800 of 4800 values",
        ),
    ],
)
@pytest.mark.parametrize("draw", [object_figures.draw_amplitude, object_figures.draw_phase])
def test_refused_object_is_named(tmp_path, field, draw, change, message):
    arguments = {
        "object_": field,
        "origin_px": (0, 0),
        "valid": np.ones(SHAPE, dtype=bool),
    } | change
    with pytest.raises(ValueError, match=message):
        draw(**arguments, path=tmp_path / "object.png")
    assert not list(tmp_path.iterdir())


def test_comparison_refuses_what_does_not_fit(tmp_path, field):
    path = tmp_path / "comparison.png"
    with pytest.raises(
        ValueError, match=r"aligned is \(60, 80\) .*expected \(60, 79\) for the box"
    ):
        object_figures.draw_comparison(field, field, (0, 60, 0, 79), curves(field), path)
    with pytest.raises(ValueError, match="no pixel is finite in both"):
        object_figures.draw_comparison(
            np.full_like(field, np.nan), field, (0, 60, 0, 80), curves(field), path
        )
    assert not path.exists()


def test_another_suffix_is_refused(tmp_path, field):
    with pytest.raises(ValueError, match=r"phase.pdf'; expected a name that ends in .png"):
        object_figures.draw_phase(field, (0, 0), np.ones(SHAPE, dtype=bool), tmp_path / "phase.pdf")


def test_failed_write_keeps_the_old_figure_and_leaves_nothing_else(tmp_path, monkeypatch, field):
    path = tmp_path / "amplitude.png"
    path.write_bytes(b"old")

    def fail(self, target, **_):
        target.write_bytes(b"half a fig")
        raise OSError("disk full")

    monkeypatch.setattr(drawing.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        object_figures.draw_amplitude(field, (0, 0), np.ones(SHAPE, dtype=bool), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["amplitude.png"]


@pytest.mark.parametrize(
    ("width_px", "label"),
    [(3, "1 px"), (40, "10 px"), (99, "20 px"), (238, "50 px"), (4000, "1000 px")],
)
def test_scale_bar_is_a_round_number_of_pixels(width_px, label):
    ax = drawing.Figure().subplots()
    drawing.add_scale_bar(ax, width_px)
    assert ax.artists[0].txt_label.get_text() == label


def gaussian_probe(*, modes=1):
    y, x = np.indices((32, 32)) - 15.5
    envelope = np.exp(-(y**2 + x**2) / 60) * np.exp(0.02j * (y**2 + x**2))
    return np.stack([envelope, 0.5j * x / 6 * envelope][:modes]).astype(np.complex64)


def recorded_probe(monkeypatch):
    """Record what the figure shows: lists of images and of titles, without the colour bar's."""
    images, titles, write = [], [], drawing.write_png

    def record(figure, path):
        axes = [ax for ax in figure.axes if ax.get_title()]
        images.extend(ax.images[0].get_array() for ax in axes)
        titles.extend(ax.get_title() for ax in axes)
        write(figure, path)

    monkeypatch.setattr(probe_figure, "write_png", record)
    return images, titles


def test_probe_before_and_after(tmp_path, monkeypatch):
    images, titles = recorded_probe(monkeypatch)
    before, after = gaussian_probe(), gaussian_probe(modes=2)
    probe_figure.draw_probe(before, after, tmp_path / "probe.png")
    assert len(np.unique(read_rgb(tmp_path / "probe.png").reshape(-1, 3), axis=0)) > 200
    energy = np.sum(np.abs(after) ** 2, axis=(1, 2))  # even and odd in x: orthogonal already
    shares = [
        f"mode {number + 1}: {share:.3g} %"
        for number, share in enumerate(100 * energy / energy.sum())
    ]
    assert titles == ["mode 1: 100 %", *shares]
    for image, mode in zip(images, (before[0], *after), strict=True):
        # brightness
        np.testing.assert_allclose(image.max(axis=-1), np.abs(mode) / np.abs(mode).max(), atol=1e-5)


def test_probe_is_drawn_as_its_orthogonal_modes(tmp_path, monkeypatch):
    """A unitary mixture of the modes is the same light and the same picture."""
    images, titles = recorded_probe(monkeypatch)
    modes = gaussian_probe(modes=2)
    mixed = np.einsum("ij,jyx->iyx", np.array([[0.6, 0.8j], [0.8j, 0.6]]), modes)
    probe_figure.draw_probe(modes, mixed, tmp_path / "probe.png")
    assert titles[:2] == titles[2:]
    # Brightness alone: an odd mode has no mean phase.
    for one, other in zip(images[:2], images[2:], strict=True):
        np.testing.assert_allclose(one.max(axis=-1), other.max(axis=-1), atol=1e-5)


def test_hue_of_the_probe_is_its_phase():
    field = np.array([[1, 1j, -1, -1j]])
    red, chartreuse, cyan, violet = probe_figure._amplitude_and_phase(field, 0.0)[0]
    np.testing.assert_allclose(
        [red, chartreuse, cyan, violet],
        [(1, 0, 0), (0.5, 1, 0), (0, 1, 1), (0.5, 0, 1)],
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (
            np.ones((1, 32, 32)),
            r"the probe after is float64 \(1, 32, 32\); expected a complex array",
        ),
        (np.ones((32, 32), np.complex64), r"the probe after is complex64 \(32, 32\)"),
        (np.ones((1, 16, 16), np.complex64), "32 x 32 pixels before and 16 x 16 after"),
        (np.full((1, 32, 32), np.nan, np.complex64), "the probe after holds NaN or infinity"),
        (np.zeros((1, 32, 32), np.complex64), "the probe after holds zeros only"),
    ],
)
def test_probe_that_cannot_be_drawn_is_named(tmp_path, after, message):
    with pytest.raises(ValueError, match=message):
        probe_figure.draw_probe(gaussian_probe(), after, tmp_path / "probe.png")
    assert not list(tmp_path.iterdir())


def test_one_probe_alone_is_one_row(tmp_path, monkeypatch):
    images, titles = recorded_probe(monkeypatch)
    probe_figure.draw_probe(gaussian_probe(modes=2), None, tmp_path / "probe.png")
    assert len(images) == len(titles) == 2
    read_rgb(tmp_path / "probe.png")


def test_stream_gets_what_a_file_gets(tmp_path, field):
    valid, stream = np.ones(SHAPE, dtype=bool), io.BytesIO()
    object_figures.draw_amplitude(field, (0, 0), valid, stream)
    object_figures.draw_amplitude(field, (0, 0), valid, tmp_path / "amplitude.png")
    assert stream.getvalue() == (tmp_path / "amplitude.png").read_bytes()


def recorded_axes(monkeypatch, module=scan_figures):
    """Record the axes of the figure that is written."""
    axes, write = [], module.write_png

    def record(figure, path):
        axes.extend(figure.axes)
        write(figure, path)

    monkeypatch.setattr(module, "write_png", record)
    return axes


def test_mean_patterns_share_logarithmic_colours(tmp_path, monkeypatch):
    axes = recorded_axes(monkeypatch)
    measured = np.full((8, 8), 10.0)
    measured[0, :4] = 0  # no photon in any pattern: as dark as it goes, not blank
    measured[4, 4] = 4000
    predicted = 2 * measured
    predicted[1, 1], predicted[1, 2] = 1e-30, np.nan
    scan_figures.draw_mean_patterns(measured, predicted, tmp_path / "patterns.png")
    read_rgb(tmp_path / "patterns.png")
    (left,), (right,) = axes[0].images, axes[1].images
    assert left.get_clim() == right.get_clim() == (10, 8000)
    assert isinstance(left.norm, LogNorm)
    assert isinstance(right.norm, LogNorm)
    assert left.get_extent() == [-4.5, 3.5, 3.5, -4.5]  # the direct beam, pixel [4, 4], at 0, 0
    np.testing.assert_array_equal(left.get_array(), np.maximum(measured, 10))
    assert right.get_array()[1, 1] == 10
    assert np.argwhere(np.ma.getmaskarray(right.get_array())).tolist() == [[1, 2]]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_mean_patterns_without_light_can_be_drawn(tmp_path, value):
    scan_figures.draw_mean_patterns(
        np.zeros((8, 8)), np.full((8, 8), value), tmp_path / "patterns.png"
    )
    read_rgb(tmp_path / "patterns.png")


def test_scan_shows_each_deviance_at_its_position(tmp_path, monkeypatch):
    axes = recorded_axes(monkeypatch)
    random = np.random.default_rng(0)
    positions, deviance = random.uniform(0, 100, (300, 2)), random.uniform(1, 9, 300)
    deviance[7] = np.nan
    scan_figures.draw_scan(positions, deviance, tmp_path / "scan.png")
    read_rgb(tmp_path / "scan.png")
    way, residual = axes[0], axes[2]
    (order,) = way.collections
    np.testing.assert_array_equal(order.get_offsets(), positions[:, ::-1])
    np.testing.assert_array_equal(order.get_array(), np.arange(300))
    np.testing.assert_array_equal(np.column_stack(way.lines[0].get_data()), positions[:, ::-1])
    unknown, shown = residual.collections
    np.testing.assert_array_equal(unknown.get_offsets(), positions[7:8, ::-1])
    np.testing.assert_array_equal(shown.get_offsets(), np.delete(positions, 7, axis=0)[:, ::-1])
    np.testing.assert_array_equal(shown.get_array(), np.delete(deviance, 7))
    assert shown.get_clim() == tuple(np.percentile(np.delete(deviance, 7), [1, 99]))
    for ax in (way, residual):
        assert ax.yaxis_inverted()  # rows go down, as in the object
        width, height = ax.get_window_extent().size
        assert width / height == pytest.approx(
            abs(np.diff(ax.get_xlim()) / np.diff(ax.get_ylim()))[0], rel=1e-6
        )


@pytest.mark.parametrize(
    "positions", [np.zeros((1, 2)), np.zeros((5, 2)), np.arange(10)[:, None] * [0, 40.0]]
)
def test_scan_of_one_place_or_one_line_can_be_drawn(tmp_path, positions):
    scan_figures.draw_scan(positions, np.full(len(positions), np.nan), tmp_path / "scan.png")
    read_rgb(tmp_path / "scan.png")


def test_refinement_curve_starts_before_the_first_iteration(tmp_path, monkeypatch):
    curves = recorded_curves(monkeypatch)
    curve_figures.draw_refinement_curve([5.25, 4.5, 4.125], tmp_path / "curve.png")
    read_rgb(tmp_path / "curve.png")
    assert curves["whole scan"] == ([0, 1, 2], [5.25, 4.5, 4.125])


def test_training_curve_tells_the_loss_too(tmp_path, monkeypatch):
    curves = recorded_curves(monkeypatch)
    rows = [*training_rows(), {"step": 5, "step_deviance_per_pixel": 17.0}]
    axes = recorded_axes(monkeypatch, curve_figures)
    curve_figures.draw_training_curve(rows, tmp_path / "curve.png")
    assert curves["training, single steps"] == ([5], [17])
    (loss,) = axes[0].child_axes
    np.testing.assert_allclose(loss.get_ylim(), np.divide(axes[0].get_ylim(), 2))


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (
            scan_figures.draw_mean_patterns,
            (np.ones((8, 8)), np.ones((8, 7))),
            r"measured pattern is \(8, 8\) and the predicted one \(8, 7\)",
        ),
        (
            scan_figures.draw_scan,
            (np.zeros((3, 2)), np.zeros(2)),
            r"positions_px are \(3, 2\) and the deviances \(2,\)",
        ),
        (scan_figures.draw_scan, (np.zeros((0, 2)), np.zeros(0)), "n at least 1"),
        (curve_figures.draw_refinement_curve, ([],), r"deviances of the refinement are \[\]"),
        (
            curve_figures.draw_refinement_curve,
            ([2.0, np.inf],),
            "expected positive, finite numbers",
        ),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
