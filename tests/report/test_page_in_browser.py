"""The page in a real browser: what a person sees, and what the browser complains about or asks
for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ptycho_dist.report.page import Report, write_report
from tests.report.browser import Page, chromium, headless_page

ALL_IMAGES = (
    "Promise.all([...document.images].map(image => image.decode().then(() => "
    "[image.naturalWidth, image.naturalHeight])))"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = chromium()
    if program is None:
        pytest.skip(
            "no Chromium on this machine: tests/report/install_chromium.sh installs it as root"
        )
    with headless_page(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def full_page(full_report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(full_report, path)
    return path


def test_page_is_shown_whole_and_asks_for_nothing(
    browser: Page, full_page: Path, full_report: Report, tmp_path: Path
) -> None:
    browser.open(full_page.as_uri())
    assert browser.complaints == []
    page, *others = browser.requests
    assert page == full_page.as_uri()
    assert all(address.startswith("data:") for address in others)
    sizes = browser.evaluate(ALL_IMAGES)
    assert len(sizes) == 7
    assert min(min(size) for size in sizes) > 100
    text = browser.evaluate("document.body.innerText")  # as shown: what style hides is not in it
    scale = full_report.calibration
    for value in (
        scale.intensity_scale,
        scale.nphotons,
        scale.rms_factor,
        scale.mean_energy,
        scale.num_patterns,
    ):
        assert repr(value) in text
    assert scale.subset_fingerprint in text
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1280, browser.evaluate("document.documentElement.scrollHeight"))
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000  # the figures are in it


def test_records_open_without_a_script(browser: Page, full_page: Path) -> None:
    browser.open(full_page.as_uri())
    assert "nphotons: null" not in browser.evaluate("document.body.innerText")
    browser.evaluate("document.querySelectorAll('summary').forEach(summary => summary.click())")
    text = browser.evaluate("document.body.innerText")
    assert "nphotons: null" in text
    assert '"mean_predicted_photons": 438056.39212800923' in text


@pytest.mark.parametrize("width", [360, 800, 2560])
def test_no_sideways_scrolling_at_any_width(browser: Page, full_page: Path, width: int) -> None:
    browser.open(full_page.as_uri(), width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelector('h1').getBoundingClientRect().width") <= 1088


def test_light_and_dark(browser: Page, full_page: Path) -> None:
    shades = {}
    for dark in (False, True):
        browser.open(full_page.as_uri(), dark=dark)
        for what in ("backgroundColor", "color"):
            colour = browser.evaluate(f"getComputedStyle(document.body).{what}")
            shades[what, dark] = sum(
                map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))
            )
    assert shades["backgroundColor", False] > 600 > 150 > shades["color", False]
    assert shades["backgroundColor", True] < 150 < 600 < shades["color", True]


def test_prints(browser: Page, full_page: Path, tmp_path: Path) -> None:
    browser.open(full_page.as_uri())
    browser.print_to(tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= content.count(b"/Type /Page\n") <= 6


def test_hostile_text_runs_nothing(
    browser: Page, hostile_report: tuple[Report, str], tmp_path: Path
) -> None:
    report, attack = hostile_report
    path = tmp_path / (attack.replace("/", "_") + ".html")
    write_report(report, path)
    browser.open(path.as_uri())
    assert browser.complaints == []
    assert [address for address in browser.requests[1:] if not address.startswith("data:")] == []
    assert browser.evaluate("window.hit") is None
    assert attack in browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.title") == attack


def test_what_slipped_in_would_be_seen_and_stopped(
    browser: Page, full_page: Path, tmp_path: Path
) -> None:
    """The policy is the second wall: a script and a picture from elsewhere, put in by hand, neither
    run nor load; and this test sees it."""
    slipped_in = "<script>window.hit = 1</script><img src='http://127.0.0.1:9/spy.png'></body>"
    (tmp_path / "page.html").write_text(full_page.read_text().replace("</body>", slipped_in))
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.evaluate("window.hit") is None
    assert any("script" in complaint for complaint in browser.complaints)
    assert any("spy.png" in complaint for complaint in browser.complaints)
