"""Raw-data containers, preprocessing, phantoms and datasets."""

from pyrecon._lazy import submodules

__getattr__, __dir__ = submodules(
    __name__,
    "coil_maps",
    "ct",
    "ct_phantoms",
    "fourier",
    "heads",
    "mpi",
    "mri",
    "phantoms",
    "photographs",
    "raw",
    "vessels",
)
