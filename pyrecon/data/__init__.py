"""Raw-data containers, preprocessing, phantoms and datasets."""

from pyrecon._lazy import submodules

__getattr__, __dir__ = submodules(
    __name__,
    "angiograms",
    "brains",
    "brainweb",
    "coil_maps",
    "contrasts",
    "ct",
    "ct_phantoms",
    "fourier",
    "heads",
    "knees",
    "magnitudes",
    "mni",
    "mpi",
    "mri",
    "partial_fourier",
    "phantoms",
    "photographs",
    "raw",
    "tubes",
    "vessels",
)
