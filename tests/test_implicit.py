"""Gradients through fixed points: against finite differences, a long unrolled run, and each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyrecon.implicit import (
    ImplicitGradient,
    JacobianFree,
    PhantomGradient,
    Unrolled,
    contraction,
    fixed_point_layer,
    jacobian_penalty,
    residual_curve,
    spectral_norm,
)
from pyrecon.nn import RDN
from pyrecon.solvers import Anderson, Broyden, ConvergenceWarning, Picard, Status, fixed_point

N = 6
R = torch.float64
EXACT = {"tol": 1e-12, "max_iter": 200}


def randn(*shape: int, dtype: torch.dtype = R, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def exact(solver: Any = None) -> ImplicitGradient:
    return ImplicitGradient(solver=solver or Anderson(), tol=1e-12, max_iter=200)


def f(z: Tensor, y: Tensor, W: Tensor) -> Tensor:
    return torch.tanh(z @ W.mT) + y


W = 0.6 * randn(N, N, seed=1) / torch.linalg.matrix_norm(randn(N, N, seed=1), 2)


@pytest.mark.parametrize("solver", [Anderson(), Picard(), Broyden()], ids=lambda s: type(s).__name__)
def test_implicit_gradient_is_that_of_finite_differences(solver: Any) -> None:
    def solve(y: Tensor, W: Tensor) -> Tensor:
        return fixed_point_layer(f, torch.zeros_like(y), (y, W), solver=solver, gradient=exact(solver), **EXACT)

    assert torch.autograd.gradcheck(solve, (randn(3, N).requires_grad_(), W.clone().requires_grad_()))


def test_complex_state() -> None:
    V = W.to(torch.complex128) * (0.8 + 0.3j)

    def g(z: Tensor, y: Tensor, V: Tensor) -> Tensor:
        u = z @ V.mT
        return u / (1 + u.abs()) + y

    def solve(y: Tensor, V: Tensor) -> Tensor:
        return fixed_point_layer(g, torch.zeros_like(y), (y, V), gradient=exact(), **EXACT)

    y = randn(2, N, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(solve, (y, V.clone().requires_grad_()), atol=1e-6)


def test_tuple_state() -> None:
    def g(state: tuple[Tensor, Tensor], y: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        x, d = state
        return torch.tanh(x @ W.mT - d[:, None] / 4) + y, 0.4 * d + 0.1 * x.sum(1)

    def solve(y: Tensor, W: Tensor) -> tuple[Tensor, ...]:
        return fixed_point_layer(g, (torch.zeros_like(y), y.new_zeros(len(y))), (y, W), gradient=exact(), **EXACT)

    assert torch.autograd.gradcheck(solve, (randn(3, N).requires_grad_(), W.clone().requires_grad_()))


def loss_gradient(gradient: Any, **options: Any) -> Tensor:
    weight = W.clone().requires_grad_()
    z = fixed_point_layer(f, torch.zeros(3, N, dtype=R), (randn(3, N), weight), gradient=gradient, **options)
    (z * randn(3, N, seed=4)).sum().backward()
    assert weight.grad is not None
    return weight.grad


def test_every_way_tends_to_the_exact_gradient() -> None:
    """Steps recorded bring phantom and unrolled gradients to the implicit one; the Jacobian-free one is a direction."""
    wanted = loss_gradient(exact(), **EXACT)

    def error(gradient: Any) -> float:
        return float((loss_gradient(gradient, **EXACT) - wanted).norm() / wanted.norm())

    assert error(Unrolled(80)) < 1e-10
    assert error(PhantomGradient(80, 1.0)) < 1e-10
    assert error(PhantomGradient(80, 0.5)) < 1e-6
    assert error(PhantomGradient(3, 1.0)) < error(PhantomGradient(1, 1.0)) == pytest.approx(error(JacobianFree()))
    assert float((loss_gradient(JacobianFree(), **EXACT) * wanted).sum()) > 0
    assert 1e-3 < error(Unrolled(3)) < 1


def test_several_passes_share_parameters_in_one_loss() -> None:
    """The equivariant loss calls the model again on a transform of its own output."""

    def loss(W: Tensor) -> Tensor:
        y = randn(2, N)
        first = fixed_point_layer(f, torch.zeros_like(y), (y, W), gradient=exact(), **EXACT)
        turned = first.flip(1)
        second = fixed_point_layer(f, torch.zeros_like(y), (0.3 * turned, W), gradient=exact(), **EXACT)
        return (second - turned).square().sum() + first.sum()

    assert torch.autograd.gradcheck(loss, (W.clone().requires_grad_(),))


def test_memory_does_not_grow_with_the_iterations() -> None:
    class Count:
        bytes = 0

        def pack(self, t: Tensor) -> Tensor:
            self.bytes += t.nbytes
            return t

    saved = []
    for limit in (3, 60):
        count = Count()
        with torch.autograd.graph.saved_tensors_hooks(count.pack, lambda t: t), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fixed_point_layer(f, torch.zeros(3, N, dtype=R), (randn(3, N), W.clone().requires_grad_()), max_iter=limit)
        saved.append(count.bytes)
    assert saved[0] == saved[1] > 0


def test_a_frozen_sample_has_the_gradient_it_has_alone() -> None:
    """Samples converge forward and backward at their own pace, down to rounding as if they were alone."""
    rate = torch.tensor([0.0, 0.2, 0.9], dtype=R)

    def g(z: Tensor, rate: Tensor, y: Tensor) -> Tensor:
        return rate[:, None] * torch.sin(z) + y

    def gradient(rows: slice) -> Tensor:
        y = randn(3, N)[rows].requires_grad_()
        z = fixed_point_layer(g, torch.zeros_like(y), (rate[rows], y), gradient=exact(), **EXACT)
        return torch.autograd.grad(z.square().sum(), y)[0]

    together = gradient(slice(None))
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], gradient(slice(i, i + 1)), rtol=1e-9, atol=1e-9)


def test_a_frozen_batch_does_not_index_other_arguments() -> None:
    """Two samples left and an argument of two rows that is no batch: it must not be indexed."""
    table = torch.eye(2, dtype=R)

    def g(z: Tensor, rate: Tensor, table: Tensor) -> Tensor:
        assert table.shape == (2, 2)
        return rate[:, None] * (z @ table) + 1

    rate = torch.tensor([0.0, 0.5, 0.8], dtype=R)
    solution = fixed_point_layer(g, torch.zeros(3, 2, dtype=R), (rate, table), return_solution=True, **EXACT)
    torch.testing.assert_close(solution.value, (1 / (1 - rate))[:, None].expand(3, 2))


def test_the_backward_solve_is_reported_and_warns() -> None:
    gradient = ImplicitGradient(solver=Picard(), tol=1e-14, max_iter=2)
    with pytest.warns(ConvergenceWarning, match="backward solve"):
        loss_gradient(gradient, **EXACT)
    assert gradient.last is not None
    assert gradient.last.iterations.tolist() == [2, 2, 2]
    assert (gradient.last.residual > 1e-14).all()
    gradient = exact()
    loss_gradient(gradient, **EXACT)
    assert gradient.last is not None
    assert gradient.last.converged.all()
    with pytest.warns(ConvergenceWarning, match=r"fixed_point_layer: 3 of 3 .* Raise max_iter"):
        loss_gradient(JacobianFree(), tol=1e-12, max_iter=2)


def test_status_and_value_without_gradients() -> None:
    y = randn(3, N)
    with torch.no_grad():
        solution = fixed_point_layer(f, torch.zeros_like(y), (y, W), return_solution=True, **EXACT)
    assert (solution.status == Status.CONVERGED).all()
    assert not solution.value.requires_grad
    torch.testing.assert_close(f(solution.value, y, W), solution.value)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(W.clone())

    def forward(self, y: Tensor) -> Tensor:
        return fixed_point_layer(
            lambda z, y: torch.tanh(z @ self.W.mT) + y, torch.zeros_like(y), (y,), gradient=exact(), **EXACT
        )


def test_checkpointing_gives_the_same_gradient() -> None:
    gradients = []
    for run in (lambda m, y: m(y), lambda m, y: checkpoint(m, y, use_reentrant=False)):
        model, y = Model(), randn(2, N).requires_grad_()
        run(model, y).square().sum().backward()
        gradients.append((model.W.grad, y.grad))
    torch.testing.assert_close(gradients[1], gradients[0])


def test_mixed_precision() -> None:
    """A map that computes in bfloat16 under autocast has a state in float32, and so have its gradients."""
    layer = nn.Linear(N, N)
    nn.init.orthogonal_(layer.weight, 0.5)
    y = randn(2, N, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = fixed_point_layer(lambda z, y: torch.tanh(layer(z)).float() + y, torch.zeros_like(y), (y,), tol=1e-2)
    z.square().sum().backward()
    assert z.dtype == torch.float32
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()


@pytest.mark.parametrize("wrong", [lambda: Unrolled(0), lambda: PhantomGradient(0), lambda: PhantomGradient(2, 1.5)])
def test_options_are_checked(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        wrong()


def test_contraction_is_the_spectral_norm() -> None:
    M = randn(2, N, N, seed=3)
    sigma = contraction(lambda z: (M @ z[..., None])[..., 0], randn(2, N), steps=300)
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(M, 2), rtol=1e-4, atol=0)


def test_jacobian_penalty_is_the_frobenius_norm() -> None:
    M = randn(2, N, N, seed=3).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    penalty = jacobian_penalty(lambda z: (M @ z[..., None])[..., 0], randn(2, N), probes=4000, generator=generator)
    # A probe's estimate has a relative deviation below sqrt(2): 4000 of them bring it below 2.3 %.
    torch.testing.assert_close(penalty, M.square().sum((1, 2)) / N, rtol=0.1, atol=0)
    penalty.sum().backward()
    assert M.grad is not None
    # An entry's deviation is 2/N sqrt(|column|^2 + M_ij^2) / sqrt(4000), here at most 0.025.
    torch.testing.assert_close(M.grad, 2 * M.detach() / N, rtol=0, atol=0.1)


@pytest.mark.parametrize("solver", [Picard(), Anderson(memory=3)], ids=lambda s: type(s).__name__)
def test_residual_curve_is_what_the_solver_saw(solver: Any) -> None:
    y = randn(3, N)
    y[1, 0] = float("nan")
    curve = residual_curve(f, torch.zeros_like(y), (y, W), solver=solver, max_iter=9)
    assert curve.shape == (9, 3)
    for steps in (1, 4, 9):
        found = fixed_point(f, torch.zeros_like(y), (y, W), solver=solver, tol=0.0, max_iter=steps)
        torch.testing.assert_close(curve[steps - 1, [0, 2]], found.residual[[0, 2]])
    assert torch.isnan(curve[1:, 1]).all()
    if isinstance(solver, Picard):  # linear convergence, at most at the rate of the contraction
        assert (curve[1:, 0] < 0.7 * curve[:-1, 0]).all()


def test_spectral_norm_makes_a_map_contract() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(N, 20), nn.Tanh(), nn.Sequential(nn.Linear(20, N))).double()
    with torch.no_grad():
        net[0].weight.mul_(5)
    z = randn(4, N)
    assert float(contraction(net, z).max()) > 1
    assert spectral_norm(net, power_iterations=20) is net
    assert float(contraction(net.eval(), z).max()) <= 1 + 1e-6
    assert len(list(net.parameters())) == 4


def test_spectral_norm_of_the_network_of_deq_mpi() -> None:
    """Its fused pass steps aside for the normalised weights."""
    torch.manual_seed(0)
    net = spectral_norm(RDN(4, 3, 1, 2), power_iterations=100)
    image = torch.rand(2, 6, 5)
    net(image)  # in training every pass iterates
    net.eval()
    norms = [torch.linalg.matrix_norm(conv.weight.flatten(1), 2) for conv in (net.shallow, net.deep, net.last)]
    torch.testing.assert_close(torch.stack(norms), torch.ones(3), rtol=1e-4, atol=0)
    net(image).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
