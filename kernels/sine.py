"""Triton kernels of pyrecon/ops/_sine.py: transforms as products with the matrix of sines, on the matrix units.

In single precision a product is three of tf32, which keeps single precision (error about 1e-7 of the scale, where tf32
alone has 5e-4). At 15 coils of 640 x 368 that is 0.06 TFLOP in tf32 for all four transforms of the prox; they read and
write 57 MB each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

Table = Callable[[int, torch.dtype, torch.device], Tensor]  # of the sines or of the eigenvalues for n


@triton.jit
def sine_kernel(
    x, sines, out, weight, eigenvalues, other_eigenvalues, n, width, plane, step, group, group_step, k_blocks, c_blocks,
    planes_per_weight, field,
    K: tl.constexpr, C: tl.constexpr, J: tl.constexpr, PRECISION: tl.constexpr, DAMPED: tl.constexpr,
    OTHER: tl.constexpr,
):  # fmt: skip
    # A block of out[p, k, c] = sum_j sines[k, j] x[p, j, c]. Number (j, c) of a plane is `step` * j reals from its
    # start, and columns c come in groups of neighbours, `group_step` apart.
    # DAMPED: over 1 + weight (lambda_k + lambda'_c), with OTHER eigenvalues, each for `field` columns.
    program = tl.program_id(0)
    p = (program // (k_blocks * c_blocks)).to(tl.int64)
    k = (program // c_blocks % k_blocks) * K + tl.arange(0, K)
    c = (program % c_blocks) * C + tl.arange(0, C)
    columns = p * plane + (c // group).to(tl.int64) * group_step + c % group
    total = tl.zeros((K, C), out.dtype.element_ty)
    for start in range(0, n, J):
        j = start + tl.arange(0, J)
        s = tl.load(sines + k[:, None] * n + j[None, :], (k < n)[:, None] & (j < n)[None, :], 0.0)
        v = tl.load(x + j[:, None] * step + columns[None, :], (j < n)[:, None] & (c < width)[None, :], 0.0)
        total = tl.dot(s, v, total, input_precision=PRECISION, out_dtype=out.dtype.element_ty)
    if DAMPED:
        level = tl.load(weight + p // planes_per_weight)
        damping = 1.0 + level * tl.load(eigenvalues + k, k < n, 0.0)[:, None]
        if OTHER:
            damping += level * tl.load(other_eigenvalues + c // field, c < width, 0.0)[None, :]
        total = total / damping
    tl.store(out + k[:, None] * step + columns[None, :], total, (k < n)[:, None] & (c < width)[None, :])


def dst1(x: Tensor, rows: bool, cols: bool, sines: Table, out: Tensor) -> None:
    """Along the axes of planes (P, R, C) that are wanted."""
    if x.numel() == 0:
        return
    between = torch.empty_like(x) if rows and cols else x
    if cols:
        _transform(x, 2, sines, between if rows else out)
    if rows:
        _transform(between, 1, sines, out)


def prox_smooth_maps(
    maps: Tensor, weight: Tensor, rows: bool, cols: bool, sines: Table, eigenvalues: Table, out: Tensor
) -> None:
    """Transforms, the eigenvalues in the one that comes last, and transforms back."""
    if maps.numel() == 0:
        return
    spectrum = torch.empty_like(maps)
    if rows and cols:
        _transform(maps, 2, sines, spectrum)
        _transform(spectrum, 1, sines, out, weight, eigenvalues, other=True)
        _transform(out, 1, sines, spectrum)
        _transform(spectrum, 2, sines, out)
    else:
        axis = 1 if rows else 2
        _transform(maps, axis, sines, spectrum, weight, eigenvalues)
        _transform(spectrum, axis, sines, out)


def _transform(
    x: Tensor,
    axis: int,
    sines: Table,
    out: Tensor,
    weight: Tensor | None = None,
    eigenvalues: Table | None = None,
    *,
    other: bool = False,
) -> None:
    field = 1 + x.is_complex()
    planes, rows, cols = x.shape
    if x.is_complex():
        x, out = torch.view_as_real(x), torch.view_as_real(out)
    n = rows if axis == 1 else cols
    width, step, group, group_step = (
        (cols * field, cols * field, 1, 1) if axis == 1 else (rows * field, field, field, cols * field)
    )
    along, across = None, None
    if eigenvalues is not None:
        along = eigenvalues(n, x.dtype, x.device)
        across = eigenvalues(cols if axis == 1 else rows, x.dtype, x.device) if other else None
    double = x.dtype == torch.float64
    most = 32 if double else 64
    k, c = (min(most, max(16, triton.next_power_of_2(size))) for size in (n, width))
    k_blocks, c_blocks = triton.cdiv(n, k), triton.cdiv(width, c)
    sine_kernel[(planes * k_blocks * c_blocks,)](
        x, sines(n, x.dtype, x.device), out, weight, along, across, n, width, rows * cols * field, step, group,
        group_step, k_blocks, c_blocks, planes // len(weight) if weight is not None else 1, field,
        K=k, C=c, J=16 if double else 32, PRECISION="ieee" if double else "tf32x3", DAMPED=weight is not None,
        OTHER=other, num_warps=4,
    )  # fmt: skip
