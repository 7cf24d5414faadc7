from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon.ops import learned_consistency
from pyrecon.testing.cases._case import Case, Make, randn


def consistency_weights(generator: Generator, dtype: torch.dtype, width: int, layers: int, kernel: int) -> Tensor:
    """Packed weights that keep the size of what passes through."""
    parts = []
    for inputs, outputs in itertools.pairwise([4, *[width] * (layers - 1), 2]):
        terms = inputs * kernel
        parts.append(randn(generator, outputs * terms, dtype=dtype) / terms**0.5)
        parts.append(0.1 * randn(generator, outputs, dtype=dtype))
    return torch.cat(parts)


def _step(batch: int, rows: int, points: int, width: int, layers: int, kernel: int) -> Make:
    """Rows at random places, some of them outside, and radii from inside to outside."""

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        v, y = (randn(generator, batch, 2 * rows, dtype=dtype) for _ in range(2))
        spread = torch.linspace(0.2, 3.0, max(batch, 1), dtype=torch.float64)[:batch]
        weights = consistency_weights(generator, dtype, width, layers, kernel)
        places = torch.randperm(points + max(2, points // 8), generator=generator)[:rows] - 1
        return v, y, (spread * (2 * rows) ** 0.5).to(dtype), weights, places, points

    return make


def _case(
    name: str,
    batch: int,
    rows: int,
    points: int,
    width: int = 8,
    layers: int = 3,
    kernel: int = 3,
    *,
    released: bool = False,
    **more: Any,
) -> Case:
    options = {"width": width, "layers": layers, "kernel": kernel, "released": released}
    # k: sums of up to 24 terms in three layers, then the ball's: a few roundings each.
    make = _step(batch, rows, points, width, layers, kernel)
    return Case(learned_consistency, name, make, k=16, options=options, dtypes=(torch.float32, torch.float64), **more)


CASES: tuple[Case, ...] = (
    _case("2x5", 2, 5, 7, width=3, tiny=True, grad=(0, 1, 2, 3)),
    _case("released", 2, 4, 5, width=2, released=True, tiny=True, grad=(0, 1, 2, 3)),
    _case("point", 1, 1, 1),
    _case("empty-batch", 0, 5, 9),
    _case("one-layer", 2, 9, 12, layers=1, kernel=5),
    _case("wide", 2, 70, 133, width=17, layers=4, kernel=7),
    _case("narrow", 3, 33, 41, width=1, kernel=1),
    _case("mpi", 1, 2743, 7800),
    _case("mpi-batch", 3, 2743, 7800, released=True),
)
