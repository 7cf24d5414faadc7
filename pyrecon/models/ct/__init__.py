"""Reconstruction of CT: filtered back-projection, CGLS, SIRT, total variation, and trained networks.

>>> scan = pyrecon.io.read("scan.mat")
>>> images, report = reconstruct_ct(scan, TV())

Images are in 1/m. What a method knows of the noise it estimates from the sinogram, unless it is told.
"""

from pyrecon.models.ct.evaluate import Evaluation, evaluate_ct, evaluation_table
from pyrecon.models.ct.learned import LUSERCT, DEGradCT
from pyrecon.models.ct.methods import CGLS, FBP, METHODS, SIRT, TV, CTMethod
from pyrecon.models.ct.reconstruct import default_method, reconstruct_ct

# Those that need trained weights.
LEARNED: dict[str, type[CTMethod]] = {"de-grad": DEGradCT, "luser": LUSERCT}

__all__ = [
    "CGLS",
    "FBP",
    "LEARNED",
    "LUSERCT",
    "METHODS",
    "SIRT",
    "TV",
    "CTMethod",
    "DEGradCT",
    "Evaluation",
    "default_method",
    "evaluate_ct",
    "evaluation_table",
    "reconstruct_ct",
]
