"""Reconstruction models; import what you need: ``pyrecon.models.mpi``, ``pyrecon.models.mri``, ``DEQMPI``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrecon.models.deq_mpi import DEQMPI

__all__ = ["DEQMPI"]


def __getattr__(name: str) -> Any:
    if name == "DEQMPI":
        from pyrecon.models.deq_mpi import DEQMPI

        return DEQMPI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
