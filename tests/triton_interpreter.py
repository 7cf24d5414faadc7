"""The Triton kernels on CPU tensors, under the interpreter: run as its own pytest process (see .ci/run).

``TRITON_INTERPRET`` must be set before the kernels are imported, so these tests cannot share a process with others.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon import ops, testing
from pyrecon._library import _OPS
from pyrecon.testing.cases import CASES, Case
from pyrecon.testing.cases.fit import SIGNALS, problem

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

TRITON = [case for case in CASES if case.tiny and "triton" in _OPS[case.op.__name__].kernels]
BACKWARD = [
    case
    for case in TRITON
    if case.grad
    and any(
        n.endswith("_backward") and n.startswith(case.op.__name__) for n, op in _OPS.items() if "triton" in op.kernels
    )
]
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def widened(value: object) -> object:
    """The same numbers in double precision; a bound that a rate lies at must be the same number as the rate."""
    if isinstance(value, Tensor):
        return value.to(WIDE.get(value.dtype, value.dtype))
    return float(torch.tensor(value, dtype=torch.float32)) if isinstance(value, float) else value


def by_dtype(cases: list[Case]) -> list[object]:
    return [pytest.param(case, dtype, id=f"{case}-{dtype}") for case in cases for dtype in case.dtypes]


def backward_calls(case: Case, dtype: torch.dtype) -> list[testing.Call]:
    """Ops with Triton kernels that a gradient runs, and their inputs: all but them on a CPU."""
    inputs = list(case.inputs(dtype))
    for i in case.grad:
        inputs[i] = inputs[i].clone().requires_grad_()
    with testing.record_calls() as calls:
        answer = case.op(*inputs, **case.options)
        generator = torch.Generator().manual_seed(1)
        torch.autograd.grad(
            answer, [inputs[i] for i in case.grad], torch.randn(answer.shape, generator=generator).to(answer.dtype)
        )
    return [call for call in calls if call.op.endswith("_backward") and "triton" in _OPS[call.op].kernels]


@pytest.mark.parametrize(("case", "dtype"), by_dtype(TRITON))
def test_triton_kernel_obeys_the_law(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    with pyrecon.backend("triton"), testing.poisoned_memory(), testing.record_calls() as calls:
        answer = case.op(*inputs, **case.options)
    assert {call.backend for call in calls} == {"triton"}
    for value, wanted in zip(answer if isinstance(answer, tuple) else (answer,), case.law(dtype), strict=True):
        testing.assert_close_to_reference(value, wanted, k=case.k)


@pytest.mark.parametrize(("case", "dtype"), by_dtype(BACKWARD))
def test_triton_gradients_obey_the_law(case: Case, dtype: torch.dtype) -> None:
    calls = backward_calls(case, dtype)
    assert calls
    for call in calls:
        op = getattr(torch.ops.pyrecon, call.op)
        inputs = tuple(v.detach() if isinstance(v, Tensor) else v for v in call.inputs)
        with pyrecon.backend("triton"), testing.poisoned_memory():
            answer = op(*inputs)
        with pyrecon.backend("reference"):
            law = op(*(map(widened, inputs) if dtype in WIDE else inputs))
        for value, wanted in zip(*(v if isinstance(v, tuple) else (v,) for v in (answer, law)), strict=True):
            testing.assert_close_to_reference(value, wanted, k=case.k)


# --- fits ----------------------------------------------------------------------------------------------------------
def both(name: str, data: Tensor, times: Tensor, **options: object) -> tuple[ops.VoxelFit, ops.VoxelFit]:
    with pyrecon.backend("triton"):
        found = ops.fit_voxels(SIGNALS[name][0], data, times, **options)  # type: ignore[arg-type]
    with pyrecon.backend("reference"):
        return found, ops.fit_voxels(SIGNALS[name][0], data, times, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "per_voxel"), [*((name, False) for name in SIGNALS), ("vfa", True), ("ir-magnitude", True)]
)
def test_every_voxel_ends_as_in_the_reference(name: str, per_voxel: bool) -> None:
    """More voxels than lanes; some without a number or a signal, whose neighbours do not notice."""
    _, data, times, _, _ = problem(name, 1, 37, per_voxel=per_voxel)(torch.Generator().manual_seed(5), torch.float64)
    data[0, 2, 7] = float("nan")
    data[0, 0, 11] = float("inf")
    data[0, :, 36] = 0
    found, wanted = both(name, data, times)
    lost = torch.zeros(1, 37, dtype=torch.bool)
    lost[0, [7, 11, 36]] = True
    assert torch.equal(found.status == 3, lost)
    assert torch.equal(found.status, wanted.status)
    assert bool(torch.isnan(found.rate[lost]).all())
    assert int((found.iterations - wanted.iterations)[~lost].abs().max()) <= 1  # at the edge of tol by rounding
    # Steps end below 1e-6, so that the last but one leaves the square of it.
    torch.testing.assert_close(found.rate[~lost], wanted.rate[~lost], rtol=1e-10, atol=0)


def test_limits_are_told_as_in_the_reference() -> None:
    _, data, times, _, _ = problem("sr", 1, 37)(torch.Generator().manual_seed(5), torch.float64)
    cut, known = both("sr", data, times, max_iter=1)
    assert torch.equal(cut.status, known.status)
    assert int((cut.status == 1).sum()) > 30
    torch.testing.assert_close(cut.residual, known.residual, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["sr", "ir-magnitude"])
def test_rates_at_a_bound_are_the_bound_and_have_no_gradient(name: str) -> None:
    _, data, times, _, _ = problem(name, 1, 16)(torch.Generator().manual_seed(0), torch.float64)
    middle = 0.999 * float(both(name, data, times)[0].rate.median())
    for bounds in ((0.05, middle), (middle, 20.0)):
        leaf = data.clone().requires_grad_()
        with pyrecon.backend("triton"):
            fit = ops.fit_voxels(SIGNALS[name][0], leaf, times, bounds=bounds)
            (grad,) = torch.autograd.grad(fit.rate.sum(), leaf)
        wanted = both(name, data, times, bounds=bounds)[1]
        at = fit.rate == middle
        assert 0 < int(at.sum()) < 16
        assert torch.equal(at, wanted.rate == middle)
        assert float(grad.abs().amax(1)[at].max()) == 0 < float(grad.abs().amax(1)[~at].min())


def test_times_below_zero_are_fitted_as_in_the_reference() -> None:
    """On a GPU times are not looked at: rates at which the signal overflows are no minimum, and none looks like one."""
    times = torch.tensor([1.0, -40.0, 3.0, 4.0], dtype=torch.float64)
    curves = SIGNALS["sr"][0].table(times)[None, ..., None]
    rate = torch.tensor([0.1, 0.15, 0.2], dtype=torch.float64)  # exp(40 * 0.2) is a number, exp(40 * 20) is none
    noise = 0.02 * torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = (-torch.expm1(-times[:, None] * rate) + noise, curves, None, None, 0.05, 20.0, 1, False, 1e-12, 50)
    with pyrecon.backend("triton"):
        value, status, _, _ = torch.ops.pyrecon.fit_voxels(*inputs)
    with pyrecon.backend("reference"):
        known, wanted, _, _ = torch.ops.pyrecon.fit_voxels(*inputs)
    assert status.tolist() == wanted.tolist() == [[0, 0, 0]]
    # One rounding of the square of exp(8) is 2e-9 of what the other images weigh; there are some tens.
    torch.testing.assert_close(value, known, rtol=1e-7, atol=0)
