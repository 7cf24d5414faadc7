"""Triton kernels of pyrecon/ops/_consistency.py."""

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
    outside = not (norm <= r)  # NaN counts as outside, and then shows in the whole row
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


@triton.jit
def one_pass_kernel(
    A, x, d, y, ax, sums, squares, m, n, programs,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, IMAGE: tl.constexpr,
):  # fmt: skip
    # A block of rows, which stays in L1 between its product and its two adjoint sums. WIDTH and IMAGE are the reals
    # per number of A and of x. sums (batch, programs, 2, IMAGE, n): p = A^H (y + d), q = A^H (A x - d - y).
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = program * ROWS + tl.arange(0, ROWS)
    valid = rows < m
    cols = tl.arange(0, COLS)
    line = A + rows.to(tl.int64)[:, None] * (n * WIDTH)
    x += sample * n * IMAGE
    at = sample * m * WIDTH + rows * WIDTH
    sums += (sample * programs + program) * (2 * IMAGE) * n
    re = tl.zeros((ROWS,), A.dtype.element_ty)
    im = tl.zeros((ROWS,), A.dtype.element_ty)
    for start in range(0, n, COLS):
        c = start + cols
        inside = valid[:, None] & (c < n)[None, :]
        a = tl.load(line + c[None, :] * WIDTH, inside, 0.0)
        xr = tl.load(x + c * IMAGE, c < n, 0.0)[None, :]
        re += tl.sum(a * xr, 1)
        if WIDTH == 2:
            b = tl.load(line + c[None, :] * WIDTH + 1, inside, 0.0)
            im += tl.sum(b * xr, 1)
            if IMAGE == 2:
                xi = tl.load(x + c * IMAGE + 1, c < n, 0.0)[None, :]
                re -= tl.sum(b * xi, 1)
                im += tl.sum(a * xi, 1)
    tl.store(ax + at, re, valid)
    dr = tl.load(d + at, valid, 0.0)
    yr = tl.load(y + at, valid, 0.0)
    pr = (yr + dr)[:, None]
    offset = tl.where(valid, re - dr - yr, 0.0)
    qr = offset[:, None]
    square = tl.sum(offset * offset, 0)
    if WIDTH == 2:
        tl.store(ax + at + 1, im, valid)
        di = tl.load(d + at + 1, valid, 0.0)
        yi = tl.load(y + at + 1, valid, 0.0)
        pi = (yi + di)[:, None]
        offset = tl.where(valid, im - di - yi, 0.0)
        qi = offset[:, None]
        square += tl.sum(offset * offset, 0)
    tl.store(squares + sample * programs + program, square)
    for start in range(0, n, COLS):
        c = start + cols
        inside = valid[:, None] & (c < n)[None, :]
        a = tl.load(line + c[None, :] * WIDTH, inside, 0.0)
        p, q = tl.sum(a * pr, 0), tl.sum(a * qr, 0)
        if WIDTH == 2:
            b = tl.load(line + c[None, :] * WIDTH + 1, inside, 0.0)
            p += tl.sum(b * pi, 0)
            q += tl.sum(b * qi, 0)
            if IMAGE == 2:
                tl.store(sums + n + c, tl.sum(a * pi, 0) - tl.sum(b * pr, 0), c < n)
                tl.store(sums + 3 * n + c, tl.sum(a * qi, 0) - tl.sum(b * qr, 0), c < n)
        tl.store(sums + c, p, c < n)
        tl.store(sums + IMAGE * n + c, q, c < n)


@triton.jit
def finish_kernel(
    d, y, radius, ax, sums, squares, z, r, reals, n, programs, z_programs,
    BLOCK: tl.constexpr, COLS: tl.constexpr, PARTS: tl.constexpr, IMAGE: tl.constexpr,
):  # fmt: skip
    # The ball's scale, by every program for itself; then a block of z, or a block of r = p + scale * q.
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), ax.dtype.element_ty)
    for start in range(0, programs, BLOCK):
        index = start + offsets
        total += tl.load(squares + sample * programs + index, index < programs, 0.0)
    limit = tl.load(radius + sample)
    norm = tl.sqrt(tl.sum(total, 0))
    outside = not (norm <= limit)  # true for NaN
    scale = tl.where(outside, limit / norm, 1.0)
    if program < z_programs:
        index = program * BLOCK + offsets
        known = index < reals
        at = sample * reals + index
        v = tl.load(ax + at, known) - tl.load(d + at, known)
        center = tl.load(y + at, known)
        tl.store(z + at, tl.where(outside, center + scale * (v - center), v), known)
    else:
        cols = (program - z_programs) * COLS + tl.arange(0, COLS)
        wanted = cols < IMAGE * n
        p = tl.zeros((COLS,), ax.dtype.element_ty)
        q = tl.zeros((COLS,), ax.dtype.element_ty)
        for start in range(0, programs, PARTS):  # tiles, so that loads do not wait for one another
            parts = start + tl.arange(0, PARTS)
            valid = (parts < programs)[:, None] & wanted[None, :]
            of_parts = sums + (sample * programs + parts)[:, None] * (2 * IMAGE) * n + cols[None, :]
            p += tl.sum(tl.load(of_parts, valid, 0.0), 0)
            q += tl.sum(tl.load(of_parts + IMAGE * n, valid, 0.0), 0)
        part, number = cols // n, cols % n
        tl.store(r + (sample * n + number) * IMAGE + part, p + scale * q, wanted)


@triton.jit
def project_dual_kernel(ax, d, y, radius, z, w, reals, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    # One program per sample: z, and w = conj(z + d), the weights of the adjoint product.
    row = tl.program_id(0).to(tl.int64) * reals
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), ax.dtype.element_ty)
    for start in range(0, reals, BLOCK):
        at = row + start + offsets
        inside = start + offsets < reals
        t = tl.load(ax + at, inside, 0.0) - tl.load(d + at, inside, 0.0) - tl.load(y + at, inside, 0.0)
        total += t * t
    limit = tl.load(radius + tl.program_id(0))
    norm = tl.sqrt(tl.sum(total, 0))
    outside = not (norm <= limit)  # true for NaN
    scale = tl.where(outside, limit / norm, 1.0)
    for start in range(0, reals, BLOCK):
        at = row + start + offsets
        inside = start + offsets < reals
        dual = tl.load(d + at, inside)
        v = tl.load(ax + at, inside) - dual
        center = tl.load(y + at, inside)
        result = tl.where(outside, center + scale * (v - center), v)
        tl.store(z + at, result, inside)
        weight = result + dual
        if WIDTH == 2:
            weight = tl.where((start + offsets) % 2 == 1, -weight, weight)
        tl.store(w + at, weight, inside)


# Up to here the one-pass kernel: it reads A once per sample, and two matrix products read it twice. At 5,486 x 338 that
# is 7.4 MB a sample from L2, which holds A, and the products of 5 samples need 0.04 GFLOP: still nothing next to that.
FEW_SAMPLES = 4


def sm_consistency(
    A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, ax: Tensor, z: Tensor, r: Tensor, *, multiply: bool
) -> None:
    """Few samples: A is read once, by row blocks, with the scale of the ball applied to finished sums.

    Many samples, or the product given: the work is in the matrix products (at 64 samples 0.48 GFLOP against 7.4 MB of
    A), which torch has; one kernel between them does the rest in one pass over its 5 arrays.
    """
    m, n = A.shape
    batch = x.shape[0]
    if batch == 0:
        return
    if m == 0 or n == 0 or batch > FEW_SAMPLES or not multiply:
        _products(A, x, d, y, radius, ax, z, r, multiply)
        return
    width, image = 1 + A.is_complex(), 1 + x.is_complex()
    rows, cols, block = 32 // width, 64, 256  # 8 reals of A a thread
    programs = triton.cdiv(m, rows)
    sums = z.new_empty((batch, programs, 2, image, n), dtype=radius.dtype)
    squares = z.new_empty((batch, programs), dtype=radius.dtype)
    A, x, d, y, ax, z, r = (_reals(t) for t in (A, x, d, y, ax, z, r))
    one_pass_kernel[(programs, batch)](
        A, x, d, y, ax, sums, squares, m, n, programs, ROWS=rows, COLS=cols, WIDTH=width, IMAGE=image, num_warps=8
    )
    z_programs = triton.cdiv(m * width, block)
    r_programs = triton.cdiv(n * image, 32)
    finish_kernel[(z_programs + r_programs, batch)](
        d, y, radius, ax, sums, squares, z, r, m * width, n, programs, z_programs,
        BLOCK=block, COLS=32, PARTS=32, IMAGE=image,
    )  # fmt: skip


def _products(
    A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, ax: Tensor, z: Tensor, r: Tensor, multiply: bool
) -> None:
    if multiply:
        torch.matmul(x.to(A.dtype), A.mT, out=ax)
    w = torch.empty_like(z)
    width = 1 + A.is_complex()
    reals = d.shape[1] * width
    project_dual_kernel[(d.shape[0],)](
        _reals(ax), _reals(d), _reals(y), radius, _reals(z), _reals(w), reals,
        BLOCK=min(2048, triton.next_power_of_2(max(reals, 1))), WIDTH=width,
    )  # fmt: skip
    # w is conj(z + d), so that A itself is the factor: conj(w A) = A^H (z + d)
    if A.is_complex() and not x.is_complex():
        r.copy_((w @ A).real)
    else:
        torch.matmul(w, A, out=r)
        if A.is_complex():
            r.conj_physical_()


def _reals(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t
