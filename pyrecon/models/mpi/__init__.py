"""Reconstruction for magnetic particle imaging with a measured system matrix."""

from pyrecon.models.mpi.admm import L1ADMM, TVADMM, ADMMState, HybADMM
from pyrecon.models.mpi.deq import DEQ, EndToEnd, Unrolled
from pyrecon.models.mpi.dip import DeepImagePrior
from pyrecon.models.mpi.linear import ART, Tikhonov
from pyrecon.models.mpi.method import MPIMethod
from pyrecon.models.mpi.pnp import PnP
from pyrecon.models.mpi.reconstructor import LEARNED, METHODS, UNTRAINED, Reconstructor
from pyrecon.models.mpi.system import FactoredSystem, Problem, ScaledSystem

__all__ = [
    "ART",
    "DEQ",
    "L1ADMM",
    "LEARNED",
    "METHODS",
    "TVADMM",
    "UNTRAINED",
    "ADMMState",
    "DeepImagePrior",
    "EndToEnd",
    "FactoredSystem",
    "HybADMM",
    "MPIMethod",
    "PnP",
    "Problem",
    "Reconstructor",
    "ScaledSystem",
    "Tikhonov",
    "Unrolled",
]
