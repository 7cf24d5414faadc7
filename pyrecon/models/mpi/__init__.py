"""Reconstruction for magnetic particle imaging with a measured system matrix."""

from pyrecon.models.mpi._system import FactoredSystem
from pyrecon.models.mpi.admm import L1ADMM, TVADMM, ADMMState, HybADMM
from pyrecon.models.mpi.linear import ART, Tikhonov
from pyrecon.models.mpi.reconstructor import METHODS, Method, Reconstructor

__all__ = [
    "ART",
    "L1ADMM",
    "METHODS",
    "TVADMM",
    "ADMMState",
    "FactoredSystem",
    "HybADMM",
    "Method",
    "Reconstructor",
    "Tikhonov",
]
