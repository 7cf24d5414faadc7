"""Training of the models: from generated data to weights that reconstruction uses. Needs the extra ``train``."""

from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, Stage, setting
from pyrecon.train.deq_mpi import Config, train_deq_mpi
from pyrecon.train.run import Option, Training, train
from pyrecon.train.task import Diverged, DivergenceWarning, Interrupted, Outcome, Progress, Quality, Task

__all__ = [
    "Config",
    "Diverged",
    "DivergenceWarning",
    "Interrupted",
    "Option",
    "Outcome",
    "Progress",
    "Quality",
    "RunConfig",
    "Stage",
    "Task",
    "Training",
    "kept_pool",
    "setting",
    "train",
    "train_deq_mpi",
]
