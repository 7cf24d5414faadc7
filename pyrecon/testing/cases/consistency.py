from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon.ops import project_l2_ball, sm_consistency
from pyrecon.testing.cases._case import DOUBLE, SINGLE, Case, Make, randn


def _ball(batch: int, n: int, radius: float) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[object, ...]:
        v, center = (randn(generator, batch, n, dtype=dtype) for _ in range(2))
        # Radii from well inside to well outside the distance sqrt(2 n) of two normal vectors, one per sample.
        spread = torch.linspace(0.25, 4.0, max(batch, 1), dtype=torch.float64)[:batch]
        return v, center, (radius * spread * n**0.5).to(dtype.to_real())

    return make


@wraps(sm_consistency)
def _given(A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor, **options: Any) -> Any:
    return sm_consistency(A, x, d, y, radius, Ax=Ax, **options)


def _step(m: int, n: int, batch: int, *, real_image: bool = False, given: bool = False) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[object, ...]:
        A = randn(generator, m, n, dtype=dtype)
        x = randn(generator, batch, n, dtype=dtype.to_real() if real_image else dtype)
        d, y, Ax = (n**0.5 * randn(generator, batch, m, dtype=dtype) for _ in range(3))
        # Distances are about sqrt(3 m n): samples far outside, outside and inside.
        spread = torch.linspace(0.25, 4.0, max(batch, 1), dtype=torch.float64)[:batch]
        radius = ((m * n) ** 0.5 * spread).to(dtype.to_real())
        return (A, x, d, y, radius, Ax) if given else (A, x, d, y, radius)

    return make


def _step_cases(name: str, m: int, n: int, batch: int, k: float, **options: Any) -> tuple[Case, ...]:
    """All ways to call it: real and complex, a real image under a complex matrix, and each with the product given."""
    return tuple(
        Case(
            _given if given else sm_consistency,
            f"{name}{'-real-image' if real_image else ''}{'-given' if given else ''}",
            _step(m, n, batch, real_image=real_image, given=given),
            k=k,
            dtypes=(torch.complex64, torch.complex128) if real_image else (*SINGLE, *DOUBLE),
            grad=(0, 2, 3, 4, 5) if given else (0, 1, 2, 3, 4),
            **options,
        )
        for real_image in (False, True)
        for given in (False, True)
    )


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
    # k: a product sums n terms and the adjoint m, in blocks: sqrt of the block's length (120) for what adds up at
    # random, a few for the blocks' sum, and the largest element of the answer is a few times a typical one.
    *_step_cases("6x5x4", 6, 5, 4, k=16, tiny=True),
    *_step_cases("1-sample", 7, 3, 1, k=16),
    *_step_cases("short-rows", 40, 1, 5, k=16),
    *_step_cases("empty-batch", 3, 4, 0, k=16),
    *_step_cases("no-rows", 0, 4, 2, k=16),
    *_step_cases("no-columns", 5, 0, 2, k=16),
    *_step_cases("odd-3", 1031, 67, 3, k=32),
    *_step_cases("odd-7", 517, 131, 7, k=32),
    *_step_cases("wide-5", 130, 1100, 5, k=32),
    *_step_cases("mpi-1", 5486, 338, 1, k=32),
    *_step_cases("mpi-9", 2743, 338, 9, k=32),
)
