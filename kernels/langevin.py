"""Triton kernel of pyrecon/ops/_langevin.py.

A thread makes the four words of its counters and with them four numbers, 16 apart in memory: half a warp reads and
writes 64 contiguous bytes, which are whole sectors, and nothing is exchanged between threads. The formulas are those of
csrc/cpu/langevin.cpp; the logarithm and sine of a GPU's special function unit are not accurate enough near 1 and 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # float32 of a program: two counters for each of 128 threads; in double precision two would spill
MULTIPLIER_0: tl.constexpr = tl.constexpr(0xD2511F53)
MULTIPLIER_1: tl.constexpr = tl.constexpr(0xCD9E8D57)
WEYL_0: tl.constexpr = tl.constexpr(0x9E3779B9)
WEYL_1: tl.constexpr = tl.constexpr(0xBB67AE85)


@triton.jit
def _philox(c, counter, seed):
    """The four words of Philox 4x32-10; c a block of int64, counter and seed int64."""
    w0 = c.to(tl.uint32)
    w1 = (c >> 32).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    w2 = tl.zeros_like(w0) + counter.to(tl.uint32)
    w3 = tl.zeros_like(w0) + (counter >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(w0, MULTIPLIER_0)
        high_1 = tl.umulhi(w2, MULTIPLIER_1)
        low_0 = w0 * MULTIPLIER_0
        low_1 = w2 * MULTIPLIER_1
        w0 = high_1 ^ w1 ^ k0
        w1 = low_1
        w2 = high_0 ^ w3 ^ k1
        w3 = low_0
        k0 = k0 + WEYL_0
        k1 = k1 + WEYL_1
    return w0, w1, w2, w3


@triton.jit
def _horner4(z, a, b, c, d):
    return ((d * z + c) * z + b) * z + a


@triton.jit
def _fits(s2, f2, DOUBLE: tl.constexpr):
    """-2 ln((1 + s) / (1 - s)) / s, sin(pi f / 2) / f and (cos(pi f / 2) - 1) / f^2, from s^2 and f^2."""
    if DOUBLE:
        q = s2 * s2
        log = _horner4(s2, -3.9999999999999999955, -1.333333333333353054, -0.79999999998596914673,
                       -0.57142857522886459829) + q * q * _horner4(
                       s2, -0.44444393955842006777, -0.36367271312305112123, -0.30624857412761590015,
                       -0.29621374444152577706)  # fmt: skip
        q = f2 * f2
        sine = _horner4(f2, 1.570796326794896614, -0.64596409750624424166, 0.079692626246039562406,
                        -0.0046817541322824539871) + q * q * _horner4(
                        f2, 0.00016044115029189453789, -3.5986417551299962024e-6, 5.6337210755562738854e-8,
                        0.0)  # fmt: skip
        cosine = _horner4(f2, -1.2337005501361698153, 0.25366950790104681547, -0.020863480763312570575,
                          0.00091926027419108254805) + q * q * _horner4(
                          f2, -0.000025202036788364264489, 4.7106096711099199206e-7, -6.3212022258957783505e-9,
                          0.0)  # fmt: skip
    else:
        log = _horner4(s2, -3.9999999972415777724, -1.3333363199186563701, -0.79949579566541335448,
                       -0.59851581699742736386)  # fmt: skip
        sine = _horner4(f2, 1.5707963217084681818, -0.64596346024012343447, 0.079680032797699654999,
                        -0.0046016578939530240114)  # fmt: skip
        cosine = _horner4(f2, -1.2337005425977891052, 0.25366925592718751133, -0.020860165121283088868,
                          0.00090376656092805011682)  # fmt: skip
    return log, sine, cosine


@triton.jit
def _normal_pair(v, w, DOUBLE: tl.constexpr):
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    u = ((v >> 1) | 1).to(tl.int32, bitcast=True).to(tl.float32)
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    single = (bits - (e << 23)).to(tl.float32, bitcast=True)
    m = single.to(dtype)
    if DOUBLE:  # by Newton steps: the division of doubles is a call, around which registers spill
        inverse = (1.0 / (single + 1.0)).to(dtype)
        inverse += inverse * (1.0 - (m + 1.0) * inverse)
        inverse += inverse * (1.0 - (m + 1.0) * inverse)
        s = (m - 1.0) * inverse
    else:
        s = (m - 1.0) / (m + 1.0)
    f = (w << 2).to(tl.int32, bitcast=True).to(tl.float32).to(dtype) * 2.0**-32
    log, sine, cosine = _fits(s * s, f * f, DOUBLE)
    square = (31 - e).to(dtype) * 1.38629436111989061883 + s * log
    radius = tl.sqrt(tl.maximum(square, 0.0))
    b = radius * f * sine
    a = radius + radius * (f * f) * cosine
    a = tl.where((w >> 31) != 0, -a, a)
    exchanged = ((w >> 30) & 1) != 0
    return tl.where(exchanged, b, a), tl.where(exchanged, a, b)


@triton.jit
def _advance(xi, at, at_m2, inside, inside_m2, x, grad, half_step, noise_std, mean, m2, share, out, new_mean, new_m2,
             WIDTH: tl.constexpr, MOMENTS: tl.constexpr, NONNEG: tl.constexpr):  # fmt: skip
    v = tl.load(x + at, inside, 0.0) - half_step * tl.load(grad + at, inside, 0.0) + noise_std * xi
    if NONNEG:
        v = tl.where(v < 0, 0.0, v)
    if MOMENTS:
        before = tl.load(mean + at, inside, 0.0)
        delta = v - before
        after = before + share * delta
        tl.store(new_mean + at, after, inside)
        square = delta * (v - after)
        if WIDTH == 2:
            square = tl.sum(tl.reshape(square, (square.shape[0] // 2, 2)), 1)
        tl.store(new_m2 + at_m2, tl.load(m2 + at_m2, inside_m2, 0.0) + square, inside_m2)
    tl.store(out + at, v, inside)


@triton.jit
def _place(i, k: tl.constexpr, base, first, low, high):
    """Where number k of counter base + i lies in the arrays, and whether it is between low and high."""
    c = base + i
    at = (c >> 4) * 64 + (c & 15) + (16 * k - first)
    return at, (at >= low) & (at < high)


@triton.jit(do_not_specialize=["seed", "counter", "first", "n", "blocks"])
def langevin_step_kernel(
    x, grad, step, noise_std, mean, m2, count, clock, out, new_mean, new_m2, n, blocks, seed, counter, first,
    WIDTH: tl.constexpr, MOMENTS: tl.constexpr, NONNEG: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // blocks).to(tl.int64)
    low = row * n
    first = first.to(tl.int64)
    base = ((first + low) >> 6) * 16 + (tl.program_id(0) % blocks).to(tl.int64) * (BLOCK // 4)
    half_step = tl.load(step + row) * 0.5
    std = tl.load(noise_std + row)
    share = half_step
    if MOMENTS:
        share = 1.0 / (tl.load(count) + 1).to(half_step.dtype)
    counter = counter.to(tl.int64)
    if clock is not None:
        counter += tl.load(clock)
    i = tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = _philox(base + i, counter, seed.to(tl.int64))
    xi_0, xi_1 = _normal_pair(w0, w1, DOUBLE)
    xi_2, xi_3 = _normal_pair(w2, w3, DOUBLE)
    for k in tl.static_range(4):
        at, inside = _place(i, k, base, first, low, low + n)
        at_m2 = at
        inside_m2 = inside
        if MOMENTS and WIDTH == 2:
            at_m2, inside_m2 = _place(2 * tl.arange(0, BLOCK // 8), k, base, first, low, low + n)
            at_m2 = at_m2 // 2
        if k == 0:
            xi = xi_0
        elif k == 1:
            xi = xi_1
        elif k == 2:
            xi = xi_2
        else:
            xi = xi_3
        _advance(xi, at, at_m2, inside, inside_m2, x, grad, half_step, std, mean, m2, share, out, new_mean, new_m2,
                 WIDTH, MOMENTS, NONNEG)  # fmt: skip


def langevin_step(
    x: Tensor,
    grad: Tensor,
    step: Tensor,
    noise_std: Tensor,
    mean: Tensor | None,
    m2: Tensor | None,
    count: Tensor | None,
    seed: int,
    counter: int,
    offset: int,
    clock: Tensor | None,
    nonneg: bool,
    out: Tensor,
    new_mean: Tensor | None,
    new_m2: Tensor | None,
) -> None:
    """``step`` and ``noise_std`` (rows,), one for each of the rows that x is cut into."""
    if x.numel() == 0:
        return
    rows, width = step.shape[0], 2 if x.is_complex() else 1
    n = width * x.numel() // rows
    double = step.dtype == torch.float64
    block = BLOCK // 2 if double else BLOCK
    blocks = triton.cdiv(triton.cdiv(n, 64) + 1, block // 64)  # a row may begin in the middle of 64 numbers
    langevin_step_kernel[(rows * blocks,)](
        *(_reals(t) for t in (x, grad, step, noise_std, mean, m2, count, clock, out, new_mean, new_m2)),
        n, blocks, seed, counter, width * offset,
        WIDTH=width, MOMENTS=mean is not None, NONNEG=nonneg, DOUBLE=double, BLOCK=block, num_warps=4,
    )  # fmt: skip


def _reals(t: Tensor | None) -> Tensor | None:
    return torch.view_as_real(t) if t is not None and t.is_complex() else t
