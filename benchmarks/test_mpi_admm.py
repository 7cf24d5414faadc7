"""An iteration of l2-ball ADMM in r + 1 dimensions (pyrecon.models.mpi.admm) against the same in all M of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.models.mpi import L1ADMM, FactoredSystem

M, N, ITERATIONS, MU = 5486, 338, 100, 250.0


class FullADMM:
    """DEQ-MPI Eqs. 5-9 as printed, in torch, every intermediate in a buffer made once; A x is carried over."""

    def __init__(self, A: Tensor, batch: int) -> None:
        self.A = A
        gram = A.double().T @ A.double()
        self.inverse = torch.linalg.inv(torch.eye(N, dtype=torch.float64) + gram).to(A.dtype)
        self.x, self.d, self.z, self.w = (A.new_zeros(batch, N) for _ in range(4))
        self.ax, self.d0, self.z0, self.w0 = (A.new_zeros(batch, M) for _ in range(4))

    def __call__(self, y: Tensor, radius: Tensor) -> Tensor:
        x, d, z, w, ax, d0, z0, w0 = self.x, self.d, self.z, self.w, self.ax, self.d0, self.z0, self.w0
        for t in (x, d, ax, d0):
            t.zero_()
        for _ in range(ITERATIONS):
            torch.sub(ax, d0, out=z0).sub_(y)
            shrink = radius / torch.linalg.vector_norm(z0, dim=1)
            z0.mul_(shrink.clamp_(max=1.0)[:, None]).add_(y)
            torch.sub(x, d, out=z).sub_(1 / MU).clamp_(min=0)
            torch.mm(torch.add(z0, d0, out=w0), self.A, out=w)
            torch.mm(w.add_(z).add_(d), self.inverse, out=x)
            torch.mm(x, self.A.T, out=ax)
            d0.add_(z0).sub_(ax)
            d.add_(z).sub_(x)
        return x.clamp(min=0)


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("batch", [1, 64])
def test_iterations(timed: Callable[..., None], impl: str, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -3, N)  # singular values of a smoothing scanner
    A = torch.randn(M, N, generator=generator) @ torch.diag(decay) @ torch.randn(N, N, generator=generator)
    A *= (0.34 / A.square().sum(dim=1).mean()).sqrt()  # the scale the published settings are meant for
    images = torch.rand(batch, N, generator=generator) * (torch.rand(batch, N, generator=generator) > 0.8)
    noise = torch.randn(batch, M, generator=generator)
    y = images @ A.T + 0.02 * noise
    radius = torch.full((batch,), 0.02 * M**0.5)
    system = FactoredSystem(A, (26, 13))
    system.factorise()
    method, full = L1ADMM(mu=MU, iterations=ITERATIONS), FullADMM(A, batch)
    exact = FullADMM(A.double(), batch)(y.double(), radius.double())
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: method.solve(system, y, radius)[0].value,
        "torch": lambda: full(y, radius),
    }
    timed(
        calls[impl],
        row=f"l2-ball ADMM, {ITERATIONS} iterations, {M} x {N}, B={batch}",
        impl=impl,
        expected=exact,
        k=4096,  # 100 steps, each off by some eps of a dual that is tens of times the image
        goal={"ratio": 0.2, "against": "torch"},
        sizes={"batch": batch, "rows": M, "columns": N, "iterations": ITERATIONS},
    )
