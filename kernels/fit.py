"""Triton kernels of pyrecon/ops/_fit.py.

A program is one warp with one voxel in each lane, so that the Newton steps end as soon as those of 32 voxels have and
no lane waits for another warp. Blocks are (1, voxels), and (channels, voxels) where real and imaginary parts differ,
both in the same lane. Nothing of a series of images is kept: each pass reads it again, from the first cache after the
first time (32 voxels with 30 images in single precision are 4 KiB). The formulas are those of csrc/cpu/fit.cpp.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 32
CHUNKS = 1024  # programs that share the voxels in the gradient of a table which is that of all voxels
GRID = tl.constexpr(16)  # rates in the settings; two more numbers are tol and the step that is the last but one
EASED = tl.constexpr(1e-3)  # as in the reference
NONFINITE = tl.constexpr(3)
BY_COUNT = tl.constexpr(1)  # magnitudes: a number of first images is negative, or those where the fitted signal is
BY_FIT = tl.constexpr(2)
INVERSE_FACTORIALS = tl.constexpr(tuple(1 / math.factorial(k) for k in range(15)))


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
def _shapes(table, t, rate, images, step, inside, LINEAR: tl.constexpr):
    """phi and its first two derivatives in R, of image t."""
    at = table + t * step
    row = images * step
    time = tl.load(at, inside, 0.0)
    sums = tl.load(at + row, inside, 0.0)
    q = tl.load(at + 2 * row, inside, 0.0)
    m, decay = _recovery(time * rate)
    slope = -time * decay  # dE/dR
    if LINEAR == 2:  # a + b E: u is zero
        d1 = q * slope
        return sums - q * m, d1, -time * d1
    rest = tl.load(at + 3 * row, inside, 0.0)
    u = tl.load(at + 4 * row, inside, 0.0)
    inverse = 1.0 / (rest + u * m)
    change = (q * rest + u * sums) * inverse * inverse  # dphi/dE
    return (sums - q * m) * inverse, change * slope, slope * (2.0 * u * change * inverse * slope - change * time)


@triton.jit
def _signed(s, t, phi, negative, a, c, SIGNS: tl.constexpr):
    if SIGNS == BY_COUNT:
        return tl.where(t < negative, -s, s)
    if SIGNS == BY_FIT:
        return tl.where(a + c * phi < 0, -s, s)
    return s


@triton.jit
def _mean(data, table, rate, negative, a, c, weight, prior_a, images, step, data_step, inside,
          LINEAR: tl.constexpr, SIGNS: tl.constexpr):  # fmt: skip
    """LINEAR 2: the mean of the data, (channels, voxels)."""
    total = weight * prior_a
    if LINEAR == 2:
        for t in range(0, images):
            phi = rate
            if SIGNS == BY_FIT:
                phi, _, _ = _shapes(table, t, rate, images, step, inside, LINEAR)
            total += _signed(tl.load(data + t * data_step, inside, 0.0), t, phi, negative, a, c, SIGNS)
        total /= weight + images
    return total


@triton.jit
def _at(data, table, rate, negative, a, c, mean, weight, rate0, prior_a, prior_c, images, step, data_step, inside,
        LINEAR: tl.constexpr, SIGNS: tl.constexpr):  # fmt: skip
    """Half the objective less a constant, half its derivatives in R, the best factors, and what a gradient needs:
    the mean of phi, its norm, and the second derivatives in R and the factors."""
    zero = tl.zeros_like(rate)
    centre = zero
    if LINEAR == 2:  # a is eliminated by centring: with E near 1 all the while, sums of squares would cancel
        for t in range(0, images):
            phi, _, _ = _shapes(table, t, rate, images, step, inside, LINEAR)
            centre += phi
        centre /= weight + images
        n = weight * centre * centre + weight
        b = weight * (centre * (mean - prior_a) + prior_c)
    else:
        n = weight
        b = weight * prior_c
    b1 = tl.zeros_like(b)
    b2 = b1
    a1 = zero
    a2 = zero
    a3 = zero
    d_sum = zero
    for t in range(0, images):
        phi, d1, d2 = _shapes(table, t, rate, images, step, inside, LINEAR)
        s = _signed(tl.load(data + t * data_step, inside, 0.0), t, phi, negative, a, c, SIGNS)
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
    inverse = 1.0 / n
    pulled = weight * (rate - rate0)
    best = b * inverse
    cross = 2.0 * a1 * best - b1
    power = tl.sum(best * best, 0, keep_dims=True)
    first = power * a1 - tl.sum(best * b1, 0, keep_dims=True) + pulled
    second = power * (a2 + a3) - tl.sum(best * b2, 0, keep_dims=True) + weight
    second -= tl.sum(cross * cross, 0, keep_dims=True) * inverse
    value = 0.5 * (pulled * (rate - rate0) - tl.sum(b * best, 0, keep_dims=True))
    if LINEAR == 2:
        second -= power * d_sum * d_sum / (weight + images)
        value -= 0.5 * (weight + images) * tl.sum(mean * mean, 0, keep_dims=True)
    return value, first, second, mean - best * centre, best, centre, inverse, cross, best * d_sum


@triton.jit
def _norm_on_grid(points, table, g, rate, weight, images, step, inside, LINEAR: tl.constexpr, SHARED: tl.constexpr):
    """The mean of phi at rate g, its norm, and what is added to `_phi_on_grid` to centre it."""
    centre = tl.zeros_like(weight)
    off = centre
    n = weight
    if SHARED:
        n += tl.load(points + g * (images + 2) + images + 1)
        if LINEAR == 2:
            m = tl.load(points + g * (images + 2) + images)
            centre = images * m / (weight + images)
            off = m - centre
            n += images * off * off + weight * centre * centre
    else:
        if LINEAR == 2:
            for t in range(0, images):
                centre += _phi_on_grid(points, table, g, t, rate, images, step, inside, LINEAR, SHARED)
            centre /= weight + images
            off = -centre
            n += weight * centre * centre
        for t in range(0, images):
            e = _phi_on_grid(points, table, g, t, rate, images, step, inside, LINEAR, SHARED) + off
            n += e * e
    return centre, n, off


@triton.jit
def _phi_on_grid(points, table, g, t, rate, images, step, inside, LINEAR: tl.constexpr, SHARED: tl.constexpr):
    if SHARED:
        return tl.load(points + g * (images + 2) + t)
    phi, _, _ = _shapes(table, t, rate, images, step, inside, LINEAR)
    return phi


@triton.jit
def _on_grid(data, table, points, g, rate, negative, mean, weight, rate0, prior_a, prior_c, images, step, data_step,
             inside, LINEAR: tl.constexpr, SIGNS: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """Half the objective less a constant at rate g of the grid."""
    if SHARED:
        centre, n, off = _norm_on_grid(points, table, g, rate, weight, images, step, inside, LINEAR, SHARED)
        b = weight * prior_c
        if LINEAR == 2:
            left = weight * (mean - prior_a)  # the sum of the centred data
            b += (off + centre) * left
        for t in range(0, images):
            phi = _phi_on_grid(points, table, g, t, rate, images, step, inside, LINEAR, SHARED)
            s = _signed(tl.load(data + t * data_step, inside, 0.0), t, phi, negative, b, b, SIGNS)
            b += phi * (s - mean if LINEAR == 2 else s)
        value = weight * (rate - rate0) * (rate - rate0) - tl.sum(b * b, 0, keep_dims=True) / n
        if LINEAR == 2:
            value -= (weight + images) * tl.sum(mean * mean, 0, keep_dims=True)
        return 0.5 * value
    value, _, _, _, _, _, _, _, _ = _at(
        data, table, rate, negative, mean, mean, mean, weight, rate0, prior_a, prior_c, images, step, data_step,
        inside, LINEAR, SIGNS,
    )  # fmt: skip
    return value


@triton.jit
def _change_of_sign(data, table, points, settings, weight, rate0, prior_a, prior_c, images, step, data_step, inside,
                    LINEAR: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """Magnitudes: which number of first images is negative at the least value on the grid."""
    all_of_them = weight * prior_a
    for t in range(0, images):
        all_of_them += tl.load(data + t * data_step, inside, 0.0)
    least = tl.full(weight.shape, float("inf"), weight.dtype)
    found = tl.zeros(weight.shape, tl.int32)
    for g in range(0, GRID):
        rate = tl.zeros_like(weight) + tl.load(settings + g)
        centre, n, off = _norm_on_grid(points, table, g, rate, weight, images, step, inside, LINEAR, SHARED)
        b = weight * prior_c
        if LINEAR == 2:
            b -= weight * centre * prior_a
        for t in range(0, images):
            e = _phi_on_grid(points, table, g, t, rate, images, step, inside, LINEAR, SHARED) + off
            b += e * tl.load(data + t * data_step, inside, 0.0)
        pulled = weight * (rate - rate0) * (rate - rate0)
        plain = all_of_them
        for negative in range(0, images + 1):
            value = pulled - b * b / n
            if LINEAR == 2:
                value -= plain * plain / (weight + images)
            found = tl.where(value < least, negative, found)
            least = tl.where(value < least, value, least)
            t = tl.minimum(negative, images - 1)  # in the last round what follows is not used
            s = tl.load(data + t * data_step, inside, 0.0)
            e = _phi_on_grid(points, table, g, t, rate, images, step, inside, LINEAR, SHARED) + off
            b -= 2.0 * e * s
            plain -= 2.0 * s
    return found


@triton.jit
def _minimum(data, table, points, settings, negative, weight, rate0, prior_a, prior_c, images, step, data_step, inside,
             max_iter, LINEAR: tl.constexpr, SIGNS: tl.constexpr, SHARED: tl.constexpr):  # fmt: skip
    """Rate, half the objective, factors, lost, still running, iterations and the last relative step."""
    infinite = tl.full(weight.shape, float("inf"), weight.dtype)
    mean = _mean(data, table, rate0, negative, prior_a, prior_c, weight, prior_a, images, step, data_step, inside,
                 LINEAR, SIGNS)  # fmt: skip
    least = infinite
    best = tl.zeros(weight.shape, tl.int32)
    for g in range(0, GRID):
        rate = tl.zeros_like(weight) + tl.load(settings + g)
        value = _on_grid(
            data, table, points, g, rate, negative, mean, weight, rate0, prior_a, prior_c, images, step, data_step,
            inside, LINEAR, SIGNS, SHARED,
        )  # fmt: skip
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
    count = tl.zeros(weight.shape, tl.int32)
    running = inside
    lost = inside
    goes_on = True
    while goes_on:  # the last round has no step: it is the look at what was found
        value, first, second, a, c, _, _, _, _ = _at(
            data, table, rate, negative, a, c, mean, weight, rate0, prior_a, prior_c, images, step, data_step, inside,
            LINEAR, SIGNS,
        )  # fmt: skip
        steps = running & (count < max_iter)
        goes_on = tl.max(tl.max(steps.to(tl.int32), 1), 0) > 0
        flat = (first == 0) & (second == 0)
        lost = (value - value != 0) | flat
        upper = tl.where(steps & (first > 0), rate, upper)
        lower = tl.where(steps & (first < 0), rate, lower)
        newton = -first / second
        there = rate + newton
        enough = tl.abs(newton) <= tol * rate  # less than the bracket's ends are apart, where one of them is the rate
        within = (second > 0) & (enough | ((there > lower) & (there < upper)))
        step_of_rate = tl.where(first == 0, 0.0, tl.where(within, newton, 0.5 * (lower + upper) - rate))
        size = tl.abs(step_of_rate)
        rounding = within & (last < EASED * rate) & (size >= 0.5 * last)
        ends = (size <= tol * rate) | (within & (size <= last_but_one * rate)) | rounding | flat
        count += steps.to(tl.int32)
        residual = tl.where(steps, size / rate, residual)
        moved = rate + step_of_rate
        moved = tl.where(moved < lowest, lowest, tl.where(moved > highest, highest, moved))
        rate = tl.where(steps & (rounding == 0), moved, rate)
        last = tl.where(within, size, infinite)
        running = running & ((steps & ends) == 0)
    return tl.where(lost, float("nan"), rate), value, a, c, lost, running, count, residual


@triton.jit
def _prior_of(prior, weight, sample, v, k, voxels, inside, like, LINEAR: tl.constexpr, CHANNELS: tl.constexpr):
    """Weight, rate and factors of the prior, zeros where there is none."""
    level = tl.zeros(v.shape, like.dtype.element_ty)
    rate0 = level
    prior_a = tl.zeros((CHANNELS, v.shape[1]), like.dtype.element_ty)
    prior_c = prior_a
    if prior is not None:
        at = prior + sample * ((1 + CHANNELS * LINEAR) * voxels) + v
        level = tl.load(weight + sample * voxels + v, inside, 0.0)
        rate0 = tl.load(at, inside, 0.0)
        prior_a = tl.load(at + (1 + k) * voxels, inside, 0.0)
        prior_c = tl.load(at + (1 + CHANNELS * (LINEAR - 1) + k) * voxels, inside, 0.0)
    return level, rate0, prior_a, prior_c


@triton.jit(do_not_specialize=["images", "per_sample"])
def fit_points_kernel(curves, settings, points, images, per_sample, LINEAR: tl.constexpr, BLOCK: tl.constexpr):
    # One program per sample and rate of the grid: phi of the images, less its mean where LINEAR is 2; mean; norm.
    sample = (tl.program_id(0) // GRID).to(tl.int64)
    g = tl.program_id(0) % GRID
    table = curves + sample * per_sample
    out = points + tl.program_id(0).to(tl.int64) * (images + 2)
    rate = tl.load(settings + g)
    t = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), rate.dtype)
    if LINEAR == 2:
        for start in range(0, images, BLOCK):
            phi, _, _ = _shapes(table, start + t, rate, images, 1, start + t < images, LINEAR)
            total += tl.where(start + t < images, phi, 0.0)
    mean = tl.sum(total, 0) / tl.maximum(images, 1)
    norm = tl.zeros((BLOCK,), rate.dtype)
    for start in range(0, images, BLOCK):
        phi, _, _ = _shapes(table, start + t, rate, images, 1, start + t < images, LINEAR)
        e = tl.where(start + t < images, phi - mean, 0.0)
        norm += e * e
        tl.store(out + start + t, e, start + t < images)
    tl.store(out + images, mean)
    tl.store(out + images + 1, tl.sum(norm, 0))


@triton.jit(do_not_specialize=["images", "voxels", "blocks", "per_sample", "max_iter"])
def fit_kernel(
    data, curves, prior, weight, settings, points, value, status, count, residual, images, voxels, blocks, per_sample,
    max_iter,
    LINEAR: tl.constexpr, CHANNELS: tl.constexpr, POLARITY: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    v = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    k = tl.arange(0, CHANNELS)[:, None]
    inside = v < voxels
    voxels = voxels.to(tl.int64)
    data_step = voxels * CHANNELS
    images_of = data + sample * images * data_step + v.to(tl.int64) * CHANNELS + k
    if SHARED:
        step = 1
        table = curves + sample * per_sample + tl.zeros_like(v)
        points += tl.where(per_sample == 0, 0, sample) * (GRID * (images + 2))
    else:
        step = voxels
        table = curves + sample * per_sample + v
    level, rate0, prior_a, prior_c = _prior_of(prior, weight, sample, v, k, voxels, inside, value, LINEAR, CHANNELS)
    if POLARITY:
        middle = _change_of_sign(images_of, table, points, settings, level, rate0, prior_a, prior_c, images, step,
                                 data_step, inside, LINEAR, SHARED)  # fmt: skip
        rate = level
        objective = level
        a = prior_a
        c = prior_a
        lost = inside
        running = inside
        steps = tl.zeros_like(middle)
        size = level
        for change in range(0, 3):  # as on the grid, one image less and one more
            negative = tl.maximum(middle + tl.where(change == 2, 1, -change), 0)
            new_rate, new_objective, new_a, new_c, new_lost, new_running, new_steps, new_size = _minimum(
                images_of, table, points, settings, negative, level, rate0, prior_a, prior_c, images, step, data_step,
                inside, max_iter, LINEAR, BY_COUNT, SHARED,
            )  # fmt: skip
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
        rate, objective, a, c, lost, running, steps, size = _minimum(
            images_of, table, points, settings, v, level, rate0, prior_a, prior_c, images, step, data_step, inside,
            max_iter, LINEAR, 0, SHARED,
        )  # fmt: skip
    out = value + sample * ((1 + CHANNELS * LINEAR) * voxels) + v
    tl.store(out, rate, inside)
    if LINEAR == 2:
        tl.store(out + (1 + k) * voxels, a, inside)
    tl.store(out + (1 + CHANNELS * (LINEAR - 1) + k) * voxels, c, inside)
    at = sample * voxels + v
    tl.store(status + at, tl.where(lost, NONFINITE, running.to(tl.int32)).to(tl.int8), inside)
    tl.store(count + at, steps, inside)
    tl.store(residual + at, size, inside)


@triton.jit(do_not_specialize=["images", "voxels", "blocks", "per_sample"])
def fit_backward_kernel(
    grad, value, data, curves, prior, weight, settings, grad_data, u, images, voxels, blocks, per_sample,
    LINEAR: tl.constexpr, CHANNELS: tl.constexpr, POLARITY: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SIGNS: tl.constexpr = BY_FIT if POLARITY else 0
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    v = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    k = tl.arange(0, CHANNELS)[:, None]
    inside = v < voxels
    voxels = voxels.to(tl.int64)
    data_step = voxels * CHANNELS
    image = sample * images * data_step + v.to(tl.int64) * CHANNELS + k
    if SHARED:
        step = 1
        table = curves + sample * per_sample + tl.zeros_like(v)
    else:
        step = voxels
        table = curves + sample * per_sample + v
    level, rate0, prior_a, prior_c = _prior_of(prior, weight, sample, v, k, voxels, inside, value, LINEAR, CHANNELS)
    of_rate = sample * ((1 + CHANNELS * LINEAR) * voxels) + v
    of_a = of_rate + (1 + k) * voxels
    of_c = of_rate + (1 + CHANNELS * (LINEAR - 1) + k) * voxels
    rate = tl.load(value + of_rate, inside, 1.0)
    c = tl.load(value + of_c, inside, 0.0)
    a = tl.zeros_like(c)
    if LINEAR == 2:
        a = tl.load(value + of_a, inside, 0.0)
    mean = _mean(data + image, table, rate, v, a, c, level, prior_a, images, step, data_step, inside, LINEAR, SIGNS)
    _, _, second, _, _, centre, inverse, cross, with_a = _at(
        data + image, table, rate, v, a, c, mean, level, rate0, prior_a, prior_c, images, step, data_step, inside,
        LINEAR, SIGNS,
    )  # fmt: skip
    up = tl.load(grad + of_rate, inside, 0.0)
    gc = tl.load(grad + of_c, inside, 0.0)
    ga = tl.zeros_like(gc)
    if LINEAR == 2:
        ga = tl.load(grad + of_a, inside, 0.0)
        gc -= centre * ga
        up -= tl.sum(with_a * ga, 0, keep_dims=True) / (level + images)
    up -= tl.sum(cross * gc, 0, keep_dims=True) * inverse
    free = (rate > tl.load(settings)) & (rate < tl.load(settings + GRID - 1))
    up = tl.where(free, up / second, 0.0)
    uc = (gc - cross * up) * inverse
    ua = tl.zeros_like(uc)
    if LINEAR == 2:
        ua = (ga - with_a * up) / (level + images) - centre * uc
    # Infinite or NaN, in any channel: less itself it is not zero.
    known = (rate == rate) & (up - up == 0) & (tl.sum((uc - uc) + (ua - ua), 0, keep_dims=True) == 0)
    up = tl.where(known, up, 0.0)
    uc = tl.where(known, uc, 0.0)
    ua = tl.where(known, ua, 0.0)
    tl.store(u + of_rate, up, inside)
    tl.store(u + of_c, uc, inside)
    if LINEAR == 2:
        tl.store(u + of_a, ua, inside)
    for t in range(0, images):
        phi, d1, _ = _shapes(table, t, rate, images, step, inside, LINEAR)
        moved = _signed(ua + uc * phi + c * up * d1, t, phi, v, a, c, SIGNS)
        tl.store(grad_data + image + t * data_step, tl.where(known, moved, 0.0), inside)


@triton.jit(do_not_specialize=["images", "voxels", "blocks", "chunks", "batch", "per_sample"])
def fit_curves_backward_kernel(
    u, value, data, curves, grad, images, voxels, blocks, chunks, batch, per_sample,
    LINEAR: tl.constexpr, CHANNELS: tl.constexpr, POLARITY: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program per table and chunk of its voxels: of <s - f, f' u> = A phi + B phi', with s, p and u held fixed, over
    # all samples with that table. A chunk of a table of each voxel is a block, of a shared one its share of the blocks.
    SIGNS: tl.constexpr = BY_FIT if POLARITY else 0
    own = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    k = tl.arange(0, CHANNELS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    zero = tl.zeros((1, BLOCK), value.dtype.element_ty)
    data_step = voxels.to(tl.int64) * CHANNELS
    first = tl.where(per_sample == 0, 0, own)
    last = tl.where(per_sample == 0, batch, own + 1)
    for t in range(0, images):
        g_time = zero
        g_sums = zero
        g_q = zero
        g_rest = zero
        g_u = zero
        for sample in range(first, last):
            for block in range(chunk, blocks, chunks):
                v = block * BLOCK + lane
                inside = v < voxels
                if SHARED:
                    at = curves + own * per_sample + t + tl.zeros_like(v)
                    row = images.to(tl.int64)
                else:
                    at = curves + own * per_sample + t * voxels.to(tl.int64) + v
                    row = images * voxels.to(tl.int64)
                of_rate = sample * ((1 + CHANNELS * LINEAR) * voxels.to(tl.int64)) + v
                of_c = of_rate + (1 + CHANNELS * (LINEAR - 1) + k) * voxels.to(tl.int64)
                rate = tl.load(value + of_rate, inside, 1.0)
                up = tl.load(u + of_rate, inside, 0.0)
                c = tl.load(value + of_c, inside, 0.0)
                uc = tl.load(u + of_c, inside, 0.0)
                a = tl.zeros_like(c)
                ua = a
                if LINEAR == 2:
                    of_a = of_rate + (1 + k) * voxels.to(tl.int64)
                    a = tl.load(value + of_a, inside, 0.0)
                    ua = tl.load(u + of_a, inside, 0.0)
                s = tl.load(data + sample * images * data_step + t * data_step + v.to(tl.int64) * CHANNELS + k,
                            inside, 0.0)  # fmt: skip
                time = tl.load(at, inside, 0.0)
                m, decay = _recovery(time * rate)
                if LINEAR == 2:  # phi = E
                    phi = decay
                    d1 = -time * decay
                else:
                    sums = tl.load(at + row, inside, 0.0)
                    q = tl.load(at + 2 * row, inside, 0.0)
                    rest = tl.load(at + 3 * row, inside, 1.0)
                    of_u = tl.load(at + 4 * row, inside, 0.0)
                    inverse = 1.0 / (rest + of_u * m)
                    square = inverse * inverse
                    joint = q * rest + of_u * sums
                    phi = (sums - q * m) * inverse
                    d1 = -time * decay * joint * square
                left = _signed(s, t, phi, v, a, c, SIGNS) - (a + c * phi)
                along = ua + uc * phi + c * up * d1
                of_phi = tl.sum(left * uc - c * along, 0, keep_dims=True)  # A
                of_d1 = up * tl.sum(left * c, 0, keep_dims=True)  # B
                # Zero where nothing was found: u is zero there, and what else may be no number.
                known = inside & (of_phi - of_phi == 0) & (of_d1 - of_d1 == 0)
                of_phi = tl.where(known, of_phi, 0.0)
                of_d1 = tl.where(known, of_d1, 0.0)
                if LINEAR == 2:
                    by_time = -of_phi * rate * decay + of_d1 * (time * rate - 1.0) * decay
                    g_time += tl.where(known, by_time, 0.0)
                else:
                    slope = time * decay  # dm/dR
                    ratio = 2.0 * joint * inverse * slope
                    by_time = -of_phi * joint * rate * decay * square
                    by_time += of_d1 * square * decay * (joint * (time * rate - 1.0) + ratio * of_u * rate)
                    g_time += tl.where(known, by_time, 0.0)
                    g_sums += tl.where(known, of_phi * inverse - of_d1 * of_u * slope * square, 0.0)
                    g_q += tl.where(known, -of_phi * m * inverse - of_d1 * rest * slope * square, 0.0)
                    g_rest += tl.where(known, -of_phi * phi * inverse + of_d1 * square * (ratio - q * slope), 0.0)
                    by_u = -of_phi * phi * m * inverse + of_d1 * square * (ratio * m - sums * slope)
                    g_u += tl.where(known, by_u, 0.0)
        for r in tl.static_range(5):
            if r == 0:
                g = g_time
            elif r == 1:
                g = g_sums
            elif r == 2:
                g = g_q
            elif r == 3:
                g = g_rest
            else:
                g = g_u
            if SHARED:
                tl.store(grad + (tl.program_id(0).to(tl.int64) * 5 + r) * images + t, tl.sum(tl.sum(g, 1), 0))
            else:
                v = chunk * BLOCK + lane
                tl.store(grad + ((own * 5 + r) * images + t) * voxels.to(tl.int64) + v, g, v < voxels)


def _sizes(data: Tensor, curves: Tensor) -> tuple[tuple[int, ...], dict[str, int | bool]]:
    """Images, voxels, blocks of a sample and the step of the table from sample to sample; what is compiled in."""
    images, voxels = data.shape[1:]
    per_sample = 0 if curves.shape[0] == 1 else curves[0].numel()
    channels = 2 if data.is_complex() else 1
    return (images, voxels, triton.cdiv(voxels, LANES), per_sample), {
        "CHANNELS": channels, "SHARED": curves.shape[3] == 1, "BLOCK": LANES, "num_warps": 1
    }  # fmt: skip


def _reals(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def fit_voxels(
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    settings: Tensor,
    linear: int,
    polarity: bool,
    max_iter: int,
    value: Tensor,
    status: Tensor,
    count: Tensor,
    residual: Tensor,
) -> None:
    """``settings`` (GRID + 2,): the rates of the grid, tol, and the relative step that is the last but one."""
    if data.shape[0] == 0 or data.shape[2] == 0:
        return
    (images, voxels, blocks, per_sample), options = _sizes(data, curves)
    points = None
    if options["SHARED"]:  # 16 of some 22 evaluations of the signal, which are then a product each
        points = curves.new_empty(curves.shape[0], GRID.value, images + 2)
        fit_points_kernel[(curves.shape[0] * GRID.value,)](
            curves, settings, points, images, per_sample, LINEAR=linear, BLOCK=LANES, num_warps=1
        )
    fit_kernel[(data.shape[0] * blocks,)](
        _reals(data), curves, prior, weight, settings, points, value, status, count, residual, images, voxels, blocks,
        per_sample, max_iter, LINEAR=linear, POLARITY=polarity, **options,
    )  # fmt: skip


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
    if data.shape[0] == 0 or data.shape[2] == 0:
        return
    sizes, options = _sizes(data, curves)
    fit_backward_kernel[(data.shape[0] * sizes[2],)](
        grad, value, _reals(data), curves, prior, weight, settings, _reals(grad_data), u, *sizes,
        LINEAR=linear, POLARITY=polarity, **options,
    )  # fmt: skip


def fit_voxels_curves_backward(
    u: Tensor, value: Tensor, data: Tensor, curves: Tensor, linear: int, polarity: bool, grad: Tensor
) -> None:
    """Sums over voxels are made chunk by chunk and added in their order: the same bits in every run."""
    if data.shape[0] == 0 or data.shape[2] == 0:
        grad.zero_()
        return
    (images, voxels, blocks, per_sample), options = _sizes(data, curves)
    chunks = min(blocks, max(1, CHUNKS // curves.shape[0])) if options["SHARED"] else blocks
    parts = curves.new_empty(curves.shape[0], chunks, *curves.shape[1:]) if options["SHARED"] else grad
    fit_curves_backward_kernel[(curves.shape[0] * chunks,)](
        u, value, _reals(data), curves, parts, images, voxels, blocks, chunks, data.shape[0], per_sample,
        LINEAR=linear, POLARITY=polarity, **options,
    )  # fmt: skip
    if options["SHARED"]:
        torch.sum(parts, 1, out=grad)
