"""Speed of pyrecon/ops/_consistency.py at the size of an MPI system matrix: 5,486 selected rows, 13x26 pixels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrecon.ops import project_l2_ball, sm_consistency

M, N = 5486, 338


def torch_project(v: Tensor, center: Tensor, radius: Tensor, out: Tensor) -> Tensor:
    torch.sub(v, center, out=out)
    norm = torch.linalg.vector_norm(out, dim=1, keepdim=True)
    out *= (radius[:, None] / norm).clamp_(max=1.0)
    return out.add_(center)


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("batch", [1, 64])
def test_project_l2_ball(timed: Callable[..., None], device: str, impl: str, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    v, center = (torch.randn(batch, M, generator=generator) for _ in range(2))
    radius = torch.full((batch,), 0.5 * M**0.5)
    expected = torch_project(v.double(), center.double(), radius.double(), torch.empty_like(v, dtype=torch.float64))
    v, center, radius = v.to(device), center.to(device), radius.to(device)
    out = torch.empty_like(v)
    call = {
        "pyrecon": lambda: project_l2_ball(v, center, radius, out=out),
        "torch": lambda: torch_project(v, center, radius, out),
    }
    timed(
        call[impl],
        row=f"l2-ball projection, {batch} x {M}",
        impl=impl,
        expected=expected,
        k=34,
        bytes_moved=3 * 4 * batch * M,
        flops=6 * batch * M,
        sizes={"batch": batch, "rows": M},
    )


class TorchStep:
    """The step in torch, every result and the one intermediate in a buffer made once."""

    def __init__(self, x: Tensor, d: Tensor) -> None:
        self.r = torch.empty_like(x)
        self.product, self.z, self.w = (torch.empty_like(d) for _ in range(3))

    def __call__(
        self, A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        product = torch.mm(x, A.T, out=self.product) if Ax is None else Ax
        torch.sub(product, d, out=self.w)
        torch_project(self.w, y, radius, self.z)
        torch.add(self.z, d, out=self.w)
        return self.z, torch.mm(self.w, A, out=self.r), product


def plain_step(
    A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    product = x.to(A.dtype) @ A.T if Ax is None else Ax
    offset = product - d - y
    norm = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
    z = y + offset * (radius[:, None] / norm).clamp(max=1.0)
    r = (z + d) @ A.conj()
    return z, r if x.is_complex() else r.real, product


@pytest.mark.parametrize("impl", ["pyrecon", "torch", pytest.param("torch.compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("rows", "columns", "batch", "given"),
    [
        *((M, N, batch, given) for batch in (1, 4, 64) for given in (False, True)),
        *((M, 4 * N, batch, False) for batch in (1, 8, 64)),  # 26 x 52 pixels
        (2048, 32**3, 1, False),  # a volume
    ],
)
def test_sm_consistency(
    timed: Callable[..., None], device: str, impl: str, rows: int, columns: int, batch: int, given: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    A, x = torch.randn(rows, columns, generator=generator), torch.randn(batch, columns, generator=generator)
    d, y = (columns**0.5 * torch.randn(batch, rows, generator=generator) for _ in range(2))
    radius = (rows * columns) ** 0.5 * torch.linspace(0.5, 2.5, batch)  # some samples inside their ball, most outside
    expected = plain_step(*(t.double() for t in (A, x, d, y, radius)), None)
    inputs = A, x, d, y, radius = tuple(t.to(device) for t in (A, x, d, y, radius))
    Ax = expected[2].float().to(device) if given else None
    product = Ax if Ax is not None else torch.empty_like(d)
    out = torch.empty_like(d), torch.empty_like(x), product
    eager, compiled = TorchStep(x, d), torch.compile(plain_step)
    call = {
        "pyrecon": lambda: sm_consistency(*inputs, Ax=Ax, out=out),
        "torch": lambda: eager(*inputs, Ax),
        "torch.compile": lambda: compiled(*inputs, Ax),
    }
    products = 1 if given else 2
    timed(
        call[impl],
        row=f"sm_consistency {rows} x {columns}, {batch} sample{'s' * (batch > 1)}{', product given' * given}",
        impl=impl,
        expected=expected,
        k=64,
        # the sums of 5,486 terms by the rivals, in single precision throughout
        bytes_moved=4 * (rows * columns + batch * (2 * columns + (5 if given else 4) * rows)),
        flops=2 * products * batch * rows * columns,
        sizes={"batch": batch, "rows": rows, "columns": columns},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("batch", [1, 64])
def test_real_images_under_a_complex_matrix(timed: Callable[..., None], impl: str, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    m = M // 2
    A = torch.randn(m, N, generator=generator, dtype=torch.complex64)
    x = torch.randn(batch, N, generator=generator)
    d, y = (N**0.5 * torch.randn(batch, m, generator=generator, dtype=torch.complex64) for _ in range(2))
    radius = (m * N) ** 0.5 * torch.linspace(0.5, 2.5, batch)
    inputs = A, x, d, y, radius
    wide = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in inputs]
    out = torch.empty_like(d), torch.empty_like(x), torch.empty_like(d)
    call = {"pyrecon": lambda: sm_consistency(*inputs, out=out), "torch": lambda: plain_step(*inputs, None)}
    timed(
        call[impl],
        row=f"sm_consistency {m} x {N} complex, {batch} real image{'s' * (batch > 1)}",
        impl=impl,
        expected=plain_step(*wide, None),
        k=64,
        bytes_moved=8 * (m * N + batch * (N + 4 * m)),
        flops=8 * batch * m * N,
        sizes={"batch": batch, "rows": m, "columns": N},
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch"])
@pytest.mark.parametrize("batch", [1, 64])
def test_backward(timed: Callable[..., None], impl: str, batch: int) -> None:
    """Forward and backward of the step to x, d and y, as equilibrium models take it."""
    generator = torch.Generator().manual_seed(0)
    A, x = torch.randn(M, N, generator=generator), torch.randn(batch, N, generator=generator)
    d, y = (N**0.5 * torch.randn(batch, M, generator=generator) for _ in range(2))
    radius = 0.5 * (M * N) ** 0.5 * torch.ones(batch)
    cotangents = [torch.randn(shape, generator=generator) for shape in ((batch, M), (batch, N), (batch, M))]

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        matrix, *leaves, r = (t.detach() for t in inputs)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        step = sm_consistency if impl == "pyrecon" and matrix.dtype == torch.float32 else plain_step
        results = step(matrix, *leaves, r, None) if step is plain_step else step(matrix, *leaves, r)
        return torch.autograd.grad(results, leaves, [c.to(matrix.dtype) for c in cotangents])

    inputs = A, x, d, y, radius
    timed(
        lambda: gradients(*inputs),
        row=f"sm_consistency {M} x {N}, {batch} sample{'s' * (batch > 1)}, forward and backward",
        impl=impl,
        expected=gradients(*(t.double() for t in inputs)),
        k=64,
        sizes={"batch": batch, "rows": M, "columns": N},
    )
