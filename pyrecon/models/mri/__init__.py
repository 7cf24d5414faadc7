"""Classical reconstruction of Cartesian multi-coil MRI: zero-filled, CG-SENSE, and SENSE with wavelet or TV sparsity.

>>> scan = pyrecon.io.read("meas.dat")
>>> images, report = reconstruct_mri(scan, CGSense())

:func:`sample_mri` says what the data leave open. Scans of several contrasts become
maps of T1 by :func:`reconstruct_maps` and the methods in ``MAPPING``.

The methods work on whitened data, so every weight is in units of the noise: 1 is the standard deviation of a k-space
sample, and of a pixel of a fully sampled image.
"""

from pyrecon.models.mri.evaluate import Evaluation, evaluate_mri, evaluation_table, scan_of_images
from pyrecon.models.mri.learned import LUSERMRI, DEProxMRI
from pyrecon.models.mri.map_methods import MAPPING, PINQIMRI, Fitted, MapMethod, SenseFit
from pyrecon.models.mri.map_reconstruct import reconstruct_maps
from pyrecon.models.mri.methods import METHODS, CGSense, MRIMethod, TVSense, WaveletSense, ZeroFilled
from pyrecon.models.mri.posterior import SmoothedTV
from pyrecon.models.mri.reconstruct import default_method, reconstruct_mri
from pyrecon.models.mri.sampling import Uncertainty, sample_mri

# Those that need trained weights.
LEARNED: dict[str, type[MRIMethod]] = {"de-prox": DEProxMRI, "luser": LUSERMRI}

__all__ = [
    "LEARNED",
    "LUSERMRI",
    "MAPPING",
    "METHODS",
    "PINQIMRI",
    "CGSense",
    "DEProxMRI",
    "Evaluation",
    "Fitted",
    "MRIMethod",
    "MapMethod",
    "SenseFit",
    "SmoothedTV",
    "TVSense",
    "Uncertainty",
    "WaveletSense",
    "ZeroFilled",
    "default_method",
    "evaluate_mri",
    "evaluation_table",
    "reconstruct_maps",
    "reconstruct_mri",
    "sample_mri",
    "scan_of_images",
]
