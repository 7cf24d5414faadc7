"""Whitened operators: orthonormal rows, the pseudo-inverse and the projection of what they were made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.linops import Fourier, LinearOperator, Radon, SystemMatrix, Whitened
from pyrecon.ops import ParallelBeam


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Flat(LinearOperator):
    """A matrix between shaped samples."""

    def __init__(self, matrix: Tensor, domain: tuple[int, ...], range: tuple[int, ...]) -> None:
        super().__init__()
        self.matrix = SystemMatrix(matrix)
        self.domain_shape, self.range_shape = domain, range

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x.flatten(1)).reshape(-1, *self.range_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.matrix.adjoint(y.flatten(1)).reshape(-1, *self.domain_shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("rows", "columns"), [((3, 4), (4, 5)), ((5, 6), (2, 6))])
def test_laws(rows: tuple[int, int], columns: tuple[int, int], dtype: torch.dtype) -> None:
    """``W W^H = I``; its pseudo-inverse, the adjoint, undoes data of A as A's own does; the gram is the projection."""
    matrix = randn(rows[0] * rows[1], columns[0] * columns[1], dtype=dtype)
    A = Flat(matrix, columns, rows)
    W = Whitened(A, dtype=torch.float64)
    rank = min(matrix.shape)
    assert W.range_shape == (rank,)
    y, x, z = randn(2, *rows, dtype=dtype, seed=1), randn(2, *columns, dtype=dtype, seed=2), randn(2, rank, dtype=dtype)
    pinv = torch.linalg.pinv(matrix)
    torch.testing.assert_close(W(W.adjoint(z)), z, rtol=0, atol=1e-12)
    torch.testing.assert_close(W.transform(A(x)), W(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(W.pinv(W.transform(y)).flatten(1), y.flatten(1) @ pinv.mT, rtol=0, atol=1e-11)
    torch.testing.assert_close(W.gram(x).flatten(1), x.flatten(1) @ (pinv @ matrix).mT, rtol=0, atol=1e-11)
    assert W.adjoint_error() < 1e-13
    torch.testing.assert_close(1 / W.gain, torch.linalg.svdvals(matrix), rtol=1e-10, atol=0)
    assert Whitened(A).matrix.dtype == (torch.complex64 if dtype.is_complex else torch.float32)


def test_small_singular_values_are_left_out() -> None:
    u, _ = torch.linalg.qr(randn(6, 6))
    v, _ = torch.linalg.qr(randn(6, 6, seed=1))
    s = torch.tensor([4.0, 2.0, 1.0, 1e-2, 1e-5, 0.0], dtype=torch.float64)
    A = SystemMatrix(u @ torch.diag(s) @ v.mT)
    assert [Whitened(A, rtol=rtol).range_shape[0] for rtol in (0.4, 0.3, 1e-3, 1e-6, 0.0)][:4] == [2, 2, 4, 5]
    W = Whitened(A, rtol=0.3, dtype=torch.float64)
    torch.testing.assert_close(W.gram(torch.eye(6, dtype=torch.float64)), v[:, :2] @ v[:, :2].mT, rtol=0, atol=1e-12)


def test_noise_has_the_gain_that_is_said() -> None:
    W = Whitened(SystemMatrix(randn(5, 8)), dtype=torch.float64)
    noise = W.transform(randn(200_000, 5, seed=3))
    torch.testing.assert_close(noise.std(dim=0), W.gain, rtol=0.01, atol=0)  # a deviation is 1 / sqrt(2 n): .16 %


def test_of_a_scan() -> None:
    """Of a real operator that makes float32 of float32: in what precision A computes."""
    A = Radon(ParallelBeam(torch.arange(5) * 0.6, (8, 8)))
    W, x = Whitened(A), randn(3, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(W(W.pinv(W(x))), W(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(W.transform(A(x)), W(x), rtol=0, atol=1e-3)
    assert float(W.norm()) == pytest.approx(1, abs=1e-5)
    assert W.pinv(W(x), rtol=1e-3, max_iter=5).shape == x.shape
    F = Whitened(Fourier(torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(0)) > 0.5, (4, 6)))
    assert F.matrix.is_complex()
    assert float(F.norm()) == pytest.approx(1, abs=1e-5)


class Broken(SystemMatrix):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan

    adjoint = forward


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Whitened(torch.zeros(2, 2)), "operator: expected a LinearOperator, got Tensor"),  # type: ignore[arg-type]
        (lambda: Whitened(SystemMatrix(torch.zeros(2, 2))), "operator: is zero"),
        (lambda: Whitened(SystemMatrix(torch.ones(2, 2)), rtol=1.0), "rtol: 1.0"),
        (lambda: Whitened(SystemMatrix(torch.ones(2, 2)), dtype=torch.int32), "dtype: torch.int32"),
        (lambda: Whitened(Broken(torch.ones(2, 2))), "operator: its products .* NaN"),
        (
            lambda: Whitened(Radon(ParallelBeam(torch.arange(200) / 64, (512, 512)))),
            r"operator: 1450\d\d data of 262144 unknowns make 35.4 Gi entries, .* take smaller images",
        ),
        (lambda: Whitened(SystemMatrix(torch.ones(2, 3))).transform(torch.zeros(1, 3)), r"y: shape \(1, 3\)"),
        (lambda: Whitened(SystemMatrix(torch.ones(2, 3)))(torch.zeros(1, 2)), r"x: shape \(1, 2\)"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()
