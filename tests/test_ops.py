"""Every op against its law, from the shared case tables: a new op is covered by adding rows, not tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyrecon import testing
from pyrecon._library import _OPS
from pyrecon.testing.cases import CASES, Case

TINY = [case for case in CASES if case.tiny]
DOUBLE = (torch.float64, torch.complex128)


def by_dtype(cases: list[Case] | tuple[Case, ...], among: tuple[torch.dtype, ...] | None = None) -> list[Any]:
    name = {torch.float32: "f32", torch.float64: "f64", torch.complex64: "c64", torch.complex128: "c128"}
    return [
        pytest.param(case, dtype, id=f"{case}-{name[dtype]}")
        for case in cases
        for dtype in case.dtypes
        if among is None or dtype in among
    ]


def one_precision_fast(rows: list[Any]) -> list[Any]:
    """Double reals and single complex numbers marked as slow: what is traced differs by the kind of number only."""
    twins = (torch.float64, torch.complex64)
    return [pytest.param(*r.values, id=r.id, marks=[pytest.mark.slow] * (r.values[1] in twins)) for r in rows]


def results(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def assert_law(case: Case, dtype: torch.dtype, answer: Any) -> None:
    for value, expected in zip(results(answer), case.law(dtype), strict=True):
        testing.assert_close_to_reference(value, expected, k=case.k)


@pytest.mark.parametrize("level", testing.available_isa_levels())
@pytest.mark.parametrize(("case", "dtype"), by_dtype(CASES))
def test_cpu_kernel_obeys_the_law(case: Case, dtype: torch.dtype, level: str) -> None:
    inputs = case.inputs(dtype)
    with testing.isa(level), testing.poisoned_memory(), testing.record_calls() as calls:
        answer = case.op(*inputs, **case.options)
    assert {call.backend for call in calls} == {"cpp"}
    assert_law(case, dtype, answer)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("case", [case for case in CASES if not case.tiny], ids=str)
def test_threads_obey_the_law(case: Case, threads: int) -> None:
    inputs = case.inputs(case.dtypes[0])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with testing.poisoned_memory():
            answer = case.op(*inputs, **case.options)
    finally:
        torch.set_num_threads(before)
    assert_law(case, case.dtypes[0], answer)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), by_dtype(CASES))
def test_gpu_kernel_obeys_the_law(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    with testing.poisoned_memory(), testing.record_calls() as calls:
        answer = case.op(*tree_map_only(Tensor, lambda t: t.cuda(), inputs), **case.options)
    for call in calls:  # an op without a kernel for a GPU runs its reference there
        assert call.backend in ({"triton", "cuda"} & set(_OPS[call.op].kernels) or {"reference"})
    assert_law(case, dtype, tree_map_only(Tensor, lambda t: t.cpu(), answer))


@pytest.mark.parametrize(("case", "dtype"), by_dtype(CASES))
def test_out_receives_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    expected = case.op(*inputs, **case.options)
    buffers = tree_map_only(Tensor, lambda t: torch.full_like(t, float("nan")), expected)
    returned = case.op(*inputs, **case.options, out=buffers)
    for value, buffer, wanted in zip(results(returned), results(buffers), results(expected), strict=True):
        assert value is buffer
        assert torch.equal(value, wanted)


def strided(t: Tensor) -> Tensor:
    """The same numbers, every second element of a larger buffer."""
    if t.dim() == 0:
        return t
    buffer = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"), dtype=t.dtype)
    view = buffer[..., 1::2]
    view.copy_(t)
    return view


def conjugate_view(t: Tensor) -> Tensor:
    return (
        t.conj().resolve_conj().conj() if t.is_complex() else torch.view_as_complex(torch.stack([t, t], -1)).conj().real
    )


@pytest.mark.parametrize("disguise", [strided, conjugate_view])
@pytest.mark.parametrize(("case", "dtype"), by_dtype(CASES))
def test_views_are_read_as_what_they_mean(case: Case, dtype: torch.dtype, disguise: Callable[[Tensor], Tensor]) -> None:
    inputs = case.inputs(dtype)
    hidden = tuple(
        disguise(v) if isinstance(v, Tensor) and v.is_floating_point() | v.is_complex() else v for v in inputs
    )
    for value, expected in zip(
        results(case.op(*hidden, **case.options)), results(case.op(*inputs, **case.options)), strict=True
    ):
        assert torch.equal(value, expected)


def _gradient_setup(case: Case, dtype: torch.dtype) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    inputs = list(case.inputs(dtype))
    variables = tuple(inputs[i].clone().requires_grad_() for i in case.grad)

    def call(*values: Tensor) -> Any:
        for i, value in zip(case.grad, values, strict=True):
            inputs[i] = value
        return case.op(*inputs, **case.options)

    return call, variables


# Finite differences need double precision.
@pytest.mark.parametrize(("case", "dtype"), by_dtype([case for case in TINY if case.grad], DOUBLE))
def test_gradients_match_finite_differences(case: Case, dtype: torch.dtype) -> None:
    call, variables = _gradient_setup(case, dtype)
    assert torch.autograd.gradcheck(call, variables)
    if case.twice:
        # Random directions instead of the whole Jacobian of the Jacobian, which is cubic in the size of the case.
        assert torch.autograd.gradgradcheck(call, variables, fast_mode=True)


@pytest.mark.parametrize(("case", "dtype"), by_dtype(TINY))
def test_registered_op_passes_opcheck(case: Case, dtype: torch.dtype) -> None:
    with testing.record_calls() as calls:
        case.op(*case.inputs(dtype), **case.options)
    assert calls
    for call in calls:
        torch.library.opcheck(getattr(torch.ops.pyrecon, call.op).default, call.inputs)


@pytest.mark.parametrize(("case", "dtype"), one_precision_fast(by_dtype(TINY)))
def test_compiled_equals_eager(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: case.op(*args, **case.options), fullgraph=True, backend="aot_eager")
    for value, expected in zip(results(compiled(*inputs)), results(case.op(*inputs, **case.options)), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize(("case", "dtype"), one_precision_fast(by_dtype([case for case in TINY if case.grad])))
def test_compiled_gradient_equals_eager(case: Case, dtype: torch.dtype) -> None:
    call, variables = _gradient_setup(case, dtype)
    torch._dynamo.reset()

    def loss(*values: Tensor) -> Tensor:
        return sum(
            torch.view_as_real(r).square().sum() if r.is_complex() else r.square().sum() for r in results(call(*values))
        )

    eager = torch.autograd.grad(loss(*variables), variables)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*variables), variables)
    for value, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(value, expected)


def test_every_op_has_cases() -> None:
    backward = {name for name in _OPS if name.endswith("_backward")}
    not_public = {"anderson_advance", "rdn_recorded"}  # tests/test_fixed_point.py, tests/test_rdn.py
    assert set(_OPS) <= {case.op.__name__ for case in CASES} | backward | not_public
