"""YAML without what no configuration needs."""

from __future__ import annotations

from typing import Any

import yaml

_MAX_DEPTH = 20


class _PlainLoader(yaml.SafeLoader):
    """`SafeLoader` that refuses repeated keys, deep nesting and aliases, by which a few lines can
    stand for more than memory holds."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(
                f"line {line}: found the alias '*{event.anchor}', expected YAML without anchors "
                "and aliases"
            )
        is_nested = isinstance(event, yaml.CollectionStartEvent)
        self.depth += is_nested
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(
                f"line {line}: found more than {_MAX_DEPTH} levels of nesting, expected a "
                "configuration"
            )
        node = super().compose_node(parent, index)
        self.depth -= is_nested
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(
                f"found the key {repeated[0]!r} for the second time in one mapping, expected each "
                "key once"
            )
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Return the content of a YAML document.

    Raises
    ------
    yaml.YAMLError
        The text is not YAML, has an alias or the same key twice in one mapping, or is nested too
        deeply.
    """
    return yaml.load(text, Loader=_PlainLoader)
