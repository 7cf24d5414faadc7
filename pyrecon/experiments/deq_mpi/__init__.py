"""DEQ-MPI: the paper's tables and figures, ours beside the paper's. ``pyrecon reproduce deq-mpi`` runs them."""

from __future__ import annotations

from pyrecon.experiments.deq_mpi.ablations import EXPERIMENTS
from pyrecon.experiments.deq_mpi.figures import FIGURES
from pyrecon.experiments.deq_mpi.study import RECIPES, Sizes, Study
from pyrecon.experiments.deq_mpi.tables import TABLES, picture

__all__ = ["EXPERIMENTS", "FIGURES", "RECIPES", "TABLES", "Sizes", "Study", "picture"]
