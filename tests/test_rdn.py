"""The residual dense network as one op, against the same network in modules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyrecon
from pyrecon import _library
from pyrecon.nn import RDN, _convolutions
from pyrecon.ops import rdn
from pyrecon.ops._rdn import _backward, _recorded, _threads, filters, weights_count
from pyrecon.testing import (
    assert_close_to_reference,
    available_isa_levels,
    extended,
    isa,
    poisoned_memory,
    record_calls,
)

SMALL = {"features": 5, "growth": 3, "blocks": 2, "layers": 3}
WINOGRAD = {"features": 5, "growth": 4, "blocks": 2, "layers": 3}  # four channels and more go that way in rows of eight


def network(dtype: torch.dtype = torch.float64, **config: int) -> RDN:
    torch.manual_seed(0)
    return RDN(**config).to(dtype)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def by_modules(net: RDN, image: Tensor) -> Tensor:
    with record_calls() as calls:
        result = net._by_modules(image)
    assert not calls
    return result.detach()


@pytest.mark.parametrize("config", [{}, SMALL], ids=["released", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_op_is_the_network(dtype: torch.dtype, config: dict[str, int]) -> None:
    net, image = network(dtype, **config), draw(3, 26, 13, dtype=dtype)
    expected = by_modules(net.double(), image.double())
    net.to(dtype)
    with torch.no_grad():
        assert_close_to_reference(rdn(image, net.packed(), **net.config), expected, k=24)


def test_inference_takes_the_op_and_sees_new_weights() -> None:
    net, image = network(), draw(2, 9, 7)
    for change in (lambda: None, lambda: net.last.bias.data.add_(0.1), lambda: net.load_state_dict(RDN().state_dict())):
        change()
        with torch.no_grad(), record_calls() as calls:
            result = net(image)
        assert [(call.op, call.backend) for call in calls] == [("rdn", "cpp")]
        assert_close_to_reference(result, by_modules(net, image), k=24)


class OnAGPU:
    """As much of a CUDA tensor as the choice of a kernel looks at."""

    is_cpu, is_cuda, dtype, device = False, True, torch.float32, torch.device("cuda")

    def __init__(self, requires_grad: bool = False) -> None:
        self.requires_grad = requires_grad


def test_inference_on_a_gpu_takes_the_triton_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch only: there may be no GPU. With gradients, which the kernel has not, or under autocast modules run."""
    monkeypatch.setitem(_library._GPU_AVAILABLE, "triton", lambda: True)
    still, learning = OnAGPU(), OnAGPU(requires_grad=True)
    assert _library._OPS["rdn"]._choose((still,)) == "triton"
    assert _library.runs_kernel(still, still, op="rdn")
    assert not _library.runs_kernel(still, learning, op="rdn")
    with torch.no_grad():
        assert _library.runs_kernel(still, learning, op="rdn")
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        assert not _library.runs_kernel(still, op="rdn")
        monkeypatch.undo()
        monkeypatch.setitem(_library._GPU_AVAILABLE, "triton", lambda: True)
    assert not _library.runs_kernel(still, op="learned_consistency")  # no kernel there
    assert not _library.runs_kernel(still)
    monkeypatch.setitem(_library._GPU_AVAILABLE, "triton", lambda: False)
    assert not _library.runs_kernel(still, op="rdn")


def test_the_network_asks_for_its_kernel_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What RDN.forward asks is what is answered on a GPU; a yes runs the registered op."""
    asked: list[str | None] = []

    def ask(*tensors: Tensor, op: str | None = None) -> bool:
        asked.append(op)
        return True

    monkeypatch.setattr(_convolutions, "runs_kernel", ask)
    with torch.no_grad(), record_calls() as calls:
        network()(draw(2, 9, 7))
    assert asked == ["rdn"]
    assert [call.op for call in calls] == ["rdn"]


def test_transforms_of_functions_take_the_modules() -> None:
    net = network(**SMALL).requires_grad_(False)
    image, tangent = draw(4, 6, 5), draw(4, 6, 5).flip(0)
    with torch.no_grad():
        _, along = torch.func.jvp(net, (image,), (tangent,))
        step = 1e-6
        difference = (net(image + step * tangent) - net(image - step * tangent)) / (2 * step)
        torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-7)
        each = torch.func.vmap(lambda x: net(x[None])[0])(image)
        torch.testing.assert_close(each, net(image))


def test_gradients_are_those_of_the_network() -> None:
    net, image = network(**SMALL), draw(2, 7, 6).requires_grad_()
    target = draw(2, 7, 6)

    def gradients(result: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((result - target).square().sum(), (image, *net.parameters()))

    with record_calls() as calls:
        by_op = gradients(net(image))
    assert [(call.op, call.backend) for call in calls] == [("rdn_recorded", "cpp"), ("rdn_backward", "cpp")]
    for value, expected in zip(by_op, gradients(net._by_modules(image)), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("level", available_isa_levels())
@pytest.mark.parametrize(("config", "shape"), [({}, (3, 26, 13)), ({}, (35, 5, 4)), (SMALL, (2, 67, 31))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_obeys_the_law(
    dtype: torch.dtype, config: dict[str, int], shape: tuple[int, int, int], level: str
) -> None:
    net, (image, g) = network(dtype, **config), draw(2, *shape, dtype=dtype)
    inputs, numbers = (image, net.packed().detach()), tuple(net.config.values())
    wide = [t.double() for t in inputs]
    with isa(level), poisoned_memory():
        result, maps = _recorded(*inputs, *numbers)
        grads = _backward(g, *inputs, maps, True, *numbers)
        assert torch.equal(result, rdn(*inputs, **net.config))
    with extended() if dtype == torch.float64 else pyrecon.backend("reference"):
        expected = _recorded(*wide, *numbers)
        of_image, of_weights = _backward(g.double(), *wide, expected[1], True, *numbers)
    # maps: laid out for the precision of the network, so by the reference in that precision
    assert_close_to_reference(maps, _recorded.reference(*inputs, *numbers)[1], k=48)
    assert_close_to_reference(result, expected[0], k=24)
    assert_close_to_reference(grads[0], of_image, k=24)
    # 24 as for the image, times what sums over some 4,000 pixels lose where they cancel to a few terms' size.
    assert_close_to_reference(grads[1], of_weights, k=48)


def test_registered_gradient_passes_opcheck() -> None:
    net, image = network(**SMALL), draw(2, 3, 4)
    inputs, numbers = (image, net.packed().detach()), tuple(net.config.values())
    torch.library.opcheck(torch.ops.pyrecon.rdn_recorded.default, (*inputs, *numbers))
    maps = _recorded(*inputs, *numbers)[1]
    for for_weights in (True, False):
        torch.library.opcheck(torch.ops.pyrecon.rdn_backward.default, (image, *inputs, maps, for_weights, *numbers))


def test_weights_have_a_gradient_only_where_it_is_asked_for() -> None:
    net, image = network(**SMALL), draw(2, 7, 6).requires_grad_()
    weights = net.packed().detach().requires_grad_()

    def asked(result: Tensor, *variables: Tensor) -> list[bool]:
        with record_calls() as calls:
            if variables:
                torch.autograd.grad(result.sum(), variables, retain_graph=True)
            else:
                result.sum().backward(retain_graph=True)
        return [call.inputs[4] for call in calls]

    for result, variable in ((net(image), net.last.bias), (rdn(image, weights, **net.config), weights)):
        assert asked(result, image) == [False]
        assert asked(result, image, variable) == [True]
        assert asked(result) == [True]
    assert asked(rdn(image, weights.detach(), **net.config)) == [False]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_gradient_is_the_same_to_the_bit_on_any_threads(batch: int, rows: int, cols: int, threads: int) -> None:
    net, image = network(**SMALL), draw(batch, rows, cols).requires_grad_()
    before = torch.get_num_threads()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(net(image).square().sum(), (image, *net.parameters()))

    for level in available_isa_levels():
        with isa(level):
            alone = gradients()
            torch.set_num_threads(threads)
            try:
                together = gradients()
            finally:
                torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    expected = torch.autograd.grad(net._by_modules(image).square().sum(), (image, *net.parameters()))
    for value, wanted in zip(alone, expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_a_nan_gradient_reaches_no_other_image() -> None:
    net, image = network(), draw(3, 26, 13).requires_grad_()
    result, g = net(image), torch.ones(3, 26, 13, dtype=torch.float64)
    (expected,) = torch.autograd.grad(result, image, g, retain_graph=True)
    at = int(result[1].flatten().argmax())
    g[1].view(-1)[at] = torch.nan
    (grad,) = torch.autograd.grad(result, image, g)
    assert grad[1].flatten()[at].isnan()
    assert torch.equal(grad[[0, 2]], expected[[0, 2]])


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_any_size_on_any_threads_at_every_level(batch: int, rows: int, cols: int, threads: int) -> None:
    net, image = network(torch.float32, **WINOGRAD), draw(batch, rows, cols, dtype=torch.float32)
    weights = net.packed().detach()
    with pyrecon.backend("reference"):
        expected = rdn(image.double(), weights.double(), **net.config)
    before = torch.get_num_threads()
    for level in available_isa_levels():
        with isa(level):
            alone = rdn(image, weights, **net.config)
            torch.set_num_threads(threads)
            try:
                together = rdn(image, weights, **net.config)
            finally:
                torch.set_num_threads(before)
        assert_close_to_reference(alone, expected, k=24)
        assert torch.equal(together, alone)


def test_transposed_image_and_filters_give_the_transposed_result() -> None:
    net, image = network(**SMALL), draw(2, 11, 5)
    result = rdn(image, net.packed().detach(), **net.config)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 4:
                p.copy_(p.mT.clone())
    torch.testing.assert_close(rdn(image.mT, net.packed().detach(), **net.config), result.mT)


def test_a_nan_reaches_no_other_image() -> None:
    net, image = network(), draw(3, 26, 13)
    weights = net.packed().detach()
    expected = rdn(image, weights)
    image[1, 4, 5] = torch.nan
    result = rdn(image, weights)
    assert result[1, 4, 5].isnan()
    assert torch.equal(result[[0, 2]], expected[[0, 2]])


def test_misuse_is_named() -> None:
    image, weights = draw(2, 4, 3), network().packed().detach()
    with pytest.raises(ValueError, match=r"image: shape \(4, 3\)"):
        rdn(image[0], weights)
    with pytest.raises(ValueError, match="no pixels"):
        rdn(image[:, :0], weights)
    with pytest.raises(TypeError, match="image: dtype complex128"):
        rdn(image + 0j, weights)
    with pytest.raises(TypeError, match="weights: dtype"):
        rdn(image, weights.float())
    with pytest.raises(ValueError, match=r"weights: shape \(58392,\).*58393"):
        rdn(image, weights[1:])
    with pytest.raises(ValueError, match="blocks: 0 does not fit"):
        rdn(image, weights, blocks=0)
    with pytest.raises(ValueError, match="shares memory"):
        rdn(image, weights, out=image)


@given(*[st.integers(1, 5)] * 4)
def test_packed_weights_are_counted(features: int, growth: int, blocks: int, layers: int) -> None:
    shapes = filters(features, growth, blocks, layers)
    expected = sum(outputs * (inputs * size * size + 1) for outputs, inputs, size in shapes)
    assert weights_count(features, growth, blocks, layers) == expected


def test_packed_is_all_parameters_in_their_order() -> None:
    net = network(**SMALL)
    assert torch.equal(net.packed(), torch.cat([p.flatten() for p in net.parameters()]))


def test_modules_run_where_someone_listens_or_computes_weights() -> None:
    image = draw(2, 6, 5)
    net, seen = network(**SMALL), []
    handle = net.fuse.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        expected = net(image)
        assert seen
        handle.remove()
        torch.nn.utils.parametrizations.spectral_norm(net.blocks[0].fuse).eval()
        with record_calls() as calls:
            changed = net(image)
            assert net.operands() is None
    assert not calls
    assert not torch.allclose(changed, expected)


def test_one_small_image_takes_one_thread() -> None:
    """Two would lose a third of the time; two images, or a large one, take what there is."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [_threads(torch.empty(shape)) for shape in ((1, 26, 13), (2, 26, 13), (1, 64, 64))] == [1, 2, 2]
    finally:
        torch.set_num_threads(before)
