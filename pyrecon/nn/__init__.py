"""Networks of the models."""

from pyrecon.nn.learned_consistency import BallConsistency, ExactConsistency, LearnedConsistency, RowLayout
from pyrecon.nn.rdn import RDN
from pyrecon.nn.unet import ResidualUNet

__all__ = ["RDN", "BallConsistency", "ExactConsistency", "LearnedConsistency", "ResidualUNet", "RowLayout"]
