from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from pyrecon.ops._deq_mpi import DataStep, deq_mpi
from pyrecon.testing.cases._case import Case, Make, randn
from pyrecon.testing.cases.learned_consistency import consistency_weights
from pyrecon.testing.cases.rdn import network_weights

_SMALL = {"features": 3, "growth": 2, "blocks": 2, "layers": 2}
_RELEASED = {"features": 12, "growth": 12, "blocks": 4, "layers": 4}
_CONSISTENCY = {"learned_width": 8, "learned_layers": 3, "kernel": 3}


def _problem(
    batch: int,
    rows: int,
    shape: tuple[int, int],
    network: dict[str, int],
    penalty: float,
    points: int,
    *,
    ordered: bool,
) -> Make:
    """A matrix of singular values up to 2, data of the size of its products, radii from inside to outside; with points,
    every seventh row outside of them, and a hundred in the middle."""

    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        n = shape[0] * shape[1]
        matrix = randn(generator, rows, n, dtype=torch.float64) / max(rows, n) ** 0.5
        inverse = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + penalty * matrix.T @ matrix)
        state = randn(generator, batch, 2 * n + rows, dtype=dtype)
        y = 3 * randn(generator, batch, rows, dtype=dtype)
        radius = torch.linspace(0.3, 6.0, max(batch, 1), dtype=torch.float64)[:batch] * rows**0.5
        weights = network_weights(generator, dtype, network)
        given = matrix.to(dtype), inverse.to(dtype), state, y, radius.to(dtype), weights
        if not points:
            return given
        places = torch.randperm(points, generator=generator)[: rows // 2]
        places = places.sort().values if ordered else places
        row, middle = torch.arange(len(places)), len(places) // 2
        places = torch.where((row % 7 == 3) | ((row >= middle) & (row < middle + 100) & (row > 20)), -1, places)
        return *given, consistency_weights(generator, dtype, *_CONSISTENCY.values()), places

    return make


def _case(
    name: str,
    batch: int,
    rows: int,
    shape: tuple[int, int],
    data: DataStep,
    *,
    steps: int = 3,
    memory: int = 0,
    penalty: float = 1.0,
    network: dict[str, int] = _SMALL,
    points: int = 0,
    ordered: bool = True,
    **more: Any,
) -> Case:
    options: dict[str, Any] = {"shape": shape, "steps": steps, "data": data, "memory": memory, "penalty": penalty}
    options |= network
    if points:
        options |= {"points": points, **_CONSISTENCY}
    make = _problem(batch, rows, shape, network, penalty, points, ordered=ordered)
    # k: a network's 24 and a step more; 22 was seen. The weights of mixing come from a matrix whose condition the ridge
    # bounds by 1e4, and differences between steps; 105 was seen.
    k = 512 if memory else 48
    return Case(deq_mpi, name, make, k=k, options=options, dtypes=(torch.float32, torch.float64), **more)


CASES: tuple[Case, ...] = (
    _case("2x3", 2, 5, (2, 3), "ball", tiny=True),
    _case("exact", 2, 5, (3, 2), "exact", memory=2, tiny=True),
    _case("learned", 2, 8, (2, 3), "learned", points=9, tiny=True),
    _case("empty-batch", 0, 5, (2, 3), "ball"),
    _case("one-step", 2, 33, (5, 4), "ball", steps=1),
    _case("row", 5, 30, (1, 17), "released", points=70),
    _case("mpi-ball", 1, 339, (26, 13), "ball", network=_RELEASED, penalty=10.0),
    _case("mpi-mixed", 6, 339, (26, 13), "ball", network=_RELEASED, memory=3, steps=5),
    _case("mpi-exact", 3, 700, (13, 26), "exact"),
    _case("mpi-learned", 1, 1400, (26, 13), "learned", points=2000, network=_RELEASED),
    _case("segments", 9, 1400, (26, 13), "released", points=900, memory=2),
    _case("unordered", 2, 1400, (26, 13), "learned", points=1100, ordered=False),
)
