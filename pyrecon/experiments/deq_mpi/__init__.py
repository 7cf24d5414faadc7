"""DEQ-MPI: the paper's tables and figures, ours beside the paper's. ``pyrecon reproduce deq-mpi`` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyrecon._errors import DataError
from pyrecon.experiments.deq_mpi.ablations import ABLATIONS
from pyrecon.experiments.deq_mpi.calibrations import EXPERIMENTS as CALIBRATIONS
from pyrecon.experiments.deq_mpi.figures import FIGURES
from pyrecon.experiments.deq_mpi.study import RECIPES, Sizes, Study
from pyrecon.experiments.deq_mpi.tables import TABLES, picture
from pyrecon.experiments.deq_mpi.training_images import images
from pyrecon.experiments.study import Paper
from pyrecon.train.run import Option

__all__ = ["EXPERIMENTS", "FIGURES", "PAPER", "RECIPES", "TABLES", "Sizes", "Study", "picture"]


EXPERIMENTS = ABLATIONS | {"images": images} | CALIBRATIONS


def _study(images: str, **options: Any) -> Study:
    for name, what in (("angiogram", "a NIfTI volume"), ("released", "weights that the authors released")):
        path = options[name]
        if path is not None and not path.exists():
            raise DataError(f"--{name}: {path}: no such file; expected {what}")
    if images not in ("generated", "retina") and not Path(images).exists():
        raise DataError(f"--images: {images}: no such file; expected generated, retina, or a NIfTI volume")
    return Study(images=images, **options)


PAPER = Paper(
    "deq-mpi",
    _study,
    TABLES,
    FIGURES,
    EXPERIMENTS,
    picture,
    (
        Option("--images", str, "generated", "Vessels: generated, retina, or a NIfTI angiogram."),
        Option("--angiogram", Path, None, "NIfTI angiogram to train on, of the experiment 'images'."),
        Option("--released", Path, None, "Weights of the authors, for the experiment 'scanners'."),
    ),
    about="Models that do not ship with the package are trained first; for the ablations, with three seeds each, that "
    "takes some hours on two cores.",
)
