"""Reconstruction models; the methods of a modality are in ``pyrecon.models.mpi`` and ``pyrecon.models.mri``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyrecon._lazy import submodules

if TYPE_CHECKING:
    from pyrecon.models.deq import DEGrad, DEProx, UNetRefinement
    from pyrecon.models.deq_mpi import DEQMPI

__all__ = ["DEQMPI", "DEGrad", "DEProx", "UNetRefinement"]
_MODULES = {"DEGrad": "deq", "DEProx": "deq", "DEQMPI": "deq_mpi", "UNetRefinement": "deq"}
_module, __dir__ = submodules(__name__, "deq", "deq_mpi", "method", "mpi", "mri", "weights", *_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return _module(name)
