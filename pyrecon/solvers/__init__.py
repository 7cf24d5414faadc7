"""Iterative solvers: they take callables, know no operator class, and return a :class:`Solution` with a status."""

from pyrecon._solution import ConvergenceError, ConvergenceWarning, Solution, Status
from pyrecon.solvers._chains import (
    Batches,
    Chain,
    Diagnostics,
    Draws,
    diagnose,
    effective_sample_size,
    quantiles,
    split_rhat,
)
from pyrecon.solvers._coils import CoilTransform
from pyrecon.solvers._conjugate_gradient import conjugate_gradient
from pyrecon.solvers._fixed_point import Anderson, Broyden, FixedPointMethod, Picard, Shared, fixed_point
from pyrecon.solvers._image_priors import CenterCrop, Charbonnier, Denoised, ImagePrior
from pyrecon.solvers._ipalm import ipalm
from pyrecon.solvers._langevin import langevin, largest_curvature
from pyrecon.solvers._least_squares import cgls, sirt
from pyrecon.solvers._nlinv import nlinv
from pyrecon.solvers._proximal import fista, primal_dual
from pyrecon.solvers._samplers import MALA, ULA, Draw, PreconditionedULA, Sampler

__all__ = [
    "MALA",
    "ULA",
    "Anderson",
    "Batches",
    "Broyden",
    "CenterCrop",
    "Chain",
    "Charbonnier",
    "CoilTransform",
    "ConvergenceError",
    "ConvergenceWarning",
    "Denoised",
    "Diagnostics",
    "Draw",
    "Draws",
    "FixedPointMethod",
    "ImagePrior",
    "Picard",
    "PreconditionedULA",
    "Sampler",
    "Shared",
    "Solution",
    "Status",
    "cgls",
    "conjugate_gradient",
    "diagnose",
    "effective_sample_size",
    "fista",
    "fixed_point",
    "ipalm",
    "langevin",
    "largest_curvature",
    "nlinv",
    "primal_dual",
    "quantiles",
    "sirt",
    "split_rhat",
]
