"""Triton kernels of pyrecon/ops/_fit.py: gradients of the fit, a voxel in each lane of one warp as in fit.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyrecon.kernels.fit import (
    BY_FIT,
    GRID,
    _at,
    _begin,
    _inverse,
    _mean,
    _numbers,
    _parameter,
    _recovery,
    _shapes,
    _signed,
    reals,
    sizes,
)

CHUNKS = 1024  # programs that share the voxels of a table that is that of all voxels


@triton.jit(do_not_specialize=["images", "voxels", "blocks", "per_sample"])
def fit_backward_kernel(
    grad, value, data, curves, prior, weight, settings, grad_data, u, images, voxels, blocks, per_sample,
    LINEAR: tl.constexpr, CHANNELS: tl.constexpr, POLARITY: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SIGNS: tl.constexpr = BY_FIT if POLARITY else 0
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    lane = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = lane < voxels
    v = tl.minimum(lane, voxels - 1)
    k = tl.arange(0, CHANNELS)[:, None]
    voxels = voxels.to(tl.int64)
    series, level = _begin(
        data, curves, prior, weight, sample, v, k, images, voxels, per_sample, LINEAR, CHANNELS, SHARED
    )
    rate = tl.load(_parameter(value, sample, voxels, v, 0, LINEAR, CHANNELS))
    c = tl.load(_parameter(value, sample, voxels, v, 1 + CHANNELS * (LINEAR - 1) + k, LINEAR, CHANNELS))
    up = tl.load(_parameter(grad, sample, voxels, v, 0, LINEAR, CHANNELS))
    uc = tl.load(_parameter(grad, sample, voxels, v, 1 + CHANNELS * (LINEAR - 1) + k, LINEAR, CHANNELS))
    a = tl.zeros_like(c)
    ua = a
    if LINEAR == 2:
        a = tl.load(_parameter(value, sample, voxels, v, 1 + k, LINEAR, CHANNELS))
        ua = tl.load(_parameter(grad, sample, voxels, v, 1 + k, LINEAR, CHANNELS))
    mean = _mean(series, rate, v, a, c, level, LINEAR, SIGNS)
    _, _, second, _, _, centre, inverse, cross, with_a = _at(series, rate, v, a, c, mean, level, LINEAR, SIGNS)
    uc -= centre * ua
    up -= tl.sum(with_a * ua, 0, keep_dims=True) * level.share + tl.sum(cross * uc, 0, keep_dims=True) * inverse
    free = (rate > tl.load(settings)) & (rate < tl.load(settings + GRID - 1))
    up = tl.where(free, up * _inverse(second), 0.0)
    uc = (uc - cross * up) * inverse
    if LINEAR == 2:
        ua = (ua - with_a * up) * level.share - centre * uc
    # Infinite or NaN, in any channel: less itself it is not zero.
    known = (rate == rate) & (up - up == 0) & (tl.sum((uc - uc) + (ua - ua), 0, keep_dims=True) == 0)
    up = tl.where(known, up, 0.0)
    uc = tl.where(known, uc, 0.0)
    ua = tl.where(known, ua, 0.0)
    tl.store(_parameter(u, sample, voxels, v, 0, LINEAR, CHANNELS), up, inside)
    tl.store(_parameter(u, sample, voxels, v, 1 + CHANNELS * (LINEAR - 1) + k, LINEAR, CHANNELS), uc, inside)
    if LINEAR == 2:
        tl.store(_parameter(u, sample, voxels, v, 1 + k, LINEAR, CHANNELS), ua, inside)
    for t in range(0, images):
        phi, d1, _d2 = _shapes(series, t, rate, LINEAR)
        moved = _signed(ua + uc * phi + c * up * d1, t, phi, v, a, c, SIGNS)
        at = _numbers(grad_data, sample * images + t, voxels, v, k, CHANNELS)
        tl.store(at, tl.where(known, moved, 0.0), inside)


@triton.jit
def _by_table(of_phi, of_d1, time, rate, m, decay, at, row, LINEAR: tl.constexpr):
    """``of_phi phi + of_d1 dphi/dR`` differentiated by the five rows of a table."""
    if LINEAR == 2:  # phi = E, whatever the other rows
        by_time = (of_d1 * (time * rate - 1.0) - of_phi * rate) * decay
        by_sums = tl.zeros_like(by_time)
        by_q = by_sums
        by_rest = by_sums
        by_u = by_sums
    else:
        sums = tl.load(at + row)
        q = tl.load(at + 2 * row)
        rest = tl.load(at + 3 * row)
        u = tl.load(at + 4 * row)
        inverse = _inverse(rest + u * m)
        of_d1 *= inverse * inverse
        of_phi *= inverse
        phi = (sums - q * m) * inverse
        joint = q * rest + u * sums
        slope = time * decay  # dm/dR; dphi/dR = -joint slope inverse^2
        twice = 2.0 * joint * inverse
        by_time = decay * (joint * (of_d1 * (time * rate - 1.0) - of_phi * inverse * rate))
        by_time += decay * (of_d1 * twice * slope * u * rate)
        by_sums = of_phi - of_d1 * u * slope
        by_q = -of_phi * m - of_d1 * rest * slope
        by_rest = -of_phi * phi + of_d1 * slope * (twice - q)
        by_u = -of_phi * phi * m + of_d1 * slope * (twice * m - sums)
    return by_time, by_sums, by_q, by_rest, by_u


@triton.jit
def _store_row(grad, r: tl.constexpr, g, t, v, inside, images, voxels, SHARED: tl.constexpr):
    if SHARED:
        tl.store(grad + r * images + t, tl.sum(tl.sum(g, 1), 0))
    else:
        tl.store(grad + (r * images + t) * voxels + v, g, inside)


@triton.jit(do_not_specialize=["images", "voxels", "blocks", "per_sample", "chunks", "batch"])
def fit_curves_backward_kernel(
    u, value, data, curves, grad, images, voxels, blocks, per_sample, chunks, batch,
    LINEAR: tl.constexpr, CHANNELS: tl.constexpr, POLARITY: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program per table and chunk of its voxels: of <s - f, f' u> = A phi + B dphi/dR, with s, p and u held fixed,
    # over all samples with that table. A chunk is a block, or of a shared table every chunks-th block.
    SIGNS: tl.constexpr = BY_FIT if POLARITY else 0
    own = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = (tl.program_id(0) % chunks).to(tl.int64)
    k = tl.arange(0, CHANNELS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    first = tl.where(per_sample == 0, 0, own)
    last = tl.where(per_sample == 0, batch, own + 1)
    voxels = voxels.to(tl.int64)
    for t in range(0, images):
        g_time = tl.zeros((1, BLOCK), curves.dtype.element_ty)
        g_sums = g_time
        g_q = g_time
        g_rest = g_time
        g_u = g_time
        for sample in range(first, last):
            for block in range(chunk, tl.cast(blocks, tl.int64), chunks):
                inside = block * BLOCK + lane < voxels
                v = tl.minimum(block * BLOCK + lane, voxels - 1)
                series, _prior = _begin(
                    data, curves, None, None, sample, v, k, images, voxels, per_sample, LINEAR, CHANNELS, SHARED
                )
                rate = tl.load(_parameter(value, sample, voxels, v, 0, LINEAR, CHANNELS))
                c = tl.load(_parameter(value, sample, voxels, v, 1 + CHANNELS * (LINEAR - 1) + k, LINEAR, CHANNELS))
                up = tl.load(_parameter(u, sample, voxels, v, 0, LINEAR, CHANNELS))
                uc = tl.load(_parameter(u, sample, voxels, v, 1 + CHANNELS * (LINEAR - 1) + k, LINEAR, CHANNELS))
                a = tl.zeros_like(c)
                ua = a
                if LINEAR == 2:
                    a = tl.load(_parameter(value, sample, voxels, v, 1 + k, LINEAR, CHANNELS))
                    ua = tl.load(_parameter(u, sample, voxels, v, 1 + k, LINEAR, CHANNELS))
                at = series.table + t * series.step
                row = images * series.step
                time = tl.load(at)
                m, decay = _recovery(time * rate)
                phi, d1, _d2 = _shapes(series, t, rate, LINEAR)
                s = tl.load(series.data + t * series.data_step)
                left = _signed(s, t, phi, v, a, c, SIGNS) - (a + c * phi)
                along = ua + uc * phi + c * up * d1
                of_phi = tl.sum(left * uc - c * along, 0, keep_dims=True)
                of_d1 = up * tl.sum(left * c, 0, keep_dims=True)
                by_time, by_sums, by_q, by_rest, by_u = _by_table(
                    of_phi, of_d1, time, rate, m, decay, at, row, LINEAR
                )  # fmt: skip
                # Where nothing was found u is zero, and so is the gradient, though what it multiplies is no number.
                known = inside & (rate == rate) & (of_phi == of_phi) & (of_d1 == of_d1)
                g_time += tl.where(known, by_time, 0.0)
                g_sums += tl.where(known, by_sums, 0.0)
                g_q += tl.where(known, by_q, 0.0)
                g_rest += tl.where(known, by_rest, 0.0)
                g_u += tl.where(known, by_u, 0.0)
        to = grad + own * 5 * images * voxels
        if SHARED:
            to = grad + tl.program_id(0).to(tl.int64) * 5 * images
        v = chunk * BLOCK + lane
        _store_row(to, 0, g_time, t, v, v < voxels, images, voxels, SHARED)
        _store_row(to, 1, g_sums, t, v, v < voxels, images, voxels, SHARED)
        _store_row(to, 2, g_q, t, v, v < voxels, images, voxels, SHARED)
        _store_row(to, 3, g_rest, t, v, v < voxels, images, voxels, SHARED)
        _store_row(to, 4, g_u, t, v, v < voxels, images, voxels, SHARED)


def fit_voxels_backward(
    grad: Tensor,
    value: Tensor,
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    settings: Tensor,
    linear: int,
    polarity: bool,
    grad_data: Tensor,
    u: Tensor,
) -> None:
    """``settings`` as in fit.py."""
    if data.shape[0] == 0 or data.shape[2] == 0:
        return
    numbers, options = sizes(data, curves)
    fit_backward_kernel[(data.shape[0] * numbers[2],)](
        grad, value, reals(data), curves, prior, weight, settings, reals(grad_data), u, *numbers,
        LINEAR=linear, POLARITY=polarity, **options,
    )  # fmt: skip


def fit_voxels_curves_backward(
    u: Tensor, value: Tensor, data: Tensor, curves: Tensor, linear: int, polarity: bool, grad: Tensor
) -> None:
    """Sums over voxels are made chunk by chunk and added in their order: the same bits in every run."""
    if data.shape[0] == 0 or data.shape[2] == 0:
        grad.zero_()
        return
    numbers, options = sizes(data, curves)
    tables, chunks, parts = curves.shape[0], numbers[2], grad
    if options["SHARED"]:
        chunks = min(chunks, max(1, CHUNKS // tables))
        parts = curves.new_empty(tables, chunks, *curves.shape[1:])
    fit_curves_backward_kernel[(tables * chunks,)](
        u, value, reals(data), curves, parts, *numbers, chunks, data.shape[0],
        LINEAR=linear, POLARITY=polarity, **options,
    )  # fmt: skip
    if options["SHARED"]:
        torch.sum(parts, 1, out=grad)
