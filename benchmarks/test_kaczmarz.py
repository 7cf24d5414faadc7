"""Speed of Kaczmarz sweeps over an MPI system matrix (5,486 selected rows, 13x26 pixels) against loops over rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import pyrecon
from pyrecon.ops import kaczmarz

ROWS, COLUMNS, WEIGHT = 5486, 338, 0.1
K = 8 + COLUMNS**0.5  # pyrecon.testing.cases.kaczmarz


def numpy_rows(A: NDArray[np.float32], y: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a careful user writes for one image: energies at once, then one product and one update a row."""
    root = np.float32(WEIGHT**0.5)
    energies = np.einsum("ij,ij->i", A, A) + np.float32(WEIGHT)
    v = np.zeros_like(y)
    x[:] = 0
    for i in range(len(A)):
        alpha = (y[i] - A[i] @ x - root * v[i]) / energies[i]
        x += alpha * A[i]
        v[i] += root * alpha
    return x


def torch_rows(A: Tensor, y: Tensor, x: Tensor) -> Tensor:
    root = WEIGHT**0.5
    energies = A.square().sum(1) + WEIGHT
    v = torch.zeros_like(y)
    x.zero_()
    for i in range(len(A)):
        alpha = (y[:, i] - x @ A[i] - root * v[:, i]) / energies[i]
        x.addr_(alpha, A[i])
        v[:, i].add_(alpha, alpha=root)
    return x


@pytest.mark.parametrize(
    ("impl", "batch"), [("pyrecon", 1), ("numpy rows", 1), ("torch rows", 1), ("pyrecon", 64), ("torch rows", 64)]
)
def test_sweep(timed: Callable[..., None], impl: str, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(ROWS, COLUMNS, generator=generator)
    y = torch.randn(batch, ROWS, generator=generator)
    x = torch.empty(batch, COLUMNS)
    with pyrecon.backend("reference"):
        expected = kaczmarz(A.double(), y.double(), weight=WEIGHT)
    calls: dict[str, Callable[[], Tensor]] = {
        "pyrecon": lambda: kaczmarz(A, y, weight=WEIGHT, out=x),
        "numpy rows": lambda: torch.from_numpy(numpy_rows(A.numpy(), y[0].numpy(), x[0].numpy()))[None],
        "torch rows": lambda: torch_rows(A, y, x),
    }
    timed(
        calls[impl],
        row=f"Kaczmarz sweep {ROWS}x{COLUMNS}, B={batch}",
        impl=impl,
        expected=expected,
        k=K,
        goal={"ms": 0.2 if batch == 1 else 2.2},
        bytes_moved=4 * (A.numel() + 2 * y.numel() + x.numel()),
        flops=4 * batch * ROWS * COLUMNS,
        sizes={"batch": batch, "rows": ROWS, "columns": COLUMNS},
    )


@pytest.mark.parametrize("batch", [1, 64])
def test_ten_sweeps(timed: Callable[..., None], batch: int) -> None:
    """l2-ART of DEQ-MPI: ten sweeps with positivity; what a call sets up once is spread over them."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(ROWS, COLUMNS, generator=generator)
    y = torch.randn(batch, ROWS, generator=generator)
    x = torch.empty(batch, COLUMNS)
    with pyrecon.backend("reference"):
        expected = kaczmarz(A.double(), y.double(), weight=WEIGHT, sweeps=10, nonneg=True)
    timed(
        lambda: kaczmarz(A, y, weight=WEIGHT, sweeps=10, nonneg=True, out=x),
        row=f"Kaczmarz, 10 sweeps {ROWS}x{COLUMNS}, B={batch}",
        impl="pyrecon",
        expected=expected,
        k=K,
        goal={"ms": 2.0 if batch == 1 else 22.0},
        bytes_moved=4 * (A.numel() + 2 * y.numel() + x.numel()),
        flops=40 * batch * ROWS * COLUMNS,
        sizes={"batch": batch, "rows": ROWS, "columns": COLUMNS, "sweeps": 10},
    )
