"""Networks of the models."""

from pyrecon.nn.baseline_unet import BaselineUNet, NormalisedUNet
from pyrecon.nn.conditioned import ConditionedUNet
from pyrecon.nn.dncnn import DnCNN
from pyrecon.nn.energy import EnergyNet
from pyrecon.nn.learned_consistency import BallConsistency, ExactConsistency, LearnedConsistency, RowLayout
from pyrecon.nn.rdn import RDN
from pyrecon.nn.shallow import ShallowBlock
from pyrecon.nn.unet import ResidualUNet
from pyrecon.nn.varnet import VariationalNetwork

__all__ = [
    "RDN",
    "BallConsistency",
    "BaselineUNet",
    "ConditionedUNet",
    "DnCNN",
    "EnergyNet",
    "ExactConsistency",
    "LearnedConsistency",
    "NormalisedUNet",
    "ResidualUNet",
    "RowLayout",
    "ShallowBlock",
    "VariationalNetwork",
]
