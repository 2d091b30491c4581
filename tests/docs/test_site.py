"""The documentation site: it builds without a warning, and its pages are self-contained."""

from __future__ import annotations

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.reader import make_project
from tests.report.browser import chromium, headless_page

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docs_site")]


class Page(HTMLParser):
    """Resources, links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(given["href"])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site that `bash docs/build.sh` makes, in a folder of its own. A warning would be
    an error."""
    project = tmp_path_factory.mktemp("project")
    make_project(project)
    # as on a fresh clone: the `docs` extra installs no tracker
    absent = project / "absent"
    absent.mkdir()
    for package in ("tensorboard", "mlflow"):
        (absent / f"{package}.py").write_text("raise ImportError")
    built = subprocess.run(
        ["bash", "docs/build.sh"],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": f"{absent}:{os.environ.get('PYTHONPATH', '')}",
            # no network: nobody answers there
            "http_proxy": "http://localhost:9",
            "https_proxy": "http://localhost:9",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    assert built.returncode == 0, built.stdout
    return project / "docs/_build/html"


@pytest.fixture(scope="session")
def parsed(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_links_lead_somewhere(site: Path, parsed: dict[Path, Page]) -> None:
    targets = [(path, target) for path, page in parsed.items() for target in page.links]
    assert not [
        f"{path.relative_to(site)}: {target}"
        for path, target in targets
        if leads_nowhere(path, target, parsed)
    ]


def leads_nowhere(path: Path, target: str, parsed: dict[Path, Page]) -> bool:
    if re.match(r"\w+:", target):
        return False
    name, _, anchor = unquote(target).partition("#")
    found = (path.parent / name.split("?")[0]).resolve() if name else path
    return not found.is_file() or (
        bool(anchor) and found in parsed and anchor not in parsed[found].anchors
    )


def test_nothing_is_loaded_from_elsewhere(parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        for target in page.loads:
            assert (
                target.startswith("data:")
                or (path.parent / unquote(target).split("?")[0]).is_file()
            ), f"{path}: {target}"


def test_keys_and_public_names_are_shown(site: Path, parsed: dict[Path, Page]) -> None:
    assert {"confval-data.path", "confval-data.hdf5.diffraction", "confval-train.epochs"} <= parsed[
        site / "configuration.html"
    ].anchors
    assert {"ptycho_dist.train", "ptycho_dist.ScaledPoissonLoss"} <= parsed[
        site / "api/index.html"
    ].anchors
    assert "ptycho_dist.scale.exact_sum.exact_energy_sum" in parsed[site / "api/scale.html"].anchors


@pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine: bash tests/report/install_chromium.sh"
)
def test_a_browser_has_nothing_to_complain_of(site: Path, tmp_path: Path) -> None:
    with headless_page(chromium() or "", tmp_path) as page:
        for name in ("index.html", "tutorial.html", "configuration.html", "api/model.html"):
            page.open((site / name).as_uri())
            assert not page.complaints, name
            assert [
                address for address in page.requests if not address.startswith(("file:", "data:"))
            ] == []
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), (
                name
            )
