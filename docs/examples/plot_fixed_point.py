"""
Fixed points with Anderson mixing
=================================

Sixty-four slow linear iterations at once. Anderson mixing reaches the tolerance in a fraction of the steps of plain
iteration, and samples that have converged leave the batch.
"""

# %%
import torch

from pyrecon.solvers import Anderson, Broyden, Picard, fixed_point

generator = torch.Generator().manual_seed(0)
A = torch.randn(64, 100, 100, generator=generator, dtype=torch.float64)
A = A + A.mT  # symmetric: the rate of plain iteration is the norm
rate = torch.linspace(0.5, 0.98, 64, dtype=torch.float64)
A = A * (rate / torch.linalg.matrix_norm(A, 2))[:, None, None]
b = torch.randn(64, 100, generator=generator, dtype=torch.float64)


def f(x: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (A @ x[..., None])[..., 0] + b


for method in (Picard(), Anderson(memory=5), Broyden(memory=10)):
    solution = fixed_point(f, torch.zeros_like(b), (A, b), solver=method, tol=1e-8, max_iter=1000)
    print(
        f"{type(method).__name__:10s} {solution.counts()}, iterations {solution.iterations.min()} to "
        f"{solution.iterations.max()}, {solution.iterations.sum()} evaluations of one sample"
    )
