"""Strict configuration records: frozen dataclasses whose values pydantic checks, and whose errors
name the key, what was found and what was expected."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
import re
import types
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from annotated_types import Ge, Gt, MultipleOf
from pydantic import BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError

T = TypeVar("T")
R = TypeVar("R", bound="Record")


class ConfigError(ValueError):
    """An invalid configuration; the message names the key, what was found and what was expected."""


def require(condition: bool, key: str, found: object, expected: str) -> None:
    """Raise `ConfigError` unless the condition holds."""
    if not condition:
        raise ConfigError(f"config: {key} is {found!r}, expected {expected}")


def _number(value: object) -> object:
    """Return the float that `1e6` stands for, which YAML 1.1 takes for text."""
    exponent_form = r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"
    return float(value) if isinstance(value, str) and re.fullmatch(exponent_form, value) else value


# The text in each type is what errors, --help and the documentation call it.
Number = Annotated[float, BeforeValidator(_number), "a number"]
PositiveNumber = Annotated[Number, Gt(0), "a positive number"]
NonNegativeNumber = Annotated[Number, Ge(0), "a number of at least 0"]
PositiveInteger = Annotated[int, Ge(1), "an integer of at least 1"]
NonNegativeInteger = Annotated[int, Ge(0), "an integer of at least 0"]
EvenInteger = Annotated[int, Ge(2), MultipleOf(2), "an even integer of at least 2"]
Listed = Annotated[T, Strict(False)]
"""A tuple, which YAML writes as a list; its items are still strict."""


class Record:
    """Base of frozen, keyword-only dataclasses whose fields are the keys `PREFIX.FIELD`.

    Values are checked against the annotations and not converted, except that a list may stand for a
    `Listed` tuple and a mapping for a nested record. The docstring below a field describes it.
    """

    prefix: ClassVar[str] = ""
    hints: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, prefix: str = "") -> None:
        cls.prefix = prefix
        hints = get_type_hints(cls, include_extras=True).items()
        cls.hints = {name: hint for name, hint in hints if name not in Record.__annotations__}

    def __post_init__(self) -> None:
        for name, hint in self.hints.items():
            key = f"{self.prefix}.{name}".lstrip(".")
            object.__setattr__(self, name, _checked(key, hint, getattr(self, name)))

    @classmethod
    def from_mapping(cls: type[R], mapping: Any) -> R:
        """Return the record of a mapping of its keys.

        Raises
        ------
        ConfigError
            A key is unknown, or a value is of the wrong type or out of range.
        """
        name = cls.prefix or "the configuration"
        require(isinstance(mapping, dict), name, mapping, "a mapping of its keys")
        for key in mapping:
            if key not in cls.hints:
                near = difflib.get_close_matches(str(key), cls.hints, n=1)
                known = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(cls.hints)}"
                where = f"{cls.prefix}: " if cls.prefix else ""
                raise ConfigError(f"config: {where}{key!r} is not accepted; {known}")
        return cls(**mapping)


def _checked(key: str, hint: Any, found: Any) -> Any:
    if is_record(hint):
        return found if isinstance(found, hint) else hint.from_mapping(found)
    try:
        return strict(hint).validate_python(found)
    except ValidationError as error:
        cause = error.errors(include_url=False)[0].get("ctx", {}).get("error")
        message = f"config: {key} is {found!r}, expected {cause or in_words(hint)}"
        raise ConfigError(message) from None


@functools.cache
def strict(hint: Any) -> TypeAdapter[Any]:
    """Return the checker of a type: it converts nothing, and refuses NaN and infinity."""
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def is_record(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Record)


@dataclass(frozen=True, kw_only=True)
class Key:
    """A leaf of the configuration, such as `data.crop`, as its field declares it."""

    name: str
    hint: Any
    default: Any
    description: str

    @property
    def default_text(self) -> str:
        """The default as YAML writes it."""
        plain = list(self.default) if isinstance(self.default, tuple) else self.default
        return yaml.safe_dump(plain, default_flow_style=True).splitlines()[0]


def keys(kind: type[Record]) -> list[Key]:
    """Return the keys of a record: its own, then inherited ones, then those of nested records."""
    own, nested = [], []
    for base in kind.__mro__[: kind.__mro__.index(Record)]:
        for name, description in _descriptions(base).items():
            if is_record(hint := kind.hints[name]):
                nested += keys(hint)
            else:
                full_name, default = f"{kind.prefix}.{name}".lstrip("."), getattr(kind, name)
                own.append(Key(name=full_name, hint=hint, default=default, description=description))
    return own + nested


@functools.cache
def _descriptions(kind: type) -> dict[str, str]:
    """Return the docstrings of a class's own fields, which Python itself does not keep."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, docstring in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(docstring, ast.Expr), field.target.id
            found[field.target.id] = " ".join(ast.literal_eval(docstring.value).split())
    return found


def in_words(hint: Any) -> str:
    """Return what a type accepts, as YAML writes it: `amplitude, counts or null`."""
    *most, last = _alternatives(hint)
    return f"{', '.join(most)} or {last}" if most else last


def _alternatives(hint: Any) -> list[str]:
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return [next(words for words in reversed(arguments) if isinstance(words, str))]
    if get_origin(hint) in (Union, types.UnionType):
        return [words for argument in arguments for words in _alternatives(argument)]
    if get_origin(hint) is Literal:
        return list(map(str, arguments))
    return [f"a list of {in_words(arguments[0])}" if arguments else _WORDS[hint]]


_WORDS = {str: "text", int: "an integer", bool: "true or false", types.NoneType: "null"}
