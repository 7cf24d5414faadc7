"""Backprojection of filtered views on a GPU: pyrecon/ops/_fbp.py has the law.

A program takes neighbouring pixels of a row through all views. Places are computed in double: they are few operations,
and GPUs that reconstruct do them at half the speed of single ones.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _atan(t):
    # Four times half the angle leaves less than pi / 32, where a series of seven terms has all digits.
    for _ in tl.static_range(4):
        t = t / (1.0 + tl.sqrt(1.0 + t * t))
    x = t * t
    series = 1.0 / 13 - x * (1.0 / 15)
    series = 1.0 / 11 - x * series
    series = 1.0 / 9 - x * series
    series = 1.0 / 7 - x * series
    series = 1.0 / 5 - x * series
    series = 1.0 / 3 - x * series
    return 16.0 * t * (1.0 - x * series)


@triton.jit
def fbp_kernel(sino, cameras, out, height, width, views, n_det, blocks, CURVED: tl.constexpr, BLOCK: tl.constexpr):
    line = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    i = (line % height).to(tl.float64)
    j = column.to(tl.float64)
    data = sino + line // height * views * n_det
    T: tl.constexpr = out.dtype.element_ty
    total = tl.zeros([BLOCK], T)
    for v in range(views):
        c = cameras + 8 * v
        n = tl.load(c) + tl.load(c + 1) * j + tl.load(c + 2) * i
        u = tl.load(c + 3) + tl.load(c + 4) * j + tl.load(c + 5) * i
        if CURVED:
            # From -pi to pi, as half an angle: tan(a / 2) = n / (r + u).
            r = tl.sqrt(n * n + u * u)
            place = tl.load(c + 6) + tl.load(c + 7) * 2.0 * _atan(n / (r + u))
            weight = 1.0 / (n * n + u * u)
        else:
            behind = u <= 0
            t = 1.0 / tl.where(behind, 1.0, u)
            place = tl.where(behind, -1.0, tl.load(c + 6) + tl.load(c + 7) * n * t)
            weight = tl.where(behind, 0.0, t * t)
        place = tl.minimum(tl.maximum(place, -1.0), n_det)
        before = tl.floor(place)
        d = before.to(tl.int32)
        a = tl.load(data + v * n_det + d, inside & (d >= 0) & (d < n_det), 0.0)
        b = tl.load(data + v * n_det + d + 1, inside & (d < n_det - 1), 0.0)
        total += weight.to(T) * (a + (place - before).to(T) * (b - a))
    tl.store(out + line * width + column, total, inside)


def fbp(sino: Tensor, cameras: Tensor, curved: bool, height: int, width: int, out: Tensor) -> None:
    batch, views, n_det = sino.shape
    if batch == 0:
        return
    block = min(128, triton.next_power_of_2(width))
    blocks = triton.cdiv(width, block)
    fbp_kernel[(batch * height * blocks,)](
        sino, cameras, out, height, width, views, n_det, blocks, CURVED=curved, BLOCK=block,
        num_warps=max(1, block // 32),
    )  # fmt: skip
