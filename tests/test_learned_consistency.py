"""The learned data step as one op, against the same network in modules."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyrecon
from pyrecon.nn import LearnedConsistency, RowLayout
from pyrecon.ops import learned_consistency, project_l2_ball
from pyrecon.ops._learned_consistency import _backward
from pyrecon.testing import (
    assert_close_to_reference,
    available_isa_levels,
    extended,
    isa,
    poisoned_memory,
    record_calls,
)
from pyrecon.testing.cases import CASES, Case

GRID, USED = (5, 9), 7


def layout() -> RowLayout:
    mask = torch.rand(GRID[0] * GRID[1], generator=torch.Generator().manual_seed(0)) > 0.4
    return RowLayout.from_mask(mask, GRID, USED)


def draw(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = 2 * len(layout().rows)
    v, y = (torch.randn(batch, rows, generator=generator, dtype=torch.float64) for _ in range(2))
    return v, y, torch.linspace(0.3, 2.0, batch, dtype=torch.float64) * rows**0.5


def by_modules(net: LearnedConsistency, *inputs: Tensor) -> Tensor:
    handle = net.convs[0].register_forward_hook(lambda *_: None)  # someone listens: the modules run
    with record_calls() as calls:
        result: Tensor = net(*inputs)
    assert not calls
    handle.remove()
    return result


def total(net: LearnedConsistency, inputs: tuple[Tensor, ...], run: Any) -> tuple[Tensor, ...]:
    """Gradients of a function of the result: of v, y, radius and all weights."""
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    return torch.autograd.grad(run(*inputs).sin().sum(), (*inputs, *net.parameters()))


@pytest.mark.parametrize("options", [{}, {"width": 3, "layers": 2, "kernel": 5}], ids=["released", "other"])
@pytest.mark.parametrize("ball", ["paper", "released"])
def test_op_is_the_network_in_modules(ball: Any, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    net = LearnedConsistency(layout(), ball=ball, **options).double()
    inputs = draw()
    expected = by_modules(net, *inputs)
    with torch.no_grad(), record_calls() as calls:
        result = net(*inputs)
    assert [(call.op, call.backend) for call in calls] == [("learned_consistency", "cpp")]
    torch.testing.assert_close(result, expected)
    with record_calls() as calls:
        grads = total(net, inputs, net)
    names = ["learned_consistency", "learned_consistency_backward"]
    assert [(call.op, call.backend) for call in calls] == [(name, "cpp") for name in names]
    for value, wanted in zip(grads, total(net, inputs, lambda *t: by_modules(net, *t)), strict=True):
        torch.testing.assert_close(value, wanted)


LEARNED = [case for case in CASES if case.op is learned_consistency]


def gradients(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    """What the op of the gradient takes: a random g, the tensors, all gradients asked for, and sizes."""
    v, y, radius, weights, places, points = case.inputs(dtype)
    g = torch.randn(v.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    return g, v, y, radius, weights, places, True, True, points, *case.options.values()


@pytest.mark.parametrize("level", available_isa_levels())
@pytest.mark.parametrize("case", LEARNED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_obeys_the_law(dtype: torch.dtype, case: Case, level: str) -> None:
    inputs = gradients(case, dtype)
    with isa(level), poisoned_memory():
        grads = _backward(*inputs)
    with extended() if dtype == torch.float64 else pyrecon.backend("reference"):
        expected = _backward(*(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs))
    # v, y, radius: roundings as in the result, once more on the way back. Weights: times what sums over up to 7,800
    # points lose where they cancel to a few terms' size.
    for value, wanted, k in zip(grads, expected, (32, 32, 32, 64), strict=True):
        assert_close_to_reference(value, wanted, k=k)


def test_registered_gradient_passes_opcheck() -> None:
    case = next(case for case in LEARNED if case.tiny)
    g, v, y, radius, weights, places, _, _, *config = gradients(case, torch.float64)
    for asked in ((True, False), (False, True)):
        inputs = g, v, y, radius, weights, places, *asked, *config
        torch.library.opcheck(torch.ops.pyrecon.learned_consistency_backward.default, inputs)


def test_gradients_are_made_only_where_they_are_asked_for() -> None:
    net = LearnedConsistency(layout()).double()
    v, y, radius = (t.requires_grad_() for t in draw())
    result = net(v, y, radius)
    whole = torch.autograd.grad(result.sum(), (v, y, net.convs[1].weight), retain_graph=True)  # type: ignore[arg-type]
    for asked, variables in (((False, False), [0]), ((True, False), [0, 1]), ((False, True), [0, 2])):
        with record_calls() as calls:
            grads = torch.autograd.grad(
                result.sum(),
                [(v, y, net.convs[1].weight)[i] for i in variables],  # type: ignore[misc]
                retain_graph=True,
            )
        assert [call.inputs[6:8] for call in calls] == [asked]
        for i, value in zip(variables, grads, strict=True):
            torch.testing.assert_close(value, whole[i])


def test_compiled_gradient_is_the_eager_one() -> None:
    case = next(case for case in LEARNED if case.tiny)
    v, y, radius, weights, places, points = case.inputs(torch.float64)
    variables = [t.requires_grad_() for t in (v, y, radius, weights)]

    def call(*t: Tensor) -> Tensor:
        return learned_consistency(*t, places, points, **case.options).sin().sum()  # type: ignore[misc]

    expected = torch.autograd.grad(call(*variables), variables)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for value, wanted in zip(torch.autograd.grad(compiled(*variables), variables), expected, strict=True):
        torch.testing.assert_close(value, wanted)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 12), st.integers(1, 4), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_the_same_to_the_bit_on_any_threads(batch: int, points: int, width: int, layers: int, threads: int) -> None:
    torch.manual_seed(0)
    rows = RowLayout((1, points), torch.arange(points)[::2], points)
    net = LearnedConsistency(rows, width=width, layers=layers)
    size = batch, 2 * len(rows.rows)
    inputs = torch.randn(size), torch.randn(size), torch.full((batch,), 0.5)
    before = torch.get_num_threads()
    for level in available_isa_levels():
        with isa(level):
            alone = net(*inputs), *total(net, inputs, net)
            torch.set_num_threads(threads)
            try:
                together = net(*inputs), *total(net, inputs, net)
            finally:
                torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_operands_are_for_rows_of_the_layout() -> None:
    net, y = LearnedConsistency(layout()).double(), draw()[1]
    options = net.operands(y)
    assert options is not None
    assert options["data"] == "learned"
    with pytest.raises(ValueError, match="row layout"):
        net.operands(y[:, 2:])
    handle = net.register_forward_hook(lambda *_: None)
    assert net.operands(y) is None
    handle.remove()
    assert LearnedConsistency(layout(), dims=2).operands(y) is None


def test_two_dimensional_kernels_stay_modules() -> None:
    net = LearnedConsistency(layout(), dims=2).double()
    with torch.no_grad(), record_calls() as calls:
        net(*draw())
    assert not calls


def test_rows_lie_where_the_grid_has_them() -> None:
    rows, data = layout(), torch.randn(2, 2 * len(layout().rows))
    grid = rows.spread(data).flatten(2)
    inside = rows.places >= 0
    assert not inside.all()
    assert torch.equal(grid[:, :, rows.places[inside]], data.unflatten(1, (2, -1))[:, :, inside])


def test_a_nan_fills_its_sample_and_reaches_no_other() -> None:
    net = LearnedConsistency(layout()).double().requires_grad_(False)
    v, y, radius = draw()
    expected = net(v, y, radius)
    v[1, 3] = torch.nan
    result = net(v, y, radius)
    assert result[1].isnan().all()
    assert torch.equal(result[[0, 2, 3]], expected[[0, 2, 3]])
    v, clean = v.requires_grad_(), draw()[0].requires_grad_()
    (grad,), (expected,) = (torch.autograd.grad(net(t, y, radius).sum(), t) for t in (v, clean))
    assert grad[1].isnan().any()
    assert torch.equal(grad[[0, 2, 3]], expected[[0, 2, 3]])


def test_misuse_is_named() -> None:
    v, y, radius = draw()
    weights, places = torch.zeros(354, dtype=v.dtype), layout().places
    with pytest.raises(ValueError, match="y: shape"):
        learned_consistency(v, y[:2], radius, weights, places, 35)
    with pytest.raises(ValueError, match="kernel: 2 does not fit, expected an odd number"):
        learned_consistency(v, y, radius, weights, places, 35, kernel=2)
    with pytest.raises(ValueError, match=r"weights: shape \(353,\)"):
        learned_consistency(v, y, radius, weights[1:], places, 35)
    with pytest.raises(ValueError, match="places: shape"):
        learned_consistency(v, y, radius, weights, places[1:], 35)
    with pytest.raises(TypeError, match="places: dtype"):
        learned_consistency(v, y, radius, weights, places.int(), 35)


@pytest.mark.parametrize(("dims", "layers"), [(1, 2), (1, 3), (2, 4)])
def test_it_can_begin_as_the_projection(dims: Literal[1, 2], layers: int) -> None:
    layout = RowLayout.from_mask(torch.rand(60) > 0.3, (5, 12), 12)
    torch.manual_seed(0)
    net = LearnedConsistency(layout, dims=dims, layers=layers).double()
    net.become_projection()
    y, v = torch.randn(2, 3, 2 * len(layout.rows), dtype=torch.float64)
    radius = torch.tensor([0.5, 3.0, 1e3], dtype=torch.float64)
    torch.testing.assert_close(net.propose(v, y), v)
    torch.testing.assert_close(net(v, y, radius), project_l2_ball(v, y, radius))
    # and learns from there: the last layer first, as it does not look at the free channels yet
    net(v, y, radius).square().sum().backward()
    assert all(float(conv.weight.grad.abs().sum()) > 0 for conv in net.convs)  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match="carry v"):
        LearnedConsistency(layout, width=2).become_projection()
