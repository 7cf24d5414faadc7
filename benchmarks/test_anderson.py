"""Speed of one step of Anderson mixing, without the map: store the iterate, refresh the Gram matrix, solve, mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.solvers import Anderson

MEMORY, RIDGE = 5, 1e-4
PERIOD = 7  # values f(x) that take turns, coprime to the memory: the history never repeats itself


class TorchAnderson:
    """The step as deep equilibrium packages write it: ring buffers, one batched product and solve, two mixes."""

    def __init__(self, batch: int, n: int, dtype: torch.dtype) -> None:
        self.X, self.F, self.G = (torch.zeros(batch, MEMORY, n, dtype=dtype) for _ in range(3))
        self.gram = torch.empty(batch, MEMORY, MEMORY, dtype=dtype)
        self.x = torch.empty(batch, 1, n, dtype=dtype)
        self.count = 0

    def __call__(self, x: Tensor, fx: Tensor) -> Tensor:
        slot = self.count % MEMORY
        self.count += 1
        k = min(self.count, MEMORY)
        self.X[:, slot], self.F[:, slot] = x, fx
        torch.sub(self.F, self.X, out=self.G)
        torch.bmm(self.G, self.G.mT, out=self.gram)
        H = self.gram[:, :k, :k]
        ridge = RIDGE * H.diagonal(dim1=1, dim2=2).mean(dim=1)
        H = H + ridge[:, None, None] * torch.eye(k, dtype=x.dtype)
        weights = torch.linalg.solve(H, torch.ones(len(x), k, 1, dtype=x.dtype))
        weights /= weights.sum(dim=1, keepdim=True)
        return torch.bmm(weights.mT, self.F[:, :k], out=self.x)[:, 0]


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize(("batch", "n", "goal"), [(64, 6162, 8.0), (8, 204800, 4.5), (1, 6162, None)])
def test_step(timed: Callable[..., None], impl: str, batch: int, n: int, goal: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(batch, n, generator=generator) for _ in range(PERIOD)]
    x0 = torch.randn(batch, n, generator=generator)
    ours, rival, exact = (
        Anderson(memory=MEMORY, ridge=RIDGE).start(batch, x0),
        TorchAnderson(batch, n, torch.float32),
        TorchAnderson(batch, n, torch.float64),
    )
    rows, x = torch.arange(batch), x0.clone()
    step = 0

    def advance() -> Tensor:
        nonlocal step
        step += 1
        ours.advance(x, [values[step % PERIOD]], rows)
        return x

    def torch_step() -> Tensor:
        nonlocal step
        step += 1
        return x.copy_(rival(x, values[step % PERIOD]))

    call: dict[str, Callable[[], Any]] = {"pyrecon": advance, "torch": torch_step}
    expected = x0.double()
    for i in range(1, 2 * MEMORY + 1):
        expected = exact(expected, values[i % PERIOD].double()).clone()
        call[impl]()
    expected = exact(expected, values[(2 * MEMORY + 1) % PERIOD].double())
    timed(
        call[impl],
        row=f"Anderson step, {batch} x {n}, memory {MEMORY}",
        impl=impl,
        expected=expected,
        k=512,  # eleven steps, each with the 64 of the case table; the rival's sums of n terms are no better
        goal={"ratio": 1 / goal, "against": "torch"} if goal else None,
        bytes_moved=4 * batch * n * (2 * MEMORY + 3),  # history in; x and f(x) in; x, G and H of one slot out
        flops=4 * batch * n * MEMORY,
        sizes={"batch": batch, "n": n, "memory": MEMORY},
    )
