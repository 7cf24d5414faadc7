"""The sine transform and the prox of smooth maps against scipy, dense solves and their symmetries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyrecon
from pyrecon import _core
from pyrecon.ops import dst1, prox_smooth_maps
from pyrecon.testing import assert_adjoint, dst, record_calls

COMPLEX = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
# n + 1 is prime (257: by a convolution of its length; 563, 719: of twice its length; 1283), a power of 2, 3, 7, 17, a
# product of small odd primes, of a large and a small one (789 = 3 263 is dense), twice those.
LARGE = (168, 192, 242, 255, 256, 262, 288, 319, 320, 342, 346, 360, 368, 372, 384, 511, 525, 562, 718, 788, 1023, 1282)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_scipy(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    axes = (dims,) if isinstance(dims, int) else dims
    return torch.from_numpy(np.asarray(scipy.fft.dstn(x.numpy(), type=1, axes=axes, norm="ortho")))


def by_definition(x: Tensor, axis: int) -> Tensor:
    scale = np.sqrt(np.longdouble(2) / (x.shape[axis] + 1))
    return torch.from_numpy((scale * dst(x, axis)).astype(np.float64))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# --- dst1 --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("sizes", [range(1, 70), range(70, 140), LARGE], ids=["short", "medium", "long"])
def test_any_size_is_the_sum(sizes: Any, axis: int) -> None:
    for n in sizes:
        x = draw(19, n) if axis == -1 else draw(n, 19)
        assert distance(dst1(x, axis), by_definition(x, axis)) <= 12 * 2.0**-52, f"n = {n}"  # 12 as in the case table


@pytest.mark.parametrize("sizes", [range(1, 140), LARGE], ids=["short", "long"])
def test_single_precision_rounds_a_few_times(sizes: Any) -> None:
    for n in sizes:
        x = draw(17, n).float()
        error = distance(dst1(x, -1).double(), by_definition(x, -1))
        assert error <= 12 * 1.2e-7, f"n = {n}"  # 12 as in the case table


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.data(),
    st.sampled_from([torch.float64, torch.complex128]),
)
@settings(max_examples=60, deadline=None)
def test_any_axes_agree_with_scipy(shape: list[int], data: Any, dtype: torch.dtype) -> None:
    rank = len(shape)
    axes = data.draw(st.lists(st.integers(-rank, rank - 1), min_size=1, unique_by=lambda a: a % rank))
    x = draw(*shape, dtype=dtype)
    expected = by_scipy(x, tuple(axes))
    transformed = dst1(x, axes)
    assert transformed.shape == x.shape
    assert float((transformed - expected).abs().max()) <= 1e-13
    assert float((dst1(transformed, axes) - x).abs().max()) <= 1e-13


def test_the_transform_is_symmetric_and_its_own_inverse() -> None:
    x, y = draw(3, 320, 368, dtype=torch.complex128), draw(3, 320, 368, dtype=torch.complex128, seed=1)
    assert_adjoint(dst1, dst1, x, y, rtol=1e-14)
    assert distance(dst1(dst1(x)), x) <= 1e-14


def test_costs_order_sizes_by_their_factors() -> None:
    # A size that factors is cheaper than a prime one of half the length by matrix products would be.
    def cost(n: int) -> float:
        return _core.sine_cost(n + 1) / n

    assert cost(368) < 184
    assert cost(640) < 320 / 1.5  # prime, by a convolution
    assert cost(511) < 128
    assert cost(788) > 394  # dense


# --- prox_smooth_maps: it is the minimiser -----------------------------------------------------------------------
def differences(n: int) -> Tensor:
    """D of one axis, (n + 1, n)."""
    d = torch.zeros(n + 1, n, dtype=torch.float64)
    d[range(n), range(n)] = 1
    d[range(1, n + 1), range(n)] = -1
    return d


def dense_solve(maps: Tensor, weight: Tensor, axes: int) -> Tensor:
    """(1 + w D^T D)^-1 over the last `axes` axes, as one dense system."""
    size = maps.shape[-axes:]
    blocks = []
    for i, n in enumerate(size):
        before, after = math.prod(size[:i]), math.prod(size[i + 1 :])
        blocks.append(
            torch.kron(torch.eye(before), torch.kron(differences(n).contiguous(), torch.eye(after))).to(torch.float64)
        )
    d = torch.cat(blocks)
    solved = []
    for sample, w in zip(maps, weight.expand(len(maps)), strict=True):
        system = torch.eye(d.shape[1], dtype=torch.float64) + w * d.T @ d
        right = sample.reshape(-1, d.shape[1]).T
        solved.append(torch.linalg.solve(system.to(maps.dtype), right).T.reshape(sample.shape))
    return torch.stack(solved)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("size", [(1,), (23,), (2, 1), (16, 10), (10, 16), (17, 22), (25, 8), (5, 6, 7)], ids=str)
@COMPLEX
def test_prox_solves_the_dense_system(dtype: torch.dtype, size: tuple[int, ...], backend: str) -> None:
    maps = draw(3, 2, *size, dtype=dtype)
    weight = torch.tensor([0.3, 20.0, 0.0], dtype=torch.float64)
    with pyrecon.backend(backend), record_calls() as calls:
        s = prox_smooth_maps(maps, weight, tuple(range(-len(size), 0)))
    assert {call.backend for call in calls} == {"reference" if backend == "reference" else "cpp"}
    assert distance(s, dense_solve(maps, weight, len(size))) <= 1e-13


@pytest.mark.parametrize("dims", [(-2, -1), (-1,), (-2,), (1, 3), (1, 2, 3)], ids=str)
def test_no_step_lowers_the_objective(dims: tuple[int, ...]) -> None:
    maps, weight = draw(1, 9, 14, 11, dtype=torch.complex128), 3.0

    def objective(s: Tensor) -> float:
        value = (s - maps).abs().square().sum() / 2
        for axis in dims:
            d = torch.einsum("kj,j...->k...", differences(s.shape[axis]).to(s.dtype), s.movedim(axis, 0))
            value = value + weight / 2 * d.abs().square().sum()
        return float(value)

    s = prox_smooth_maps(maps, weight, dims)
    for seed in range(5):
        step = 1e-3 * draw(*maps.shape, dtype=torch.complex128, seed=seed + 1)
        # Strongly convex with modulus 1, and exact at the minimiser.
        assert objective(s + step) - objective(s) >= float(step.abs().square().sum()) / 2 * (1 - 1e-6)


@pytest.mark.parametrize("shape", [(2, 92, 70), (1, 160, 92), (1, 63, 255)])
@pytest.mark.parametrize("weight", [0.0, 1e-3, 1.0, 1e2, 1e4, 1e6])
def test_single_precision_keeps_its_digits_at_any_weight(shape: tuple[int, ...], weight: float) -> None:
    # White noise, of which a large weight leaves little: errors are measured against the input's own scale times the
    # gain of the smoothest function, which is the norm of the operator.
    maps = draw(*shape).float()
    with pyrecon.backend("reference"):
        expected = prox_smooth_maps(maps.double(), weight)
    error = (prox_smooth_maps(maps, weight).double() - expected).abs().max()
    assert error <= 24 * 1.2e-7 * expected.abs().max()
    smooth = torch.outer(*(torch.sin(math.pi * torch.arange(1, n + 1) / (n + 1)) for n in shape[1:]))
    with pyrecon.backend("reference"):
        expected = prox_smooth_maps(smooth.double(), weight)
    error = (prox_smooth_maps(smooth, weight).double() - expected).abs().max()
    assert error <= 12 * 1.2e-7 * expected.abs().max()


def test_weight_zero_changes_nothing() -> None:
    maps = draw(2, 37, 41, dtype=torch.complex128)
    assert distance(prox_smooth_maps(maps, 0.0), maps) <= 1e-14
    assert torch.equal(prox_smooth_maps(maps, 0.0, -1), maps)
    assert torch.equal(prox_smooth_maps(maps, 0.0, -2), maps)


# --- prox_smooth_maps: shapes, weights, symmetries -----------------------------------------------------------------
@COMPLEX
def test_axes_may_stand_anywhere(dtype: torch.dtype) -> None:
    maps = draw(4, 13, 3, 18, dtype=dtype)
    expected = prox_smooth_maps(maps.movedim(1, 2).contiguous(), 2.0)
    for dims in ((1, 3), (3, 1), (-1, -3)):
        s = prox_smooth_maps(maps, 2.0, dims)
        assert s.is_contiguous()
        assert torch.equal(s.movedim(1, 2), expected)
        out = torch.empty_like(maps)
        assert prox_smooth_maps(maps, 2.0, dims, out=out) is out
        assert torch.equal(out, s)
    one = prox_smooth_maps(maps, 2.0, 1)
    assert distance(one, prox_smooth_maps(maps.movedim(1, 3), 2.0, -1).movedim(3, 1)) <= 1e-15


def test_both_choices_of_the_transformed_axis_agree() -> None:
    maps = draw(2, 61, 83, dtype=torch.complex128)
    assert distance(prox_smooth_maps(maps, 5.0), prox_smooth_maps(maps.mT, 5.0).mT) <= 1e-14


def test_weights_per_sample() -> None:
    maps = draw(3, 4, 19, 22)
    weight = torch.tensor([0.1, 7.0, 1.0], dtype=maps.dtype)
    for dims in ((-2, -1), (-1,), (-2,), (1, 2, 3)):
        s = prox_smooth_maps(maps, weight, dims)
        for b in range(3):
            assert torch.equal(s[b], prox_smooth_maps(maps[b : b + 1], float(weight[b]), dims)[0])
    assert torch.equal(prox_smooth_maps(maps, weight[1]), prox_smooth_maps(maps, 7.0))
    assert not torch.equal(prox_smooth_maps(maps, 7.0), prox_smooth_maps(maps, 7.1))


def test_threads_change_nothing() -> None:
    cases = [(draw(1, 131, 170), (-2, -1)), (draw(5, 131, 170), (-2, -1)), (draw(3, 170, 131), -1),
             (draw(3, 170, 131), -2), (draw(3, 170, 131), (-2, -1))]  # fmt: skip
    before = torch.get_num_threads()
    try:
        for maps, dims in cases:
            torch.set_num_threads(1)
            alone, spectrum = prox_smooth_maps(maps, 3.0, dims), dst1(maps, dims)
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(prox_smooth_maps(maps, 3.0, dims), alone)
                assert torch.equal(dst1(maps, dims), spectrum)
    finally:
        torch.set_num_threads(before)


def test_a_nan_reaches_its_own_plane_only() -> None:
    maps = draw(4, 26, 13)
    clean = prox_smooth_maps(maps, 1.0)
    maps[1, 3, 4] = math.nan
    maps[2, 0, 0] = math.inf
    s = prox_smooth_maps(maps, 1.0)
    assert torch.equal(s[0], clean[0])
    assert torch.equal(s[3], clean[3])
    assert s[1].isnan().any()


# --- gradients -----------------------------------------------------------------------------------------------------
def test_the_prox_is_its_own_adjoint() -> None:
    x, y = draw(2, 40, 33, dtype=torch.complex128), draw(2, 40, 33, dtype=torch.complex128, seed=1)
    assert_adjoint(lambda v: prox_smooth_maps(v, 4.0), lambda v: prox_smooth_maps(v, 4.0), x, y, rtol=1e-14)
    variable = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prox_smooth_maps(variable, 4.0), variable, y)
    assert torch.equal(gradient, prox_smooth_maps(y, 4.0))


@pytest.mark.parametrize("dims", [(-2, -1), (-1,), (0, 1, 2)], ids=str)
def test_a_compiled_model_with_a_learned_weight_trains(dims: tuple[int, ...]) -> None:
    maps = draw(2, 12, 9)
    weight = torch.tensor(0.7, dtype=maps.dtype, requires_grad=True)

    def loss(w: Tensor) -> Tensor:
        return prox_smooth_maps(maps, w, dims).pow(3).sum()

    torch._dynamo.reset()
    (gradient,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(weight), weight)
    step = 1e-5
    with torch.no_grad():
        slope = (loss(weight + step) - loss(weight - step)) / (2 * step)
    torch.testing.assert_close(gradient, slope, rtol=1e-7, atol=0.0)


# --- misuse ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: dst1(x.int()), TypeError, "x: dtype int32"),
        (lambda x: dst1(x, ()), ValueError, r"dims: \(\) does not fit"),
        (lambda x: dst1(x, (1, -2)), ValueError, "dims: .* distinct"),
        (lambda x: dst1(x, 3), ValueError, r"dims: 3 does not fit"),
        (lambda x: dst1(x[0, 0]), ValueError, "dims"),
        (lambda x: dst1(x, out=x), ValueError, "out: shares memory"),
        (lambda x: dst1(x, out=x[0].clone()), ValueError, "out: shape"),
        (lambda x: prox_smooth_maps(x.int(), 1.0), TypeError, "maps: dtype int32"),
        (lambda x: prox_smooth_maps(x, -0.1), ValueError, "weight: -0.1"),
        (lambda x: prox_smooth_maps(x, math.nan), ValueError, "weight: nan"),
        (lambda x: prox_smooth_maps(x, math.inf), ValueError, "weight: inf"),
        (lambda x: prox_smooth_maps(x, torch.tensor([1.0, -2.0], dtype=x.dtype)), ValueError, "weight: -2.0"),
        (lambda x: prox_smooth_maps(x, torch.ones(3, dtype=x.dtype)), ValueError, r"weight: shape \(3,\)"),
        (lambda x: prox_smooth_maps(x, torch.ones(2, dtype=x.dtype), (0, 1)), ValueError, "not among dims"),
        (lambda x: prox_smooth_maps(x, torch.ones(2)), TypeError, "weight: dtype"),
        (lambda x: prox_smooth_maps(x, 1.0, (0, 0)), ValueError, "dims"),
        (lambda x: prox_smooth_maps(x, 1.0, out=x), ValueError, "out: shares memory"),
    ],
)
def test_misuse_is_told(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 4, 5, dtype=torch.float64))
