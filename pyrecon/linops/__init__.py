"""Linear operators: ``A(x)``, ``A.H(y)``, ``A.gram(x)``."""

from pyrecon.linops._base import LinearOperator
from pyrecon.linops.fourier import Fourier
from pyrecon.linops.sense import Sense

__all__ = ["Fourier", "LinearOperator", "Sense"]
