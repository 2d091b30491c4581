"""Source distribution and wheel: what is in them, and that an index would take them."""

from __future__ import annotations

import configparser
import email
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.package.conftest import ROOT, Distributions

NOT_IN_SDIST = {".gitignore", ".ci/run"}
"""Of the repository, not of the software."""

MADE_BY_BUILD = {"PKG-INFO", "setup.cfg"}

COMMANDS = {
    "ptycho-train": "ptycho_dist.commands.train:main",
    "ptycho-infer": "ptycho_dist.commands.infer:main",
    "ptycho-simulate": "ptycho_dist.commands.simulate:main",
    "ptycho-evaluate": "ptycho_dist.commands.evaluate:main",
    "ptycho-inspect": "ptycho_dist.commands.inspect_scan:main",
    "ptycho-stage": "ptycho_dist.commands.stage:main",
}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_dist_info(wheel: Path, name: str) -> str:
    (content,) = (
        content
        for member, content in members(wheel).items()
        if member.endswith(f".dist-info/{name}")
    )
    return content.decode()


def test_an_index_takes_both(distributions: Distributions) -> None:
    command = [
        sys.executable,
        "-m",
        "twine",
        "check",
        "--strict",
        str(distributions.sdist),
        str(distributions.wheel),
    ]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("PASSED") == 2


def test_sdist_holds_the_versioned_files_and_no_other(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    names = {name for name in names if not name.startswith("ptycho_dist.egg-info/")}
    assert names == distributions.files - NOT_IN_SDIST | MADE_BY_BUILD


def test_wheel_holds_the_package_and_no_test(distributions: Distributions) -> None:
    names = members(distributions.wheel).keys()
    assert {name for name in names if ".dist-info/" not in name} == {
        name for name in distributions.files if name.startswith("ptycho_dist/")
    }
    assert "ptycho_dist/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_of_the_sdist_is_the_wheel_of_the_files(distributions: Distributions) -> None:
    assert members(distributions.wheel) == members(distributions.wheel_of_files)


def test_commands_of_the_wheel(distributions: Distributions) -> None:
    entries = configparser.ConfigParser()
    entries.optionxform = str  # type: ignore[assignment,method-assign]
    entries.read_string(in_dist_info(distributions.wheel, "entry_points.txt"))
    assert {section: dict(entries[section]) for section in entries.sections()} == {
        "console_scripts": COMMANDS
    }


def test_one_version_everywhere(distributions: Distributions) -> None:
    """pyproject.toml gives it; the citation and the changelog can only repeat it."""
    metadata = email.message_from_string(in_dist_info(distributions.wheel, "METADATA"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert metadata["Version"] == str(citation["version"]) == version("ptycho_dist")
    assert (
        (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1].startswith(f"{metadata['Version']} ")
    )


def test_citation_says_what_the_metadata_say(distributions: Distributions) -> None:
    metadata = email.message_from_string(in_dist_info(distributions.wheel, "METADATA"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # what the format asks for
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == metadata["Name"]
    assert citation["license"] == metadata["License-Expression"]
    assert ", ".join(author["name"] for author in citation["authors"]) == metadata["Author"]
    assert ",".join(citation["keywords"]) == metadata["Keywords"]
