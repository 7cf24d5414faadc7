from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon import ops
from pyrecon._check import dense
from pyrecon.ops._kaczmarz import _trace
from pyrecon.testing.cases._case import Case, Make, randn


def kaczmarz(A: Tensor, y: Tensor, x0: Tensor, dual: Tensor, weight: Tensor, order: Any = None, **options: Any) -> Any:
    return ops.kaczmarz(A, y, x0=x0, dual=dual, weight=weight, order=order, return_dual=True, **options)


def kaczmarz_trace(
    A: Tensor, y: Tensor, x0: Tensor, dual: Tensor, weight: Tensor, order: Any = None, *, out: Any = None
) -> Any:
    """What the gradient uses besides: the multipliers of every step, and where positivity cut."""
    inputs = (A, y, x0, dual, weight)
    return _trace(*map(dense, inputs), order, 2, True, out=out)


def _problem(batch: int, rows: int, columns: int, *, weighted: bool = True, order: str | None = None) -> Make:
    """Rows of unlike energies, one of them zero; a consistent right-hand side plus noise; unlike weights."""

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        scale = torch.linspace(0.5, 2.0, max(rows, 1), dtype=torch.float64)[:rows]
        if rows > 2:
            scale[1] = 0
        A = (randn(generator, rows, columns, dtype=torch.promote_types(dtype, torch.float64)) * scale[:, None]).to(
            dtype
        )
        x = randn(generator, batch, columns, dtype=dtype)
        y = x @ A.T + 0.1 * randn(generator, batch, rows, dtype=dtype)
        x0 = randn(generator, batch, columns, dtype=dtype)
        dual = 0.1 * randn(generator, batch, rows, dtype=dtype)
        weight = torch.linspace(0.3, 3.0, max(batch, 1), dtype=torch.float64)[:batch] * weighted
        arguments = (A, y, x0, dual, weight.to(dtype.to_real()))
        if order == "given":  # shorter than the rows, with a row twice in one block
            return *arguments, torch.tensor([0, 3, 3, 1, 4, 0, 2])
        if order == "longer":  # its own rows for each sweep
            return *arguments, torch.randint(rows, (2, 2 * rows + 1), generator=generator)
        return *arguments, order

    return make


def _k(steps: int, columns: int) -> float:
    """Every step is a projection: it magnifies no error made before, and takes away the error's part along its row.

    So the errors of the last steps add up, as many as it takes to span the columns, and independent ones add up as the
    square root of their number. In one step an error of a rounding or two reaches x: the product with x carries
    sqrt(256) roundings of terms 1 / sqrt(columns) of the norms' product. Seen: 7 eps for 5486 x 338, where k is 26.
    """
    return 8 + sqrt(min(steps, columns))


_GRADIENTS = (0, 1, 2, 3, 4)

CASES = (
    Case(kaczmarz, "tiny", _problem(2, 5, 4), k=_k(10, 4), options={"sweeps": 2}, tiny=True, grad=_GRADIENTS),
    Case(
        kaczmarz,
        "tiny-nonneg",
        _problem(2, 5, 4, order="given"),
        k=_k(14, 4),
        options={"sweeps": 2, "nonneg": True},
        tiny=True,
        grad=_GRADIENTS,
    ),
    Case(
        kaczmarz,
        "tiny-longer",
        _problem(2, 3, 4, weighted=False, order="longer"),
        k=_k(14, 4),
        options={"sweeps": 2, "nonneg": True},
        tiny=True,
        grad=(1, 2, 3),
    ),
    Case(kaczmarz, "tiny-random", _problem(1, 4, 3, order="random"), k=_k(4, 3), options={"seed": 7}, tiny=True),
    Case(kaczmarz_trace, "tiny", _problem(2, 5, 4), k=_k(10, 4)),
    Case(kaczmarz_trace, "odd", _problem(13, 31, 29), k=_k(62, 29)),
    Case(kaczmarz, "empty-batch", _problem(0, 5, 4), k=_k(5, 4)),
    Case(kaczmarz, "no-rows", _problem(2, 0, 4), k=_k(1, 4)),
    Case(kaczmarz, "no-columns", _problem(2, 5, 0), k=_k(5, 1)),
    Case(kaczmarz, "size-1", _problem(1, 1, 1), k=_k(1, 1)),
    Case(kaczmarz, "one", _problem(1, 37, 131), k=_k(111, 131), options={"sweeps": 3}),
    Case(kaczmarz, "pair-no-weight", _problem(2, 38, 67, weighted=False), k=_k(76, 67), options={"sweeps": 2}),
    Case(kaczmarz, "odd", _problem(21, 103, 71), k=_k(206, 71), options={"sweeps": 2, "nonneg": True}),
    Case(kaczmarz, "odd-random", _problem(45, 99, 50, order="random"), k=_k(198, 50), options={"sweeps": 2}),
    # More columns than one run of a sum in every layout and precision.
    Case(kaczmarz, "wide-1", _problem(1, 9, 4501), k=_k(9, 4501)),
    Case(kaczmarz, "wide-32", _problem(32, 9, 600), k=_k(9, 600)),
    Case(kaczmarz, "mpi-1", _problem(1, 5486, 338), k=_k(5486, 338), dtypes=(torch.float32, torch.complex64)),
    Case(kaczmarz, "mpi-64", _problem(64, 5486, 338), k=_k(5486, 338), dtypes=(torch.float32,)),
)
