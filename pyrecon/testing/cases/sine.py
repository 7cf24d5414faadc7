from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from pyrecon.ops import dst1, prox_smooth_maps
from pyrecon.testing.cases._case import Case, Make, randn


def _array(shape: tuple[int, ...], dims: int | tuple[int, ...] = (-2, -1)) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        return randn(generator, *shape, dtype=dtype), dims

    return make


def _maps(shape: tuple[int, ...], weight: float, dims: int | tuple[int, ...] = (-2, -1), *, each: bool = False) -> Make:
    """A weight for all samples, or one for each of them, from a fifth of ``weight`` to all of it."""

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        spread = torch.linspace(0.2, 1.0, max(shape[0], 1), dtype=torch.float64)[: shape[0]]
        level = weight * (spread if each else torch.ones(()))
        return randn(generator, *shape, dtype=dtype), level.to(dtype.to_real()), dims

    return make


def _dst(name: str, shape: tuple[int, ...], dims: int | tuple[int, ...] = (-2, -1), **more: Any) -> Case:
    # k: about one rounding of a typical element per level of a transform and a few for its first and last sums; the
    # largest element is four times a typical one. Measured up to 7, with 1-3 for dense sums.
    return Case(dst1, name, _array(shape, dims), k=12, grad=(0,), **more)


def _prox(
    name: str,
    shape: tuple[int, ...],
    weight: float,
    dims: int | tuple[int, ...] = (-2, -1),
    *,
    each: bool = False,
    **more: Any,
) -> Case:
    # k: the prox contracts and its two transforms round like those above. Smoothing by a large weight leaves a small
    # result of a large right-hand side: the error relative to it grows at most with the norm of 1 + weight D^T D in the
    # smooth functions that are left, here with the square root of the weight.
    return Case(
        prox_smooth_maps, name, _maps(shape, weight, dims, each=each), k=12 * (1 + weight**0.5), grad=(0, 1), **more
    )


CASES: tuple[Case, ...] = (
    _dst("2x3x4", (2, 3, 4), tiny=True),
    _dst("2x5x8", (2, 5, 8), tiny=True),
    _dst("first", (6, 3, 2), 0, tiny=True),
    _dst("last", (2, 3, 10), -1, tiny=True),
    _dst("outer", (3, 4, 2), (0, 2), tiny=True),
    _dst("three", (2, 3, 2, 4), (1, 2, 3), tiny=True),
    _dst("number", (1, 1, 1)),
    _dst("signal", (12,), 0),
    _dst("empty-batch", (0, 4, 5)),
    _dst("no-rows", (2, 0, 4)),
    _dst("odd-even", (3, 23, 38)),  # 24 = 2 2 2 3 and 39 = 3 13
    _dst("split", (2, 74, 104)),  # 75 = 3 5 5 and 105 = 3 5 7
    _dst("powers-of-two", (1, 127, 63)),
    _dst("prime", (2, 256, 106)),  # 257: by a convolution; 107
    _dst("prime-padded", (1, 562, 9)),  # 563, and 281 is prime: the convolution is padded
    _dst("dense", (1, 11, 788)),  # 789 = 3 263
    _dst("mri", (3, 160, 92)),
    _prox("2x3x4", (2, 3, 4), 0.7, each=True, tiny=True),
    _prox("1x5x3", (1, 5, 3), 2.0, tiny=True),
    _prox("last", (2, 3, 5), 0.7, -1, each=True, tiny=True),
    _prox("middle", (2, 4, 3), 0.7, 1, each=True, tiny=True),
    _prox("first", (4, 3), 0.7, 0, tiny=True),
    _prox("outer", (3, 2, 4), 0.7, (0, 2), tiny=True),
    _prox("three", (2, 3, 2, 4), 0.7, (1, 2, 3), each=True, tiny=True),
    _prox("number", (1, 1, 1), 2.0),
    _prox("zero", (2, 5, 6), 0.0),
    _prox("signal", (12,), 2.0, 0),
    _prox("empty-batch", (0, 4, 5), 1.0, each=True),
    _prox("no-rows", (2, 0, 4), 1.0),
    _prox("by-rows", (3, 4, 16, 10), 3.0, each=True),  # 17 against 11: whichever is cheaper
    _prox("by-cols", (3, 4, 22, 37), 3.0, each=True),
    _prox("odd", (5, 61, 83), 30.0, each=True),
    _prox("even", (2, 63, 127), 30.0),
    _prox("large-weight", (2, 92, 70), 1e4),
    _prox("signals", (3, 21, 133), 10.0, -1, each=True),
    _prox("columns", (3, 133, 21), 10.0, -2, each=True),
    _prox("volume", (2, 17, 26, 13), 10.0, (1, 2, 3)),
    _prox("mri", (3, 160, 92), 10.0),
)
