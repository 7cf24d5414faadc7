"""Every op inside the transforms that torch code uses: vmap, functional gradients, export, dynamic shapes, autocast,
activation checkpointing. One tiny case of each op and dtype kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrecon.testing.cases import CASES, Case

DOUBLE = (torch.float64, torch.complex128)
# Writes the Gram matrix it is given in place, which functional transforms forbid.
IN_PLACE = {"anderson_mix"}


def one_per_op() -> list[Any]:
    rows, seen = [], set()
    for case in CASES:
        for dtype in case.dtypes:
            key = case.op.__name__, dtype
            if case.tiny and case.grad and dtype in DOUBLE and key not in seen:
                seen.add(key)
                rows.append(pytest.param(case, dtype, id=f"{case}-{'c128' if dtype.is_complex else 'f64'}"))
    return rows


each_op = pytest.mark.parametrize(("case", "dtype"), one_per_op())
functional = pytest.mark.parametrize(
    ("case", "dtype"), [row for row in one_per_op() if row.values[0].op.__name__ not in IN_PLACE]
)


def tensors(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def setup(case: Case, dtype: torch.dtype) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], Tensor]:
    """The op as a function of its first differentiable argument, and that argument."""
    inputs, at = case.inputs(dtype), case.grad[0]

    def call(value: Tensor) -> tuple[Tensor, ...]:
        return tensors(case.op(*inputs[:at], value, *inputs[at + 1 :], **case.options))

    return call, inputs[at]


def energy(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([o.abs().square().sum() for o in outputs]).sum()


@functional
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_the_loop(case: Case, dtype: torch.dtype) -> None:
    call, x = setup(case, dtype)
    values = torch.stack([x, 0.5 * x, x.flip(0)])
    mapped = torch.func.vmap(call)(values)
    for i, value in enumerate(values):
        for result, expected in zip(mapped, call(value), strict=True):
            torch.testing.assert_close(result[i], expected)


@functional
def test_functional_gradient_is_autograds(case: Case, dtype: torch.dtype) -> None:
    call, x = setup(case, dtype)
    variable = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy(call(variable)), variable)
    torch.testing.assert_close(torch.func.grad(lambda v: energy(call(v)))(x), expected)


@each_op
def test_checkpointed_gradient_is_autograds(case: Case, dtype: torch.dtype) -> None:
    gradients = []
    for checkpointed in (False, True):
        call, x = setup(case, dtype)
        variable = x.clone().requires_grad_()
        outputs = checkpoint(call, variable, use_reentrant=False) if checkpointed else call(variable)
        gradients.append(torch.autograd.grad(energy(outputs), variable)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@each_op
def test_exported_program_gives_the_answer(case: Case, dtype: torch.dtype) -> None:
    call, x = setup(case, dtype)

    class Model(torch.nn.Module):
        def forward(self, value: Tensor) -> tuple[Tensor, ...]:
            return call(value)

    program = torch.export.export(Model(), (x,))
    assert any("pyrecon" in str(node.target) for node in program.graph.nodes)
    for result, expected in zip(program.module()(x), call(x), strict=True):
        torch.testing.assert_close(result, expected)


@each_op
def test_dynamic_shapes_compile(case: Case, dtype: torch.dtype) -> None:
    call, x = setup(case, dtype)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for result, expected in zip(compiled(x), call(x), strict=True):
        torch.testing.assert_close(result, expected)


@each_op
def test_autocast_changes_nothing(case: Case, dtype: torch.dtype) -> None:
    """Reconstruction does not survive bfloat16, so the ops keep the precision of their inputs."""
    call, x = setup(case, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call(x)
    for result, expected in zip(inside, call(x), strict=True):
        assert torch.equal(result, expected)


@each_op
def test_inference_mode_gives_the_answer(case: Case, dtype: torch.dtype) -> None:
    call, x = setup(case, dtype)
    with torch.inference_mode():
        inside = call(x)
    for result, expected in zip(inside, call(x), strict=True):
        assert torch.equal(result, expected)
