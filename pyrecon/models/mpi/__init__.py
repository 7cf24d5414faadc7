"""Reconstruction for magnetic particle imaging with a measured system matrix."""

from pyrecon.models.mpi._system import FactoredSystem
from pyrecon.models.mpi.admm import L1ADMM, TVADMM, ADMMState, HybADMM
from pyrecon.models.mpi.deq import DEQ
from pyrecon.models.mpi.linear import ART, Tikhonov
from pyrecon.models.mpi.reconstructor import LEARNED, METHODS, Method, Reconstructor
from pyrecon.models.mpi.scale import ScaledSystem

__all__ = [
    "ART",
    "DEQ",
    "L1ADMM",
    "LEARNED",
    "METHODS",
    "TVADMM",
    "ADMMState",
    "FactoredSystem",
    "HybADMM",
    "Method",
    "Reconstructor",
    "ScaledSystem",
    "Tikhonov",
]
