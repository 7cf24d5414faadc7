"""fixed_point and the kernels' solver step: laws of the methods, freezing, status, and every option's effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon import testing
from pyrecon.solvers import Anderson, Broyden, Picard, Status, fixed_point

METHODS = [Anderson(), Anderson(memory=1), Picard(), Broyden()]


def contraction(batch: int, n: int, rate: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A (B, n, n) with spectral norm ``rate``, b, and the fixed point of x -> A x + b."""
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(batch, n, n, generator=generator, dtype=dtype)
    A = rate * A / torch.linalg.matrix_norm(A, 2)[:, None, None]
    b = torch.randn(batch, n, generator=generator, dtype=dtype)
    return A, b, torch.linalg.solve(torch.eye(n, dtype=dtype) - A, b)


def affine(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
    return (A @ x[..., None])[..., 0] + b


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_finds_the_fixed_point(method: object, dtype: torch.dtype) -> None:
    A, b, exact = contraction(4, 9, 0.7, dtype)
    solution = fixed_point(affine, torch.zeros_like(b), (A, b), solver=method, tol=1e-11, max_iter=300)
    assert solution.converged.all()
    # |x - x*| <= |f(x) - x| / (1 - rate), and the value is one application closer still
    bound = 1e-11 * (exact.abs().square().sum(1).sqrt().max() + 1e-5) / (1 - 0.7)
    assert (solution.value - exact).abs().max() <= bound
    recomputed = (affine(solution.value, A, b) - solution.value).abs().square().sum(1).sqrt()
    assert (recomputed <= solution.residual * (exact.abs().square().sum(1).sqrt() + 1e-5)).all()


def textbook_anderson(f: Callable[[Tensor], Tensor], x: Tensor, steps: int, m: int, beta: float) -> list[Tensor]:
    """One sample, least squares on differences: the other way to write the method, with no ridge."""
    xs, gs = [x], [f(x) - x]
    for _ in range(steps):
        k = min(len(xs), m)
        X, G = torch.stack(xs[-k:]), torch.stack(gs[-k:])
        if k == 1:
            a = torch.ones(1, dtype=x.dtype)
        else:
            gamma = torch.linalg.lstsq((G[1:] - G[:-1]).T, G[-1][:, None]).solution[:, 0]
            a = torch.zeros(k, dtype=x.dtype)
            a[-1] = 1
            a[1:] -= gamma
            a[:-1] += gamma
        xs.append(a @ (X + beta * G))
        gs.append(f(xs[-1]) - xs[-1])
    return xs


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_anderson_without_ridge_is_the_textbook_method(backend: str, beta: float) -> None:
    A, b, _ = contraction(1, 12, 0.9)
    seen: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return affine(x, A, b)

    with pyrecon.backend(backend):
        fixed_point(f, torch.zeros_like(b), solver=Anderson(memory=4, beta=beta, ridge=0.0), tol=0.0, max_iter=8)
    expected = textbook_anderson(lambda x: A[0] @ x + b[0], torch.zeros(12, dtype=torch.float64), 7, 4, beta)
    for ours, theirs in zip(seen, expected, strict=True):
        # Both solve the same small least squares, with condition up to 1e4 squared: 1e8 eps.
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("level", testing.available_isa_levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
def test_kernel_follows_the_reference(dtype: torch.dtype, level: str) -> None:
    A, b, _ = contraction(5, 700, 0.8, dtype)
    runs = []
    for backend in ("cpp", "reference"):
        with pyrecon.backend(backend), testing.isa(level), testing.poisoned_memory(), testing.record_calls() as calls:
            runs.append(fixed_point(affine, torch.zeros_like(b), (A, b), tol=0.0, max_iter=6).value)
        assert {call.backend for call in calls} == {backend}
    # Six mixes amplify rounding by their weights, which are of order 1 here: measured 20 eps, and each may double it.
    testing.assert_close_to_reference(runs[0], runs[1].to(torch.promote_types(dtype, torch.float64)), k=256)


def test_tuple_state_and_many_parts() -> None:
    A, b, exact = contraction(3, 6, 0.5)

    def f(state: tuple[Tensor, Tensor], A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x, y = state
        joined = affine(torch.cat([x.flatten(1), y[:, None]], 1), A, b)
        return joined[:, :5].reshape(-1, 5, 1), joined[:, 5]

    start = (torch.zeros(3, 5, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    solution = fixed_point(f, start, (A, b), tol=1e-12, max_iter=100)
    assert isinstance(solution.value, tuple)
    torch.testing.assert_close(solution.value[0][..., 0], exact[:, :5])
    torch.testing.assert_close(solution.value[1], exact[:, 5])


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_converged_samples_leave_the_batch(method: object) -> None:
    """63 samples at rest and one slow one: rows passed to f, and their answers."""
    A, b, exact = contraction(64, 5, 0.9)
    A[1:] *= 1e-3
    rows = 0

    def f(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return affine(x, A, b)

    exact[1:] = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - A[1:], b[1:])
    solution = fixed_point(f, torch.zeros_like(b), (A, b), solver=method, tol=1e-10, max_iter=500)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, exact, rtol=1e-8, atol=1e-8)
    slow = int(solution.iterations[0])
    assert rows == int(solution.iterations.sum())
    assert solution.iterations[1:].max() < slow / 1.5


@pytest.mark.parametrize("every", [1, 4, 7])
def test_stop_tests_may_be_rare(every: int) -> None:
    """What a GPU does, whose host should not wait at every step: samples leave at the next test, not before."""
    A, b, exact = contraction(4, 6, 0.5)
    b[2, 1] = float("nan")
    often = fixed_point(affine, torch.zeros_like(b), (A, b), solver=Picard(), tol=1e-9, max_iter=100)
    rare = fixed_point(affine, torch.zeros_like(b), (A, b), solver=Picard(), tol=1e-9, max_iter=100, check_every=every)
    assert rare.status.tolist() == often.status.tolist()
    assert rare.iterations.tolist() == [-(-n // every) * every for n in often.iterations.tolist()]
    keep = torch.tensor([0, 1, 3])
    torch.testing.assert_close(rare.value[keep], exact[keep], rtol=1e-8, atol=1e-8)
    assert rare.value[2].isfinite().all()
    with pytest.raises(ValueError, match="check_every: 0"):
        fixed_point(affine, torch.zeros_like(b), (A, b), check_every=0)


def test_one_bad_sample_is_marked_and_reaches_no_other() -> None:
    A, b, exact = contraction(4, 6, 0.5)
    b[2, 1] = float("nan")
    solution = fixed_point(affine, torch.zeros_like(b), (A, b), tol=1e-10, max_iter=100)
    assert solution.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    keep = torch.tensor([0, 1, 3])
    torch.testing.assert_close(solution.value[keep], exact[keep])
    assert solution.value[2].isfinite().all()


def test_limit_and_divergence_are_statuses() -> None:
    A, b, _ = contraction(2, 6, 0.99)
    limited = fixed_point(affine, torch.zeros_like(b), (A, b), solver=Picard(), tol=1e-12, max_iter=5)
    assert limited.status.tolist() == [Status.MAX_ITER] * 2
    grown = fixed_point(lambda x: -3 * x + 1, torch.zeros_like(b), solver=Picard(), tol=1e-12, max_iter=9)
    assert grown.status.tolist() == [Status.DIVERGED] * 2
    with pytest.warns(pyrecon.solvers.ConvergenceWarning, match="2 of 2 samples did not converge"):
        grown.warn_unless_converged("fixed_point", "Lower the damping.")


OPTIONS = [Anderson(memory=2), Anderson(beta=0.5), Anderson(ridge=0.3), Anderson(absolute_ridge=True, ridge=1e-2),
           Picard(0.5), Broyden(memory=2)]  # fmt: skip


@pytest.mark.parametrize("method", OPTIONS, ids=repr)
def test_every_option_has_an_effect(method: Anderson | Picard | Broyden) -> None:
    A, b, _ = contraction(2, 8, 0.9)
    plain = type(method)()
    runs = [
        fixed_point(affine, torch.zeros_like(b), (A, b), solver=s, tol=0.0, max_iter=9).value for s in (plain, method)
    ]
    assert (runs[0] - runs[1]).abs().max() > 1e-6


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_safeguard_takes_a_plain_step_where_mixing_made_things_worse(backend: str) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []

    def f(x: Tensor) -> Tensor:  # kinked, so that extrapolation overshoots
        fx = torch.where(x.abs() > 1, 0.5 * x.sign() * x.abs().sqrt(), 0.99 * x.sin() + 0.1)
        pairs.append((x.clone(), fx))
        return fx

    start = torch.linspace(-30, 30, 8, dtype=torch.float64)[:, None] * torch.tensor([1.0, -0.3], dtype=torch.float64)
    with pyrecon.backend(backend):
        fixed_point(f, start, solver=Anderson(memory=3, ridge=0.0, safeguard=1.0), tol=0.0, max_iter=12)
    sizes = [torch.linalg.vector_norm(fx - x, dim=1) for x, fx in pairs]
    worse = [now > before for before, now in pairwise(sizes[:-1])]
    assert sum(int(w.sum()) for w in worse) > 5
    for flags, (_, fx), (following, _) in zip(worse, pairs[1:], pairs[2:], strict=False):
        torch.testing.assert_close(following[flags], fx[flags], rtol=1e-14, atol=1e-14)


def test_wrong_states_are_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"f: returned per-sample shapes \[\(2,\)\], the state has \[\(3,\)\]"):
        fixed_point(lambda v: v[:, :2], x)
    with pytest.raises(ValueError, match="one batch size"):
        fixed_point(lambda v: v, (x, torch.zeros(3, 1)))
    with pytest.raises(ValueError, match="max_iter"):
        fixed_point(lambda v: v, x, max_iter=0)
    with pytest.raises(ValueError, match="memory=0"):
        Anderson(memory=0)
    assert math.isclose(float(fixed_point(lambda v: v, x).residual.max()), 0.0)
