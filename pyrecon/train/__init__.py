"""Training of the models: from generated data to weights that reconstruction uses. Needs the extra ``train``."""

from pyrecon.train.config import RunConfig, Stage
from pyrecon.train.deq_mpi import Config, train_deq_mpi
from pyrecon.train.run import Diverged, Interrupted, Progress, Quality, Task, Training, train

__all__ = [
    "Config",
    "Diverged",
    "Interrupted",
    "Progress",
    "Quality",
    "RunConfig",
    "Stage",
    "Task",
    "Training",
    "train",
    "train_deq_mpi",
]
