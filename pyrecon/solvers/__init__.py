"""Iterative solvers: they take callables, know no operator class, and return a :class:`Solution` with a status."""

from pyrecon._solution import ConvergenceError, ConvergenceWarning, Solution, Status
from pyrecon.solvers._coils import CoilTransform
from pyrecon.solvers._conjugate_gradient import conjugate_gradient
from pyrecon.solvers._fixed_point import Anderson, Broyden, FixedPointMethod, Picard, Shared, fixed_point
from pyrecon.solvers._image_priors import CenterCrop, Charbonnier, Denoised, ImagePrior
from pyrecon.solvers._ipalm import ipalm
from pyrecon.solvers._langevin import Chain, langevin
from pyrecon.solvers._least_squares import cgls, sirt
from pyrecon.solvers._proximal import fista, primal_dual

__all__ = [
    "Anderson",
    "Broyden",
    "CenterCrop",
    "Chain",
    "Charbonnier",
    "CoilTransform",
    "ConvergenceError",
    "ConvergenceWarning",
    "Denoised",
    "FixedPointMethod",
    "ImagePrior",
    "Picard",
    "Shared",
    "Solution",
    "Status",
    "cgls",
    "conjugate_gradient",
    "fista",
    "fixed_point",
    "ipalm",
    "langevin",
    "primal_dual",
    "sirt",
]
