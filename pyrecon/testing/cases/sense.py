from __future__ import annotations

from math import log2
from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon.ops import sense_adjoint, sense_forward, sense_maps_adjoint, sense_normal
from pyrecon.testing.cases._case import Case, Make, randn

COMPLEX = (torch.complex64, torch.complex128)


def _inputs(
    op: str, shape: tuple[int, int, int, int], *, maps_batch: int = 1, mask: str = "full", mask_batch: int = 1
) -> Make:
    batch, coils, rows, cols = shape
    image_shape = (batch, rows, cols)
    sizes = {"full": (rows, cols), "cols": (1, cols), "rows": (rows, 1), "one": (1, 1), "bool": (1, cols)}[mask]

    def make(generator: Generator, dtype: torch.dtype) -> tuple[object, ...]:
        first = randn(generator, *(image_shape if op in ("forward", "normal") else shape), dtype=dtype)
        second = randn(
            generator, *(image_shape if op == "maps_adjoint" else (maps_batch, coils, rows, cols)), dtype=dtype
        )
        weights: Tensor = torch.rand((mask_batch, 1, *sizes), generator=generator, dtype=torch.float64)
        sampled = weights > 0.6
        return first, second, sampled if mask == "bool" else (weights * sampled).to(dtype.to_real())

    return make


OPS = {
    "forward": sense_forward,
    "adjoint": sense_adjoint,
    "normal": sense_normal,
    "maps_adjoint": sense_maps_adjoint,
}


def _k(op: str, shape: tuple[int, int, int, int]) -> float:
    # A transform of n points has log2(n) levels, each adding about one rounding of a typical element; the largest
    # element of the answer is a few times a typical one. Products, phases and the sum over coils add a constant.
    _, _, rows, cols = shape
    return (2 if op == "normal" else 1) * log2(rows * cols) + 8


def _cases(name: str, shape: tuple[int, int, int, int], *, tiny: bool = False, **options: Any) -> tuple[Case, ...]:
    return tuple(
        Case(
            function,
            name,
            _inputs(
                op, shape, **{k: v for k, v in options.items() if not (op == "maps_adjoint" and k == "maps_batch")}
            ),
            k=_k(op, shape),
            dtypes=COMPLEX,
            tiny=tiny,
            grad=(0, 1),
        )
        for op, function in OPS.items()
    )


CASES = (
    *_cases("2x2x4x6", (2, 2, 4, 6), tiny=True),
    *_cases("odd-1d", (2, 2, 3, 5), mask="cols", mask_batch=2, maps_batch=2, tiny=True),
    *_cases("frames", (4, 2, 3, 4), maps_batch=2, mask_batch=2, tiny=True),
    *_cases("frames-1d", (6, 2, 20, 18), maps_batch=2, mask="rows", mask_batch=3),
    *_cases("rows", (1, 3, 5, 4), mask="rows", tiny=True),
    *_cases("one-mask", (2, 1, 3, 4), mask="one", mask_batch=2, tiny=True),
    *_cases("one-row", (2, 2, 1, 7), mask="bool"),
    *_cases("one-pixel", (1, 1, 1, 1)),
    *_cases("empty-batch", (0, 3, 4, 5)),
    *_cases("primes", (1, 2, 41, 74)),
    *_cases("no-plan", (1, 1, 263, 6)),
    *_cases("many-coils", (1, 5, 48, 50)),
    *_cases("mri-full", (1, 4, 160, 92)),
    *_cases("mri-cols", (3, 4, 64, 92), mask="cols", maps_batch=3),
    *_cases("mri-rows", (3, 4, 92, 70), mask="rows", mask_batch=3),
)
