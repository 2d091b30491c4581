"""The directive `configuration-keys CONCERN`: each key of `ptycho_dist.config`, with type,
default and the docstring's words."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ptycho_dist.config import Config


class ConfigurationKeys(SphinxDirective):
    """Keys of one concern: `data`, `model`, ..."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        return self.parse_text_to_nodes("\n".join(entries(name, get_type_hints(Config)[name])))


def entries(prefix: str, concern: type) -> Iterator[str]:
    """Markdown of the keys of a dataclass: its own, those it inherits, and last the nested ones."""
    explained = {key: text for base in concern.__mro__ for key, text in explanations(base)}
    hints = get_type_hints(concern)
    inherited = {name for base in concern.__mro__[1:] for name in get_type_hints(base)}
    fields = sorted(
        dataclasses.fields(concern),
        key=lambda field: (dataclasses.is_dataclass(hints[field.name]), field.name in inherited),
    )
    for field in fields:
        key, hint = f"{prefix}.{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from entries(key, hint)
        else:
            default = yaml.safe_dump(plain(field.default), default_flow_style=True).splitlines()[0]
            yield (
                f":::{{confval}} {key}\n{in_words(hint)}; default "
                f"`{default}`\n\n{explained[field.name]}\n:::\n"
            )


def explanations(concern: type) -> Iterator[tuple[str, str]]:
    """Key and text of a numpydoc docstring's parameters; keys that share a text each have it."""
    for parameter in docstring_parser.parse(
        concern.__doc__ or "", style=docstring_parser.DocstringStyle.NUMPYDOC
    ).params:
        for key in parameter.arg_name.split(", "):
            yield key, parameter.description or ""


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def in_words(hint: Any) -> str:
    """A type as the YAML file has it: `amplitude` | `counts` | null."""
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(in_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " | ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return "list of " + " and ".join(in_words(part) for part in get_args(hint))
    names = {
        str: "text",
        float: "number",
        int: "integer",
        bool: "`true` | `false`",
        types.NoneType: "`null`",
    }
    return names[hint]


def setup(app: Sphinx) -> None:
    app.add_directive("configuration-keys", ConfigurationKeys)
