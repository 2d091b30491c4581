"""Options, keys, files and headings that the pages name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ptycho_dist
from ptycho_dist.config import Config, flat_keys
from tests.docs.blocks import ROOT, Command, blocks, headings, inline_code, links, pages
from tests.docs.reader import Reader, make_project

SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("launch/*.py"))
KEYS = {*flat_keys(Config().to_dict())}
GROUPS_OF_KEYS = {key.rsplit(".", 1)[0] for key in KEYS}
FILES_NAMED_LIKE_KEYS = {"train.log", "train.py", "train.sbatch"}

OPTIONS_OF_OTHERS = {
    "--account": "Slurm",
    "--array": "Slurm",
    "--backend-store-uri": "MLflow",
    "--cpus-per-task": "Slurm",
    "--exclude": "Slurm",
    "--gpus": "Slurm",
    "--gpus-per-node": "Slurm",
    "--logdir": "TensorBoard",
    "--max-restarts": "torchrun",
    "--nodes": "Slurm",
    "--nproc_per_node": "torchrun",
    "--ntasks": "Slurm",
    "--ntasks-per-node": "Slurm",
    "--open-mode": "Slurm",
    "--partition": "Slurm",
    "--requeue": "Slurm",
    "--signal": "Slurm",
    "--strict": "twine",
    "--time": "Slurm",
}
"""Options that pages name without the command that they belong to."""

FILES_OF_PTYCHOPINN = {
    "docs/CONFIGURATION.md",
    "docs/DATA_NORMALIZATION_GUIDE.md",
    "docs/specs/spec-ptycho-core.md",
    "docs/workflows/pytorch.md",
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return all options of the scripts in launch/, from their `--help`."""
    project = tmp_path_factory.mktemp("project")
    make_project(project)
    asker = Reader(project)
    for script in SCRIPTS:
        asker.run(Command(place="", variables={}, words=("python", script, "--help")))
    return set(re.findall(r"--[\w.-]+", asker.printed))


def named_options(page: str) -> Iterator[tuple[int, str]]:
    for code in inline_code(page):
        for word in re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", code.text):
            yield code.line, word


@pytest.mark.slow
@pytest.mark.parametrize("page", pages())
def test_options_exist(page: str, options: set[str]) -> None:
    """`--data.KEY` stands for any key."""
    unknown = [
        f"{page}:{line} {word}"
        for line, word in named_options(page)
        if word not in {*options, *OPTIONS_OF_OTHERS, "--data.KEY"}
    ]
    assert not unknown


@pytest.mark.parametrize("page", pages())
def test_keys_exist(page: str) -> None:
    named = [
        (code.line, re.match(r"(data|model|train|simulation)\.[\w.]+(?=$|[ :=])", code.text))
        for code in inline_code(page)
    ]
    known = KEYS | GROUPS_OF_KEYS | FILES_NAMED_LIKE_KEYS
    assert not [
        f"{page}:{line} {found[0]}" for line, found in named if found and found[0] not in known
    ]


@pytest.mark.parametrize("page", pages())
def test_files_of_the_project_exist(page: str) -> None:
    """Checks paths that begin with one of its directories, alone or in a command or a table."""
    directories = "ptycho_dist|launch|configs|slurm|benchmarks|tests|docs"
    named = [
        (code.line, path)
        for code in inline_code(page)
        for path in re.findall(rf"(?<![\w./-])(?:{directories})/[\w./-]*", code.text)
    ]
    assert not [
        f"{page}:{line} {path}"
        for line, path in named
        if not (ROOT / path).exists() and path not in FILES_OF_PTYCHOPINN
    ]


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files_and_headings(page: str) -> None:
    """Links are relative to the page's folder, as on GitHub."""
    for line, target in links(page):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}:{line} {target}"
        if anchor:
            assert anchor in headings(file.resolve().relative_to(ROOT).as_posix()), (
                f"{page}:{line} {target}"
            )


def test_public_names_are_documented() -> None:
    text = (ROOT / "docs/api/index.md").read_text()
    documented = re.findall(r"\.\. auto\w+:: (\w+)", text)
    assert sorted(documented) == sorted(ptycho_dist.__all__)


def test_no_page_is_left_out_of_the_site() -> None:
    """Each page of docs/ is in a table of contents, and each Markdown file outside of it is
    included by a page."""
    site = {page for page in pages() if page.startswith("docs/")}
    listed, included = {"docs/index.md"}, set()
    for page in site:
        folder = Path(page).parent
        for block in blocks(page):
            if block.language == "{toctree}":
                entries = [
                    re.sub(r".*<(.*)>", r"\1", line)
                    for line in block.text.splitlines()
                    if line and not line.startswith(":")
                ]
                listed |= {f"{folder}/{entry}.md" for entry in entries}
            if block.language == "{include}":
                included |= {
                    (ROOT / folder / target).resolve() for _, target in [block.info.split(" ", 1)]
                }
    assert listed == site
    assert included == {ROOT / page for page in pages() if not page.startswith("docs/")}
