"""PINQI: Figures 5 and 6 of the paper as tables with every sample drawn, Table 1, and curves of training.

Zimmermann, Kofler, Schuenke and Kolbitsch, PINQI: An end-to-end physics-informed approach to learned quantitative MRI
reconstruction, 2023.
"""

from pyrecon.experiments.pinqi.figures import curves, picture, samples
from pyrecon.experiments.pinqi.study import SEEDS, PINQIStudy
from pyrecon.experiments.pinqi.tables import ablations, methods, pairs, phantom
from pyrecon.experiments.study import Paper
from pyrecon.train.run import Option

PAPER = Paper(
    "pinqi",
    PINQIStudy,
    {"1": phantom, "5": methods, "6": ablations},
    {"samples": samples, "curves": curves},
    {"pairs": pairs},
    picture,
    (Option("--seeds", int, SEEDS, "Models of every kind.", least=1),),
    "Models are trained first, 12 kinds of them, in hours. Tables 5 and 6 are the paper's figures of that number.",
)

__all__ = ["PAPER", "PINQIStudy"]
