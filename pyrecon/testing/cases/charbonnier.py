"""Cases of pyrecon/ops/_charbonnier.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from pyrecon.ops import charbonnier
from pyrecon.ops._charbonnier import charbonnier_curvature
from pyrecon.testing.cases._case import Case, Make, randn

REAL = (torch.float32, torch.float64)


def _image(*shape: int, epsilon: float = 0.1) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        return randn(generator, *shape, dtype=dtype), epsilon

    return make


def _step(*shape: int, epsilon: float = 0.1) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        return randn(generator, *shape, dtype=dtype), randn(generator, *shape, dtype=dtype), epsilon

    return make


# k: a difference, two squares, their sum, a root, its inverse and a product are 5 roundings of a number of 1 at most,
# of which the gradient adds four; sums are of positive numbers, in 16 lanes of a row before double precision.
CASES: tuple[Case, ...] = (
    Case(charbonnier, "2x3x5", _image(2, 3, 5), k=8, dtypes=REAL, tiny=True, grad=(0,)),
    Case(charbonnier, "one-pixel", _image(2, 1, 1), k=8, dtypes=REAL, tiny=True, grad=(0,)),
    Case(charbonnier, "row", _image(1, 1, 6), k=8, dtypes=REAL, tiny=True, grad=(0,)),
    Case(charbonnier, "column", _image(1, 6, 1), k=8, dtypes=REAL, tiny=True, grad=(0,)),
    Case(charbonnier, "flat", _image(2, 4, 5, epsilon=100.0), k=8, dtypes=REAL, tiny=True),
    Case(charbonnier, "empty-batch", _image(0, 4, 4), k=8, dtypes=REAL),
    Case(charbonnier, "empty-image", _image(2, 0, 4), k=8, dtypes=REAL),
    Case(charbonnier, "odd", _image(3, 37, 61), k=8, dtypes=REAL),
    Case(charbonnier, "mri", _image(1, 640, 368, epsilon=1e-3), k=8, dtypes=REAL),
    Case(charbonnier_curvature, "2x3x5", _step(2, 3, 5), k=8, dtypes=REAL, tiny=True),
    Case(charbonnier_curvature, "one-pixel", _step(2, 1, 1), k=8, dtypes=REAL, tiny=True),
    Case(charbonnier_curvature, "empty-batch", _step(0, 4, 4), k=8, dtypes=REAL),
    Case(charbonnier_curvature, "odd", _step(3, 37, 61), k=8, dtypes=REAL),
    Case(charbonnier_curvature, "mri", _step(1, 640, 368, epsilon=1e-3), k=8, dtypes=REAL),
)
