"""Dataclasses from text: ``-p weight=0.1``, and dotted where a field is a dataclass itself: ``-p denoiser.steps=5``.

The names, types, choices and defaults are those of the dataclass; they are spelled nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyrecon._errors import DataError


def make(methods: Mapping[str, type[Any]], name: str, settings: Sequence[str]) -> Any:
    """The method called ``name`` with ``NAME=VALUE`` settings applied to its dataclass fields."""
    if name not in methods:
        raise DataError(
            f"--method: {name!r} is not known here, expected one of {', '.join(methods)}{_hint(name, methods)}"
        )
    values = given(methods[name], name, settings)
    try:
        return methods[name](**values)
    except (ValueError, TypeError) as error:
        raise DataError(f"-p: {error}") from error


def given(kind: type[Any], what: str, settings: Sequence[str]) -> dict[str, Any]:
    """The values of ``NAME=VALUE`` settings by (dotted) name, of the types of ``kind``'s fields."""
    known = names(kind)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise DataError(f"-p: {setting!r} is not of the form NAME=VALUE")
        if key not in known:
            said = ", ".join(f"{name}={default}" for name, (_, default) in known.items())
            raise DataError(f"-p: {what} has no setting {key!r}{_hint(key, known)}; it has {said or 'none'}")
        values[key] = parse(f"-p {key}", text, known[key][0])
    return values


def names(kind: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Type and default of every setting by name; those of a field that is a dataclass itself by dotted name."""
    hints = typing.get_type_hints(kind)
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        default, inner = _default(field), hints[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            for name, (part, usual) in names(inner).items():
                own = usual if isinstance(default, str) else getattr(default, name)
                found[f"{field.name}.{name}"] = part, own
        else:
            found[field.name] = inner, default
    return found


def choices(kind: Any) -> tuple[str, ...]:
    """The values of a Literal as text; none of any other type."""
    return tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ()


def parse(option: str, text: str, kind: Any) -> Any:
    """A value of a type: a number, text, ``none``, ``true``, one of a Literal, or several with commas for a tuple."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) else (kind,)
    if typing.get_origin(kind) is typing.Literal:
        for value in options:
            if text == str(value):
                return value
        raise DataError(f"{option}: {text!r}, expected one of {', '.join(map(str, options))}")
    if typing.get_origin(kind) is tuple:
        parts = text.split(",")
        if len(parts) != len(options):
            raise DataError(f"{option}: {text!r}, expected {len(options)} values with commas between them")
        return tuple(parse(option, part.strip(), of) for part, of in zip(parts, options, strict=True))
    if types.NoneType in options and text.lower() == "none":
        return None
    if bool in options:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
        raise DataError(f"{option}: {text!r} is neither true nor false")
    for number in (int, float):
        if number in options:
            try:
                return number(text)
            except ValueError:
                continue
    if str in options:
        return text
    raise DataError(f"{option}: {text!r} is not a {' or '.join(getattr(c, '__name__', str(c)) for c in options)}")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "(required)" if field.default is dataclasses.MISSING else field.default


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
