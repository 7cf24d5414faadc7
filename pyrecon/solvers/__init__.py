"""Iterative solvers: they take callables, know no operator class, and return a :class:`Solution` with a status."""

from pyrecon.solvers._solution import ConvergenceWarning, Solution, Status
from pyrecon.solvers.conjugate_gradient import conjugate_gradient
from pyrecon.solvers.fixed_point import Anderson, Broyden, FixedPointMethod, Picard, fixed_point
from pyrecon.solvers.langevin import Chain, langevin
from pyrecon.solvers.proximal import fista, primal_dual

__all__ = [
    "Anderson",
    "Broyden",
    "Chain",
    "ConvergenceWarning",
    "FixedPointMethod",
    "Picard",
    "Solution",
    "Status",
    "conjugate_gradient",
    "fista",
    "fixed_point",
    "langevin",
    "primal_dual",
]
