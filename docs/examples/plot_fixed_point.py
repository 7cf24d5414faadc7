"""
Fixed points with Anderson mixing
=================================

Sixty-four slow linear iterations at once. Anderson mixing reaches the
tolerance in a fraction of the steps of plain iteration, and samples that have
converged leave the batch.
"""

# %%
# Sample i contracts by ``rate[i]``, which is what plain iteration converges
# by: from halving the error in every step to losing 2 % of it.
import torch

from pyrecon import plotting
from pyrecon.implicit import residual_curve
from pyrecon.solvers import Anderson, Broyden, Picard, fixed_point

generator = torch.Generator().manual_seed(0)
A = torch.randn(64, 100, 100, generator=generator, dtype=torch.float64)
A = A + A.mT  # symmetric: the rate of plain iteration is the norm
rate = torch.linspace(0.5, 0.98, 64, dtype=torch.float64)
A = A * (rate / torch.linalg.matrix_norm(A, 2))[:, None, None]
b = torch.randn(64, 100, generator=generator, dtype=torch.float64)


def f(x: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (A @ x[..., None])[..., 0] + b


# %%
# ``A`` and ``b`` go in ``args``, so that the solver can pass on the rows of
# those samples that still move.
solvers = (Picard(), Anderson(memory=5), Broyden(memory=10))
x0 = torch.zeros_like(b)
for solver in solvers:
    solution = fixed_point(
        f, x0, (A, b), solver=solver, tol=1e-8, max_iter=1000
    )
    n = solution.iterations
    print(f"{type(solver).__name__:10s} {solution.counts()}")
    print(f"    iterations {n.min()} to {n.max()}, together {n.sum()}")

# %%
# The slowest sample, step by step.
lines = {}
for solver in solvers:
    curve = residual_curve(f, x0, (A, b), solver=solver, max_iter=150)
    lines[type(solver).__name__] = list(enumerate(curve[:, -1].tolist(), 1))
plotting.curves(lines, "iterations", "relative change", log="y")
