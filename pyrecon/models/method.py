"""What a reconstruction method is, in every modality; ``METHODS`` of each modality lists its own by name.

A method is a frozen dataclass whose fields are its settings, so ``-p NAME=VALUE`` on the command line, the report and a
search over settings know them without being told. What it solves differs between modalities, and so do the arguments of
``solve``: :class:`pyrecon.models.mpi.MPIMethod`, :class:`pyrecon.models.mri.MRIMethod`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, ClassVar, TypeVar

from pyrecon._check import check_count, check_flag, check_number, described
from pyrecon.data.raw import LARGEST

Progress = Callable[[float], None]  # the share of a batch that is done


def silent(share: float) -> None:
    """Progress that nobody looks at."""


_LEAST = 1e-30  # of settings: what is divided by smaller ones does not fit into single precision


class Method:
    """Base of the methods.

    Attributes
    ----------
    name
        As tables and reports call it.
    role
        What the weights are for that it needs (:class:`pyrecon.models.weights.Card`); None where it needs none.
    tol
        The tolerance it stops at, so that an image which does not reach it is worth a warning; 0: it takes a fixed
        number of steps.
    """

    name: ClassVar[str] = ""
    role: ClassVar[str | None] = None
    tol: float = 0.0

    def __post_init__(self) -> None:
        """TypeError or ValueError naming a setting that is none of its kind; subclasses check their ranges after."""
        check_settings(self)

    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]  # subclasses are dataclasses


def check_settings(method: Method) -> None:
    """Whole numbers are whole, numbers are numbers, words are known; ranges are the method's own to check."""
    hints = typing.get_type_hints(type(method))
    for field in dataclasses.fields(method):  # type: ignore[arg-type]  # subclasses are dataclasses
        name, value, kind = field.name, getattr(method, field.name), hints[field.name]
        options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if value is None and types.NoneType in options:
            continue
        if typing.get_origin(kind) is typing.Literal:
            words = typing.get_args(kind)
            if not isinstance(value, str) or value not in words:
                raise ValueError(f"{name}: {described(value)}, expected one of {', '.join(words)}")
        elif bool in options:
            check_flag(name, value)
        elif float in options:
            size = abs(check_number(name, value, -math.inf))
            if size > 0 and not _LEAST <= size <= LARGEST:
                raise ValueError(f"{name}: {value} does not fit, expected 0 or {_LEAST:g} to {LARGEST:g}")
        elif int in options:
            check_count(name, value, -(2**31), 2**31 - 1)
        elif str in options and not isinstance(value, str | PathLike):
            raise TypeError(f"{name}: {described(value)}, expected text")


Kind = TypeVar("Kind", bound=Method)


def check_method(method: Any, base: type[Kind], example: str) -> Kind:
    """``method`` if it is an instance of ``base``; TypeError that says what to write otherwise."""
    if isinstance(method, base):
        return method
    if isinstance(method, type):
        got = f"the class {method.__name__}, expected an instance: {method.__name__}(...)"
    elif isinstance(method, str):
        got = f"the text {method!r}, expected an instance, e.g. {example}"
    else:
        got = f"{described(method)}, expected an instance of {base.__name__}, e.g. {example}"
    raise TypeError(f"method: got {got}")


def listed(methods: Mapping[str, type[Method]]) -> str:
    """Their names, as help texts have them."""
    return ", ".join(methods)
