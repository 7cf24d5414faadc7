"""Forward pass of the residual dense network, whole for each image while its feature maps are in cache.

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
from pyrecon._check import FLOATING, check_dtype, check_like, check_out, check_shape, dense
from pyrecon._library import Op, needs_grad


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
def _reference(image: Tensor, weights: Tensor, features: int, growth: int, blocks: int, layers: int) -> Tensor:
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
    x, outputs_of_blocks = conv(shallow), []
    for _ in range(blocks):
        grown: list[Tensor] = []
        for _ in range(layers):
            grown.append(torch.relu(conv(x, *grown)))
        x = x + conv(x, *grown)
        outputs_of_blocks.append(x)
    fused = shallow + conv(conv(*outputs_of_blocks))
    return torch.relu(conv(fused) + given)[:, 0]


# --- kernels ---------------------------------------------------------------------------------------------------
def _cpp(image: Tensor, weights: Tensor, features: int, growth: int, blocks: int, layers: int, out: Tensor) -> None:
    kernel = _core.rdn_f32 if image.dtype == torch.float32 else _core.rdn_f64
    kernel(
        image.data_ptr(), weights.data_ptr(), out.data_ptr(), *image.shape, features, growth, blocks, layers,
        torch.get_num_threads(),
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


# --- autograd --------------------------------------------------------------------------------------------------
class _RDN(torch.autograd.Function):
    """Nothing is kept of the forward pass: the gradient runs the reference again."""

    @staticmethod
    def forward(image: Tensor, weights: Tensor, *config: int) -> Tensor:
        return _rdn(image, weights, *config)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, weights, *ctx.config = inputs
        ctx.save_for_backward(image, weights)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        pullback = torch.func.vjp(lambda image, weights: _reference(image, weights, *ctx.config), *ctx.saved_tensors)[1]
        return *pullback(g), None, None, None, None


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
        ``(B, H, W)``, not negative. Differentiable (any number of times) in ``image`` and ``weights``; the gradient
        runs the network again, in torch. A NaN reaches no other image.

    Notes
    -----
    CPU (C++) and GPU (Triton). On a CPU, images side by side on the threads, or all threads on each where images are
    fewer: the same results to the bit. Zhang et al., Residual dense network for image super-resolution, CVPR 2018; as
    in Gungor et al., DEQ-MPI, IEEE Transactions on Medical Imaging 2024.
    """
    check_dtype("image", image, FLOATING)
    check_shape("image", image, (None, None, None), "(B, H, W)")
    if image.shape[1] < 1 or image.shape[2] < 1:
        raise ValueError(f"image: shape {tuple(image.shape)} has no pixels")
    config = features, growth, blocks, layers
    if min(config) < 1:
        raise ValueError(f"features, growth, blocks, layers: {config} do not fit, expected numbers >= 1")
    check_like("weights", weights, "image", image)
    check_shape("weights", weights, (weights_count(*config),), "all parameters of the network")
    check_out("out", out, image.shape, image, inputs=(image, weights))
    if out is None and needs_grad(image, weights):
        return _RDN.apply(dense(image), dense(weights), *config)  # type: ignore[no-any-return, no-untyped-call]
    return _rdn(dense(image), dense(weights), *config, out=out)  # type: ignore[no-any-return]
