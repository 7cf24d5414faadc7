"""Linear operators: ``A(x)``, ``A.H(y)``, ``A.gram(x)``."""

from pyrecon.linops._base import LinearOperator

__all__ = ["LinearOperator"]
