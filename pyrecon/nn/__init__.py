"""Networks of the models."""

from pyrecon.nn.dncnn import DnCNN
from pyrecon.nn.learned_consistency import BallConsistency, ExactConsistency, LearnedConsistency, RowLayout
from pyrecon.nn.rdn import RDN
from pyrecon.nn.residual import ResidualDenoiser
from pyrecon.nn.shallow import ShallowBlock

__all__ = [
    "RDN",
    "BallConsistency",
    "DnCNN",
    "ExactConsistency",
    "LearnedConsistency",
    "ResidualDenoiser",
    "RowLayout",
    "ShallowBlock",
]
