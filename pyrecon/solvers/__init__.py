"""Iterative solvers: they take callables, know no operator class, and return a :class:`Solution` with a status."""

from pyrecon.solvers._solution import ConvergenceWarning, Solution, Status
from pyrecon.solvers.conjugate_gradient import conjugate_gradient

__all__ = ["ConvergenceWarning", "Solution", "Status", "conjugate_gradient"]
