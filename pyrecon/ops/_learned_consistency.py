"""The learned data step of DEQ-MPI: a small network proposes, and its proposal is moved into the ball of the data.

The law, per sample. Row k of the M/2 complex rows lies at ``places[k]`` of a line of points, or outside it. g (4,
points) has there the real and the imaginary part of y and of v, and zeros where no row lies. A chain of convolutions
along the line, with zero padding and biases, and ReLU between them, takes it to two channels; N are those at the rows'
places, zero for rows outside. With s = radius / max(|N - y|, radius)::

    learned_consistency(v, y) = y + s (N - y)               (as the released program has it: y + s N)

``weights`` holds the convolutions in their order, of each its weights (outputs, inputs, kernel), then its biases.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import (
    FLOATING,
    check_count,
    check_dtype,
    check_flag,
    check_like,
    check_out,
    check_radius,
    check_shape,
    dense,
)
from pyrecon._library import Op, needs_grad, wants_gradient
from pyrecon._threads import kernel_threads


# --- the reference ---------------------------------------------------------------------------------------------
def _reference(
    v: Tensor,
    y: Tensor,
    radius: Tensor,
    weights: Tensor,
    places: Tensor,
    points: int,
    width: int,
    layers: int,
    kernel: int,
    released: bool,
) -> Tensor:
    at = torch.where((places >= 0) & (places < points), places, points)  # a last point more, dropped
    rows = torch.cat((y.unflatten(1, (2, -1)), v.unflatten(1, (2, -1))), dim=1)
    g = rows.new_zeros(len(rows), 4, points + 1).index_copy(2, at, rows)[..., :points]
    start = 0
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(_channels(width, layers))):
        end = start + outputs * inputs * kernel
        weight, bias = weights[start:end].view(outputs, inputs, kernel), weights[end : end + outputs]
        g = torch.conv1d(torch.relu(g) if layer else g, weight, bias, padding=kernel // 2)
        start = end + outputs
    proposal = torch.nn.functional.pad(g, (0, 1))[:, :, at].flatten(1)
    distance = torch.linalg.vector_norm(proposal - y, dim=1)
    scale = torch.where(distance <= radius, 1.0, radius / distance)[:, None]
    return y + scale * proposal if released else torch.lerp(y, proposal, scale)


def _backward_reference(
    g: Tensor,
    v: Tensor,
    y: Tensor,
    radius: Tensor,
    weights: Tensor,
    places: Tensor,
    for_y: bool,
    for_weights: bool,
    *config: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def forward(v: Tensor, y: Tensor, radius: Tensor, weights: Tensor) -> Tensor:
        return _reference(v, y, radius, weights, places, *config)

    grad_v, grad_y, grad_radius, grad_weights = torch.func.vjp(forward, v, y, radius, weights)[1](g)
    return (
        grad_v,
        grad_y if for_y else grad_y.new_empty(0),
        grad_radius,
        grad_weights if for_weights else grad_weights.new_empty(0),
    )


def _channels(width: int, layers: int) -> list[int]:
    return [4, *[width] * (layers - 1), 2]


def weights_count(width: int, layers: int, kernel: int) -> int:
    """Weights and biases of all convolutions."""
    return sum(b * (a * kernel + 1) for a, b in itertools.pairwise(_channels(width, layers)))


# --- the kernel ------------------------------------------------------------------------------------------------
def _cpp(
    v: Tensor,
    y: Tensor,
    radius: Tensor,
    weights: Tensor,
    places: Tensor,
    points: int,
    width: int,
    layers: int,
    kernel: int,
    released: bool,
    out: Tensor,
) -> None:
    run = _core.learned_consistency_f32 if v.dtype == torch.float32 else _core.learned_consistency_f64
    run(
        v.data_ptr(), y.data_ptr(), radius.data_ptr(), weights.data_ptr(), places.data_ptr(), out.data_ptr(), len(v),
        len(places), points, width, layers, kernel, released, kernel_threads(),
    )  # fmt: skip


def _backward_cpp(
    g: Tensor,
    v: Tensor,
    y: Tensor,
    radius: Tensor,
    weights: Tensor,
    places: Tensor,
    for_y: bool,
    for_weights: bool,
    points: int,
    width: int,
    layers: int,
    kernel: int,
    released: bool,
    grad_v: Tensor,
    grad_y: Tensor,
    grad_radius: Tensor,
    grad_weights: Tensor,
) -> None:
    run = _core.learned_consistency_backward_f32 if v.dtype == torch.float32 else _core.learned_consistency_backward_f64
    run(
        g.data_ptr(), v.data_ptr(), y.data_ptr(), radius.data_ptr(), weights.data_ptr(), places.data_ptr(),
        grad_v.data_ptr(), grad_y.data_ptr() if for_y else 0, grad_radius.data_ptr(),
        grad_weights.data_ptr() if for_weights else 0, len(v), len(places), points, width, layers, kernel, released,
        kernel_threads(),
    )  # fmt: skip


_learned = Op(
    "learned_consistency(Tensor v, Tensor y, Tensor radius, Tensor weights, Tensor places, int points, int width, "
    "int layers, int kernel, bool released) -> Tensor",
    outputs=lambda v, *_: torch.empty_like(v),
    reference=_reference,
    kernels={"cpp": _cpp},
)

_backward = Op(
    "learned_consistency_backward(Tensor g, Tensor v, Tensor y, Tensor radius, Tensor weights, Tensor places, "
    "bool for_y, bool for_weights, int points, int width, int layers, int kernel, bool released) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    outputs=lambda g, v, y, radius, weights, places, for_y, for_weights, *_: (
        torch.empty_like(v),
        y.new_empty(y.shape if for_y else 0),
        torch.empty_like(radius),
        weights.new_empty(weights.shape if for_weights else 0),
    ),
    reference=_backward_reference,
    kernels={"cpp": _backward_cpp},
)


# --- autograd --------------------------------------------------------------------------------------------------
class _Learned(torch.autograd.Function):
    """Nothing is kept of the forward pass: the gradient runs the network again."""

    @staticmethod
    def forward(v: Tensor, y: Tensor, radius: Tensor, weights: Tensor, places: Tensor, *config: Any) -> Tensor:
        return _learned(v, y, radius, weights, places, *config)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.points, ctx.width, ctx.layers, ctx.kernel, ctx.released = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        asked = wants_gradient(ctx, 1), wants_gradient(ctx, 3)
        inputs = dense(g), *tensors, *asked, ctx.points, ctx.width, ctx.layers, ctx.kernel, ctx.released
        if needs_grad(g, *tensors):
            v, y, radius, weights = _Pullback.apply(*inputs)  # type: ignore[no-untyped-call]
        else:
            v, y, radius, weights = _backward(*inputs)
        return v, y if asked[0] else None, radius, weights if asked[1] else None, *[None] * 6


class _Pullback(torch.autograd.Function):
    """Its own gradient, and all further ones, are those of the reference."""

    @staticmethod
    def forward(g: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _backward(g, *inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.options = inputs[6:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, places = ctx.saved_tensors

        def pull(g: Tensor, v: Tensor, y: Tensor, radius: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
            return _backward_reference(g, v, y, radius, weights, places, *ctx.options)

        return *torch.func.vjp(pull, *tensors)[1](grads), *[None] * 8


# --- the public function ---------------------------------------------------------------------------------------
MAX_POINTS = 2**24  # 100 times the longest scan; the kernel holds some 20 numbers of each


def check_network(sizes: tuple[int, ...], *names: str) -> None:
    """Raise unless points, width, layers and kernel, under these names, are the sizes of a network."""
    for name, size, most in zip(names, sizes, (MAX_POINTS, *[2**31] * 3), strict=True):
        check_count(name, size, 1, most)
    if sizes[3] % 2 == 0:
        raise ValueError(f"{names[3]}: {sizes[3]} does not fit, expected an odd number")


def learned_consistency(
    v: Tensor,
    y: Tensor,
    radius: Tensor | float,
    weights: Tensor,
    places: Tensor,
    points: int,
    width: int = 8,
    layers: int = 3,
    kernel: int = 3,
    released: bool = False,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The data step of DEQ-MPI with a network: :class:`pyrecon.nn.LearnedConsistency` as a function of its weights.

    Parameters
    ----------
    v, y
        ``(B, M)`` point to move and data, float32 or float64: M/2 real parts, then as many imaginary parts.
    radius
        Of the ball around the data, a number or ``(B,)``.
    weights
        ``(P,)`` weights (outputs, inputs, kernel) and biases of every convolution; 354 with the defaults.
    places
        ``(M / 2,)`` int64, distinct: where each complex row lies among ``points``. Rows that lie outside enter nothing
        and are proposed as zeros.
    points, width, layers, kernel
        Length of the line, channels between convolutions, their number and (odd) size.
    released
        ``y + s N`` in place of ``y + s (N - y)``: what the released weights were trained for.
    out
        Buffer for the result, ``(B, M)``, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        ``(B, M)``. Differentiable (any number of times) in ``v``, ``y``, ``radius`` and ``weights``; the gradient runs
        the network again. A NaN fills its sample and reaches no other.

    Notes
    -----
    CPU (C++, the same bits on any number of threads, gradients too); elsewhere in torch. Gungor et al., DEQ-MPI, IEEE
    Transactions on Medical Imaging 2024, Eq. 25.
    """
    check_dtype("v", v, FLOATING)
    check_shape("v", v, (None, None), "(B, M)")
    check_like("y", y, "v", v)
    check_shape("y", y, v.shape, "(B, M)")
    radius = check_radius("radius", radius, v)
    check_network((points, width, layers, kernel), "points", "width", "layers", "kernel")
    check_flag("released", released)
    check_like("weights", weights, "v", v)
    check_shape("weights", weights, (weights_count(width, layers, kernel),), "all parameters of the network")
    check_like("places", places, "v", v, dtype=torch.int64)
    check_shape("places", places, (v.shape[1] // 2,), "(M / 2,)")
    if v.shape[1] % 2:
        raise ValueError(f"v: {v.shape[1]} rows are no real and imaginary parts")
    check_out("out", out, v.shape, v, inputs=(v, y, radius, weights, places))
    inputs = dense(v), dense(y), dense(radius), dense(weights), dense(places)
    config = points, width, layers, kernel, released
    if out is None and needs_grad(v, y, radius, weights):
        return _Learned.apply(*inputs, *config)  # type: ignore[no-any-return, no-untyped-call]
    return _learned(*inputs, *config, out=out)  # type: ignore[no-any-return]
