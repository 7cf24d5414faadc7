"""Forward simulation of scanners, coils and sampling."""

from pyrecon._lazy import submodules

__getattr__, __dir__ = submodules(__name__, "ct", "mpi", "mri")
