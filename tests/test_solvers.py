"""Solvers: the answer, the status, every option, and gradients against finite differences and unrolling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrecon import linops
from pyrecon.solvers import ConvergenceWarning, Solution, Status, conjugate_gradient, fista, primal_dual

# --- conjugate gradients -------------------------------------------------------------------------------------
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

    def loss(solve: Callable[..., Tensor]) -> Tensor:
        operator = linops.Sense(maps, torch.tensor([1, 0, 1, 1, 0]).bool().reshape(1, 1, 1, 5))
        x = solve(lambda x: operator.gram(x) + 0.1 * x, operator.H(k))
        return (x.abs() ** 2 + x.real).sum()

    def unrolled(A: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
        x, r = torch.zeros_like(b), b
        p = r
        for _ in range(60):
            rr, Ap = r.abs().square().sum((1, 2), keepdim=True), A(p)
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
        ({"b": torch.ones(2, 3, dtype=torch.int64)}, "b: dtype int64 is not supported"),
        ({"b": torch.tensor(1.0)}, "b: has no batch axis"),
        ({"x0": torch.ones(2, 4)}, "x0:"),
        ({"rtol": -1.0}, "rtol"),
        ({"max_iter": -1}, "max_iter"),
        ({"A": lambda x: x[:1]}, "A: returned shape"),
    ],
)
def test_errors_name_the_argument(options: dict[str, object], message: str) -> None:
    arguments = {"A": lambda x: x, "b": torch.ones(2, 3)} | options
    with pytest.raises((TypeError, ValueError), match=message):
        conjugate_gradient(arguments.pop("A"), arguments.pop("b"), **arguments)


# --- proximal methods ----------------------------------------------------------------------------------------
def shrink(v: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal map of threshold * |v|_1, real or complex."""
    size = v.abs()
    return v * torch.where(size > threshold, 1 - threshold / size, 0)


def lasso(batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, float, Tensor]:
    """Matrix, data, weight and step length of ``1/2 |A x - y|^2 + weight |x|_1``."""
    matrix, y = randn(batch, 15, 30, dtype=dtype), randn(batch, 15, dtype=dtype, seed=1)
    return matrix, y, 0.5, 1 / torch.linalg.matrix_norm(matrix, 2) ** 2


@both
def test_fista_satisfies_the_optimality_conditions_of_the_lasso(dtype: torch.dtype) -> None:
    matrix, y, weight, step = lasso(3, dtype)
    gradient = lambda x: product(matrix.mH, product(matrix, x) - y)  # noqa: E731
    prox = lambda v, t: shrink(v, weight * t)  # noqa: E731
    x0 = torch.zeros(3, 30, dtype=dtype)
    solution = fista(gradient, prox, x0, step=step, max_iter=5000, tol=1e-12)
    assert solution.converged.all()
    g, x = gradient(solution.value), solution.value
    support = x.abs() > 1e-9
    assert 3 < int(support.sum()) < 75
    torch.testing.assert_close(g[support], -weight * (x / x.abs())[support], rtol=0, atol=1e-7)
    assert (g.abs() <= weight + 1e-7).all()


def test_fista_samples_are_independent_and_frozen() -> None:
    matrix, y, weight, step = lasso(3)
    y[1] *= 1e-6  # its solution is zero
    prox = lambda v, t: shrink(v, weight * t)  # noqa: E731

    def run(which: slice) -> Solution[Tensor]:
        A, d = matrix[which], y[which]
        x0 = torch.zeros(len(d), 30, dtype=torch.float64)
        return fista(lambda x: product(A.mT, product(A, x) - d), prox, x0, step=step[which], max_iter=5000, tol=1e-8)

    together = run(slice(0, 3))
    assert together.iterations[1] == 1
    for i in range(3):
        alone = run(slice(i, i + 1))
        assert alone.iterations[0] == together.iterations[i]
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=1e-10, atol=1e-12)


def test_fista_options_have_effects() -> None:
    matrix, y, weight, step = lasso(1)
    gradient = lambda x: product(matrix.mT, product(matrix, x) - y)  # noqa: E731
    prox = lambda v, t: shrink(v, weight * t)  # noqa: E731
    x0 = torch.zeros(1, 30, dtype=torch.float64)

    def iterations(**options: object) -> int:
        return int(fista(gradient, prox, x0, **{"step": step, "max_iter": 20000, "tol": 1e-10} | options).iterations)

    assert iterations(restart=True) < iterations(restart=False)
    assert iterations(tol=1e-3) < iterations(tol=1e-6)
    assert iterations(step=0.3 * step) > iterations()
    assert iterations(step=float(step)) == iterations()
    with pytest.warns(ConvergenceWarning, match="fista: 1 of 1.*MAX_ITER"):
        assert iterations(max_iter=3) == 3
    with pytest.warns(ConvergenceWarning, match="DIVERGED"):
        diverged = fista(gradient, prox, x0, step=30 * step, max_iter=2000)
    assert diverged.status.tolist() == [Status.DIVERGED]
    done = fista(gradient, prox, x0, step=step, max_iter=20000, tol=1e-12).value
    assert fista(gradient, prox, done, step=step, tol=1e-8).iterations == 1


def test_fista_nan_ends_its_sample_alone() -> None:
    matrix, y, weight, step = lasso(3)
    gradient = lambda x: product(matrix.mT, product(matrix, x) - y)  # noqa: E731
    prox = lambda v, t: shrink(v, weight * t)  # noqa: E731
    x0 = torch.zeros(3, 30, dtype=torch.float64)
    clean = fista(gradient, prox, x0, step=step, max_iter=5000).value
    y[1, 0] = float("nan")
    with pytest.warns(ConvergenceWarning, match="1 NONFINITE"):
        solution = fista(gradient, prox, x0, step=step, max_iter=5000)
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert torch.equal(solution.value[[0, 2]], clean[[0, 2]])
    assert solution.value.isfinite().all()


def tv_ball(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The proximal map of the conjugate of weight * sum |q|_2: projection of each pixel's pair."""
    return lambda q, _: q * (weight / torch.linalg.vector_norm(q, dim=1, keepdim=True)).clamp(max=1)


def test_primal_dual_reaches_the_optimality_conditions_of_total_variation() -> None:
    # 1/2 |x - y|^2 + weight TV(x): x = y - D^T u, and the duality gap weight TV(x) - <D x, u> vanishes. At the stop x
    # and u move by at most tol of their size, so the first holds within tol |x| / step (and |D| tol |u|), the
    # second within weight sqrt(pixels) times twice what D x lacks: |D| tol |x| + tol |u| / dual_step.
    y, weight, D, tol = randn(2, 7, 6), 0.3, linops.Gradient((7, 6)), 1e-6
    seen = []

    def dual_prox(q: Tensor, s: Tensor) -> Tensor:
        seen.append(tv_ball(weight)(q, s))
        return seen[-1]

    start = torch.zeros_like(y[:1])
    for sample in y.split(1):
        gradient = lambda x, sample=sample: x - sample  # noqa: E731
        solution = primal_dual(
            gradient, None, D, D.adjoint, dual_prox, start, step=0.5, dual_step=0.18, max_iter=5000, tol=tol
        )
        assert solution.converged.all()
        x, u = solution.value, seen[-1]
        sizes = float(torch.linalg.vector_norm(x)), float(torch.linalg.vector_norm(u))
        bound = D.norm_bound**0.5
        lack = tol * (sizes[0] / 0.5 + bound * sizes[1])
        assert float(torch.linalg.vector_norm(x - sample + D.adjoint(u))) <= lack
        gap = weight * torch.linalg.vector_norm(D(x), dim=1).sum() - (D(x) * u).sum()
        assert -1e-12 <= float(gap) <= 2 * weight * 42**0.5 * tol * (2 * bound * sizes[0] + sizes[1] / 0.18)


def test_primal_dual_with_a_primal_prox_and_its_options() -> None:
    # Non-negative total-variation deblurring.
    y, D = randn(2, 7, 6), linops.Gradient((7, 6))
    mean = torch.eye(7, dtype=torch.float64) * 0.5 + 0.5 / 7
    gradient = lambda x: mean @ (mean @ x - y)  # noqa: E731
    clip = lambda v, _: v.clamp(min=0)  # noqa: E731

    def run(prox: object = clip, **options: object) -> Solution[Tensor]:
        settings = {"step": 0.4, "dual_step": 0.2, "max_iter": 5000, "tol": 1e-6} | options
        return primal_dual(gradient, prox, D, D.adjoint, tv_ball(0.3), torch.zeros_like(y), **settings)

    def objective(x: Tensor) -> Tensor:
        fit = 0.5 * (mean @ x - y).square().sum((1, 2))
        return fit + 0.3 * torch.linalg.vector_norm(D(x), dim=1).sum((1, 2))

    solution = run()
    assert solution.converged.all()
    assert (solution.value >= 0).all()
    for seed in range(5):  # no feasible neighbour is better
        other = (solution.value + 1e-2 * randn(2, 7, 6, seed=seed)).clamp(min=0)
        assert (objective(other) > objective(solution.value)).all()
    free = run(prox=None)
    assert free.value.min() < 0
    assert (objective(free.value) < objective(solution.value)).all()
    assert (run(tol=1e-3).iterations < solution.iterations).all()
    assert not torch.equal(run(step=0.2).iterations, solution.iterations)
    assert not torch.equal(run(dual_step=0.05).iterations, solution.iterations)
    with pytest.warns(ConvergenceWarning, match=r"primal_dual: 2 of 2.*MAX_ITER") as caught:
        assert run(max_iter=5).iterations.tolist() == [5, 5]
    assert caught[0].filename == __file__


def test_sparse_sense_beats_least_squares_on_undersampled_data() -> None:
    # A phantom of few wavelet coefficients and flat parts, half the lines, noise: both priors must help.
    image = torch.zeros(1, 32, 32, dtype=torch.complex128)
    image[:, 6:26, 8:24], image[:, 12:18, 12:20] = 1, 1.5j
    angles = torch.arange(4) * torch.pi / 2
    axis = torch.linspace(-1, 1, 32, dtype=torch.float64)
    maps = torch.exp(-((axis[:, None] - angles.cos()[:, None, None]) ** 2 + (axis - angles.sin()[:, None, None]) ** 2))
    maps = (maps / maps.square().sum(0).sqrt()).to(torch.complex128)[None]
    lines = torch.arange(32) % 3 == 0
    lines[12:20] = True
    A, D = linops.Sense(maps, lines.reshape(1, 1, 1, 32)), linops.Gradient((32, 32))
    k = A(image) + 0.05 * randn(1, 4, 32, 32, dtype=torch.complex128, seed=2) * lines
    b = A.H(k)
    gradient = lambda x: A.gram(x) - b  # noqa: E731
    W = linops.Wavelet((32, 32), wavelet="db1")
    x0 = torch.zeros_like(b)

    def error(x: Tensor) -> float:
        return float(torch.linalg.vector_norm(x - image) / torch.linalg.vector_norm(image))

    least_squares = error(conjugate_gradient(lambda x: A.gram(x) + 1e-3 * x, b).value)
    step = 1 / A.norm_bound
    sparse = error(fista(gradient, lambda v, t: W.H(shrink(W(v), 0.03 * t)), x0, step=step, tol=1e-3).value)
    tv = error(primal_dual(gradient, None, D, D.adjoint, tv_ball(0.03), x0, step=0.5, dual_step=0.18, tol=1e-3).value)
    assert sparse < 0.6 * least_squares
    assert tv < 0.5 * least_squares


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step: 0.0.*expected positive"),
        ({"step": torch.ones(3)}, r"step: shape \(3,\)"),
        ({"tol": -1.0}, "tol"),
        ({"max_iter": -1}, "max_iter"),
        ({"prox": lambda v, t: v[:1]}, "prox: returned shape"),
    ],
)
def test_proximal_errors_name_the_argument(options: dict[str, object], message: str) -> None:
    arguments = {"gradient": lambda x: x, "prox": lambda v, t: v, "x0": torch.ones(2, 4), "step": 0.5} | options
    with pytest.raises(ValueError, match=message):
        fista(**arguments)
