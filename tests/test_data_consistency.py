"""The data consistency layer: its solution, every derivative by finite differences, and what each option does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.linops import LinearOperator, Sense
from pyrecon.models import DataConsistency
from pyrecon.solvers import Status, conjugate_gradient

DOUBLE = torch.complex128


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def problem(rows: int = 6, columns: int = 4) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    batch, coils = 2, 3
    maps, k = randn(batch, coils, rows, columns), randn(batch, coils, rows, columns, seed=1)
    mask = torch.zeros(batch, 1, rows, 1, dtype=torch.float64)
    mask[:, :, ::2] = 1
    mask[:, :, rows // 2] = 1
    images = [randn(batch, rows, columns, seed=seed) for seed in (2, 3)]
    return maps, mask, k * mask, images


def dense(physics: LinearOperator, batch: int, shape: tuple[int, int]) -> Tensor:
    """A^H A of every sample as a matrix."""
    size = shape[0] * shape[1]
    columns = []
    for i in range(size):
        unit = torch.zeros(batch, size, dtype=DOUBLE)
        unit[:, i] = 1
        columns.append(physics.adjoint(physics(unit.reshape(batch, *shape))).reshape(batch, size))
    return torch.stack(columns, 2)


def test_the_solution_is_that_of_the_matrix() -> None:
    maps, mask, k, (one, two) = problem()
    physics = Sense(maps, mask)
    weights = torch.tensor([0.3, 1.2], dtype=torch.float64)
    layer = DataConsistency(rtol=1e-12)
    found = layer(k, physics, [(weights, one), (0.5, two)])
    matrix = dense(physics, 2, (6, 4)) + torch.diag_embed((weights + 0.5)[:, None].expand(2, 24)).to(DOUBLE)
    right = physics.adjoint(k) + weights[:, None, None] * one + 0.5 * two
    wanted = torch.linalg.solve(matrix, right.reshape(2, 24))
    torch.testing.assert_close(found.reshape(2, 24), wanted, rtol=1e-9, atol=1e-10)
    assert layer.last is not None
    assert bool((layer.last.status == Status.CONVERGED).all())


def test_gradients_reach_data_images_weights_and_maps() -> None:
    maps, mask, k, images = problem(rows=4, columns=3)
    weights = torch.tensor([0.4, 0.9], dtype=torch.float64)

    def f(k: Tensor, one: Tensor, two: Tensor, first: Tensor, second: Tensor, maps: Tensor) -> Any:
        physics = Sense(maps, mask)
        return DataConsistency(rtol=1e-13)(k, physics, [(first, one), (second, two)])

    inputs = [v.clone().requires_grad_() for v in (k, *images, weights, torch.tensor(0.7, dtype=torch.float64), maps)]
    assert torch.autograd.gradcheck(f, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_the_derivative_in_the_maps_has_this_sign() -> None:
    """That of Re <A v, k - A x>: Eq. 18 of the paper has the opposite one."""
    maps, mask, k, (one, _) = problem()
    maps.requires_grad_()
    g = randn(2, 6, 4, seed=9)
    x = DataConsistency(rtol=1e-13)(k, Sense(maps, mask), [(0.5, one)])
    (ours,) = torch.autograd.grad(x, maps, g)
    physics = Sense(maps.detach(), mask)
    v = conjugate_gradient(lambda u: physics.gram(u) + 0.5 * u, g, rtol=1e-13).value
    held = maps.detach().requires_grad_()
    moving = Sense(held, mask)
    (moving(v).conj() * (k - moving(x.detach()))).real.sum().backward()
    torch.testing.assert_close(ours, held.grad, rtol=1e-9, atol=1e-10)


def test_every_option_does_something() -> None:
    maps, mask, k, (one, _) = problem(rows=24, columns=16)
    maps = maps * torch.linspace(0.1, 3.0, 24, dtype=torch.float64)[:, None]  # ill conditioned
    physics = Sense(maps, mask)

    def steps(x0: Tensor | None = None, **options: Any) -> int:
        layer = DataConsistency(**{"rtol": 1e-8, "max_iter": 500, **options})
        layer(k, physics, [(0.05, one)], x0=x0)
        assert layer.last is not None
        return int(layer.last.iterations.max())

    exact = DataConsistency(rtol=1e-13, max_iter=2000)(k, physics, [(0.05, one)])
    usual = steps()
    assert steps(rtol=1e-3) < usual
    assert steps(rtol=0, atol=1e-2) < usual
    assert steps(x0=exact) == 0
    assert steps(x0=torch.zeros_like(one)) != usual  # the start is the images, unless another is given
    with pytest.warns(UserWarning, match="MAX_ITER"):
        assert steps(max_iter=3) == 3

    def diagonal(x: Tensor, physics: LinearOperator, weight: Tensor) -> Tensor:
        assert isinstance(physics, Sense)
        return x / (physics.maps.abs().square().sum(1) * physics.mask.mean() + weight)

    assert steps(preconditioner=diagonal) < 0.8 * usual
    again = DataConsistency(rtol=1e-12, max_iter=500, preconditioner=diagonal)(k, physics, [(0.05, one)])
    torch.testing.assert_close(again, exact, rtol=1e-8, atol=1e-9)


def test_a_preconditioner_changes_neither_gradients_nor_neighbours() -> None:
    maps, mask, k, (one, _) = problem()

    def diagonal(x: Tensor, physics: LinearOperator, weight: Tensor) -> Tensor:
        assert isinstance(physics, Sense)
        return x / (physics.maps.abs().square().sum(1) + weight)

    grads = []
    for preconditioner in (None, diagonal):
        given = [v.clone().requires_grad_() for v in (k, one, maps)]
        layer = DataConsistency(rtol=1e-13, preconditioner=preconditioner)
        x = layer(given[0], Sense(given[2], mask), [(0.3, given[1])])
        grads.append(torch.autograd.grad(x, given, randn(2, 6, 4, seed=7)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    spoiled = k.clone()
    spoiled[1] = torch.nan
    layer = DataConsistency(preconditioner=diagonal)
    with pytest.warns(UserWarning, match="NONFINITE"):
        x = layer(spoiled, Sense(maps, mask), [(0.3, one)], return_solution=True)
    assert x.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    alone = layer(k[:1], Sense(maps[:1], mask[:1]), [(0.3, one[:1])])
    torch.testing.assert_close(x.value[:1], alone)


def test_a_preconditioner_that_is_none_is_told() -> None:
    b = randn(2, 5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="DIVERGED"):
        found = conjugate_gradient(lambda x: 2 * x, b, preconditioner=lambda x: -x)
    assert found.status.tolist() == [Status.DIVERGED] * 2
    assert bool(torch.isfinite(found.value).all())


def test_bad_arguments_are_named() -> None:
    maps, mask, k, (one, _) = problem()
    layer, physics = DataConsistency(), Sense(maps, mask)
    for terms, error, message in (
        ([(0.1, one[:1])], ValueError, r"terms\[0\], y"),
        ([(-0.1, one)], ValueError, r"terms\[0\], lambda"),
        ([(torch.ones(3, dtype=torch.float64), one)], ValueError, r"shape \(3,\) does not fit"),
        ([(torch.ones(2), one)], TypeError, "lambda"),
        ([one], TypeError, "no pair"),
        ([(0.1, one.real)], TypeError, "y"),
    ):
        with pytest.raises(error, match=message):
            layer(k, physics, terms)
    with pytest.raises(TypeError, match="LinearOperator"):
        layer(k, lambda x: x)
