"""Stable deep MRI reconstruction using generative priors: the paper's tables and figures.

M. Zach, F. Knoll, T. Pock, Stable deep MRI reconstruction using generative priors, 2023.
"""

from pathlib import Path

from pyrecon.experiments.stable_mri.calibration import calibration
from pyrecon.experiments.stable_mri.figures import figure_1
from pyrecon.experiments.stable_mri.forms import retraction
from pyrecon.experiments.stable_mri.pictures import picture
from pyrecon.experiments.stable_mri.study import StableMRIStudy
from pyrecon.experiments.stable_mri.tables import differences, table_1, table_2
from pyrecon.experiments.study import Paper
from pyrecon.train.run import Option

PAPER = Paper(
    "stable-mri",
    StableMRIStudy,
    {"1": table_1, "2": table_2},
    {1: figure_1},
    {"pairs": differences, "calibration": calibration, "retraction": retraction},
    picture,
    (
        Option("--prior", str, None, "Weights of the generative prior: a file, or a name that ships."),
        Option(
            "--brain", Path, None, "A NIfTI file of a head, as more images out of distribution; nothing trains on it."
        ),
        Option("--size", int, None, "Pixels along an axis where no prior says.", least=32),
    ),
    "The U-Net and the variational network are trained first; the prior is trained by pyrecon train generative.",
)

__all__ = ["PAPER", "StableMRIStudy"]
