"""The page says what it was given, to the last digit, shows every picture, and lets nothing in that
it was given do anything."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from ptycho_dist.report import page as page_module
from ptycho_dist.report.page import Report, write_report
from tests.report.reading import ReadPage, assert_self_contained

SMALLEST_PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test of the text need not wait for."""
    monkeypatch.setattr(page_module, "_inline", lambda draw, *what, **options: SMALLEST_PNG)


def written(report: Report, folder: Path) -> ReadPage:
    write_report(report, folder / "report.html")
    return ReadPage(folder / "report.html")


@pytest.mark.usefixtures("without_pictures")
def test_audited_numbers_are_there_to_the_last_digit(report: Report, tmp_path: Path) -> None:
    page, scale = written(report, tmp_path), report.calibration
    shown = {
        "nphotons": scale.nphotons,
        "r": scale.rms_factor,
        "mean energy": scale.mean_energy,
        "s (intensity_scale)": scale.intensity_scale,
        "g (gain)": report.gain,
        "patterns counted": scale.num_patterns,
    }
    assert {name: float(page.value(name)) for name in shown} == shown
    assert page.value("fingerprint") == scale.subset_fingerprint
    (source,) = (row[2] for row in page.rows if row[0] == "nphotons")
    assert source.endswith("source: metadata")
    assert page.value("versions, training") == "python 3.10.1, torch 2.4.0"
    assert page.value("versions, this page") == "python 3.11.7, torch 2.13.0"
    for number in ("440557.10421110585", "438056.39212800923", "5.2333071127912705"):
        assert f": {number}" in page.text  # the summary as JSON


@pytest.mark.usefixtures("without_pictures")
def test_headline_facts(report: Report, tmp_path: Path) -> None:
    text = " ".join(written(report, tmp_path).text.split())
    assert "a deviance of 5.233 per pixel" in text
    # 438056.39 / 440557.10 = 0.99432; the thousands are kept together by narrow spaces, which
    # split() has made plain ones
    assert (
        "It predicts 438 056 photons per pattern where 440 557 were measured: 0.57 % fewer." in text
    )
    largest = f"{report.pattern_deviance_per_pixel.max():.4g}"
    y, x = report.positions_px[report.pattern_deviance_per_pixel.argmax()]
    assert f"Largest deviance, {largest} per pixel, at y = {y:.1f}, x = {x:.1f}." in text


@pytest.mark.usefixtures("without_pictures")
def test_more_photons_than_measured(report: Report, tmp_path: Path) -> None:
    brighter = {
        **report.summary,
        "mean_predicted_photons": 1.5 * report.summary["mean_measured_photons"],
    }
    assert "were measured: 50 % more." in " ".join(
        written(dataclasses.replace(report, summary=brighter), tmp_path).text.split()
    )


@pytest.mark.usefixtures("without_pictures")
def test_closed_form_is_an_audit_line(report: Report, tmp_path: Path) -> None:
    page = written(report, tmp_path)
    found, expected = page.value("closed form: s = √nphotons / (N/2)").split("\n")
    assert float(found) == report.calibration.intensity_scale
    assert float(expected) == math.sqrt(report.calibration.nphotons) / 8
    assert "passes both checks" in page.text
    assert "does not hold" not in page.text


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"intensity_scale": 1 + 1e-7}, {"definition", "closed form"}),
        ({"mean_energy": 1 + 1e-14}, {"definition"}),
        # s and the energy agree with each other, but not with r: they come from other patterns.
        ({"mean_energy": 1 + 4e-7, "intensity_scale": 1 / math.sqrt(1 + 4e-7)}, {"closed form"}),
    ],
)
def test_a_scale_that_can_not_be_right_is_told(
    report: Report, tmp_path: Path, changes: dict[str, float], failing: set[str]
) -> None:
    wrong = dataclasses.replace(
        report.calibration,
        **{name: getattr(report.calibration, name) * factor for name, factor in changes.items()},
    )
    page = written(dataclasses.replace(report, calibration=wrong), tmp_path)
    assert "fails a check" in page.text
    assert {
        row[0].split(":")[0] for row in page.rows if row[-1].startswith("does not hold")
    } == failing


@pytest.mark.usefixtures("without_pictures")
def test_hostile_text_is_shown_and_does_nothing(
    hostile_report: tuple[Report, str], report: Report, tmp_path: Path
) -> None:
    hostile, attack = hostile_report
    page = written(hostile, tmp_path)
    assert_self_contained(page)
    (tmp_path / "harmless").mkdir()
    assert (
        page.tags
        == written(
            dataclasses.replace(report, run={"scan": ""}, note="."), tmp_path / "harmless"
        ).tags
    )
    # Title twice, run twice, source, fingerprint, note, two versions twice; configuration and
    # summary hold it quoted.
    assert page.text.count(attack) >= 10


@pytest.mark.usefixtures("without_pictures")
def test_path_that_is_no_text(report: Report, tmp_path: Path) -> None:
    """A file's name may be any bytes; Python gives those that are not UTF-8 as lone surrogates,
    which no encoding takes."""
    page = written(
        dataclasses.replace(
            report, run={"scan": b"/data/\xff.npz".decode("utf-8", "surrogateescape")}
        ),
        tmp_path,
    )
    assert page.value("scan") == "/data/\\udcff.npz"


def test_pictures(report: Report, tmp_path: Path) -> None:
    page = written(report, tmp_path)
    assert_self_contained(page)
    assert len(page.images()) == 5
    assert not {"Training", "Refinement"} & {line.strip() for line in page.text.splitlines()}
    alternatives = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alternatives) == 5
    assert all(alternatives)


def test_optional_parts(full_report: Report, tmp_path: Path) -> None:
    page = written(full_report, tmp_path)
    assert len(page.images()) == 7
    assert {"Training", "Refinement"} <= {line.strip() for line in page.text.splitlines()}
    for fact in (
        "-447.4700343967199",
        "from 5.25 to 4.125",
        "nearest to the centre",
        "validation: 6.5",
        "2.25",
    ):
        assert fact in page.text


@pytest.mark.slow
def test_size_of_what_compresses_worst(full_report: Report, tmp_path: Path) -> None:
    """Noise everywhere, as fine as the pictures' dots. (A measured scan of 516 patterns: 1.3
    MB.)"""
    random = np.random.default_rng(0)
    noise = random.normal(size=(3, 1000, 1000, 2)).view(complex)[..., 0].astype(np.complex64)
    large = dataclasses.replace(
        full_report,
        object=noise[0],
        valid=np.ones((1000, 1000), dtype=bool),
        positions_px=random.uniform(0, 1000, (2000, 2)),
        pattern_deviance_per_pixel=random.uniform(1, 9, 2000).astype(np.float32),
        mean_measured_pattern=random.uniform(0, 1, (512, 512)),
        mean_predicted_pattern=random.uniform(0, 1, (512, 512)),
        probe=noise[:3, :256, :256],
        refined_probe=noise[:3, :256, :256],
    )
    written(large, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 4e6


@pytest.mark.usefixtures("without_pictures")
def test_a_network_that_adds_nothing_is_told_of_first(report: Report, tmp_path: Path) -> None:
    for helped in (True, False):
        summary = {**report.summary, "corrections": {"helped": helped}}
        text = written(dataclasses.replace(report, summary=summary), tmp_path).text
        assert ("does not improve the first estimate" in text) is not helped


@pytest.mark.usefixtures("without_pictures")
def test_masked_pixels_are_told(report: Report, tmp_path: Path) -> None:
    masked = dataclasses.replace(report, summary={**report.summary, "masked_pixels": 57})
    assert "Grey: the 57 masked pixels" in " ".join(written(masked, tmp_path).text.split())
    assert "Grey" not in written(report, tmp_path).text
