"""Solvers: the answer, the status, every option, and gradients against finite differences and unrolling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrecon import linops
from pyrecon.solvers import ConvergenceWarning, Status, conjugate_gradient

both = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def positive_definite(batch: int, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    root = randn(batch, n, n, dtype=dtype, seed=seed)
    return root @ root.mH / n + 0.5 * torch.eye(n, dtype=dtype)


def product(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x[..., None])[..., 0]


@both
def test_solves_each_sample(dtype: torch.dtype) -> None:
    matrix, b = positive_definite(4, 12, dtype), randn(4, 12, dtype=dtype, seed=1)
    solution = conjugate_gradient(lambda x: product(matrix, x), b, rtol=1e-12)
    torch.testing.assert_close(solution.value, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-9)
    assert solution.converged.all()
    residual = torch.linalg.vector_norm(b - product(matrix, solution.value), dim=1)
    assert (residual <= 2e-12 * torch.linalg.vector_norm(b, dim=1)).all()
    torch.testing.assert_close(solution.residual, residual, rtol=0, atol=1e-13)


def test_finite_termination_in_as_many_steps_as_eigenvalues() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1, 4, 4, 9, 9], dtype=torch.float64))
    solution = conjugate_gradient(lambda x: x @ matrix, randn(3, 6), rtol=1e-12)
    assert solution.iterations.tolist() == [3, 3, 3]


def test_many_axes_and_one() -> None:
    b = randn(2, 3, 4, 5)
    torch.testing.assert_close(conjugate_gradient(lambda x: 3 * x, b).value, b / 3)
    torch.testing.assert_close(conjugate_gradient(lambda x: 3 * x, b[:, 0, 0, 0]).value, b[:, 0, 0, 0] / 3)
    assert conjugate_gradient(lambda x: 3 * x, b[:0]).value.shape == (0, 3, 4, 5)


def test_a_sample_runs_as_if_alone_and_freezes_when_done() -> None:
    matrix, b = positive_definite(3, 20, torch.float64), randn(3, 20, seed=1)
    matrix[1] = torch.eye(20)
    together = conjugate_gradient(lambda x: product(matrix, x), b, rtol=1e-8)
    assert together.iterations[1] == 1
    assert together.iterations[0] > 5
    for i in range(3):
        alone = conjugate_gradient(lambda x, i=i: product(matrix[i : i + 1], x), b[i : i + 1], rtol=1e-8)
        torch.testing.assert_close(together.value[i], alone.value[0], rtol=1e-12, atol=1e-12)
        assert together.iterations[i] == alone.iterations[0]


def test_start_shortens_the_way_and_tolerances_end_it() -> None:
    matrix, b = positive_definite(1, 40, torch.float64), randn(1, 40, seed=1)
    A = lambda x: product(matrix, x)  # noqa: E731
    exact = torch.linalg.solve(matrix, b)
    full = conjugate_gradient(A, b, rtol=1e-10)
    warm = conjugate_gradient(A, b, x0=exact + 1e-6 * randn(1, 40, seed=2), rtol=1e-10)
    assert 0 < warm.iterations < full.iterations
    assert conjugate_gradient(A, b, x0=exact).iterations == 0
    assert conjugate_gradient(A, b, rtol=1e-2).iterations < full.iterations
    by_atol = conjugate_gradient(A, b, rtol=0, atol=1e-3)
    assert by_atol.residual <= 1e-3
    assert by_atol.iterations < full.iterations


def test_running_out_of_iterations_is_a_status_and_a_warning() -> None:
    matrix, b = positive_definite(2, 40, torch.float64), randn(2, 40, seed=1)
    with pytest.warns(ConvergenceWarning, match=r"2 of 2 samples did not converge \(2 MAX_ITER.*raise max_iter"):
        solution = conjugate_gradient(lambda x: product(matrix, x), b, max_iter=3)
    assert solution.status.tolist() == [Status.MAX_ITER] * 2
    assert solution.iterations.tolist() == [3, 3]


def test_an_indefinite_system_diverges_alone() -> None:
    signs = torch.tensor([[1.0] * 6, [1, -1, 2, -2, 3, -3]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="not Hermitian positive definite"):
        solution = conjugate_gradient(lambda x: signs * x, torch.ones(2, 6, dtype=torch.float64))
    assert solution.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    assert solution.value.isfinite().all()


@pytest.mark.parametrize("where", ["b", "A", "late"])
def test_a_nan_ends_its_sample_alone(where: str) -> None:
    matrix, b = positive_definite(3, 12, torch.float64), randn(3, 12, seed=1)
    expected = torch.linalg.solve(matrix, b)
    steps = 0

    def A(x: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        y = product(matrix, x)
        if where == "late" and steps == 4:
            y[1, 0] = float("inf")
        return y

    if where != "late":
        {"b": b, "A": matrix}[where][1, 0] = float("nan")
    with pytest.warns(ConvergenceWarning, match="1 NONFINITE"):
        solution = conjugate_gradient(A, b, rtol=1e-12)
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    torch.testing.assert_close(solution.value[[0, 2]], expected[[0, 2]])
    assert solution.value.isfinite().all()


@both
def test_gradients_reach_b_and_what_the_operator_closes_over(dtype: torch.dtype) -> None:
    root, b = randn(2, 4, 4, dtype=dtype).requires_grad_(), randn(2, 4, dtype=dtype, seed=1).requires_grad_()
    shift = torch.tensor(0.7, dtype=torch.float64).requires_grad_()

    def solve(root: Tensor, b: Tensor, shift: Tensor) -> Tensor:
        return conjugate_gradient(lambda x: product(root.mH @ root, x) + shift * x, b, rtol=1e-13).value

    assert torch.autograd.gradcheck(solve, (root, b, shift))


def test_gradient_through_sense_equals_unrolled() -> None:
    maps, k = randn(1, 3, 6, 5, dtype=torch.complex128).requires_grad_(), randn(2, 3, 6, 5, dtype=torch.complex128)
    k.requires_grad_()

    def loss(solve: object) -> Tensor:
        operator = linops.Sense(maps, torch.tensor([1, 0, 1, 1, 0]).bool().reshape(1, 1, 1, 5))
        x = solve(lambda x: operator.gram(x) + 0.1 * x, operator.H(k))  # type: ignore[operator]
        return (x.abs() ** 2 + x.real).sum()

    def unrolled(A: object, b: Tensor) -> Tensor:
        x, r = torch.zeros_like(b), b
        p = r
        for _ in range(60):
            rr, Ap = r.abs().square().sum((1, 2), keepdim=True), A(p)  # type: ignore[operator]
            if float(rr.max().detach()) < 1e-24:
                break
            alpha = rr / (p.conj() * Ap).real.sum((1, 2), keepdim=True)
            x, r = x + alpha * p, r - alpha * Ap
            p = r + r.abs().square().sum((1, 2), keepdim=True) / rr * p
        return x

    ours = torch.autograd.grad(loss(lambda A, b: conjugate_gradient(A, b, rtol=1e-12).value), (maps, k))
    theirs = torch.autograd.grad(loss(unrolled), (maps, k))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_backward_keeps_the_relative_tolerance_of_an_absolute_one() -> None:
    matrix, b = positive_definite(1, 20, torch.float64), randn(1, 20, seed=1).requires_grad_()
    value = conjugate_gradient(lambda x: product(matrix, x), b, rtol=0, atol=1e-9).value
    (gradient,) = torch.autograd.grad(value.sum() * 1e-12, b)  # far below atol in size
    torch.testing.assert_close(gradient, 1e-12 * torch.linalg.solve(matrix, torch.ones_like(b)), rtol=1e-7, atol=0)


def test_backward_that_does_not_converge_warns_and_twice_is_refused() -> None:
    matrix, b = positive_definite(1, 20, torch.float64), randn(1, 20, seed=1).requires_grad_()
    exact = torch.linalg.solve(matrix, b.detach())
    value = conjugate_gradient(lambda x: product(matrix, x), b, x0=exact, max_iter=2).value
    with pytest.warns(ConvergenceWarning, match="backward pass"):
        (gradient,) = torch.autograd.grad(value.square().sum(), b, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_tape_without_need() -> None:
    b = randn(1, 5)
    assert not conjugate_gradient(lambda x: 2 * x, b).value.requires_grad
    with torch.no_grad():
        assert not conjugate_gradient(lambda x: 2 * x, b.requires_grad_()).value.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": torch.ones(2, 3, dtype=torch.int64)}, "b: expected a real or complex"),
        ({"b": torch.tensor(1.0)}, "b: has no batch axis"),
        ({"x0": torch.ones(2, 4)}, "x0:"),
        ({"rtol": -1.0}, "rtol"),
        ({"max_iter": -1}, "max_iter"),
        ({"A": lambda x: x[:1]}, "A: maps"),
    ],
)
def test_errors_name_the_argument(options: dict[str, object], message: str) -> None:
    arguments = {"A": lambda x: x, "b": torch.ones(2, 3)} | options
    with pytest.raises((TypeError, ValueError), match=message):
        conjugate_gradient(arguments.pop("A"), arguments.pop("b"), **arguments)  # type: ignore[arg-type]
