"""Triton kernels of pyrecon/ops/_anderson.py.

Two launches per step and no host synchronisation. The first sums the newest row of the Gram matrix over slices of the
vectors; the second solves the small system and mixes one block of the result. Every program of the second solves for
itself: at memory 5 that is 5 eliminations of an 8 x 8 tile in registers, less than a third launch costs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLITS = 16  # slices of one vector: B = 8 samples then fill the 132 multiprocessors of an H200
BLOCK = 1024


@triton.jit
def products_kernel(G, count, count_stride, products, n, m, slice_length, MEMORY: tl.constexpr, BLOCK: tl.constexpr):
    """products[b, slice, i] = <G_newest, G_i> over one slice."""
    sample = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    stored = tl.maximum(tl.load(count + sample * count_stride), 1)
    newest = (stored - 1) % m
    slots = tl.arange(0, MEMORY)
    used = slots < tl.minimum(stored, m)
    base = G + sample * m * n
    totals = tl.zeros((MEMORY,), tl.float64)
    for start in range(part * slice_length, tl.minimum((part + 1) * slice_length, n), BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < tl.minimum((part + 1) * slice_length, n)
        g = tl.load(base + newest * n + at, inside, 0.0)
        rows = tl.load(base + slots[:, None] * n + at[None, :], used[:, None] & inside[None, :], 0.0)
        totals += tl.sum(rows * g[None, :], 1).to(tl.float64)  # BLOCK terms in the dtype, then double
    tl.store(products + (sample * tl.num_programs(1) + part) * MEMORY + slots, totals)


@triton.jit
def mix_kernel(
    X, G, gram, count, count_stride, products, out, n, m, BETA: tl.constexpr, RIDGE: tl.constexpr,
    ABSOLUTE: tl.constexpr, PARTS: tl.constexpr, MEMORY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    stored = tl.maximum(tl.load(count + sample * count_stride), 1)
    newest = (stored - 1) % m
    used_count = tl.minimum(stored, m)
    i, j = tl.arange(0, MEMORY)[:, None], tl.arange(0, MEMORY)[None, :]
    slots = tl.arange(0, MEMORY)
    used = slots < used_count

    parts = tl.arange(0, PARTS)[:, None]
    row = tl.sum(tl.load(products + (sample * PARTS + parts) * MEMORY + tl.arange(0, MEMORY)[None, :]), 0)
    cell = gram + sample * m * m
    if tl.program_id(1) == 0:  # nobody reads this row and column: the sums above stand in for them
        tl.store(cell + newest * m + slots, row.to(gram.dtype.element_ty), used)
        tl.store(cell + slots * m + newest, row.to(gram.dtype.element_ty), used)
    inside = (i < used_count) & (j < used_count)
    matrix = tl.load(cell + i * m + j, inside & (i != newest) & (j != newest), 0.0).to(tl.float64)
    by_row = tl.sum(tl.where(i == j, row[None, :], 0.0), 1)  # the same sums, laid out along the first axis
    matrix = tl.where(inside & (i == newest), row[None, :], matrix)
    matrix = tl.where(inside & (j == newest), by_row[:, None], matrix)
    # BETA and RIDGE are constants of the solver: as arguments they would arrive rounded to float32.
    shift = tl.full((), RIDGE, tl.float64)
    if not ABSOLUTE:
        shift *= tl.sum(tl.sum(tl.where(i == j, matrix, 0.0), 0), 0) / used_count
    matrix += tl.where(i == j, tl.where(i < used_count, shift, 1.0), 0.0)

    # Gauss-Jordan without pivoting: the matrix is positive definite, or a pivot says that it is not.
    right = tl.where(used, 1.0, 0.0).to(tl.float64)
    smallest = tl.full((), 1.0, tl.float64)
    for k in range(0, MEMORY):
        pivot_row = tl.sum(tl.where(i == k, matrix, 0.0), 0)
        pivot_column = tl.sum(tl.where(j == k, matrix, 0.0), 1)
        pivot = tl.sum(tl.where(slots == k, pivot_row, 0.0), 0)
        smallest = tl.where((pivot > 0) & (pivot < 1e300), smallest, -1.0)
        factor = tl.where(slots == k, 0.0, pivot_column) * (1.0 / pivot)
        pivot_right = tl.sum(tl.where(slots == k, right, 0.0), 0)
        right = tl.where(slots == k, right, right - factor * pivot_right)
        matrix -= factor[:, None] * pivot_row[None, :]
    diagonal = tl.sum(tl.where(i == j, matrix, 0.0), 1)
    alpha = tl.where(used, right / diagonal, 0.0)
    total = tl.sum(alpha, 0)
    regular = (smallest > 0) & (tl.abs(total) > 0) & (tl.abs(total) < 1e300)
    weights = tl.where(regular, alpha * (1.0 / total), tl.where(slots == newest, 1.0, 0.0))
    weights = weights.to(out.dtype.element_ty)

    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wanted = used[:, None] & (at < n)[None, :]
    place = (sample * m + tl.arange(0, MEMORY)[:, None]) * n + at[None, :]
    mixed = tl.load(X + place, wanted, 0.0)
    if BETA != 0.0:
        mixed += tl.full((), BETA, out.dtype.element_ty) * tl.load(G + place, wanted, 0.0)
    by_slot = tl.sum(tl.where(i == j, weights[None, :], 0.0), 1)
    tl.store(out + sample * n + at, tl.sum(by_slot[:, None] * mixed, 0), at < n)


def anderson_mix(
    X: Tensor, G: Tensor, gram: Tensor, count: Tensor, beta: float, ridge: float, absolute_ridge: bool, out: Tensor
) -> None:
    if out.numel() == 0:
        return
    if X.is_complex():
        X, G, out = (torch.view_as_real(t).flatten(-2) for t in (X, G, out))
    batch, m, n = X.shape
    memory = triton.next_power_of_2(m)
    slice_length = triton.cdiv(triton.cdiv(n, SPLITS), BLOCK) * BLOCK
    products = torch.empty(batch, SPLITS, memory, dtype=torch.float64, device=X.device)
    stride = int(count.shape[0] > 1)
    products_kernel[(batch, SPLITS)](G, count, stride, products, n, m, slice_length, MEMORY=memory, BLOCK=BLOCK)
    block = 256 if X.dtype == torch.float64 else BLOCK  # 1024 doubles spill registers on sm_100
    mix_kernel[(batch, triton.cdiv(n, block))](
        X, G, gram, count, stride, products, out, n, m, beta, ridge,
        ABSOLUTE=absolute_ridge, PARTS=SPLITS, MEMORY=memory, BLOCK=block,
    )  # fmt: skip
