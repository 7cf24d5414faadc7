"""Iterative solvers: they take callables, know no operator class, and return a :class:`Solution` with a status."""

from pyrecon.solvers._solution import ConvergenceWarning, Solution, Status
from pyrecon.solvers.conjugate_gradient import conjugate_gradient
from pyrecon.solvers.fixed_point import Anderson, Broyden, FixedPointMethod, Picard, fixed_point

__all__ = [
    "Anderson",
    "Broyden",
    "ConvergenceWarning",
    "FixedPointMethod",
    "Picard",
    "Solution",
    "Status",
    "conjugate_gradient",
    "fixed_point",
]
