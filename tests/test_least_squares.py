"""CGLS and SIRT: each against what it is defined to find, on small dense systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from pyrecon.solvers import ConvergenceWarning, Solution, Status, cgls, sirt

M, N, BATCH = 12, 7, 3


def matrix(dtype: torch.dtype = torch.float64, *, positive: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if positive:
        return torch.rand(M, N, dtype=dtype, generator=generator)
    return torch.randn(M, N, dtype=dtype, generator=generator)


def pair(a: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return lambda x: x @ a.T, lambda y: y @ a.conj()


def data(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(BATCH, M, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("start", [False, True])
def test_cgls_equals_dense_least_squares(dtype: torch.dtype, damping: float, start: bool) -> None:
    a, y = matrix(dtype), data(dtype)
    stacked = torch.cat([a, damping**0.5 * torch.eye(N, dtype=dtype)])
    expected = torch.linalg.lstsq(stacked, torch.cat([y.T, torch.zeros(N, BATCH, dtype=dtype)])).solution.T
    x0 = torch.ones(BATCH, N, dtype=dtype) if start else None
    found = cgls(*pair(a), y, x0=x0, damping=damping, rtol=1e-12, max_iter=50)
    assert bool(found.converged.all())
    assert int(found.iterations.max()) <= N + 3  # N in exact arithmetic
    torch.testing.assert_close(found.value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.residual, torch.linalg.vector_norm(y - expected @ a.T, dim=1))


def weighted_minimum(a: Tensor, y: Tensor, nonneg: bool) -> Tensor:
    """Least squares in the norm of 1 / row sums."""
    root = a.sum(1).rsqrt()
    left, right = root[:, None] * a, root * y
    if nonneg:
        return torch.tensor(np.stack([optimize.nnls(left.numpy(), row.numpy())[0] for row in right]))
    return torch.linalg.lstsq(left, right.T).solution.T


@pytest.mark.parametrize("nonneg", [False, True])
def test_sirt_converges_to_the_weighted_minimum(nonneg: bool) -> None:
    a, y = matrix(positive=True), data()
    expected = weighted_minimum(a, y, nonneg)
    found = sirt(*pair(a), y, nonneg=nonneg, relaxation=1.9, tol=1e-13, max_iter=200_000)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value, expected, rtol=1e-7, atol=1e-8)
    assert bool((found.value < 0).any()) is not nonneg  # the constraint was felt


def test_relaxation_is_the_length_of_the_first_step() -> None:
    a, y = matrix(positive=True), data()
    with pytest.warns(ConvergenceWarning):
        one = sirt(*pair(a), y, relaxation=0.5, max_iter=1).value
    torch.testing.assert_close(one, 0.5 * (y / a.sum(1)) @ a / a.sum(0))


Solve = Callable[..., Solution[Tensor]]
BOTH = pytest.mark.parametrize("solve", [cgls, sirt])


@BOTH
def test_atol_stops_at_the_noise_each_sample_by_itself(solve: Solve) -> None:
    a, y = matrix(positive=True), data()
    least = torch.linalg.vector_norm(y - weighted_minimum(a, y, False) @ a.T, dim=1)  # cgls comes lower
    size = torch.linalg.vector_norm(y, dim=1)
    limit = torch.stack([least[0] * 1.001, 2 * size[1], (least[2] + size[2]) / 2])
    found = solve(*pair(a), y, atol=limit, max_iter=5000, **({"rtol": 0.0} if solve is cgls else {"tol": 0.0}))
    assert bool(found.converged.all())
    assert bool((found.residual <= limit).all())
    assert found.iterations[1] == 0  # zero was good enough
    assert not found.value[1].any()
    assert found.iterations[0] > found.iterations[2] > 0
    assert found.residual[2] > least[2]  # not run to the end
    alone = solve(*pair(a), y[2:], atol=float(limit[2]), max_iter=5000)
    torch.testing.assert_close(alone.value[0], found.value[2])


@BOTH
def test_max_iter_and_start(solve: Solve) -> None:
    a, y = matrix(positive=True), data()
    with pytest.warns(ConvergenceWarning, match="3 MAX_ITER"):
        short = solve(*pair(a), y, max_iter=2)
    assert short.status.tolist() == [Status.MAX_ITER] * BATCH
    assert short.iterations.tolist() == [2] * BATCH
    torch.testing.assert_close(short.residual, torch.linalg.vector_norm(y - short.value @ a.T, dim=1))
    with pytest.warns(ConvergenceWarning):
        begun = solve(*pair(a), y, x0=short.value, max_iter=0)
    assert torch.equal(begun.value, short.value)
    assert begun.value is not short.value


@pytest.mark.parametrize("tolerance", [1e-2, 1e-8])
def test_the_tolerance_is_kept(tolerance: float) -> None:
    a, y = matrix(positive=True), data()
    found = cgls(*pair(a), y, rtol=tolerance)
    gradient = (y - found.value @ a.T) @ a
    ratio = torch.linalg.vector_norm(gradient, dim=1) / torch.linalg.vector_norm(y @ a, dim=1)
    assert bool((ratio <= 1.01 * tolerance).all())
    still = sirt(*pair(a), y, tol=tolerance, max_iter=100_000)
    assert bool(still.converged.all())
    more = sirt(*pair(a), y, tol=tolerance / 100, max_iter=1_000_000)
    assert bool((more.iterations > still.iterations).all())


@BOTH
def test_a_nan_stays_with_its_sample(solve: Solve) -> None:
    a, y = matrix(positive=True), data()
    clean = solve(*pair(a), y, max_iter=5000)
    y[1, 3] = torch.nan
    with pytest.warns(ConvergenceWarning, match="1 NONFINITE"):
        found = solve(*pair(a), y, max_iter=5000)
    assert found.status[1] == Status.NONFINITE
    assert not found.value[1].isnan().any()
    torch.testing.assert_close(found.value[[0, 2]], clean.value[[0, 2]])


def test_a_wrong_adjoint_is_told() -> None:
    a, y = matrix(), data()
    with pytest.warns(ConvergenceWarning, match="DIVERGED"):
        found = cgls(lambda x: x @ a.T, lambda r: r @ matrix().roll(3, 0) * 5, y, max_iter=200)
    assert bool((found.status == Status.DIVERGED).any())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"relaxation": 2.0}, ValueError, "relaxation: 2.0"),
        ({"relaxation": 0.0}, ValueError, "relaxation: 0.0"),
        ({"atol": -1.0}, ValueError, "atol"),
        ({"atol": torch.ones(2)}, ValueError, "atol"),
        ({"nonneg": 1}, TypeError, "nonneg"),
        ({"max_iter": 1.5}, TypeError, "max_iter"),
        ({"A": 3}, TypeError, "A:"),
        ({"A_adjoint": lambda y: y[:1]}, ValueError, "A_adjoint"),
        ({"A": lambda x: x.float() @ matrix(positive=True).float().T}, TypeError, "A:"),
        ({"A": lambda x: -x @ matrix(positive=True).T}, ValueError, "A: has negative entries"),
        ({"x0": torch.zeros(BATCH, 3, dtype=torch.float64)}, ValueError, "x0"),
        ({"y": torch.zeros(BATCH, M, dtype=torch.complex128)}, TypeError, "y"),
    ],
)
def test_misuse_is_told(change: dict[str, Any], error: type[Exception], words: str) -> None:
    forward, adjoint = pair(matrix(positive=True))
    arguments = {"A": forward, "A_adjoint": adjoint, "y": data()} | change
    with pytest.raises(error, match=words):
        sirt(**arguments)
