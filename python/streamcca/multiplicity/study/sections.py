"""Tables of a TOML file into frozen dataclasses: unknown keys and wrong types are refused in one sentence."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from streamcca.errors import InputError
from streamcca.views import unknown_name

T = TypeVar("T")
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    dict: "a table",
}


def read_section(kind: type[T], table: Any, where: str) -> T:
    """Make a dataclass of a TOML table; its annotations say what each key takes.

    Raises
    ------
    InputError
        The table is none; it has a key that the dataclass has not; a value is of another type; a key without a default
        is missing.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: got {table!r}, expected a table of settings")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise InputError(f"{where}: {unknown_name('setting', key, list(fields))}")
    for name, field in fields.items():
        without = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if without and name not in table:
            raise InputError(f"{where}: {name!r} is missing, expected {_expected(hints[name])}")
    values = {key: _converted(value, hints[key], f"{where}.{key}") for key, value in table.items()}
    return kind(**values)


def _expected(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_expected(one) for one in arguments if one is not type(None))
    if origin is tuple:
        return f"a list, each {_expected(arguments[0])}"
    return _WORDS.get(origin or hint, str(hint))


def _converted(value: Any, hint: Any, where: str) -> Any:
    """Return the value as its annotation wants it: lists as tuples, whole numbers as floats where floats are wanted."""
    if not _fits(value, hint):
        raise InputError(f"{where}: got {value!r}, expected {_expected(hint)}")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        fitting = next(one for one in arguments if _fits(value, one))
        return _converted(value, fitting, where)
    if origin is tuple:
        return tuple(_converted(one, arguments[0], where) for one in value)
    return float(value) if hint is float else value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, arguments[0]) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)
