"""Every block of README and docs is run, parsed or compared with output. A block of an unknown kind
fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ptycho_dist.config import make_parser, read_config
from tests.docs.blocks import ROOT, Code, Command, blocks, commands, inline_commands, pages
from tests.docs.commands import EXEMPT_COMMANDS, all_commands, is_exempt, is_of_a_cluster
from tests.docs.reader import Reader, named_file

FILES = {
    "README.md": ("scan.npz",),
    "docs/data.md": ("a.npz", "b.npz", "c.npz"),
    "docs/evaluation.md": ("scan.npz", "DIR"),
    "docs/file_formats.md": (
        "RUN",
        "scan.npz",
        "scan.cxi",
        "scan.ptyd",
        "product.h5",
        "patterns.h5",
        "x_dp.hdf5",
        "x_para.hdf5",
        "data_roi0_dp.hdf5",
        "data_roi0_para.hdf5",
        "probe.npy",
    ),
    "docs/from_ptychopinn.md": ("scan.npz",),
    "docs/large_scans.md": ("scan.npz",),
    "docs/library.md": ("scan.npz",),
    "docs/multi_gpu.md": ("scan.npz",),
    "docs/normalization.md": ("scan.npz",),
    "docs/tracking.md": ("scan.npz",),
    "docs/tutorial.md": ("siemens_velociprobe_N64.npz",),
}
"""Files that a page's first command needs; `named_files` makes them."""

EXEMPT_BLOCKS = {
    ("CONTRIBUTING.md", "# ptycho_dist/"): "tests/docs/test_contributing.py",
    ("CONTRIBUTING.md", "# tests/"): "tests/docs/test_contributing.py",
    ("CONTRIBUTING.md", "--- ptycho_dist/"): "tests/docs/test_contributing.py",
    ("CONTRIBUTING.md", "torchrun"): "tests/docs/test_contributing.py",
    ("CONTRIBUTING.md", "data        = prepare"): "a sketch; tests/training/ runs it",
    ("docs/library.md", "import"): "tests/docs/test_library_examples.py",
    ("docs/normalization.md", "X       measured amplitude"): "definitions; tests/scale/ holds them",
    ("docs/normalization.md", "s = sqrt(nphotons"): "definitions; tests/model/ holds them",
}
"""Blocks that are not run here, by page and beginning, and why."""

OF_SPHINX = ("{configuration-keys}", "{eval-rst}", "{include}", "{modules-of}", "{toctree}")
"""Blocks that tests/docs/test_site.py runs, by building the site."""


def kind(block: Code) -> str:
    """Return what is done with a block; empty if its kind is unknown."""
    if block.language in OF_SPHINX:
        return "of Sphinx"
    if any(
        block.page == page and block.text.startswith(beginning) for page, beginning in EXEMPT_BLOCKS
    ):
        return "exempt"
    return KINDS.get(block.language, "")


KINDS = {
    "bash": "run",
    "python": "run or saved",
    "yaml": "read as configuration",
    "text": "compared with what is printed",
}
TO_FOLLOW = {*KINDS.values()} - {"read as configuration"}


@pytest.mark.parametrize("page", pages())
def test_blocks_are_of_a_known_kind(page: str) -> None:
    """Indented blocks have no language, so they are refused too."""
    for block in blocks(page):
        assert kind(block), (
            f"{block}: found a block of {block.language or 'no language'}, expected bash, python, "
            f"yaml or text:\n{block.text}"
        )


def test_exempt_ones_are_there() -> None:
    """No exemption is left over."""
    assert {" ".join(command.words) for command in all_commands()} >= set(EXEMPT_COMMANDS)
    for page, beginning in EXEMPT_BLOCKS:
        assert any(block.text.startswith(beginning) for block in blocks(page)), (page, beginning)


@pytest.mark.parametrize("page", pages())
def test_configurations_are_valid(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            (tmp_path / "block.yaml").write_text(block.text)
            read_config(make_parser("").parse_args(["--config", str(tmp_path / "block.yaml")]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in pages() if {*map(kind, blocks(page))} & TO_FOLLOW]
)
def test_page_can_be_followed(page: str, reader: Callable[..., Reader], named_files: Path) -> None:
    """All blocks of a page, from top to bottom, in one folder."""
    follower = reader(*FILES.get(page, ()))
    follower.printed = (
        (named_files / "RUN/printed").read_text() if page == "docs/large_scans.md" else ""
    )
    for block in blocks(page):
        match kind(block):
            case "run":
                for command in commands(block):
                    if not is_exempt(command) and not is_of_a_cluster(command):
                        follower.run(command)
            case "run or saved" | "read as configuration" if named_file(block):
                follower.save(block)
            case "run or saved":
                (follower.folder / "block.py").write_text(block.text)
                follower.run(Command(place=str(block), variables={}, words=("python", "block.py")))
            case "compared with what is printed":
                follower.require_printed(block)


@pytest.mark.slow
def test_commands_within_lines_are_understood(reader: Callable[..., Reader]) -> None:
    """The scripts parse their options; nothing else is done."""
    follower = reader()
    for page in pages():
        for command in inline_commands(page):
            if is_exempt(command) or is_of_a_cluster(command):
                continue
            if command.words[0] == "bash":
                assert (ROOT / command.words[1]).is_file(), command
            else:
                follower.parse(command)
