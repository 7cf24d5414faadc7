from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon.ops import soft_threshold, tv_prox
from pyrecon.testing.cases._case import Case, Make, randn

REAL = (torch.float32, torch.float64)


def noisy_blocks(generator: Generator, batch: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Constant blocks of 7 x 5 pixels plus noise of a tenth of their contrast: what total variation is made for."""
    coarse = randn(generator, batch, height // 7 + 1, width // 5 + 1, dtype=dtype)
    blocks = coarse.repeat_interleave(7, 1).repeat_interleave(5, 2)[:, :height, :width]
    return blocks + 0.1 * randn(generator, batch, height, width, dtype=dtype)


def _images(batch: int, height: int, width: int, weight: float, *, dual: bool = False) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        x = noisy_blocks(generator, batch, height, width, dtype)
        spread = torch.linspace(0.5, 2.0, max(batch, 1), dtype=torch.float64)[:batch]
        levels = (weight * spread).to(dtype.to_real())
        return (x, levels, randn(generator, batch, 2, height, width, dtype=dtype)) if dual else (x, levels)

    return make


def _tv(name: str, make: Make, k: float, options: Mapping[str, Any], **more: Any) -> Case:
    return Case(tv_prox, name, make, k=k, options=options, **more)


# k for the image: the prox contracts, so rounding does not pile up: two roundings in each of the last sums, and as much
# again for what the iterations leave. Measured 1-3 up to 100 iterations.
# k for a dual: its errors are those of the image, but its scale is the weight: 8 * max|x| / weight, with max|x| = 5.
FEW = {"iterations": 6}
CASES: tuple[Case, ...] = (
    _tv("4x5", _images(2, 4, 5, 0.3), 8, FEW, tiny=True, grad=(0, 1), twice=False),
    _tv("3x6-anisotropic-nonneg", _images(2, 3, 6, 0.2), 8, {"iterations": 4, "isotropic": False, "nonneg": True},
        dtypes=REAL, tiny=True, grad=(0, 1), twice=False),
    _tv("4x3-warm", _images(2, 4, 3, 0.3, dual=True), 64, {"iterations": 3, "return_dual": True},
        tiny=True, grad=(0, 1, 2), twice=False),
    _tv("3x4-anisotropic-warm", _images(2, 3, 4, 0.3, dual=True), 8, {"iterations": 3, "isotropic": False},
        tiny=True, grad=(0, 1, 2), twice=False),
    # One sample ends after 5 iterations, the other after 30 or, complex, 10.
    _tv("4x3-tol", _images(2, 4, 3, 0.3), 8, {"iterations": 40, "tol": 3e-2}, tiny=True, grad=(0, 1), twice=False),
    # Longer than a block of the GPU kernels, in both directions.
    _tv("3x66", _images(1, 3, 66, 0.3), 8, FEW, dtypes=(torch.complex64, torch.float64), tiny=True),
    _tv("66x2-tol-nonneg", _images(2, 66, 2, 0.3), 8, {"iterations": 30, "tol": 2e-2, "nonneg": True},
        dtypes=(torch.float32,), tiny=True),
    _tv("66x2-warm", _images(1, 66, 2, 0.3, dual=True), 256, {"iterations": 9, "tol": 1e-3, "return_dual": True,
        "isotropic": False}, dtypes=(torch.float32, torch.complex128), tiny=True),
    _tv("empty-batch", _images(0, 5, 4, 0.3), 8, {}),
    _tv("no-rows", _images(2, 0, 4, 0.3), 8, {}),
    _tv("pixel", _images(1, 1, 1, 0.3), 8, {}),
    _tv("row", _images(2, 1, 37, 0.3), 8, {}),
    _tv("column", _images(2, 37, 1, 0.3), 8, {}),
    _tv("mpi-64", _images(64, 26, 13, 0.1), 8, {}),
    _tv("mpi-64-nonneg", _images(64, 26, 13, 0.1), 8, {"nonneg": True}, dtypes=REAL),
    _tv("odd-tol", _images(5, 61, 83, 0.1), 8, {"iterations": 100, "tol": 3e-3}),
    _tv("odd-bands", _images(1, 203, 171, 0.3, dual=True), 256, {"return_dual": True, "isotropic": False}),
    _tv("mri", _images(1, 640, 368, 0.1), 512, {"iterations": 20, "return_dual": True}),
    _tv("mri-tol", _images(1, 320, 368, 0.05), 8, {"iterations": 60, "tol": 3e-3}),
)  # fmt: skip


def _numbers(shape: tuple[int, ...], threshold: tuple[int, ...]) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        return randn(generator, *shape, dtype=dtype), randn(generator, *threshold, dtype=dtype.to_real()).abs()

    return make


# k: the length of a complex number, the quotient, the difference and the product round once each.
CASES += (
    Case(soft_threshold, "3x7", _numbers((3, 7), (3,)), k=4, tiny=True, grad=(0, 1)),
    Case(soft_threshold, "3x7-nonneg", _numbers((3, 7), (3,)), k=4, options={"nonneg": True}, dtypes=REAL,
         tiny=True, grad=(0, 1)),
    Case(soft_threshold, "2x3x4-columns", _numbers((2, 3, 4), (1, 3, 4)), k=4, tiny=True, grad=(0, 1)),
    Case(soft_threshold, "2x3x4-each", _numbers((2, 3, 4), (2, 3, 4)), k=4, tiny=True, grad=(0, 1)),
    Case(soft_threshold, "2x3x4-mixed", _numbers((2, 3, 4), (1, 3, 1)), k=4, tiny=True, grad=(0, 1)),
    Case(soft_threshold, "2x3x4-outer", _numbers((2, 3, 4), (2, 1, 4)), k=4),
    Case(soft_threshold, "one-level", _numbers((3, 5), ()), k=4, tiny=True, grad=(0, 1)),
    Case(soft_threshold, "scalar", _numbers((), ()), k=4),
    Case(soft_threshold, "empty", _numbers((0, 5), (0,)), k=4),
    Case(soft_threshold, "empty-rows", _numbers((3, 0), (3,)), k=4),
    Case(soft_threshold, "odd", _numbers((3, 20011), (3,)), k=4),
    Case(soft_threshold, "mri", _numbers((4, 640, 368), (1, 640, 368)), k=4),
)  # fmt: skip
