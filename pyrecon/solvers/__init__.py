"""Iterative solvers: they take callables, know no operator class, and return a :class:`Solution` with a status."""

from pyrecon.solvers._solution import ConvergenceWarning, Solution, Status

__all__ = ["ConvergenceWarning", "Solution", "Status"]
