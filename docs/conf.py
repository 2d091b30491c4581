"""How Sphinx makes the pages of docs/ into a site; `bash docs/build.sh` runs it."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

project = "ptycho_dist"
author = "the ptycho_dist authors"
copyright = author
release = version_of("ptycho_dist")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "configuration_keys",
    "modules_of",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # a heading may be linked to as on GitHub

napoleon_google_docstring = False
napoleon_use_ivar = True
default_role = "literal"  # `name` in a docstring
autodoc_inherit_docstrings = False  # those of Lightning are its own
autodoc_mock_imports = ["torch.utils.tensorboard"]  # would need TensorBoard to build the site
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# What other libraries document is not linked to: that would need their sites, and the network, to
# build ours. Private validators of configuration types are not documented.
nitpick_ignore_regex = [("py:.*", r"(?!ptycho_dist).*"), ("py:class", r"ptycho_dist\..*\._\w+")]
suppress_warnings = ["ref.python"]  # attributes that several classes have, such as `energy_eV`

html_theme = "furo"
html_title = f"ptycho_dist {release}"

PAGES_THAT_INCLUDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "slurm/README.md": "slurm.md",
}
"""Markdown that stands elsewhere in the project, and the page that shows it."""


def links_of_the_site(text: str, file: Path, page_folder: Path = DOCS) -> str:
    """Markdown of `file`, whose relative links lead from its own folder, with those that the
    page that shows it needs."""

    def link(found: re.Match[str]) -> str:
        path, anchor = found["path"], found["anchor"] or ""
        within_project = os.path.relpath(file.parent / path, DOCS.parent)
        if within_project in PAGES_THAT_INCLUDE:
            shown_on = os.path.relpath(DOCS / PAGES_THAT_INCLUDE[within_project], page_folder)
            return f"]({shown_on}{anchor})"
        return f"]({os.path.relpath(file.parent / path, page_folder)}{anchor})"

    return re.sub(r"\]\((?P<path>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)", link, text)


def setup(app: Sphinx) -> None:
    """Rewrite the links of pages and of what they include."""

    def page(_: Sphinx, name: str, source: list[str]) -> None:
        file = DOCS / f"{name}.md"
        source[0] = links_of_the_site(source[0], file, file.parent)

    def included(_: Sphinx, path: Path, __: str, source: list[str]) -> None:
        source[0] = links_of_the_site(source[0], (DOCS / path).resolve())

    # Napoleon takes what precedes a colon in the first line of an attribute's docstring for its
    # type; it has priority 500.
    original: list[str] = []

    def keep(_: Sphinx, __: str, ___: str, ____: object, _____: Any, lines: list[str]) -> None:
        original[:] = lines

    def restore(_: Sphinx, what: str, __: str, ___: object, ____: Any, lines: list[str]) -> None:
        if what in ("attribute", "data", "property"):
            lines[:] = original

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("source-read", page)
    app.connect("include-read", included)
