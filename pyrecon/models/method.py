"""What a reconstruction method is, in every modality; ``METHODS`` of each modality lists its own by name.

A method is a frozen dataclass whose fields are its settings, so ``-p NAME=VALUE`` on the command line, the report and a
search over settings know them without being told. What it solves differs between modalities, and so do the arguments of
``solve``: :class:`pyrecon.models.mpi.MPIMethod`, :class:`pyrecon.models.mri.MRIMethod`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

Progress = Callable[[float], None]  # the share of a batch that is done


def silent(share: float) -> None:
    """Progress that nobody looks at."""


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

    def settings(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]  # subclasses are dataclasses


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
        got = f"{type(method).__name__}, expected an instance of {base.__name__}, e.g. {example}"
    raise TypeError(f"method: got {got}")


def listed(methods: Mapping[str, type[Method]]) -> str:
    """Their names, as help texts have them."""
    return ", ".join(methods)
