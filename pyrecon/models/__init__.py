"""Reconstruction models; the methods of a modality are in ``pyrecon.models.mpi`` and ``pyrecon.models.mri``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrecon.models.deq import DEProx
    from pyrecon.models.deq_mpi import DEQMPI

__all__ = ["DEQMPI", "DEProx"]
_MODULES = {"DEProx": "deq", "DEQMPI": "deq_mpi"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"pyrecon.models.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
