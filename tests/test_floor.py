"""What a user's callable returns is checked like an argument, and what arguments cannot be is told by name.

Each test stands for a fault that ended the process, hung it, or gave a wrong answer without a word.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrecon import implicit, interop, linops, ops
from pyrecon.solvers import (
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Picard,
    Shared,
    Status,
    conjugate_gradient,
    fista,
    fixed_point,
    langevin,
    primal_dual,
)
from pyrecon.solvers._fixed_point import _PicardRun
from pyrecon.testing import record_calls

R = torch.float64
METHODS = [Anderson(), Picard(), Broyden()]
TIGHT = {"tol": 1e-10, "max_iter": 200}


def randn(*shape: int, dtype: torch.dtype = R, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# --- what f returns ------------------------------------------------------------------------------------------------
RETURNS: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (lambda x: x.double(), TypeError, "f: returned torch.float64, but its state is torch.float32"),
    (lambda x: x.half(), TypeError, "f: returned torch.float16"),
    (lambda x: x.bfloat16(), TypeError, "f: returned torch.bfloat16"),
    (lambda x: x[:1], ValueError, r"f: returned shape \(1, 3\), expected \(2, 3\)"),
    (lambda x: torch.cat([x, x]), ValueError, r"f: returned shape \(4, 3\), expected \(2, 3\)"),
    (lambda x: x.to("meta"), ValueError, "f: returned a tensor on meta"),
    (lambda x: x.numpy(), TypeError, "f: returned ndarray"),
    (lambda x: None, TypeError, "f: returned None"),
    (lambda x: (x, x), TypeError, "f: returned 2 tensors"),
    (lambda x: x.to_sparse(), TypeError, "f: has the layout sparse_coo"),
]


@pytest.mark.parametrize(("f", "error", "message"), RETURNS)
def test_what_f_returns_is_checked(f: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    x = torch.ones(2, 3)
    with pytest.raises(error, match=message):
        fixed_point(f, x)
    for gradient in (implicit.ImplicitGradient(), implicit.Unrolled(2)):
        with pytest.raises(error, match=message):
            implicit.fixed_point_layer(f, x, gradient=gradient)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_under_autocast_the_state_keeps_its_precision(method: Any) -> None:
    """bfloat16 has 8 bits: the fixed point is right to that, in float32, where the process used to end."""
    A = 0.4 * torch.eye(16)
    b = randn(3, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = fixed_point(lambda x: x @ A + b.bfloat16(), torch.zeros(3, 16), solver=method, tol=1e-2)
        layer = implicit.fixed_point_layer(lambda x: x @ A + b.bfloat16(), torch.zeros(3, 16), tol=1e-2)
    assert solution.value.dtype == layer.dtype == torch.float32
    for value in (solution.value, layer):
        assert (value - b / 0.6).abs().max() < 0.05 * b.abs().max()


# --- an f that writes into its state -------------------------------------------------------------------------------
def written(x: Tensor) -> Tensor:
    return x.mul_(0.5).add_(1.0)


def written_and_new(x: Tensor) -> Tensor:
    x.mul_(0.5)
    return x + 1.0


def through_data(x: Tensor) -> Tensor:
    x.data.mul_(0.5).add_(1.0)
    return x


@pytest.mark.parametrize("f", [written, written_and_new, through_data])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_an_f_that_works_in_place_has_the_same_fixed_point(method: Any, f: Callable[[Tensor], Tensor]) -> None:
    x0 = randn(4, 5)
    before = x0.clone()
    expected = fixed_point(lambda x: 0.5 * x + 1, x0, solver=method, **TIGHT)
    solution = fixed_point(f, x0, solver=method, **TIGHT)
    assert torch.equal(solution.value, expected.value)
    assert torch.equal(solution.iterations, expected.iterations)
    torch.testing.assert_close(solution.value, torch.full_like(x0, 2.0), atol=1e-8, rtol=0)
    assert torch.equal(x0, before)


@pytest.mark.parametrize(
    "gradient",
    [implicit.ImplicitGradient(tol=1e-12), implicit.JacobianFree(), implicit.PhantomGradient(3), implicit.Unrolled(3)],
    ids=lambda g: type(g).__name__,
)
def test_a_layer_of_an_f_in_place(gradient: Any) -> None:
    def loss(f: Callable[..., Tensor], y: Tensor) -> Tensor:
        x0 = randn(2, 3)
        return implicit.fixed_point_layer(f, x0, (y,), gradient=gradient, tol=1e-12, max_iter=200).square().sum()

    gradients = []
    for f in (lambda x, y: 0.5 * x + y, lambda x, y: x.mul_(0.5).add_(y)):
        y = randn(2, 3, seed=1).requires_grad_()
        gradients.append(torch.autograd.grad(loss(f, y), y)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_state_that_is_returned_swapped() -> None:
    """The parts of the result are views of the iterate, which the kernel overwrites."""
    start = randn(3, 4), randn(3, 4, seed=1)
    once = fixed_point(lambda s: (s[1], s[0]), start, solver=Picard(0.5), tol=0.0, max_iter=1)
    for part, other in zip(once.value, reversed(start), strict=True):
        assert torch.equal(part, other)
    mean = (start[0] + start[1]) / 2
    for part in fixed_point(lambda s: (s[1], s[0]), start, solver=Picard(0.5), **TIGHT).value:
        torch.testing.assert_close(part, mean)


def test_solvers_name_a_callable_that_writes_into_the_iterate() -> None:
    b = randn(2, 3)
    with pytest.raises(ValueError, match="A: writes into its argument"):
        conjugate_gradient(lambda x: x.mul_(2.0), b)
    with pytest.raises(ValueError, match="gradient: writes into its argument"):
        fista(lambda x: x.mul_(2.0), lambda v, t: v, b, step=0.1)
    with pytest.raises(ValueError, match="gradient: writes into its argument"):
        langevin(lambda x: x.mul_(2.0), b, step=0.1, iterations=2)
    with pytest.raises(ValueError, match="K_adjoint: writes into its argument"):
        primal_dual(lambda x: x, None, lambda x: x, lambda u: u.mul_(2.0), lambda u, t: u, b, step=0.1, dual_step=0.1)
    # A prox may: what it is given belongs to nobody else.
    fista(lambda x: x, lambda v, t: v.clamp_(min=0.0), b, step=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_solvers_check_dtypes_of_what_callables_return(dtype: torch.dtype) -> None:
    b = randn(2, 3)
    with pytest.raises(TypeError, match=f"A: returned {dtype}"):
        conjugate_gradient(lambda x: x.to(dtype), b)
    with pytest.raises(TypeError, match=f"prox: returned {dtype}"):
        fista(lambda x: x, lambda v, t: v.to(dtype), b, step=0.1)
    with pytest.raises(TypeError, match=f"dual_prox: returned {dtype}"):
        primal_dual(lambda x: x, None, lambda x: x, lambda u: u, lambda u, t: u.to(dtype), b, step=0.1, dual_step=0.1)
    with pytest.raises(TypeError, match=f"gradient: returned {dtype}"):
        langevin(lambda x: x.to(dtype), b, step=0.1, iterations=2)
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            solution = conjugate_gradient(lambda x: 2 * x @ torch.eye(3), b.float(), rtol=1e-2)
        assert solution.value.dtype == torch.float32


# --- tensors of the whole batch ------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_batch_that_f_closes_over(method: Any) -> None:
    """Samples at different paces: as soon as one has left, b no longer fits what f is given, or broadcasts."""
    a, b = torch.tensor([[0.0], [0.3], [0.9]], dtype=R), randn(3, 4)
    expected = fixed_point(lambda x, a, b: a * x + b, torch.zeros_like(b), (a, b), solver=method, **TIGHT)
    solution = fixed_point(lambda x: a * x + b, torch.zeros_like(b), solver=method, **TIGHT)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, expected.value)
    assert torch.equal(solution.iterations, expected.iterations)
    assert len(set(solution.iterations.tolist())) > 1  # they did leave one by one


def test_a_batch_that_f_closes_over_in_a_layer() -> None:
    a, b = torch.tensor([[0.0], [0.3], [0.9]], dtype=R), randn(3, 4).requires_grad_()
    gradient = implicit.ImplicitGradient(tol=1e-12, max_iter=200)
    z = implicit.fixed_point_layer(lambda x: a * x + b, torch.zeros(3, 4, dtype=R), gradient=gradient, **TIGHT)
    (slope,) = torch.autograd.grad(z.sum(), b)
    torch.testing.assert_close(slope, (1 / (1 - a)).expand(3, 4))


def test_an_error_of_f_is_told_where_it_fails_on_the_whole_batch_too() -> None:
    def f(x: Tensor, a: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 3:
            raise KeyError("mine")
        return a * x + 1

    calls: list[int] = []
    with pytest.raises(KeyError, match="mine"):
        fixed_point(f, torch.zeros(2, 3, dtype=R), (torch.tensor([[0.0], [0.9]], dtype=R),), **TIGHT)


@pytest.mark.parametrize("wrap", [Shared, nn.Parameter], ids=["Shared", "Parameter"])
def test_a_tensor_of_the_batch_size_that_belongs_to_all(wrap: Any) -> None:
    """Keys of an attention: B of them by chance. Cut with the samples, the answer would be another, without a word."""
    keys, rate = randn(3, 4), torch.tensor([[0.0], [0.3], [0.8]], dtype=R)

    def f(x: Tensor, rate: Tensor, keys: Tensor) -> Tensor:
        return rate * torch.softmax(x @ keys.T, dim=1) @ keys + 1

    expected = [fixed_point(lambda x, i=i: f(x, rate[i], keys), torch.zeros(1, 4, dtype=R), **TIGHT) for i in range(3)]
    solution = fixed_point(f, torch.zeros(3, 4, dtype=R), (rate, wrap(keys)), **TIGHT)
    torch.testing.assert_close(solution.value, torch.cat([one.value for one in expected]))
    layer = implicit.fixed_point_layer(f, torch.zeros(3, 4, dtype=R), (rate, wrap(keys)), **TIGHT)
    torch.testing.assert_close(layer, solution.value)


def test_a_bare_tensor_is_no_tuple_of_arguments() -> None:
    with pytest.raises(TypeError, match="args: expected a tuple"):
        fixed_point(lambda x, y: x, torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="args: expected a tuple"):
        langevin(lambda x, y: x, torch.zeros(2, 3), torch.zeros(2, 3), step=0.1, iterations=1)


# --- status --------------------------------------------------------------------------------------------------------
def test_fixed_point_warns_with_advice_and_throws() -> None:
    with pytest.warns(ConvergenceWarning, match=r"fixed_point: 2 of 2 .*2 MAX_ITER.* raise max_iter") as caught:
        solution = fixed_point(lambda x: 0.99 * x + 1, torch.zeros(2, 3), solver=Picard(), tol=1e-6, max_iter=3)
    assert caught[0].filename == __file__
    with pytest.raises(ConvergenceError, match=r"2 of 2 samples did not converge.*The limit of iterations came"):
        solution.throw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed_point(lambda x: 0.99 * x + 1, torch.zeros(2, 3), tol=0.0, max_iter=3)  # all steps, as asked for
        good = fixed_point(lambda x: 0.5 * x + 1, torch.zeros(2, 3))
    assert good.throw() is good
    assert {status.message for status in Status} > {Status(0).message}
    assert len({status.message for status in Status}) == 4


def test_empty_states_and_batches() -> None:
    empty = fixed_point(lambda x: 1 / 0, torch.zeros(0, 3))
    assert empty.value.shape == (0, 3)
    assert empty.status.shape == (0,)
    nothing = fixed_point(lambda x: x, torch.zeros(2, 0))
    assert nothing.converged.all()
    for gradient in (implicit.ImplicitGradient(), implicit.Unrolled(2), implicit.PhantomGradient(2)):
        assert implicit.fixed_point_layer(lambda x: x, torch.zeros(0, 3), gradient=gradient).shape == (0, 3)
    for measure in (implicit.jacobian_penalty, implicit.contraction):
        assert measure(lambda x: x.sin(), torch.zeros(0, 3)).shape == (0,)
        assert measure(lambda x: 0.5 * x, torch.zeros(4)).shape == (4,)  # numbers, one per sample
    assert implicit.jacobian_penalty(lambda x: torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "x0", [torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3).half(), torch.ones(2, 3).to_sparse()]
)
def test_states_that_no_kernel_takes(x0: Tensor) -> None:
    for call in (lambda: fixed_point(lambda x: x, x0), lambda: implicit.fixed_point_layer(lambda x: x, x0)):
        with pytest.raises(TypeError, match="x0: "):
            call()


@pytest.mark.parametrize(
    "options", [{"solver": Anderson}, {"solver": "anderson"}, {"tol": float("nan")}, {"max_iter": 2.5}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        fixed_point(lambda x: x, torch.zeros(2, 3), **options)


# --- plain iteration -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_a_plain_step_needs_no_gram_matrix(damping: float) -> None:
    """What a GPU runs is the kernel's step, with the norms, and neither a history nor a Gram matrix."""
    like = torch.empty(3, 7, device="meta")
    assert isinstance(Picard(damping).start(3, like), _PicardRun)
    x, fx = randn(3, 7), randn(3, 7, seed=1)
    fx[1, 2] = torch.nan
    plain, kernel, rows = x.clone(), x.clone(), torch.arange(3)
    with record_calls() as calls:
        norms = _PicardRun(damping).advance(plain, [fx], rows)
    assert not calls
    expected = Picard(damping).start(3, kernel).advance(kernel, [fx], rows)
    torch.testing.assert_close(plain, kernel, rtol=0, atol=1e-15)
    torch.testing.assert_close(norms, expected, rtol=1e-14, atol=0, equal_nan=True)
    assert torch.equal(plain[1], x[1])


# --- memory --------------------------------------------------------------------------------------------------------
def freed(t: Tensor) -> Tensor:
    t.untyped_storage().resize_(0)
    return t


def test_freed_memory_is_named() -> None:
    v, y = randn(2, 6), randn(2, 6)
    half = randn(4, 6)[2:]
    half.untyped_storage().resize_(half.nbytes)
    for gone in (freed(randn(2, 6)), freed(randn(6, 2).mT), half):
        with pytest.raises(ValueError, match="v: its storage"):
            ops.project_l2_ball(gone, y, 1.0)
        with pytest.raises(ValueError, match="center: its storage"):
            ops.project_l2_ball(v, gone, 1.0)
        with pytest.raises(ValueError, match="x: its storage"):
            ops.soft_threshold(gone, 0.1)
        with pytest.raises(ValueError, match="y: its storage"):
            linops.SystemMatrix(randn(6, 3)).adjoint(gone)
        with pytest.raises(ValueError, match="f: its storage"):
            fixed_point(lambda x, gone=gone: gone, v)
    with pytest.raises(ValueError, match="out: its storage"):
        ops.project_l2_ball(v, y, 1.0, out=freed(randn(2, 6)))
    view = randn(4, 6)[1:3]  # whole memory, and more than the view needs
    assert torch.equal(ops.project_l2_ball(view, view, 1.0), view)


def test_overlapping_results_are_named() -> None:
    X, G = randn(2, 3, 5), randn(2, 3, 5)
    block = randn(2, 3, 5).flatten()
    with pytest.raises(ValueError, match="gram: shares memory"):
        ops.anderson_mix(block.view(2, 3, 5), G, block[:18].view(2, 3, 3), 1)
    with pytest.raises(ValueError, match="out: shares memory"):
        ops.anderson_mix(X, G, X.new_zeros(2, 3, 3), 1, out=X.view(-1)[:10].view(2, 5))


def run(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 4, 0), (2, 0, 0)])
def test_images_without_pixels_are_told(shape: tuple[int, ...]) -> None:
    """They used to hang in the tables of the transform, beyond the reach of Ctrl-C: hence a process of their own."""
    code = f"""
import torch, pyrecon
from pyrecon import linops, ops
b, h, w = {shape}
image, coils = torch.zeros(b, h, w, dtype=torch.complex64), torch.zeros(b, 3, h, w, dtype=torch.complex64)
mask, maps = torch.ones(1, 1, 1, 1), torch.zeros(1, 3, h, w, dtype=torch.complex64)
for call in (
    lambda: ops.sense_forward(image, maps, mask),
    lambda: ops.sense_adjoint(coils, maps, mask),
    lambda: ops.sense_normal(image, maps, mask),
    lambda: ops.sense_maps_adjoint(coils, image, mask),
    lambda: linops.Sense(maps, mask),
):
    try:
        call()
    except ValueError as error:
        print(error)
assert torch.ops.pyrecon.sense_normal(image, maps, torch.ones(1, 1, 1, 1)).shape == image.shape
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pixels") == 5


def test_places_far_outside_the_line_enter_nothing() -> None:
    v, y, weights = randn(2, 6), randn(2, 6, seed=1), 0.3 * randn(354, seed=2)
    near, far = torch.tensor([0, -1, 3]), torch.tensor([0, -(2**63), 3])
    more = torch.tensor([0, 2**63 - 1, 3])
    results = [ops.learned_consistency(v, y, 0.1, weights, places, 5) for places in (near, far, more)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    with pytest.raises(ValueError, match="points: 1000000000000 does not fit"):
        ops.learned_consistency(v, y, 0.1, weights, near, 10**12)


# --- one signature -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("radius", [0.5, torch.tensor(0.5, dtype=R), torch.full((2,), 0.5, dtype=R)])
def test_a_radius_is_a_number_or_one_per_sample(radius: Any) -> None:
    v, y, A = randn(2, 6), randn(2, 6, seed=1), randn(6, 3, seed=2)
    each = torch.full((2,), 0.5, dtype=R)
    assert torch.equal(ops.project_l2_ball(v, y, radius), ops.project_l2_ball(v, y, each))
    x = randn(2, 3)
    assert torch.equal(ops.sm_consistency(A, x, v, y, radius)[0], ops.sm_consistency(A, x, v, y, each)[0])
    weights, places = 0.3 * randn(354, seed=2), torch.tensor([0, 1, 3])
    results = [ops.learned_consistency(v, y, r, weights, places, 5) for r in (radius, each)]
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="radius: nan"):
        ops.learned_consistency(v, y, float("nan"), weights, places, 5)


def test_every_operator_takes_the_options_of_pinv() -> None:
    A = linops.SystemMatrix(randn(6, 3))
    y = randn(2, 6)
    assert torch.equal(A.pinv(y, max_iter=3), A.pinv(y))
    with pytest.raises(ValueError, match="max_iter: -1"):
        A.pinv(y, max_iter=-1)
    torch.testing.assert_close((2.0 * A).pinv(y, rtol=1e-12, max_iter=9), A.pinv(y) / 2)


OPERATORS: list[linops.LinearOperator] = [
    linops.SystemMatrix(randn(6, 3)),
    linops.Gradient((3, 2)),
    linops.Wavelet((4, 4), wavelet="db1"),
    linops.Sense(randn(1, 2, 4, 3, dtype=torch.complex128), torch.ones(1, 1, 1, 3, dtype=R)),
    linops.SystemMatrix(randn(6, 3)) / 4,
    linops.Stack([linops.Gradient((3,)), linops.Identity((3,))]),
]


@pytest.mark.parametrize("A", OPERATORS, ids=lambda A: type(A).__name__)
def test_an_operator_is_its_matrix(A: linops.LinearOperator) -> None:
    matrix = A.as_matrix()
    x = A._random(A.domain_shape, 3, 2)
    torch.testing.assert_close((x.flatten(1).to(matrix) @ matrix.T).view(2, *A.range_shape), A(x).to(matrix))
    torch.testing.assert_close(A.H.as_matrix().to(matrix), matrix.mH)
    assert str(A.domain_shape) in repr(A)
    assert str(A.range_shape) in repr(A)


@pytest.mark.parametrize("A", OPERATORS, ids=lambda A: type(A).__name__)
def test_an_operator_tells_what_it_is_given(A: linops.LinearOperator) -> None:
    x = A._random(A.domain_shape, 3, 2)
    with pytest.raises(ValueError, match=r"x: shape .* does not fit, expected \(B, "):
        A(x[..., :-1])
    with pytest.raises(TypeError, match=r"x: expected a .*Tensor, got ndarray"):
        A(x.numpy())
    with pytest.raises(TypeError, match=r"y: expected a .*Tensor, got list"):
        A.adjoint(A(x).tolist())
    with pytest.raises(ValueError, match="x: its storage"):
        A.gram(freed(x.clone()))


def test_division() -> None:
    A = linops.Gradient((3,))
    torch.testing.assert_close((A / 4).as_matrix(), A.as_matrix() / 4)
    with pytest.raises(ZeroDivisionError):
        A / 0


def test_operators_of_other_packages_are_checked_like_arguments() -> None:
    def foreign(**parts: Any) -> linops.LinearOperator:
        physics = SimpleNamespace(**({"A": lambda x: 2 * x, "A_adjoint": lambda y: 2 * y} | parts))
        return interop.from_deepinv(physics, (1, 3))

    x = torch.ones(2, 1, 3)
    assert torch.equal(foreign().gram(x), 4 * x)
    with pytest.raises(TypeError, match="operator: its product by SimpleNamespace is ndarray"):
        foreign(A=lambda x: x.numpy())
    with pytest.raises(ValueError, match=r"its adjoint by SimpleNamespace is \(1, 1, 3\) on cpu, expected \(2, 1, 3\)"):
        foreign(A_adjoint=lambda y: y[:1]).gram(x)
