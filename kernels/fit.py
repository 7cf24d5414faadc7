"""Triton kernels of pyrecon/ops/_fit.py: the fit. Its gradients are in fit_gradients.py.

A program is one warp with one voxel in each lane, so that the Newton steps end as soon as those of 32 voxels have and
no lane waits for another warp; lanes past the last voxel repeat it. Blocks are (1, voxels), and (channels, voxels)
where real and imaginary parts differ, both in the same lane. Nothing of a series of images is kept: each pass reads it
again, from the first cache after the first time (32 voxels with 30 images in single precision are 4 KiB). The formulas
are those of csrc/cpu/fit.cpp.

In single precision on sm_90 there are 76 instructions for each image at each Newton step, and 9 at each rate of a grid
whose phi is known: with six looks at the signal 600 for each image of a voxel, where its 4 bytes are worth 30 (132
multiprocessors with 128 lanes at 1.98 GHz, 4.8 TB/s). The kernel is bound by instructions, and the phi of a grid that
all voxels share is therefore made once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 32
GRID = tl.constexpr(16)  # rates in the settings; two more numbers are tol and the step that is the last but one
EASED = tl.constexpr(1e-3)  # as in the reference
NONFINITE = tl.constexpr(3)
BY_COUNT = tl.constexpr(1)  # magnitudes: a number of first images is negative, or those where the fitted signal is
BY_FIT = tl.constexpr(2)
INVERSE_FACTORIALS = tl.constexpr(tuple(1 / math.factorial(k) for k in range(15)))


class Series(NamedTuple):
    """Images of the voxels (channels, voxels), and their table (1, voxels): where they begin, steps to the next."""

    images: Any
    data: Any
    data_step: Any
    table: Any
    step: Any


class Prior(NamedTuple):
    """Zeros where there is none; share is one over images + weight."""

    weight: Any
    share: Any
    rate: Any
    a: Any
    c: Any


@triton.jit
def _recovery(x):
    """1 - exp(-x) without its cancellation, and exp(-x): 2^k (1 + g), g = expm1(f) by its series, |f| <= ln(2) / 2."""
    # A number whose last bit is worth one rounds, and leaves k in the low bits, from where it moves to the exponent.
    DOUBLE: tl.constexpr = x.dtype == tl.float64
    MOST: tl.constexpr = 700.0 if DOUBLE else 80.0
    MAGIC: tl.constexpr = 6755399441055744.0 if DOUBLE else 12582912.0
    TERMS: tl.constexpr = 14 if DOUBLE else 7
    y = tl.where(x > MOST, -MOST, -x)
    y = tl.where(y > MOST, float("inf"), y)  # times below zero, which are not looked at on a GPU, end as NaN
    k = y * 1.4426950408889634 + MAGIC
    n = k - MAGIC
    if DOUBLE:
        f = (y - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
        two = ((k.to(tl.int64, bitcast=True) << 52) + 0x3FF0000000000000).to(tl.float64, bitcast=True)
    else:
        f = (y - n * 0.693359375) + n * 2.12194440e-4
        two = ((k.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    g = f * INVERSE_FACTORIALS[TERMS] + INVERSE_FACTORIALS[TERMS - 1]
    for i in tl.static_range(2, TERMS):
        g = g * f + INVERSE_FACTORIALS[TERMS - i]
    scaled = two * (g * f)
    return (1.0 - two) - scaled, two + scaled


@triton.jit
def _inverse(x):
    """1 / x. Of doubles by Newton steps: their division is a call, around which registers spill."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        exponent = (bits >> 52) & 0x7FF
        unit = (bits - (exponent << 52) + 0x3FF0000000000000).to(tl.float64, bitcast=True)  # from 1 to 2
        r = (1.0 / unit.to(tl.float32)).to(tl.float64)
        r += r * (1.0 - unit * r)
        r += r * (1.0 - unit * r)
        r *= ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
        r = tl.where(exponent == 0, float("inf"), tl.where(exponent == 2047, float("nan"), r))
    else:
        r = 1.0 / x
    return r


@triton.jit
def _shapes(series, t, rate, LINEAR: tl.constexpr):
    """phi and its first two derivatives in R, of image t."""
    at = series.table + t * series.step
    row = series.images * series.step
    time = tl.load(at)
    m, decay = _recovery(time * rate)
    slope = -time * decay  # dE/dR
    q = tl.load(at + 2 * row)
    sums = tl.load(at + row)
    small = decay < 0.5  # p + q E, or (p + q) - q (1 - E): neither hides the smaller of two numbers
    phi = tl.where(small, sums - q, sums) + q * tl.where(small, decay, -m)  # two results instead spill a register
    if LINEAR == 2:  # a + b E: u is zero
        d1 = q * slope
        d2 = -time * d1
    else:
        rest = tl.load(at + 3 * row)
        u = tl.load(at + 4 * row)
        inverse = _inverse(rest + u * m)
        phi *= inverse
        change = (q * rest + u * sums) * inverse * inverse  # dphi/dE
        d1 = change * slope
        d2 = slope * (2.0 * u * change * inverse * slope - change * time)
    return phi, d1, d2


@triton.jit
def _image(series, t):
    return tl.load(series.data + t * series.data_step)


@triton.jit
def _signed(s, t, phi, negative, a, c, SIGNS: tl.constexpr):
    if SIGNS == BY_COUNT:
        s = tl.where(t < negative, -s, s)
    elif SIGNS == BY_FIT:
        s = tl.where(a + c * phi < 0, -s, s)
    return s


@triton.jit
def _energy(v):
    return tl.sum(v * v, 0, keep_dims=True)


@triton.jit
def _mean(series, rate, negative, a, c, prior, LINEAR: tl.constexpr, SIGNS: tl.constexpr):
    """LINEAR 2: the mean of the data, (channels, voxels)."""
    total = prior.weight * prior.a
    if LINEAR == 2:
        for t in range(0, series.images):
            phi = rate
            if SIGNS == BY_FIT:
                phi, _, _ = _shapes(series, t, rate, LINEAR)
            total += _signed(_image(series, t), t, phi, negative, a, c, SIGNS)
        total *= prior.share
    return total


@triton.jit
def _at(series, rate, negative, a, c, mean, prior, LINEAR: tl.constexpr, SIGNS: tl.constexpr):
    """Half the objective less a constant, half its derivatives in R, the best factors, and what a gradient needs:
    the mean of phi, one over its norm, and the second derivatives in R and the factors."""
    zero = tl.zeros_like(rate)
    centre = zero
    n = prior.weight
    b = prior.weight * prior.c
    if LINEAR == 2:  # a is eliminated by centring: with E near 1 all the while, sums of squares would cancel
        for t in range(0, series.images):
            phi, _, _ = _shapes(series, t, rate, LINEAR)
            centre += phi
        centre *= prior.share
        n += prior.weight * centre * centre
        b += prior.weight * centre * (mean - prior.a)
    b1, b2 = tl.zeros_like(b), tl.zeros_like(b)
    a1, a2, a3, d_sum = zero, zero, zero, zero
    for t in range(0, series.images):
        phi, d1, d2 = _shapes(series, t, rate, LINEAR)
        s = _signed(_image(series, t), t, phi, negative, a, c, SIGNS)
        if LINEAR == 2:
            s -= mean
            d_sum += d1
        e = phi - centre
        n += e * e
        b += e * s
        a1 += e * d1
        a2 += d1 * d1
        a3 += e * d2
        b1 += d1 * s
        b2 += d2 * s
    inverse = _inverse(n)
    pulled = prior.weight * (rate - prior.rate)
    best = b * inverse
    cross = 2.0 * a1 * best - b1
    power = _energy(best)
    first = power * a1 - tl.sum(best * b1, 0, keep_dims=True) + pulled
    second = power * (a2 + a3) - tl.sum(best * b2, 0, keep_dims=True) + prior.weight - _energy(cross) * inverse
    value = 0.5 * (pulled * (rate - prior.rate) - tl.sum(b * best, 0, keep_dims=True))
    if LINEAR == 2:
        second -= power * d_sum * d_sum * prior.share
        value -= 0.5 * (prior.weight + series.images) * _energy(mean)
    return value, first, second, mean - best * centre, best, centre, inverse, cross, best * d_sum


@triton.jit
def _phi_on_grid(series, points, g, t, rate, LINEAR: tl.constexpr, SHARED: tl.constexpr):
    """phi at rate g; with SHARED by the table of fit_points_kernel, less its mean."""
    if SHARED:
        phi = tl.load(points + g * (series.images + 2) + t) + tl.zeros_like(rate)
    else:
        phi, _, _ = _shapes(series, t, rate, LINEAR)
    return phi


@triton.jit
def _norm_on_grid(series, points, g, rate, prior, LINEAR: tl.constexpr, SHARED: tl.constexpr):
    """The mean of phi at rate g, its norm, and what centres the numbers of _phi_on_grid."""
    images = series.images
    centre = tl.zeros_like(rate)
    off = centre
    n = prior.weight
    if SHARED:
        n += tl.load(points + g * (images + 2) + images + 1)
        if LINEAR == 2:
            mean = tl.load(points + g * (images + 2) + images)
            centre = images * mean * prior.share
            off = mean - centre
            n += images * off * off
    else:
        if LINEAR == 2:
            for t in range(0, images):
                centre += _phi_on_grid(series, points, g, t, rate, LINEAR, SHARED)
            centre *= prior.share
            off = -centre
        for t in range(0, images):
            e = _phi_on_grid(series, points, g, t, rate, LINEAR, SHARED) + off
            n += e * e
    return centre, n + prior.weight * centre * centre, off


@triton.jit
def _on_grid(
    series, points, g, rate, negative, mean, prior, LINEAR: tl.constexpr, SIGNS: tl.constexpr, SHARED: tl.constexpr
):
    """Half the objective less a constant at rate g; infinite where phi has no numbers left (csrc/cpu/fit.cpp)."""
    if SHARED:
        centre, n, off = _norm_on_grid(series, points, g, rate, prior, LINEAR, SHARED)
        b = prior.weight * prior.c
        if LINEAR == 2:  # weight * (mean - a): the sum of the centred data, to which off is added
            b += (off + centre) * prior.weight * (mean - prior.a)
        for t in range(0, series.images):
            phi = _phi_on_grid(series, points, g, t, rate, LINEAR, SHARED)
            s = _signed(_image(series, t), t, phi, negative, b, b, SIGNS)
            if LINEAR == 2:
                s -= mean
            b += phi * s
        inverse = _inverse(n)
        value = 0.5 * (prior.weight * (rate - prior.rate) * (rate - prior.rate) - _energy(b) * inverse)
        if LINEAR == 2:
            value -= 0.5 * (prior.weight + series.images) * _energy(mean)
    else:
        value, _, _, _, _, _, inverse, _, _ = _at(series, rate, negative, mean, mean, mean, prior, LINEAR, SIGNS)
    most = 1e280 if rate.dtype == tl.float64 else 1e32
    return tl.where(inverse < most, value, float("inf"))


@triton.jit
def _of_signs(b, inverse, plain, pulled, prior, LINEAR: tl.constexpr):
    value = pulled - b * b * inverse
    if LINEAR == 2:
        value -= plain * plain * prior.share
    return value


@triton.jit
def _change_of_sign(series, points, settings, prior, LINEAR: tl.constexpr, SHARED: tl.constexpr):
    """Magnitudes: which number of first images is negative at the least value on the grid."""
    whole = prior.weight * prior.a
    for t in range(0, series.images):
        whole += _image(series, t)
    least = tl.full(whole.shape, float("inf"), whole.dtype)
    found = tl.zeros(whole.shape, tl.int32)
    for g in range(0, GRID):
        rate = tl.zeros_like(whole) + tl.load(settings + g)
        centre, n, off = _norm_on_grid(series, points, g, rate, prior, LINEAR, SHARED)
        b = prior.weight * (prior.c - centre * prior.a)
        for t in range(0, series.images):
            b += (_phi_on_grid(series, points, g, t, rate, LINEAR, SHARED) + off) * _image(series, t)
        pulled = prior.weight * (rate - prior.rate) * (rate - prior.rate)
        plain = whole
        inverse = _inverse(n)
        value = _of_signs(b, inverse, plain, pulled, prior, LINEAR)
        found = tl.where(value < least, 0, found)
        least = tl.where(value < least, value, least)
        for t in range(0, series.images):  # one by one they become negative
            s = 2.0 * _image(series, t)
            b -= (_phi_on_grid(series, points, g, t, rate, LINEAR, SHARED) + off) * s
            plain -= s
            value = _of_signs(b, inverse, plain, pulled, prior, LINEAR)
            found = tl.where(value < least, t + 1, found)
            least = tl.where(value < least, value, least)
    return found


@triton.jit
def _minimum(
    series, points, settings, negative, prior, max_iter,
    LINEAR: tl.constexpr, SIGNS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Rate, half the objective, factors, lost, still running, iterations and the last relative step."""
    infinite = tl.full(prior.rate.shape, float("inf"), prior.rate.dtype)
    mean = _mean(series, prior.rate, negative, prior.a, prior.c, prior, LINEAR, SIGNS)
    least = infinite
    best = tl.zeros(least.shape, tl.int32)
    for g in range(0, GRID):
        rate = tl.zeros_like(least) + tl.load(settings + g)
        value = _on_grid(series, points, g, rate, negative, mean, prior, LINEAR, SIGNS, SHARED)
        best = tl.where(value < least, g, best)  # a NaN is never the least
        least = tl.where(value < least, value, least)
    rate = tl.load(settings + best)
    lower = tl.load(settings + tl.maximum(best - 1, 0))
    upper = tl.load(settings + tl.minimum(best + 1, GRID - 1))
    lowest = tl.load(settings)
    highest = tl.load(settings + GRID - 1)
    tol = tl.load(settings + GRID)
    last_but_one = tl.load(settings + GRID + 1)

    last = infinite  # Newton step; infinite after a halving
    residual = infinite
    value = infinite
    a = tl.zeros_like(mean)
    c = a
    count = tl.zeros(best.shape, tl.int32)
    running = best >= 0
    flat = best < 0
    goes_on = True
    while goes_on:  # the last round makes no step: it is the look at what was found
        value, first, second, a, c, _, _, _, _ = _at(series, rate, negative, a, c, mean, prior, LINEAR, SIGNS)
        steps = running & (count < max_iter)
        goes_on = tl.max(tl.max(steps.to(tl.int32), 1), 0) > 0
        flat |= steps & (first == 0) & (second == 0) & (_energy(c) == 0)  # nothing to fit; a signal may have a plateau
        upper = tl.where(steps & (first > 0), rate, upper)
        lower = tl.where(steps & (first < 0), rate, lower)
        newton = -first * _inverse(second)
        there = rate + newton
        enough = tl.abs(newton) <= tol * rate  # less than the bracket's ends are apart, where one of them is the rate
        within = (second > 0) & (enough | ((there > lower) & (there < upper)))
        by = tl.where(first == 0, 0.0, tl.where(within, newton, 0.5 * (lower + upper) - rate))
        size = tl.abs(by)
        rounding = within & (last < EASED * rate) & (size >= 0.5 * last)
        ends = (size <= tol * rate) | (within & (size <= last_but_one * rate)) | rounding | flat
        count += steps.to(tl.int32)
        residual = tl.where(steps, size * _inverse(rate), residual)
        moved = rate + by
        moved = tl.where(moved < lowest, lowest, tl.where(moved > highest, highest, moved))
        rate = tl.where(steps & (rounding == 0), moved, rate)
        last = tl.where(within, size, infinite)
        running = running & ((steps & ends) == 0)
    lost = flat | (value - value != 0)  # nothing, or not a number
    return tl.where(lost, float("nan"), rate), value, a, c, lost, running, count, residual


@triton.jit
def _numbers(data, image, voxels, v, k, CHANNELS: tl.constexpr):
    """Where those of an image lie, (channels, voxels)."""
    at = data + (image * voxels + v) * CHANNELS + k
    if CHANNELS == 2:  # told, or a lane gets half of a pair and two lanes fit the same voxel
        SIZE: tl.constexpr = data.dtype.element_ty.primitive_bitwidth // 8
        at = tl.multiple_of(at, [2 * SIZE, SIZE])
    return at


@triton.jit
def _begin(
    data, curves, prior, weight, sample, v, k, images, voxels, per_sample,
    LINEAR: tl.constexpr, CHANNELS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """The series of voxels v of a sample, and their prior."""
    DTYPE: tl.constexpr = curves.dtype.element_ty
    first = _numbers(data, sample * images, voxels, v, k, CHANNELS)
    if SHARED:
        series = Series(images, first, voxels * CHANNELS, curves + sample * per_sample + tl.zeros_like(v), 1)
    else:
        series = Series(images, first, voxels * CHANNELS, curves + sample * per_sample + v, voxels)
    level = tl.zeros(v.shape, DTYPE)
    rate = level
    a = tl.zeros((CHANNELS, v.shape[1]), DTYPE)
    c = a
    if prior is not None:
        level = tl.load(weight + sample * voxels + v)
        rate = tl.load(_parameter(prior, sample, voxels, v, 0, LINEAR, CHANNELS))
        a = tl.load(_parameter(prior, sample, voxels, v, 1 + k, LINEAR, CHANNELS))
        c = tl.load(_parameter(prior, sample, voxels, v, 1 + CHANNELS * (LINEAR - 1) + k, LINEAR, CHANNELS))
    return series, Prior(level, _inverse(level + images), rate, a, c)


@triton.jit
def _parameter(p, sample, voxels, v, i, LINEAR: tl.constexpr, CHANNELS: tl.constexpr):
    return p + (sample * (1 + CHANNELS * LINEAR) + i) * voxels + v


@triton.jit(do_not_specialize=["images", "per_sample"])
def fit_points_kernel(curves, settings, points, images, per_sample, LINEAR: tl.constexpr, BLOCK: tl.constexpr):
    # One program per table and rate of the grid: phi of the images, less its mean where LINEAR is 2; mean; norm.
    own = (tl.program_id(0) // GRID).to(tl.int64)
    out = points + tl.program_id(0).to(tl.int64) * (images + 2)
    rate = tl.load(settings + tl.program_id(0) % GRID)
    table = curves + own * per_sample
    series = Series(images, table, 0, table, 1)  # of no data
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), rate.dtype)
    norm = total
    if LINEAR == 2:
        for start in range(0, images, BLOCK):
            phi, _, _ = _shapes(series, tl.minimum(start + lane, images - 1), rate, LINEAR)
            total += tl.where(start + lane < images, phi, 0.0)
    mean = tl.sum(total, 0) / tl.maximum(images, 1)
    for start in range(0, images, BLOCK):
        phi, _, _ = _shapes(series, tl.minimum(start + lane, images - 1), rate, LINEAR)
        e = tl.where(start + lane < images, phi - mean, 0.0)
        norm += e * e
        tl.store(out + start + lane, e, start + lane < images)
    tl.store(out + images, mean)
    tl.store(out + images + 1, tl.sum(norm, 0))


@triton.jit(do_not_specialize=["images", "voxels", "blocks", "per_sample", "max_iter"])
def fit_kernel(
    data, curves, prior, weight, settings, points, value, status, count, residual, images, voxels, blocks, per_sample,
    max_iter,
    LINEAR: tl.constexpr, CHANNELS: tl.constexpr, POLARITY: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    lane = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = lane < voxels
    v = tl.minimum(lane, voxels - 1)
    k = tl.arange(0, CHANNELS)[:, None]
    voxels = voxels.to(tl.int64)
    series, level = _begin(
        data, curves, prior, weight, sample, v, k, images, voxels, per_sample, LINEAR, CHANNELS, SHARED
    )
    if SHARED:
        points += tl.where(per_sample == 0, 0, sample) * (GRID * (images + 2))
    if POLARITY:
        middle = _change_of_sign(series, points, settings, level, LINEAR, SHARED)
        rate, objective, size, steps = level.rate, level.rate, level.rate, tl.zeros_like(middle)
        a, c, lost, running = level.a, level.a, inside, inside
        for change in range(0, 3):  # as on the grid, one image less and one more
            negative = tl.maximum(middle + tl.where(change == 2, 1, -change), 0)
            new_rate, new_objective, new_a, new_c, new_lost, new_running, new_steps, new_size = _minimum(
                series, points, settings, negative, level, max_iter, LINEAR, BY_COUNT, SHARED
            )
            better = (new_objective < objective) | (change == 0)
            rate = tl.where(better, new_rate, rate)
            objective = tl.where(better, new_objective, objective)
            a = tl.where(better, new_a, a)
            c = tl.where(better, new_c, c)
            lost = (better & new_lost) | ((better == 0) & lost)
            running = (better & new_running) | ((better == 0) & running)
            steps = tl.where(better, new_steps, steps)
            size = tl.where(better, new_size, size)
    else:
        rate, _, a, c, lost, running, steps, size = _minimum(
            series, points, settings, v, level, max_iter, LINEAR, 0, SHARED
        )
    tl.store(_parameter(value, sample, voxels, v, 0, LINEAR, CHANNELS), rate, inside)
    if LINEAR == 2:
        tl.store(_parameter(value, sample, voxels, v, 1 + k, LINEAR, CHANNELS), a, inside)
    tl.store(_parameter(value, sample, voxels, v, 1 + CHANNELS * (LINEAR - 1) + k, LINEAR, CHANNELS), c, inside)
    at = sample * voxels + v
    tl.store(status + at, tl.where(lost, NONFINITE, running.to(tl.int32)).to(tl.int8), inside)
    tl.store(count + at, steps, inside)
    tl.store(residual + at, size, inside)


def reals(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def sizes(data: Tensor, curves: Tensor) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Images, voxels, blocks of a sample, the table's step from sample to sample; and what is compiled in."""
    images, voxels = data.shape[1:]
    per_sample = 0 if curves.shape[0] == 1 else curves[0].numel()
    options = {"CHANNELS": 2 if data.is_complex() else 1, "SHARED": curves.shape[3] == 1, "BLOCK": LANES}
    return (images, voxels, triton.cdiv(voxels, LANES), per_sample), {**options, "num_warps": 1}


def fit_voxels(
    data: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, settings: Tensor, linear: int,
    polarity: bool, max_iter: int, value: Tensor, status: Tensor, count: Tensor, residual: Tensor,
) -> None:  # fmt: skip
    """``settings`` (18,): the rates of the grid, tol, and the relative step that is the last but one."""
    if data.shape[0] == 0 or data.shape[2] == 0:
        return
    (images, voxels, blocks, per_sample), options = sizes(data, curves)
    points = None
    if options["SHARED"]:  # 16 of some 22 evaluations of the signal, which are then a product each
        points = curves.new_empty(curves.shape[0], GRID.value, images + 2)
        fit_points_kernel[(curves.shape[0] * GRID.value,)](
            curves, settings, points, images, per_sample, LINEAR=linear, BLOCK=LANES, num_warps=1
        )
    fit_kernel[(data.shape[0] * blocks,)](
        reals(data), curves, prior, weight, settings, points, value, status, count, residual, images, voxels, blocks,
        per_sample, max_iter, LINEAR=linear, POLARITY=polarity, **options,
    )  # fmt: skip
