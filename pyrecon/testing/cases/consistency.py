from __future__ import annotations

import torch
from torch import Generator

from pyrecon.ops import project_l2_ball
from pyrecon.testing.cases._case import Case, Make, randn


def _ball(batch: int, n: int, radius: float) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[object, ...]:
        v, center = (randn(generator, batch, n, dtype=dtype) for _ in range(2))
        # Radii from well inside to well outside the distance sqrt(2 n) of two normal vectors, one per sample.
        spread = torch.linspace(0.25, 4.0, max(batch, 1), dtype=torch.float64)[:batch]
        return v, center, (radius * spread * n**0.5).to(dtype.to_real())

    return make


# k: one rounding each in the difference, the scale, the product and the sum, and the norm is a double sum (CPU) or
# BLOCK partial sums (GPU): 4 + a little. Over thousands of terms in double the reference's own sum shows: + sqrt(n)/4.
CASES = (
    Case(project_l2_ball, "3x7", _ball(3, 7, 1.0), k=8, tiny=True, grad=(0, 1, 2)),
    Case(project_l2_ball, "empty-batch", _ball(0, 5, 1.0), k=8),
    Case(project_l2_ball, "empty-row", _ball(2, 0, 1.0), k=8),
    Case(project_l2_ball, "size-1", _ball(1, 1, 1.0), k=8),
    Case(project_l2_ball, "odd", _ball(5, 1031, 1.0), k=8),
    Case(project_l2_ball, "mpi-1", _ball(1, 5486, 1.0), k=34),
    Case(project_l2_ball, "mpi-64", _ball(64, 5486, 1.0), k=34),
)
