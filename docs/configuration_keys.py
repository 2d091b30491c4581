"""The directive `configuration-keys CONCERN`: each key of `ptycho_dist.config`, with its type,
default and description."""

from __future__ import annotations

from typing import get_type_hints

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ptycho_dist.config import Config, in_words, keys


class ConfigurationKeys(SphinxDirective):
    """Keys of one concern: `data`, `model`, ..."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        entries = (
            f":::{{confval}} {key.name}\n{in_words(key.hint)}; default `{key.default_text}`\n\n"
            f"{key.description}\n:::\n"
            for key in keys(get_type_hints(Config)[name])
        )
        return self.parse_text_to_nodes("\n".join(entries))


def setup(app: Sphinx) -> None:
    app.add_directive("configuration-keys", ConfigurationKeys)
