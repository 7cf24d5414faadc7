"""The residual dense network, whole for each image while its feature maps are in cache.

The law, with C = a convolution with zero padding plus its bias, 3x3 unless it says 1x1, each with weights of its own,
and [..] = the channels of all that is listed::

    s = C(image)        x_0 = C(s)
    g_j = relu(C([x_i, g_1, .., g_(j-1)]))  j = 1..layers,      x_(i+1) = x_i + C1x1([x_i, g_1, .., g_layers])
    rdn(image, weights) = relu(image + C(s + C(C1x1([x_1, .., x_blocks]))))

``weights`` holds the convolutions in the order of the network (s, x_0; block by block its layers and its 1x1; the 1x1
and the 3x3 after the blocks; the last), of each its weights (outputs, inputs, height, width), then its biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pyrecon import _core
from pyrecon._check import FLOATING, check_count, check_dtype, check_like, check_out, check_shape, dense
from pyrecon._library import Op, needs_grad, wants_gradient
from pyrecon._threads import kernel_threads


def filters(features: int, growth: int, blocks: int, layers: int) -> Iterator[tuple[int, int, int]]:
    """Outputs, inputs and size of every convolution, in the order of the network."""
    yield from ((features, 1, 3), (features, features, 3))
    for _ in range(blocks):
        yield from ((growth, features + j * growth, 3) for j in range(layers))
        yield features, features + layers * growth, 1
    yield from ((features, blocks * features, 1), (features, features, 3), (1, features, 3))


def weights_count(features: int, growth: int, blocks: int, layers: int) -> int:
    """The numbers in them and as many biases as outputs: a formula, as a sum takes 8 us of every call."""
    per_block = layers * growth * (9 * features + 1) + 9 * growth * growth * (layers * (layers - 1) // 2)
    per_block += features * (features + layers * growth + 1)
    return features * (18 * features + blocks * features + 22) + blocks * per_block + 1


# --- the reference ---------------------------------------------------------------------------------------------
def _network(image: Tensor, weights: Tensor, features: int, growth: int, blocks: int, layers: int) -> list[Tensor]:
    """All feature maps ``(B, C, H, W)``, from the image to the result, those between blocks before those within."""
    start = 0
    convs = []
    for outputs, inputs, size in filters(features, growth, blocks, layers):
        end = start + outputs * inputs * size * size
        weight = weights[start:end].view(outputs, inputs, size, size)
        convs.append((weight, weights[end : end + outputs]))
        start = end + outputs
    remaining = iter(convs)

    def conv(*channels: Tensor) -> Tensor:
        weight, bias = next(remaining)
        return conv2d(torch.cat(channels, dim=1), weight, bias, padding=weight.shape[-1] // 2)

    given = image[:, None]
    shallow = conv(given)
    x, grown = [conv(shallow)], list[Tensor]()
    for _ in range(blocks):
        here: list[Tensor] = []
        for _ in range(layers):
            here.append(torch.relu(conv(x[-1], *here)))
        x.append(x[-1] + conv(x[-1], *here))
        grown += here
    fused = conv(*x[1:])
    summed = shallow + conv(fused)
    return [given, shallow, *x, *grown, fused, summed, torch.relu(conv(summed) + given)]


def _reference(image: Tensor, weights: Tensor, *config: int) -> Tensor:
    return _network(image, weights, *config)[-1][:, 0]


def _recorded_reference(image: Tensor, weights: Tensor, *config: int) -> tuple[Tensor, Tensor]:
    maps = torch.cat(_network(image, weights, *config), dim=1)
    _, between, plane = _layout(image)
    rows = torch.nn.functional.pad(maps.mT if image.shape[1] > image.shape[2] else maps, (0, 1)).flatten(2)
    planes = torch.nn.functional.pad(rows, (0, plane - rows.shape[2])).flatten(1)
    return maps[:, -1].clone(), torch.nn.functional.pad(planes, (between, 0))


def _layout(image: Tensor) -> tuple[int, int, int]:
    """Of the kernel's maps (csrc/cpu/conv.hpp): their rows with a zero after each, zeros after each map and before all.

    Returns the length of a row, of the zeros and of a map with those after it.
    """
    row, line = max(image.shape[1:]) + 1, 64 // image.itemsize
    body, between = (-(-n // line) * line for n in (row * min(image.shape[1:]), row + 1))
    between += 0 if (body + between) // line % 2 else line
    return row, between, body + between


def _maps_size(image: Tensor, features: int, growth: int, blocks: int, layers: int) -> int:
    _, between, plane = _layout(image)
    return between + plane * (2 + features * (blocks + 4) + blocks * layers * growth)


def _backward_reference(
    g: Tensor, image: Tensor, weights: Tensor, maps: Tensor, for_weights: bool, *config: int
) -> tuple[Tensor, Tensor]:
    pullback = torch.func.vjp(lambda image, weights: _reference(image, weights, *config), image, weights)[1]
    grad_image, grad_weights = pullback(g)
    return grad_image, grad_weights if for_weights else grad_weights.new_empty(0)


# --- kernels ---------------------------------------------------------------------------------------------------
def _run_cpp(image: Tensor, weights: Tensor, config: tuple[int, ...], out: Tensor, maps: Tensor | None) -> None:
    kernel = _core.rdn_f32 if image.dtype == torch.float32 else _core.rdn_f64
    kernel(
        image.data_ptr(), weights.data_ptr(), out.data_ptr(), 0 if maps is None else maps.data_ptr(), *image.shape,
        *config, _threads(image),
    )  # fmt: skip


def _threads(image: Tensor) -> int:
    """One for a single small image: 26 x 13 pixels take 0.39 ms on one and 0.58 on two, 52 x 26 1.19 and 1.15 (Zen 4);
    two images have a thread each."""
    return 1 if len(image) == 1 and image[0].numel() <= 676 else kernel_threads()


def _cpp(image: Tensor, weights: Tensor, features: int, growth: int, blocks: int, layers: int, out: Tensor) -> None:
    _run_cpp(image, weights, (features, growth, blocks, layers), out, None)


def _recorded_cpp(
    image: Tensor, weights: Tensor, features: int, growth: int, blocks: int, layers: int, out: Tensor, maps: Tensor
) -> None:
    _run_cpp(image, weights, (features, growth, blocks, layers), out, maps)


def _backward_cpp(
    g: Tensor,
    image: Tensor,
    weights: Tensor,
    maps: Tensor,
    for_weights: bool,
    features: int,
    growth: int,
    blocks: int,
    layers: int,
    grad_image: Tensor,
    grad_weights: Tensor,
) -> None:
    kernel = _core.rdn_backward_f32 if image.dtype == torch.float32 else _core.rdn_backward_f64
    kernel(
        g.data_ptr(), maps.data_ptr(), weights.data_ptr(), grad_image.data_ptr(),
        grad_weights.data_ptr() if for_weights else 0, *image.shape, features, growth, blocks, layers,
        _threads(image),
    )  # fmt: skip


def _triton(image: Tensor, weights: Tensor, features: int, growth: int, blocks: int, layers: int, out: Tensor) -> None:
    from pyrecon.kernels.rdn import rdn as launch

    config = features, growth, blocks, layers
    launch(image, weights, *config, filters(*config), out)


_rdn = Op(
    "rdn(Tensor image, Tensor weights, int features, int growth, int blocks, int layers) -> Tensor",
    outputs=lambda image, *_: torch.empty_like(image),
    reference=_reference,
    kernels={"cpp": _cpp, "triton": _triton},
)

# With all feature maps, which a gradient reads: 460 KB for an image of 26 x 13 in float32. A pullback to the image then
# takes as long as the network itself; making the maps again would double that.
_recorded = Op(
    "rdn_recorded(Tensor image, Tensor weights, int features, int growth, int blocks, int layers) -> (Tensor, Tensor)",
    outputs=lambda image, _, *config: (
        torch.empty_like(image),
        image.new_empty(image.shape[0], _maps_size(image, *config)),
    ),
    reference=_recorded_reference,
    kernels={"cpp": _recorded_cpp},
)

_backward = Op(
    "rdn_backward(Tensor g, Tensor image, Tensor weights, Tensor maps, bool for_weights, int features, int growth, "
    "int blocks, int layers) -> (Tensor, Tensor)",
    outputs=lambda g, image, weights, maps, for_weights, *_: (
        torch.empty_like(image),
        weights.new_empty(weights.shape[0] if for_weights else 0),
    ),
    reference=_backward_reference,
    kernels={"cpp": _backward_cpp},
)


# --- autograd --------------------------------------------------------------------------------------------------
class _RDN(torch.autograd.Function):
    @staticmethod
    def forward(image: Tensor, weights: Tensor, *config: int) -> tuple[Tensor, Tensor]:
        return _recorded(image, weights, *config)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        image, weights, *ctx.config = inputs
        ctx.save_for_backward(image, weights, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # zeros like all maps, that nobody reads

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 6
        image, weights, maps = ctx.saved_tensors
        inputs = dense(g), image, weights, maps, wants_gradient(ctx, 1), *ctx.config
        if needs_grad(g, image, weights):
            grad_image, grad_weights = _Pullback.apply(*inputs)  # type: ignore[no-untyped-call]
        else:
            grad_image, grad_weights = _backward(*inputs)
        return grad_image, grad_weights if inputs[4] else None, None, None, None, None


class _Pullback(torch.autograd.Function):
    """Its own gradient, and all further ones, are those of the reference."""

    @staticmethod
    def forward(
        g: Tensor, image: Tensor, weights: Tensor, maps: Tensor, for_weights: bool, *config: int
    ) -> tuple[Tensor, Tensor]:
        return _backward(g, image, weights, maps, for_weights, *config)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.for_weights, ctx.features, ctx.growth, ctx.blocks, ctx.layers = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g, image, weights, maps = ctx.saved_tensors
        config = ctx.features, ctx.growth, ctx.blocks, ctx.layers

        def pull(g: Tensor, image: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            return _backward_reference(g, image, weights, maps, ctx.for_weights, *config)

        return *torch.func.vjp(pull, g, image, weights)[1](grads), *[None] * 6


# --- the public function ---------------------------------------------------------------------------------------
def rdn(
    image: Tensor,
    weights: Tensor,
    *,
    features: int = 12,
    growth: int = 12,
    blocks: int = 4,
    layers: int = 4,
    out: Tensor | None = None,
) -> Tensor:
    """Residual dense network: :class:`pyrecon.nn.RDN` as a function of its packed weights.

    Parameters
    ----------
    image
        ``(B, H, W)``, float32 or float64.
    weights
        ``(P,)``, like ``image``: weights (outputs, inputs, height, width) and biases of every convolution, in the order
        of the network. :meth:`pyrecon.nn.RDN.packed` makes it; P = 58,393 with the defaults.
    features, growth, blocks, layers
        As in :class:`pyrecon.nn.RDN`.
    out
        Buffer for the result, ``(B, H, W)``, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        ``(B, H, W)``, not negative. Differentiable (any number of times) in ``image`` and ``weights``. With gradients
        all feature maps are kept, 290 times the image. A NaN reaches no other image.

    Notes
    -----
    CPU (C++) and GPU (Triton; with gradients in torch). On a CPU, images side by side on the threads, or all threads on
    each where images are fewer: the same results to the bit, gradients too. Zhang et al., Residual dense network for
    image super-resolution, CVPR 2018; as in Gungor et al., DEQ-MPI, IEEE Transactions on Medical Imaging 2024.
    """
    check_dtype("image", image, FLOATING)
    check_shape("image", image, (None, None, None), "(B, H, W)")
    if image.shape[1] < 1 or image.shape[2] < 1:
        raise ValueError(f"image: shape {tuple(image.shape)} has no pixels")
    config = features, growth, blocks, layers
    for name, count in zip(("features", "growth", "blocks", "layers"), config, strict=True):
        check_count(name, count)
    check_like("weights", weights, "image", image)
    check_shape("weights", weights, (weights_count(*config),), "all parameters of the network")
    check_out("out", out, image.shape, image, inputs=(image, weights))
    if out is None and needs_grad(image, weights):
        if not image.is_cpu:  # torch keeps its own feature maps; the kernel has no gradient
            return _reference(image, weights, *config)
        return _RDN.apply(dense(image), dense(weights), *config)[0]  # type: ignore[no-any-return, no-untyped-call]
    return _rdn(dense(image), dense(weights), *config, out=out)  # type: ignore[no-any-return]
