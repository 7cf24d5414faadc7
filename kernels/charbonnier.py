"""Triton kernels of pyrecon/ops/_charbonnier.py: one program for BLOCK pixels of an image.

A pixel's gradient needs the roots of three pixels, from seven numbers; they are computed anew for each, for half of the
traffic that keeping them would take.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit
def _differences(image, pixel, inside, height, width):
    """Down and to the right of ``pixel``; zero where it is not ``inside``, and past the last row and column."""
    here = tl.load(image + pixel, inside, 0.0)
    lower = inside & (pixel // width + 1 < height)
    right = inside & (pixel % width + 1 < width)
    down = tl.where(lower, tl.load(image + pixel + width, lower, 0.0) - here, 0.0)
    across = tl.where(right, tl.load(image + pixel + 1, right, 0.0) - here, 0.0)
    return down, across


@triton.jit
def energy_kernel(u, square, gradient, partial, height, width, blocks, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    image = u + b * height * width
    least = tl.load(square)
    down, across = _differences(image, pixel, inside, height, width)
    root = tl.sqrt(least + down * down + across * across)
    result = -(down + across) / root
    a_down, a_across = _differences(image, pixel - width, inside & (pixel >= width), height, width)
    result += a_down / tl.sqrt(least + a_down * a_down + a_across * a_across)
    l_down, l_across = _differences(image, pixel - 1, inside & (pixel % width > 0), height, width)
    result += l_across / tl.sqrt(least + l_down * l_down + l_across * l_across)
    tl.store(gradient + b * height * width + pixel, result, inside)
    tl.store(partial + b * blocks + tl.program_id(0), tl.sum(tl.where(inside, root, 0.0).to(tl.float64)))


@triton.jit
def curvature_kernel(u, d, square, partial, height, width, blocks, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    down, across = _differences(u + b * height * width, pixel, inside, height, width)
    fallen, turned = _differences(d + b * height * width, pixel, inside, height, width)
    form = (fallen * fallen + turned * turned) / tl.sqrt(tl.load(square) + down * down + across * across)
    tl.store(partial + b * blocks + tl.program_id(0), tl.sum(form.to(tl.float64)))


def energy_and_gradient(u: Tensor, epsilon: float, energy: Tensor, gradient: Tensor) -> None:
    _launch(energy_kernel, u, epsilon, energy, u, gradient=gradient)


def curvature(u: Tensor, d: Tensor, epsilon: float, out: Tensor) -> None:
    _launch(curvature_kernel, u, epsilon, out, u, d)


def _launch(kernel, u: Tensor, epsilon: float, sums: Tensor, *inputs: Tensor, gradient: Tensor | None = None) -> None:
    if not u.numel():
        sums.zero_()
        return
    batch, height, width = u.shape
    blocks = triton.cdiv(height * width, BLOCK)
    partial = u.new_empty((batch, blocks), dtype=torch.float64)
    square = u.new_full((1,), epsilon**2)  # a number among the arguments would be one of single precision
    outputs = (partial,) if gradient is None else (gradient, partial)
    kernel[(blocks, batch)](*inputs, square, *outputs, height, width, blocks, BLOCK=BLOCK)
    sums.copy_(partial.sum(dim=1))
