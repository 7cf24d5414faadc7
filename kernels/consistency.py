"""Triton kernels of pyrecon.ops.consistency."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def project_l2_ball_kernel(v, center, radius, out, n, BLOCK: tl.constexpr):
    # One program per row, two passes: the row of 5,486 reals stays in L2 between them.
    row = tl.program_id(0).to(tl.int64)
    v += row * n
    center += row * n
    out += row * n
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), v.dtype.element_ty)  # BLOCK partial sums: n / BLOCK terms in each
    for start in range(0, n, BLOCK):
        inside = start + offsets < n
        d = tl.load(v + start + offsets, inside, 0.0) - tl.load(center + start + offsets, inside, 0.0)
        total += d * d
    r = tl.load(radius + row)
    norm = tl.sqrt(tl.sum(total, 0))
    outside = norm > r  # false for NaN: such a row comes back as it came
    scale = tl.where(outside, r / norm, 1.0)
    for start in range(0, n, BLOCK):
        inside = start + offsets < n
        a = tl.load(v + start + offsets, inside)
        c = tl.load(center + start + offsets, inside)
        tl.store(out + start + offsets, tl.where(outside, c + scale * (a - c), a), inside)


def project_l2_ball(v: Tensor, center: Tensor, radius: Tensor, out: Tensor) -> None:
    if v.numel() == 0:
        return
    if v.is_complex():
        v, center, out = (torch.view_as_real(t).flatten(1) for t in (v, center, out))
    batch, n = v.shape
    block = min(2048, triton.next_power_of_2(n))
    project_l2_ball_kernel[(batch,)](v, center, radius, out, n, BLOCK=block)
