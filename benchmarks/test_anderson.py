"""Speed of one step of Anderson mixing, without the map: store the iterate, refresh the Gram matrix, solve, mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.solvers import Anderson, fixed_point

MEMORY, RIDGE = 5, 1e-4
READ = "plain read"  # of as many bytes: benchmarks/render.py knows that it is no rival
PERIOD = 7  # values f(x) that take turns, coprime to the memory: the history never repeats itself


class TorchAnderson:
    """The step as deep equilibrium packages write it: ring buffers, one batched product and solve, two mixes."""

    def __init__(self, batch: int, n: int, dtype: torch.dtype, memory: int = MEMORY) -> None:
        self.memory = memory
        self.X, self.F, self.G = (torch.zeros(batch, memory, n, dtype=dtype) for _ in range(3))
        self.gram = torch.empty(batch, memory, memory, dtype=dtype)
        self.x = torch.empty(batch, 1, n, dtype=dtype)
        self.count = 0

    def __call__(self, x: Tensor, fx: Tensor) -> Tensor:
        slot = self.count % self.memory
        self.count += 1
        k = min(self.count, self.memory)
        self.X[:, slot], self.F[:, slot] = x, fx
        torch.sub(self.F, self.X, out=self.G)
        torch.bmm(self.G, self.G.mT, out=self.gram)
        H = self.gram[:, :k, :k]
        ridge = RIDGE * H.diagonal(dim1=1, dim2=2).mean(dim=1)
        H = H + ridge[:, None, None] * torch.eye(k, dtype=x.dtype)
        weights = torch.linalg.solve(H, torch.ones(len(x), k, 1, dtype=x.dtype))
        weights /= weights.sum(dim=1, keepdim=True)
        return torch.bmm(weights.mT, self.F[:, :k], out=self.x)[:, 0]


@pytest.mark.parametrize("impl", ["pyrecon", "torch", READ])
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

    history = torch.ones(2 * MEMORY, batch * n)  # as many numbers as a step has to read
    sums = torch.empty(2 * MEMORY)
    call: dict[str, Callable[[], Any]] = {
        "pyrecon": advance,
        "torch": torch_step,
        READ: lambda: torch.sum(history, dim=1, out=sums),
    }
    expected = x0.double()
    for i in range(1, 2 * MEMORY + 1):
        expected = exact(expected, values[i % PERIOD].double()).clone()
        call[impl]()
    expected = exact(expected, values[(2 * MEMORY + 1) % PERIOD].double())
    if impl == READ:
        expected = history.double().sum(dim=1)
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


@pytest.mark.parametrize("impl", ["pyrecon", "torchdeq"])
@pytest.mark.parametrize(("batch", "n"), [(64, 6162), (8, 204800)])
def test_solve(timed: Callable[..., None], peer: Callable[[str], Any], impl: str, batch: int, n: int) -> None:
    """Twenty-five evaluations of a cheap map, the whole solver around it."""
    generator = torch.Generator().manual_seed(0)
    slope, shift, x0 = (
        0.5 * torch.rand(n, generator=generator),
        torch.randn(n, generator=generator),
        torch.zeros(batch, n),
    )

    def f(x: Tensor) -> Tensor:
        return torch.addcmul(shift.to(x.dtype), slope.to(x.dtype), x)

    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: fixed_point(f, x0, solver=Anderson(memory=MEMORY, ridge=RIDGE), tol=0.0, max_iter=25).value,
    }
    if impl == "torchdeq":
        solve = peer("torchdeq.solver").anderson.anderson_solver
        calls[impl] = lambda: solve(f, x0, max_iter=25, tol=0.0, m=MEMORY, lam=RIDGE, return_final=True)[0]
    timed(
        calls[impl],
        row=f"Anderson solve, 25 evaluations, {batch} x {n}",
        impl=impl,
        expected=(shift.double() / (1 - slope.double())).expand(batch, n),
        k=64,
        sizes={"batch": batch, "n": n, "memory": MEMORY},
    )
