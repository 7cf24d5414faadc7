"""Line integrals and their transpose on a GPU: pyrecon/ops/_radon.py has the law.

A program takes neighbouring rays of a view and walks with them from row to row. Places are computed in double once per
strip of 16 rows and in the image's precision from there. The transpose adds to the image atomically: its sums are in no
fixed order, so that two runs differ by rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _walk(rays, along, view, d, inside, height, width, n_det):
    # start, slope and weight of rays; their rows and columns, and the steps in memory to the next of both.
    at = rays + 3 * view * n_det + d
    start = tl.load(at, inside, 0.0)
    slope = tl.load(at + n_det, inside, 0.0)
    weight = tl.load(at + 2 * n_det, inside, 0.0)
    down = tl.load(along + view * n_det + d, inside, 0) != 0
    rows = tl.where(down, height, width)
    columns = tl.where(down, width, height)
    return start, slope, weight, rows, columns, tl.where(down, width, 1), tl.where(down, 1, width)


@triton.jit
def radon_kernel(
    image, rays, along, out, height, width, views, n_det, blocks, steps, BLOCK: tl.constexpr, STRIP: tl.constexpr
):
    item = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = d < n_det
    start, slope, weight, rows, columns, row_step, column_step = _walk(
        rays, along, item % views, d, inside, height, width, n_det
    )
    pixels = image + item // views * height * width
    T: tl.constexpr = out.dtype.element_ty
    total = tl.zeros([BLOCK], T)
    for first in range(0, steps, STRIP):
        place = tl.minimum(tl.maximum(start + slope * first, -1e6), 1e6)  # what is so far outside stays there
        whole = tl.floor(place)
        fraction = (place - whole).to(T)
        for k in tl.static_range(STRIP):
            at = fraction + slope.to(T) * k
            before = tl.floor(at)
            i = whole.to(tl.int32) + before.to(tl.int32)
            here = inside & (first + k < rows)
            p = pixels + (first + k) * row_step + i * column_step
            a = tl.load(p, here & (i >= 0) & (i < columns), 0.0)
            b = tl.load(p + column_step, here & (i >= -1) & (i < columns - 1), 0.0)
            total += a + (at - before) * (b - a)
    tl.store(out + item * n_det + d, total * weight.to(T), inside)


@triton.jit
def radon_adjoint_kernel(
    sino, rays, along, out, height, width, views, n_det, blocks, steps, BLOCK: tl.constexpr, STRIP: tl.constexpr
):
    item = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = d < n_det
    start, slope, weight, rows, columns, row_step, column_step = _walk(
        rays, along, item % views, d, inside, height, width, n_det
    )
    pixels = out + item // views * height * width
    T: tl.constexpr = out.dtype.element_ty
    value = tl.load(sino + item * n_det + d, inside, 0.0) * weight.to(T)
    for first in range(0, steps, STRIP):
        place = tl.minimum(tl.maximum(start + slope * first, -1e6), 1e6)
        whole = tl.floor(place)
        fraction = (place - whole).to(T)
        for k in tl.static_range(STRIP):
            at = fraction + slope.to(T) * k
            before = tl.floor(at)
            i = whole.to(tl.int32) + before.to(tl.int32)
            here = inside & (first + k < rows)
            p = pixels + (first + k) * row_step + i * column_step
            f = at - before
            tl.atomic_add(p, (1 - f) * value, here & (i >= 0) & (i < columns), sem="relaxed")
            tl.atomic_add(p + column_step, f * value, here & (i >= -1) & (i < columns - 1), sem="relaxed")


def radon(image: Tensor, rays: Tensor, along: Tensor, out: Tensor) -> None:
    _launch(radon_kernel, image, rays, along, out, image.shape)


def radon_adjoint(sino: Tensor, rays: Tensor, along: Tensor, out: Tensor) -> None:
    out.zero_()
    _launch(radon_adjoint_kernel, sino, rays, along, out, out.shape)


def _launch(kernel: object, source: Tensor, rays: Tensor, along: Tensor, out: Tensor, shape: torch.Size) -> None:
    batch, height, width = shape
    views, n_det = along.shape
    if batch == 0:
        return
    block = min(128, triton.next_power_of_2(n_det))
    blocks = triton.cdiv(n_det, block)
    kernel[(batch * views * blocks,)](  # type: ignore[index]
        source, rays, along.view(torch.uint8), out, height, width, views, n_det, blocks, max(height, width),
        BLOCK=block, STRIP=16, num_warps=max(1, block // 32),
    )  # fmt: skip
