"""The command line: `--config FILE.yaml`, and an option `--KEY VALUE` for each key."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import sys
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from ptycho_dist.config.data import ScanConfig
from ptycho_dist.config.plain_yaml import read_yaml
from ptycho_dist.config.record import ConfigError, Key, in_words, keys, require, strict
from ptycho_dist.config.run import Config, parse_mapping


def make_parser(description: str, *, config: bool = True) -> Parser:
    """Return a parser with `--version`, `--debug` and, unless told otherwise, `--config FILE.yaml`,
    `--print_config` and an option for every key of `Config`.

    `read_config` returns the configuration that its arguments describe.
    """
    parser = Parser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.set_defaults(given={}, print_config=False)
    versions = f"{parser.prog} {version('ptycho_dist')} (torch {version('torch')})"
    parser.add_argument("--version", action="version", version=versions, help="show the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if config:
        file_help = "YAML file; options after it override its keys"
        parser.add_argument("--config", action=_ReadFile, metavar="FILE", help=file_help)
        print_help = "print the configuration for --config to read, and exit"
        parser.add_argument("--print_config", action="store_true", help=print_help)
        _add_keys(parser, keys(Config))
    return parser


def add_scan_keys(parser: Parser) -> None:
    """Add `--data.KEY` for what a scan file may not say itself, the keys of `ScanConfig`."""
    _add_keys(parser, keys(ScanConfig))


def given_scan_keys(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of `add_scan_keys` that are on the command line, as a nested mapping; null is
    a value like others."""
    given = arguments.given.get("data", {})
    ScanConfig.from_mapping(given)  # refuses invalid values
    return given


def read_config(arguments: argparse.Namespace) -> Config:
    """Return the configuration that the files and options on the command line describe."""
    return parse_mapping(arguments.given)


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are `ConfigError` and name the nearest known option."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if "--print_config" in (sys.argv[1:] if args is None else args):
            for action in self._actions:  # a command's own arguments may be missing then
                action.required = False
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
        if arguments.print_config:
            print(yaml.safe_dump(read_config(arguments).to_dict(), sort_keys=False), end="")
            self.exit()
        return arguments

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return f"{action.help} (required)" if action.required else super()._get_help_string(action)


class _ReadFile(argparse.Action):
    """`--config FILE`: override the keys given so far by those of a YAML file."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
        try:
            content = read_yaml(Path(value).read_text())
            require(isinstance(content, dict), "the configuration", content, "a mapping")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {value}: {error}") from error
        namespace.given = _merged(namespace.given, content, "")


class _SetKey(argparse.Action):
    """`--KEY VALUE`: override the key; `--KEY+ VALUE` appends to it."""

    def __init__(self, *, key: Key, **options: Any) -> None:
        super().__init__(**options)
        self.key = key

    def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
        *groups, name = self.key.name.split(".")
        value = _typed(value, self.key.hint)
        if option.endswith("+"):
            concern = reduce(lambda given, group: given.get(group, {}), groups, namespace.given)
            before = concern.get(name)
            before = before if isinstance(before, list) else [] if before is None else [before]
            value = [*before, *(value if isinstance(value, list) else [value])]
        given = reduce(lambda inner, group: {group: inner}, reversed(groups), {name: value})
        namespace.given = _merged(namespace.given, given, "")


def _typed(text: str, hint: Any) -> Any:
    """Return what the text stands for: YAML where that is of the key's type, else the text itself,
    as in `--train.run_dir 2026`."""
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(value, str):
        return text  # YAML would strip a comment, or quotes
    for candidate in (value, text):
        with contextlib.suppress(ValidationError):
            strict(hint).validate_python(candidate)
            return candidate
    return value


def _merged(before: Any, after: Any, name: str) -> Any:
    """Return nested mappings as one; where both have a value, `after` takes precedence."""
    if not isinstance(after, dict):
        return after
    require(isinstance(before, dict), name, before, "a mapping of its keys")
    merged = {
        key: _merged(before.get(key, {}), value, f"{name}.{key}".lstrip("."))
        for key, value in after.items()
    }
    return before | merged


def _add_keys(parser: Parser, added: list[Key]) -> None:
    for group, of_group in itertools.groupby(added, lambda key: key.name.rpartition(".")[0]):
        add = parser.add_argument_group(group).add_argument
        for key in of_group:
            kind = in_words(key.hint)
            text = f"{key.description} (type: {kind}, default: {key.default_text})"
            add(
                *[f"--{key.name}", f"--{key.name}+"][: 1 + ("list" in kind)],
                action=_SetKey,
                key=key,
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=text.replace("%", "%%"),
            )
