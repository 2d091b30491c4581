"""The directive `modules-of PACKAGE`: the docstrings of each of its modules, under a heading
each."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class ModulesOf(SphinxDirective):
    """Modules of one package, private names left out, subpackages included."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (package,) = self.arguments
        found = pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
        sections = [
            f"## {module.name}\n```{{eval-rst}}\n.. automodule:: {module.name}\n   :members:\n```"
            for module in found
        ]
        return self.parse_text_to_nodes("\n\n".join(sections), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    app.add_directive("modules-of", ModulesOf)
