"""Training of the models: from generated images to weights that reconstruction uses. Needs the extra ``train``."""

from pyrecon.train.config import Config, Stage
from pyrecon.train.deq_mpi import Interrupted, train_deq_mpi

__all__ = ["Config", "Interrupted", "Stage", "train_deq_mpi"]
