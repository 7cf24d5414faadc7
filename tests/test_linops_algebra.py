"""Operators made of operators behave as the matrices they stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrecon import linops
from pyrecon.linops import Identity, LinearOperator, Stack, SystemMatrix
from pyrecon.testing import assert_adjoint

C, R = torch.complex128, torch.float64


def randn(*shape: int, dtype: torch.dtype = C, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(operator: LinearOperator, dtype: torch.dtype = C) -> Tensor:
    """The matrix, column by column."""
    size = 1
    for n in operator.domain_shape:
        size *= n
    return operator(torch.eye(size, dtype=dtype).view(size, *operator.domain_shape)).flatten(1).mT


A, B, D = randn(5, 4), randn(5, 4, seed=1), randn(4, 3, seed=2)
COMBINED: dict[str, tuple[Callable[[], LinearOperator], Tensor]] = {
    "product": (lambda: SystemMatrix(A) @ SystemMatrix(D), A @ D),
    "sum": (lambda: SystemMatrix(A) + SystemMatrix(B), A + B),
    "difference": (lambda: SystemMatrix(A) - SystemMatrix(B), A - B),
    "negative": (lambda: -SystemMatrix(A), -A),
    "scaled": (lambda: (2 - 1j) * SystemMatrix(A), (2 - 1j) * A),
    "scaled by a tensor": (lambda: SystemMatrix(A) * torch.tensor(2 - 3j, dtype=C), (2 - 3j) * A),
    "stack": (lambda: Stack([SystemMatrix(A), 2 * Identity((4,))]), torch.cat((A, 2 * torch.eye(4, dtype=C)))),
    "all": (
        lambda: Stack([(SystemMatrix(A) + 1j * SystemMatrix(B)) @ SystemMatrix(D), -SystemMatrix(D)]),
        torch.cat(((A + 1j * B) @ D, -D)),
    ),
}
each = pytest.mark.parametrize(("make", "matrix"), COMBINED.values(), ids=COMBINED.keys())


@each
def test_is_the_matrix(make: Callable[[], LinearOperator], matrix: Tensor) -> None:
    operator = make()
    x, y = randn(2, *operator.domain_shape, seed=3), randn(2, *operator.range_shape, seed=4)
    torch.testing.assert_close(dense(operator), matrix)
    torch.testing.assert_close(dense(operator.H), matrix.mH)
    torch.testing.assert_close(dense(operator.H.H), matrix)
    torch.testing.assert_close(operator.gram(x), x @ (matrix.mH @ matrix).mT)
    assert_adjoint(operator, operator.H, x, y, rtol=1e-14)
    assert operator.adjoint_error(batch=2) < 1e-14


@each
def test_norm_and_pinv_are_those_of_the_matrix(make: Callable[[], LinearOperator], matrix: Tensor) -> None:
    operator = make()
    norm = float(operator.norm(rtol=1e-9, max_iter=2000))
    assert norm == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-4)
    y = randn(2, *operator.range_shape, seed=5)
    torch.testing.assert_close(operator.pinv(y, rtol=1e-12), y @ torch.linalg.pinv(matrix).mT, rtol=1e-8, atol=1e-8)


def test_norm_is_per_sample_and_bounded_by_the_known_bound() -> None:
    sense = linops.Sense(randn(2, 3, 8, 6), torch.ones(1, 1, 8, 6, dtype=R))
    norms = sense.norm(rtol=1e-8, max_iter=5000, batch=2)
    # A full mask leaves A^H A = diag(sum over coils |maps|^2).
    torch.testing.assert_close(norms.square(), sense.norm_bound, rtol=1e-3, atol=0)
    gradient = linops.Gradient((32, 32))
    assert 0.98 * gradient.norm_bound < float(gradient.norm(rtol=1e-5, max_iter=2000)) ** 2 <= gradient.norm_bound


def test_norm_of_nothing_is_zero() -> None:
    assert float(SystemMatrix(torch.zeros(3, 2)).norm()) == 0.0


def test_split_undoes_join() -> None:
    stack = Stack([linops.Gradient((3, 4)), Identity((3, 4))])
    x = randn(2, 3, 4, dtype=R)
    first, second = stack.split(stack(x))
    torch.testing.assert_close(first, linops.Gradient((3, 4))(x))
    torch.testing.assert_close(second, x)
    torch.testing.assert_close(stack.join((first, second)), stack(x))


def test_regularised_least_squares_is_a_stack() -> None:
    mu, y = 0.3, randn(2, 5, dtype=R)
    operator = Stack([SystemMatrix(A.real), mu**0.5 * Identity((4,))])
    expected = torch.linalg.solve(A.real.T @ A.real + mu * torch.eye(4, dtype=R), A.real.T @ y.T).T
    torch.testing.assert_close(operator.pinv(operator.join((y, y.new_zeros(2, 4))), rtol=1e-12), expected)


def test_gradients_reach_factor_matrix_and_data() -> None:
    factor, matrix = torch.tensor(0.7, dtype=R, requires_grad=True), A.real.clone().requires_grad_()
    y = randn(2, 5, dtype=R).requires_grad_()

    def solve(factor: Tensor, matrix: Tensor, y: Tensor) -> Tensor:
        return (factor * SystemMatrix(matrix)).pinv(y, rtol=1e-13)

    assert torch.autograd.gradcheck(solve, (factor, matrix, y))


def test_gradients_of_the_pseudo_inverse_of_an_operator_that_loses_something() -> None:
    """Rank 2 of 4 and of 5, in every step of the finite differences; and the slope is the matrix's own."""
    left, right = randn(5, 2).requires_grad_(), randn(2, 4, seed=1).requires_grad_()
    y = randn(2, 5, seed=2).requires_grad_()

    def solve(left: Tensor, right: Tensor, y: Tensor) -> Tensor:
        return (SystemMatrix(left) @ SystemMatrix(right)).pinv(y, rtol=1e-12)

    assert torch.autograd.gradcheck(solve, (left, right, y))
    g = randn(2, 4, seed=3)
    (slope,) = torch.autograd.grad(solve(left, right, y), y, g)
    torch.testing.assert_close(slope, g @ torch.linalg.pinv(left @ right).detach().conj())


def test_gradients_of_the_pseudo_inverse_of_undersampled_coils() -> None:
    """What was not measured is lost: its slope is zero, not the quotient of two roundings."""
    mask = torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=R).expand(1, 1, 4, 6)
    maps, y = randn(1, 2, 4, 6).requires_grad_(), randn(1, 2, 4, 6, seed=1).requires_grad_()

    def solve(maps: Tensor, y: Tensor) -> Tensor:
        return linops.Sense(maps, mask).pinv(y, rtol=1e-12)

    assert torch.autograd.gradcheck(solve, (maps, y), fast_mode=True)


def test_pseudo_inverse_of_the_masked_fourier_transform() -> None:
    mask = torch.tensor([1.0, 0, 0, 0.5, 0, 0], dtype=R).expand(1, 1, 4, 6)
    fourier, g = linops.Fourier(mask, (4, 6)), randn(1, 4, 6, seed=2)
    y = randn(1, *fourier.range_shape, seed=1).requires_grad_()
    inverse = torch.linalg.pinv(fourier.as_matrix())
    for operator in (fourier, 1.0 * fourier):  # by its formula, by conjugate gradients
        found = operator.pinv(y, rtol=1e-12)
        torch.testing.assert_close(found.flatten(1), y.flatten(1) @ inverse.mT)
        (slope,) = torch.autograd.grad(found, y, g)
        torch.testing.assert_close(slope.flatten(1), g.flatten(1) @ inverse.conj())


def test_parts_travel_with_the_module() -> None:
    operator = 2 * SystemMatrix(A) @ SystemMatrix(D)
    assert operator.to(torch.complex64)(randn(1, 3).to(torch.complex64)).dtype == torch.complex64
    twin = copy.deepcopy(operator)
    assert set(twin.state_dict()) == set(operator.state_dict())
    assert len(twin.state_dict()) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SystemMatrix(A) @ SystemMatrix(A),
        lambda: SystemMatrix(A) + SystemMatrix(D),
        lambda: Stack([SystemMatrix(A), SystemMatrix(D)]),
        lambda: Stack([]),
        lambda: SystemMatrix(A) * torch.ones(2),
    ],
)
def test_what_does_not_fit_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"samples of shape|empty stack|one number"):
        wrong()


def test_a_wrong_adjoint_is_found() -> None:
    class Wrong(SystemMatrix):
        def adjoint(self, y: Tensor) -> Tensor:
            return y @ self.matrix.conj().roll(1, 0)

    assert Wrong(A).adjoint_error() > 1e-3
    assert Wrong(A.real.to(torch.float32)).adjoint_error() > 1e-3
