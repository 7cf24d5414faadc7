from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon.ops import rdn
from pyrecon.ops._rdn import filters
from pyrecon.testing.cases._case import Case, Make, randn


def network_weights(generator: Generator, dtype: torch.dtype, config: dict[str, int]) -> Tensor:
    """Packed weights that keep the size of what passes through: standard deviation 1 / sqrt(inputs of a sum)."""
    parts = []
    for outputs, inputs, size in filters(**config):
        terms = inputs * size * size
        parts.append(randn(generator, outputs * terms, dtype=dtype) / terms**0.5)
        parts.append(0.1 * randn(generator, outputs, dtype=dtype))
    return torch.cat(parts)


def _network(shape: tuple[int, int, int], config: dict[str, int]) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        return randn(generator, *shape, dtype=dtype), network_weights(generator, dtype, config)

    return make


def _case(
    name: str,
    shape: tuple[int, int, int],
    features: int = 12,
    growth: int = 12,
    blocks: int = 4,
    layers: int = 4,
    **more: Any,
) -> Case:
    config = {"features": features, "growth": growth, "blocks": blocks, "layers": layers}
    # k: sums of up to 432 terms that add up at random, about sqrt(432) / 4 eps each, through a chain of some 20 layers
    # whose errors add up at random too.
    return Case(rdn, name, _network(shape, config), k=24, options=config, dtypes=(torch.float32, torch.float64), **more)


CASES: tuple[Case, ...] = (
    _case("2x3x4", (2, 3, 4), 2, 1, 1, 1, tiny=True, grad=(0, 1)),
    _case("1x4x3", (1, 4, 3), 1, 2, 2, 2, tiny=True, grad=(0, 1)),
    _case("pixel", (1, 1, 1)),
    _case("row", (2, 1, 37)),
    _case("column", (1, 37, 1), 3, 5),
    _case("empty-batch", (0, 5, 4)),
    _case("mpi", (1, 26, 13)),
    _case("mpi-batch", (5, 26, 13)),
    _case("mpi-wide", (2, 13, 26)),
    _case("mpi-fine", (2, 52, 26)),
    _case("large", (1, 67, 131)),
    _case("paper", (1, 26, 13), layers=12),
    _case("many-channels", (2, 9, 17), 25, 17, 2, 3),
    _case("few-channels", (3, 9, 15), 1, 1, 1, 1),
    _case("narrow", (2, 40, 11), 4, 5, 2, 3),
    _case("odd", (2, 25, 17), 7, 6, 2, 2),
    _case("other-channels", (3, 10, 7), 4, 3, 2, 2),
)
