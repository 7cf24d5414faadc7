"""What total variation and the soft threshold must satisfy beyond the shared laws of tests/test_ops.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from pyrecon.ops import soft_threshold, tv_gap, tv_prox
from pyrecon.testing.cases.variation import noisy_blocks

COMPLEX = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
ISOTROPIC = pytest.mark.parametrize("isotropic", [True, False], ids=["isotropic", "anisotropic"])
NONNEG = pytest.mark.parametrize("nonneg", [False, True], ids=["free", "nonneg"])


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return noisy_blocks(torch.Generator().manual_seed(seed), *shape, dtype)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b, dim=(-2, -1))


def divergence(q: Tensor) -> Tensor:
    """-D^T, written as the adjoint of torch's own differences."""
    u = torch.zeros_like(q[..., 0, :, :], requires_grad=True)
    down, right = torch.diff(u, dim=-2), torch.diff(u, dim=-1)
    (g,) = torch.autograd.grad((down, right), u, (q[..., 0, :-1, :], q[..., 1, :, :-1]))
    return -g


def objective(u: Tensor, x: Tensor, weight: float, isotropic: bool) -> Tensor:
    d = torch.zeros(*u.shape[:-2], 2, *u.shape[-2:], dtype=u.dtype)
    d[..., 0, :-1, :], d[..., 1, :, :-1] = torch.diff(u, dim=-2), torch.diff(u, dim=-1)
    tv = torch.linalg.vector_norm(d, dim=-3).sum((-2, -1)) if isotropic else d.abs().sum((-3, -2, -1))
    return (u - x).abs().square().sum((-2, -1)) / 2 + weight * tv


# --- tv_prox: it is the minimiser --------------------------------------------------------------------------------
@ISOTROPIC
@COMPLEX
def test_gap_closes_and_no_step_lowers_the_objective(dtype: torch.dtype, isotropic: bool) -> None:
    x = images(2, 9, 14, dtype=dtype)
    u, dual = tv_prox(x, 0.2, iterations=5000, isotropic=isotropic, return_dual=True)
    gap = tv_gap(x, 0.2, dual, isotropic=isotropic)
    assert gap.max() <= 1e-9 * (x.abs() ** 2).sum()
    least = objective(u, x, 0.2, isotropic)
    for seed in range(20):
        step = images(2, 9, 14, dtype=dtype, seed=seed + 1)
        for size in (1e-1, 1e-3):
            # 1-strong convexity: at the minimiser a step s costs at least |s|^2 / 2; the gap is what u lacks of that.
            cost = objective(u + size * step, x, 0.2, isotropic) - least
            assert (
                cost >= size**2 * (step.abs() ** 2).sum((-2, -1)) / 2 - 2 * gap.clamp(min=0).sqrt() * size - gap
            ).all()


@pytest.mark.parametrize("iterations", [1, 5, 20, 100])
@ISOTROPIC
@NONNEG
def test_gap_bounds_the_distance_to_the_solution(iterations: int, isotropic: bool, nonneg: bool) -> None:
    x = images(3, 26, 13)
    options: dict[str, Any] = {"isotropic": isotropic, "nonneg": nonneg}
    solution = tv_prox(x, 0.3, iterations=20000, **options)
    u, dual = tv_prox(x, 0.3, iterations=iterations, return_dual=True, **options)
    error, bound = distance(u, solution).square(), tv_gap(x, 0.3, dual, **options)
    assert (error <= bound).all()
    assert (bound <= 0.3 * 2 * x[0].numel() * 8).all()  # and says something


@COMPLEX
def test_agrees_with_scikit_image(dtype: torch.dtype) -> None:
    x = images(1, 30, 41, dtype=dtype)[0]
    if dtype.is_complex:
        x = x.real + 0j  # scikit-image knows real images
    ours = tv_prox(x, 0.15, iterations=3000)
    theirs = denoise_tv_chambolle(
        x.real.numpy() if dtype.is_complex else x.numpy(), 0.15, eps=1e-12, max_num_iter=20000
    )
    # Chambolle's gradient descent on the dual stops at a step of about 1e-6; the two programs share nothing.
    assert distance(ours, torch.from_numpy(theirs)) <= 2e-3 * torch.linalg.vector_norm(x)


@pytest.mark.parametrize("axis", [-1, -2])
@ISOTROPIC
def test_signals_agree_with_an_exact_solver(axis: int, isotropic: bool) -> None:
    n, weight = 60, 0.4
    x = images(1, n, 1)[0, :, 0].cumsum(0) * 0.2
    # The dual in one dimension is a box-constrained least-squares problem: min |x - D^T q| over |q| <= weight.
    d = np.diff(np.eye(n), axis=0)
    box = lsq_linear(d.T, x.numpy(), (-weight, weight), tol=1e-14, method="bvls")
    exact = x - torch.from_numpy(d.T @ box.x)
    u = tv_prox(x.reshape((1, n) if axis == -1 else (n, 1)), weight, iterations=20000, isotropic=isotropic).flatten()
    assert (u - exact).abs().max() <= 1e-6
    assert (exact.diff().abs() < 1e-8).any()  # it has flat parts, which is the point
    assert (exact.diff().abs() > 1e-3).any()


def test_takes_fewer_iterations_than_fista() -> None:
    x = images(4, 26, 13)
    solution = tv_prox(x, 0.3, iterations=20000)

    q = r = torch.zeros(4, 2, 26, 13, dtype=x.dtype)
    t = 1.0
    for _ in range(50):
        u = x + divergence(r)
        d = torch.zeros_like(r)
        d[:, 0, :-1], d[:, 1, :, :-1] = torch.diff(u, dim=-2), torch.diff(u, dim=-1)
        z = r + d / 8
        following = z * (0.3 / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp(min=0.3))
        t, before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        q, r = following, following + (before - 1) / t * (following - q)
    fista = distance(x + divergence(q), solution)

    # Half the worst case, and the error falls with the square: 36 = 50 / sqrt(2). Single images scatter by a third.
    ratio = distance(tv_prox(x, 0.3, iterations=36), solution) / fista
    assert ratio.log().mean() <= 0.1
    assert (distance(tv_prox(x, 0.3, iterations=50), solution) <= 0.75 * fista).all()


# --- tv_prox: the options ----------------------------------------------------------------------------------------
def test_nonneg_minimises_over_nonnegative_images() -> None:
    x = images(2, 16, 20)
    u, dual = tv_prox(x, 0.2, iterations=5000, nonneg=True, return_dual=True)
    assert (u >= 0).all()
    assert (u == 0).any()
    assert tv_gap(x, 0.2, dual, nonneg=True).max() <= 1e-8 * x.square().sum()
    clipped = tv_prox(x, 0.2, iterations=5000).clamp(min=0)
    assert (objective(u, x, 0.2, True) <= objective(clipped, x, 0.2, True)).all()
    assert not torch.allclose(u, clipped)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 0.0), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_tol_stops_each_sample_by_itself_and_is_kept(dtype: torch.dtype, rounding: float) -> None:
    x = images(6, 40, 60, dtype=dtype)
    weight = torch.tensor([0.01, 0.05, 0.1, 0.3, 1.0, 0.0], dtype=dtype)
    u = tv_prox(x, weight, iterations=1000, tol=1e-3)
    solution = tv_prox(x.double(), weight.double(), iterations=20000)
    assert (distance(u, solution) <= (1e-3 + rounding) * torch.linalg.vector_norm(x.double(), dim=(1, 2))).all()
    stopped = []
    for i in range(6):
        assert torch.equal(tv_prox(x[i : i + 1], weight[i : i + 1], iterations=1000, tol=1e-3)[0], u[i])
        runs = (n for n in range(5, 1001, 5) if torch.equal(tv_prox(x[i], weight[i], iterations=n), u[i]))
        stopped.append(next(runs, None))
    assert None not in stopped
    assert len(set(stopped)) >= 5
    assert torch.equal(tv_prox(x, weight, iterations=10, tol=1e-9), tv_prox(x, weight, iterations=10))


def test_a_dual_saves_the_iterations_it_took() -> None:
    x = images(3, 33, 29)
    solution = tv_prox(x, 0.3, iterations=20000)
    u, dual = tv_prox(x, 0.3, iterations=60, return_dual=True)
    torch.testing.assert_close(u, x + divergence(dual))
    assert (torch.linalg.vector_norm(dual, dim=1) <= 0.3 * (1 + 1e-12)).all()
    near = x + 0.01 * images(3, 33, 29, seed=1)
    moved = tv_prox(near, 0.3, iterations=20000)
    warm, cold = tv_prox(near, 0.3, dual, iterations=5), tv_prox(near, 0.3, iterations=5)
    assert (distance(warm, moved) <= 0.2 * distance(cold, moved)).all()
    assert (distance(solution, moved) > 0).all()
    # An infeasible one is projected first.
    projected = _projected(dual, 0.1)
    torch.testing.assert_close(tv_prox(x, 0.1, dual, iterations=3), tv_prox(x, 0.1, projected, iterations=3))


def _projected(q: Tensor, weight: float) -> Tensor:
    length = torch.linalg.vector_norm(q, dim=-3, keepdim=True)
    return torch.where(length > weight, q * (weight / length), q)


@pytest.mark.parametrize("shape", [(3, 26, 13), (1, 150, 200)])
def test_the_dual_may_be_overwritten_by_its_successor(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    _, dual = tv_prox(x, 0.3, iterations=4, return_dual=True)
    expected = tv_prox(x, 0.3, dual, iterations=4, return_dual=True)
    u, state = torch.empty_like(x), dual.clone()
    out = tv_prox(x, 0.3, state, iterations=4, return_dual=True, out=(u, state))
    assert out[0] is u
    assert out[1] is state
    assert torch.equal(u, expected[0])
    assert torch.equal(state, expected[1])


def test_every_option_has_an_effect() -> None:
    x = images(2, 20, 17)
    plain = tv_prox(x, 0.2)
    assert not torch.equal(plain, tv_prox(x, 0.21))
    assert not torch.equal(plain, tv_prox(x, torch.tensor([0.2, 0.21], dtype=x.dtype)))
    assert not torch.equal(plain, tv_prox(x, 0.2, iterations=49))
    assert not torch.equal(plain, tv_prox(x, 0.2, tol=1e-2))
    assert not torch.equal(plain, tv_prox(x, 0.2, isotropic=False))
    assert not torch.equal(plain, tv_prox(x, 0.2, nonneg=True))
    assert not torch.equal(plain, tv_prox(x, 0.2, torch.full((2, 2, 20, 17), 0.1, dtype=x.dtype)))


# --- tv_prox: symmetries and shapes ------------------------------------------------------------------------------
@ISOTROPIC
def test_symmetries(isotropic: bool) -> None:
    x = images(2, 22, 35)
    u = tv_prox(x, 0.2, isotropic=isotropic)
    close = {"rtol": 0.0, "atol": 1e-13}
    torch.testing.assert_close(tv_prox(x.mT, 0.2, isotropic=isotropic).mT, u, **close)
    torch.testing.assert_close(tv_prox(x + 3, 0.2, isotropic=isotropic), u + 3, **close)
    torch.testing.assert_close(tv_prox(-5 * x, 1.0, isotropic=isotropic), -5 * u, rtol=0.0, atol=1e-12)
    turn = torch.polar(torch.tensor(1.0, dtype=x.dtype), torch.tensor(0.7, dtype=x.dtype))
    torch.testing.assert_close(tv_prox(x * turn, 0.2, isotropic=isotropic), u * turn, **close)
    torch.testing.assert_close(u.mean((1, 2)), x.mean((1, 2)), **close)


def test_extreme_weights() -> None:
    x = images(1, 12, 9)
    assert torch.equal(tv_prox(x, 0.0), x)
    flat = tv_prox(x, 1e3, iterations=3000)
    torch.testing.assert_close(flat, x.mean((1, 2), keepdim=True).expand_as(x), rtol=0.0, atol=1e-6)
    single = tv_prox(x.float(), 0.0)
    assert torch.equal(single, x.float())


def test_leading_axes_and_weights() -> None:
    x = images(6, 11, 8).view(2, 3, 11, 8)
    weight = torch.tensor([0.1, 0.3], dtype=x.dtype)
    u, dual = tv_prox(x, weight, return_dual=True)
    assert u.shape == x.shape
    assert dual.shape == (2, 3, 2, 11, 8)
    assert tv_gap(x, weight, dual).shape == (2, 3)
    for b in range(2):
        for c in range(3):
            assert torch.equal(u[b, c], tv_prox(x[b, c], float(weight[b])))
    assert torch.equal(u, tv_prox(x, weight[:, None]))
    assert torch.equal(tv_prox(x, weight[0]), tv_prox(x, 0.1))


def test_threads_change_nothing() -> None:
    x, many = images(1, 431, 130), images(3, 431, 130)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, three = tv_prox(x, 0.3, tol=1e-4, return_dual=True), tv_prox(many, 0.3)
        for threads in (2, 5, 7):
            torch.set_num_threads(threads)
            shared = tv_prox(x, 0.3, tol=1e-4, return_dual=True)
            assert torch.equal(shared[0], alone[0])
            assert torch.equal(shared[1], alone[1])
            assert torch.equal(tv_prox(many, 0.3), three)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_a_nan_reaches_its_own_image_only(tol: float) -> None:
    x = images(4, 26, 13)
    clean = tv_prox(x, 0.2, tol=tol)
    x[1, 3, 4] = math.nan
    x[2, 0, 0] = math.inf
    u = tv_prox(x, 0.2, tol=tol)
    assert torch.equal(u[0], clean[0])
    assert torch.equal(u[3], clean[3])
    assert u[1].isnan().any()


def test_a_compiled_model_with_a_learned_weight_trains() -> None:
    x = images(2, 12, 9)
    weight = torch.tensor(0.05, dtype=x.dtype, requires_grad=True)
    loss = torch.compile(lambda w: (tv_prox(x, w, iterations=8) ** 2).sum(), fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(loss(weight), weight)
    step = 1e-6
    with torch.no_grad():
        slope = (tv_prox(x, 0.05 + step, iterations=8) ** 2).sum() - (tv_prox(x, 0.05 - step, iterations=8) ** 2).sum()
    torch.testing.assert_close(gradient, slope / (2 * step), rtol=1e-6, atol=0.0)


def test_asking_for_second_derivatives_is_an_error() -> None:
    x = images(1, 5, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(tv_prox(x, 0.1).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: tv_prox(x.int(), 0.1), TypeError, "x: dtype int32"),
        (lambda x: tv_prox(x[0, 0], 0.1), ValueError, "x: shape"),
        (lambda x: tv_prox(x, -0.1), ValueError, "weight: -0.1"),
        (lambda x: tv_prox(x, math.nan), ValueError, "weight: nan"),
        (lambda x: tv_prox(x, torch.ones(3, dtype=x.dtype)), ValueError, r"weight: shape \(3,\)"),
        (lambda x: tv_prox(x, torch.ones(2)), TypeError, "weight: dtype"),
        (lambda x: tv_prox(x, 0.1, torch.zeros_like(x)), ValueError, "dual: shape"),
        (lambda x: tv_prox(x, 0.1, iterations=0), ValueError, "iterations: 0"),
        (lambda x: tv_prox(x, 0.1, tol=-1.0), ValueError, "tol: -1.0"),
        (lambda x: tv_prox(x + 0j, 0.1, nonneg=True), ValueError, "nonneg"),
        (lambda x: tv_prox(x, 0.1, out=x), ValueError, "out: shares memory"),
        (lambda x: tv_prox(x, 0.1, out=torch.empty(2, 5, 4, dtype=x.dtype)), ValueError, "out: shape"),
        (lambda x: tv_prox(x, 0.1, return_dual=True, out=torch.empty_like(x)), TypeError, "out: expected a tuple of 2"),
        (lambda x: soft_threshold(x.int(), 0.1), TypeError, "x: dtype int32"),
        (lambda x: soft_threshold(x, -1.0), ValueError, "threshold: -1.0"),
        (lambda x: soft_threshold(x, torch.ones(3, dtype=x.dtype)), ValueError, r"threshold: shape \(3,\)"),
        (lambda x: soft_threshold(x, torch.ones(4, 5, dtype=x.dtype)), ValueError, "threshold: shape"),
        (lambda x: soft_threshold(x + 0j, 0.1, nonneg=True), ValueError, "nonneg"),
        (lambda x: soft_threshold(x, 0.1, out=x), ValueError, "out: shares memory"),
    ],
)
def test_misuse_is_told(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 4, 5, dtype=torch.float64))


# --- soft_threshold ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dtype", "nonneg"), [(torch.float64, False), (torch.float64, True), (torch.complex128, False)], ids=str
)
def test_soft_threshold_is_the_proximal_map(dtype: torch.dtype, nonneg: bool) -> None:
    x = images(3, 7, 8, dtype=dtype)
    t = torch.rand(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = soft_threshold(x, t, nonneg=nonneg)
    assert (u == 0).any()
    assert (u != 0).any()
    # x - u is a subgradient of t |u|: t u/|u| where u != 0, elsewhere of size t or less (with nonneg: t or less).
    rest = x - u
    torch.testing.assert_close(rest[u != 0], (t * u.sgn())[u != 0])
    bound = rest if nonneg else rest.abs()
    assert (bound[u == 0] <= t[u == 0] * (1 + 1e-15)).all()
    if nonneg:
        assert (u >= 0).all()


def test_soft_threshold_keeps_what_is_not_a_number() -> None:
    x = torch.tensor([math.nan, 1.0, -math.inf, math.inf, 0.0])
    expected = torch.tensor([math.nan, 0.5, -math.inf, math.inf, 0.0])
    torch.testing.assert_close(soft_threshold(x, 0.5), expected, equal_nan=True, rtol=0.0, atol=0.0)
    z = torch.tensor([complex(math.nan, 1), 3 + 4j, 0j])
    shrunk = soft_threshold(z, 2.5)
    assert shrunk[0].isnan()
    assert shrunk[2] == 0
    torch.testing.assert_close(shrunk[1], torch.tensor(1.5 + 2j))
    assert torch.equal(soft_threshold(z[1:], 0.0), z[1:])


def test_soft_threshold_levels_per_sample_and_per_axis() -> None:
    x = images(6, 5, 4).view(2, 3, 5, 4)
    levels = torch.tensor([0.1, 0.5], dtype=x.dtype)
    assert torch.equal(soft_threshold(x, levels), soft_threshold(x, levels.view(2, 1, 1, 1)))
    assert torch.equal(soft_threshold(x, levels)[1], soft_threshold(x[1], 0.5))
    by_channel = torch.tensor([0.1, 0.5, 0.9], dtype=x.dtype).view(1, 3, 1, 1)
    assert torch.equal(soft_threshold(x, by_channel)[:, 2], soft_threshold(x[:, 2], 0.9))
    assert not torch.equal(soft_threshold(x, 0.1), soft_threshold(x, 0.1, nonneg=True))
