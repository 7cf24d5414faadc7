"""Submodules that load on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def submodules(package: str, *names: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose submodules ``names`` are imported when somebody asks for them.

    So ``import pyrecon`` stays as quick as torch is, and ``pyrecon.ops`` needs no import of its own.
    """

    def load(name: str) -> Any:
        if name in names:
            return import_module(f"{package}.{name}")  # which also makes it an attribute of the package
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return load, listed
