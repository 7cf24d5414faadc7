"""Methods by name and their settings from text: ``-p weight=0.1 -p iterations=200``."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pyrecon._errors import DataError


def make(methods: Mapping[str, type[Any]], name: str, settings: Sequence[str]) -> Any:
    """The method called ``name`` with ``NAME=VALUE`` settings applied to its dataclass fields."""
    if name not in methods:
        raise DataError(
            f"--method: {name!r} is not known here, expected one of {', '.join(methods)}{_hint(name, methods)}"
        )
    kind = methods[name]
    types_of = typing.get_type_hints(kind)
    fields = {field.name: types_of[field.name] for field in dataclasses.fields(kind) if field.init}
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise DataError(f"-p: {setting!r} is not of the form NAME=VALUE")
        if key not in fields:
            known = ", ".join(f"{field}={_default(kind, field)}" for field in fields)
            raise DataError(f"-p: {name} has no setting {key!r}{_hint(key, fields)}; it has {known or 'none'}")
        values[key] = _parse(f"-p {key}", text, fields[key])
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise DataError(f"-p: {error}") from error


def _default(kind: type[Any], name: str) -> Any:
    field = next(f for f in dataclasses.fields(kind) if f.name == name)
    return "(required)" if field.default is dataclasses.MISSING else field.default


def _parse(option: str, text: str, kind: Any) -> Any:
    choices = typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) else (kind,)
    if typing.get_origin(kind) is typing.Literal:
        if text in choices:
            return text
        raise DataError(f"{option}: {text!r}, expected one of {', '.join(map(str, choices))}")
    if types.NoneType in choices and text.lower() == "none":
        return None
    if bool in choices:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
        raise DataError(f"{option}: {text!r} is neither true nor false")
    for number in (int, float):
        if number in choices:
            try:
                return number(text)
            except ValueError:
                continue
    if str in choices:
        return text
    raise DataError(f"{option}: {text!r} is not a {' or '.join(getattr(c, '__name__', str(c)) for c in choices)}")


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
