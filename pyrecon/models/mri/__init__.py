"""Classical reconstruction of Cartesian multi-coil MRI: zero-filled, CG-SENSE, and SENSE with wavelet or TV sparsity;
and joint estimation of image and coil maps, by two methods, which needs no calibration lines.

>>> scan = pyrecon.io.read("meas.dat")
>>> images, report = reconstruct_mri(scan, CGSense())

:func:`sample_mri` says what the data leave open. Scans of several contrasts become
maps of T1 by :func:`reconstruct_maps` and the methods in ``MAPPING``.

The methods work on whitened data, so every weight is in units of the noise: 1 is the standard deviation of a k-space
sample, and of a pixel of a fully sampled image.
"""

from pyrecon.models.mri.evaluate import Evaluation, evaluate_mri, evaluation_table, scan_of_images
from pyrecon.models.mri.joint import CoilwiseTransform, JointMRI
from pyrecon.models.mri.learned import LUSERMRI, DEProxMRI, VarNetMRI
from pyrecon.models.mri.map_methods import MAPPING, PINQIMRI, Fitted, MapMethod, SenseFit
from pyrecon.models.mri.map_reconstruct import reconstruct_maps
from pyrecon.models.mri.methods import CLASSICAL, CGSense, MRIMethod, TVSense, WaveletSense, ZeroFilled
from pyrecon.models.mri.nlinv import NLINV
from pyrecon.models.mri.reconstruct import default_method, reconstruct_mri, reconstruct_with_maps
from pyrecon.models.mri.sampling import Uncertainty, sample_mri

METHODS: dict[str, type[MRIMethod]] = {**CLASSICAL, "joint": JointMRI, "nlinv": NLINV}

# Those that need trained weights.
LEARNED: dict[str, type[MRIMethod]] = {"de-prox": DEProxMRI, "luser": LUSERMRI, "varnet": VarNetMRI}

__all__ = [
    "LEARNED",
    "LUSERMRI",
    "MAPPING",
    "METHODS",
    "NLINV",
    "PINQIMRI",
    "CGSense",
    "CoilwiseTransform",
    "DEProxMRI",
    "Evaluation",
    "Fitted",
    "JointMRI",
    "MRIMethod",
    "MapMethod",
    "SenseFit",
    "TVSense",
    "Uncertainty",
    "VarNetMRI",
    "WaveletSense",
    "ZeroFilled",
    "default_method",
    "evaluate_mri",
    "evaluation_table",
    "reconstruct_maps",
    "reconstruct_mri",
    "reconstruct_with_maps",
    "sample_mri",
    "scan_of_images",
]
