"""Triton kernels of pyrecon/ops/_variation.py and _soft_threshold.py.

Pixels live in registers as blocks (rows, columns, channels), channels 2 for complex numbers; a shift by one pixel is a
gather within the block, through shared memory. An image that fits one block stays there for all iterations. A larger
one is cut into blocks that overlap by LEVELS pixels on all sides and stay for LEVELS iterations: what the edge of a
block lacks spoils one pixel further in each of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CERTIFY_EVERY = 5  # as in the reference
WHOLE = 64  # most rows and columns of a block
MOST = 16384  # most bytes of it in one array: 16 warps hold it with five like it in registers
LEVELS = 4  # iterations a block stays
SYNC_EVERY = 4  # looks at the gap between two questions whether any sample still runs


@triton.jit
def _shifted(v, by: tl.constexpr, axis: tl.constexpr):
    """v at the next (by = 1) or previous (by = -1) index of an axis; at the end of the block anything."""
    size: tl.constexpr = v.shape[axis]
    index = tl.minimum(tl.maximum(tl.arange(0, size) + by, 0), size - 1)
    if axis == 0:
        index = index[:, None, None]
    else:
        index = index[None, :, None]
    return tl.gather(v, tl.broadcast_to(index, v.shape), axis)


@triton.jit
def _image(x, down, right, rows, columns, NONNEG: tl.constexpr):
    """u = x - D^T q."""
    above = tl.where(rows > 0, _shifted(down, -1, 0), 0.0)
    left = tl.where(columns > 0, _shifted(right, -1, 1), 0.0)
    u = x + (down - above) + (right - left)
    return tl.where(u < 0, 0.0, u) if NONNEG else u


@triton.jit
def _differences(u, rows, columns, height, width):
    inside = (rows < height) & (columns < width)
    d_down = tl.where(inside & (rows + 1 < height), _shifted(u, 1, 0) - u, 0.0)
    d_right = tl.where(inside & (columns + 1 < width), _shifted(u, 1, 1) - u, 0.0)
    return d_down, d_right


@triton.jit
def _lengths(down, right, ISOTROPIC: tl.constexpr):
    """Magnitudes of both parts, each over the channels; with ISOTROPIC both are that of the pair."""
    a = tl.sum(down * down, 2, keep_dims=True)
    b = tl.sum(right * right, 2, keep_dims=True)
    if ISOTROPIC:
        length = tl.sqrt(a + b)
        return length, length
    return tl.sqrt(a), tl.sqrt(b)


@triton.jit
def _project(down, right, weight, TINY: tl.constexpr, ISOTROPIC: tl.constexpr):
    a, b = _lengths(down, right, ISOTROPIC)
    least = tl.maximum(weight, TINY)
    return down * (weight / tl.maximum(a, least)), right * (weight / tl.maximum(b, least))


@triton.jit
def _advance(x, down, right, s_down, s_right, schedule, k, weight, rows, columns, height, width,
             TINY: tl.constexpr, ISOTROPIC: tl.constexpr, NONNEG: tl.constexpr):  # fmt: skip
    of_q = tl.load(schedule + 5 * k)
    of_d = tl.load(schedule + 5 * k + 1)
    next_z = tl.load(schedule + 5 * k + 2)
    next_q = tl.load(schedule + 5 * k + 3)
    next_d = tl.load(schedule + 5 * k + 4)
    u = _image(x, down, right, rows, columns, NONNEG)
    d_down, d_right = _differences(u, rows, columns, height, width)
    z_down = of_q * down + (of_d * d_down + s_down)
    z_right = of_q * right + (of_d * d_right + s_right)
    s_down = next_z * z_down - (next_q * down + next_d * d_down)
    s_right = next_z * z_right - (next_q * right + next_d * d_right)
    down, right = _project(z_down, z_right, weight, TINY, ISOTROPIC)
    return down, right, s_down, s_right


@triton.jit
def _total(v):
    return tl.sum(tl.sum(tl.sum(v, 2), 1), 0)


@triton.jit
def _gap(x, down, right, weight, rows, columns, height, width, mine, ISOTROPIC: tl.constexpr, NONNEG: tl.constexpr):
    """The duality gap, summed over the pixels that are mine."""
    u = _image(x, down, right, rows, columns, NONNEG)
    d_down, d_right = _differences(u, rows, columns, height, width)
    a, b = _lengths(d_down, d_right, ISOTROPIC)
    length = a if ISOTROPIC else a + b
    inner = tl.sum(down * d_down + right * d_right, 2, keep_dims=True)
    return _total(tl.where(mine, weight * length - inner, 0.0))


@triton.jit
def _load_dual(q, at, plane, rows, columns, height, width):
    """A field, without what would point out of the image."""
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return tl.load(q + at, inside & (rows + 1 < height), 0.0), tl.load(
        q + plane + at, inside & (columns + 1 < width), 0.0
    )


@triton.jit(do_not_specialize=["iterations"])
def tv_whole_kernel(
    x, weight, first_dual, u, dual, count, schedule, height, width, iterations, tol,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, TINY: tl.constexpr, WARM: tl.constexpr,
    ISOTROPIC: tl.constexpr, NONNEG: tl.constexpr, CERTIFY: tl.constexpr,
):  # fmt: skip
    # One program per image, all iterations.
    sample = tl.program_id(0).to(tl.int64)
    plane = height * width * CHANNELS
    rows = tl.arange(0, ROWS)[:, None, None]
    columns = tl.arange(0, COLUMNS)[None, :, None]
    at = (rows * width + columns) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    inside = (rows < height) & (columns < width)
    level = tl.load(weight + sample)
    image = tl.load(x + sample * plane + at, inside, 0.0)
    down = tl.zeros_like(image)
    right = tl.zeros_like(image)
    s_down = tl.zeros_like(image)
    s_right = tl.zeros_like(image)
    if WARM:
        down, right = _load_dual(first_dual + 2 * sample * plane, at, plane, rows, columns, height, width)
        down, right = _project(down, right, level, TINY, ISOTROPIC)
    enough = tol * tol * _total(image * image)
    k = 0
    last = iterations
    while k < last:
        n = last - k
        if CERTIFY > 0:
            gap = _gap(image, down, right, level, rows, columns, height, width, inside, ISOTROPIC, NONNEG)
            n = tl.where(gap <= enough, 0, tl.minimum(n, CERTIFY))
            last = tl.where(gap <= enough, k, last)
        for _ in range(0, n):
            down, right, s_down, s_right = _advance(
                image, down, right, s_down, s_right, schedule, k, level, rows, columns, height, width,
                TINY, ISOTROPIC, NONNEG,
            )  # fmt: skip
            k += 1
    tl.store(u + sample * plane + at, _image(image, down, right, rows, columns, NONNEG), inside)
    tl.store(dual + 2 * sample * plane + at, down, inside)
    tl.store(dual + (2 * sample + 1) * plane + at, right, inside)
    tl.store(count + sample, k)


@triton.jit(do_not_specialize=["k", "levels"])
def tv_block_kernel(
    x, weight, source, s_source, target, s_target, running, gaps, schedule, height, width, across, blocks, k, levels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, HALO: tl.constexpr, TINY: tl.constexpr,
    FIRST: tl.constexpr, ISOTROPIC: tl.constexpr, NONNEG: tl.constexpr, CERTIFY: tl.constexpr,
):  # fmt: skip
    # Some iterations on one block of one image, from the source to the target buffers, and its share of the gap of the
    # source. FIRST: no iterations; the source is a first dual, the target receives its projection and s = 0.
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    if CERTIFY:  # noqa: SIM102
        if tl.load(running + sample) == 0:
            return
    plane = height * width * CHANNELS
    top = (block // across) * (ROWS - 2 * HALO) - HALO
    start = (block % across) * (COLUMNS - 2 * HALO) - HALO
    rows = top + tl.arange(0, ROWS)[:, None, None]
    columns = start + tl.arange(0, COLUMNS)[None, :, None]
    at = (rows * width + columns) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    mine = inside & (rows >= top + HALO) & (rows < top + ROWS - HALO)
    mine = mine & (columns >= start + HALO) & (columns < start + COLUMNS - HALO)
    level = tl.load(weight + sample)
    image = tl.load(x + sample * plane + at, inside, 0.0)
    down, right = _load_dual(source + 2 * sample * plane, at, plane, rows, columns, height, width)
    if FIRST:
        down, right = _project(down, right, level, TINY, ISOTROPIC)
        s_down = tl.zeros_like(image)
        s_right = tl.zeros_like(image)
    else:
        s_down = tl.load(s_source + 2 * sample * plane + at, inside, 0.0)
        s_right = tl.load(s_source + (2 * sample + 1) * plane + at, inside, 0.0)
    if CERTIFY:
        gap = _gap(image, down, right, level, rows, columns, height, width, mine, ISOTROPIC, NONNEG)
        tl.store(gaps + sample * blocks + block, gap)
    for g in range(0, levels):
        down, right, s_down, s_right = _advance(
            image, down, right, s_down, s_right, schedule, k + g, level, rows, columns, height, width,
            TINY, ISOTROPIC, NONNEG,
        )  # fmt: skip
    tl.store(target + 2 * sample * plane + at, down, mine)
    tl.store(target + (2 * sample + 1) * plane + at, right, mine)
    tl.store(s_target + 2 * sample * plane + at, s_down, mine)
    tl.store(s_target + (2 * sample + 1) * plane + at, s_right, mine)


@triton.jit
def tv_finish_kernel(
    x, even, odd, rounds, u, dual, height, width, blocks,
    CHANNELS: tl.constexpr, NONNEG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # u and the dual of each sample, from the buffer its last round wrote.
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    n = height * width * CHANNELS
    at = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    row = at // (width * CHANNELS)
    column = at // CHANNELS % width
    q = even + 2 * sample * n
    if tl.load(rounds + sample) % 2 == 1:
        q = odd + 2 * sample * n
    down = tl.load(q + at, inside, 0.0)
    right = tl.load(q + n + at, inside, 0.0)
    above = tl.load(q + at - width * CHANNELS, inside & (row > 0), 0.0)
    left = tl.load(q + n + at - CHANNELS, inside & (column > 0), 0.0)
    v = tl.load(x + sample * n + at, inside, 0.0) + (down - above) + (right - left)
    if NONNEG:
        v = tl.where(v < 0, 0.0, v)
    tl.store(u + sample * n + at, v, inside)
    tl.store(dual + 2 * sample * n + at, down, inside)
    tl.store(dual + (2 * sample + 1) * n + at, right, inside)


def tv_prox(
    x: Tensor,
    weight: Tensor,
    first_dual: Tensor | None,
    schedule: Tensor,
    tol: float,
    isotropic: bool,
    nonneg: bool,
    u: Tensor,
    dual: Tensor,
    count: Tensor,
) -> None:
    """``schedule`` (iterations, 5) in the precision and on the device of ``weight``."""
    batch, height, width = x.shape
    iterations, channels = schedule.shape[0], 2 if x.is_complex() else 1
    if x.numel() == 0:
        count.fill_(0 if tol > 0 else iterations)
        return
    x, u, dual = (torch.view_as_real(t) if t.is_complex() else t for t in (x, u, dual))
    if first_dual is not None and first_dual.is_complex():
        first_dual = torch.view_as_real(first_dual)
    options = {"CHANNELS": channels, "TINY": torch.finfo(weight.dtype).tiny, "ISOTROPIC": isotropic, "NONNEG": nonneg}
    room = MOST // (channels * weight.element_size())
    rows, columns = triton.next_power_of_2(height), triton.next_power_of_2(width)
    if max(rows, columns) <= WHOLE and rows * columns <= room:
        tv_whole_kernel[(batch,)](
            x, weight, first_dual, u, dual, count, schedule, height, width, iterations, tol,
            ROWS=rows, COLUMNS=columns, WARM=first_dual is not None, CERTIFY=CERTIFY_EVERY if tol > 0 else 0,
            num_warps=_warps(rows * columns * channels), **options,
        )  # fmt: skip
        return

    # Rounds of a few iterations from one pair of buffers into the other. A sample whose gap was small enough at the
    # start of a round keeps what that round started from, and takes part in no other.
    levels = CERTIFY_EVERY if tol > 0 else LEVELS
    columns = WHOLE
    rows = room // columns
    across = triton.cdiv(width, columns - 2 * levels)
    blocks = across * triton.cdiv(height, rows - 2 * levels)
    fields = (torch.zeros_like(dual), dual)  # q: written in turn; the first dual is read before `dual` is written
    momenta = (torch.zeros_like(dual), torch.empty_like(dual))  # s
    running = torch.ones(batch, dtype=torch.int32, device=x.device)
    rounds = torch.zeros_like(running)
    gaps = weight.new_empty(batch, blocks)
    energy = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), dtype=torch.float64).square()

    def round_from(source: Tensor, s_source: Tensor, to: int, k: int, n: int) -> None:
        tv_block_kernel[(batch * blocks,)](
            x, weight, source, s_source, fields[to], momenta[to], running, gaps, schedule, height, width, across,
            blocks, k, n, ROWS=rows, COLUMNS=columns, HALO=levels, FIRST=n == 0, CERTIFY=tol > 0 and n > 0,
            num_warps=_warps(rows * columns * channels), **options,
        )  # fmt: skip

    if first_dual is not None:
        round_from(first_dual, momenta[1], 0, 0, 0)
    for r, k in enumerate(range(0, iterations, levels)):
        round_from(fields[r % 2], momenta[r % 2], 1 - r % 2, k, min(levels, iterations - k))
        if tol > 0:
            running *= ~(gaps.sum(1, dtype=torch.float64) <= tol * tol * energy)
        rounds += running
        if tol > 0 and r % SYNC_EVERY == SYNC_EVERY - 1 and not running.any():
            break
    torch.clamp(rounds * levels, max=iterations, out=count)
    blocks = triton.cdiv(height * width * channels, 1024)
    tv_finish_kernel[(batch * blocks,)](
        x, *fields, rounds, u, dual, height, width, blocks, CHANNELS=channels, NONNEG=nonneg, BLOCK=1024
    )


def _warps(elements: int) -> int:
    return min(16, max(1, elements // 256))


@triton.jit
def soft_threshold_kernel(
    x, threshold, out, n, blocks, t_row, t_column, CHANNELS: tl.constexpr, NONNEG: tl.constexpr, BLOCK: tl.constexpr
):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < n
    at = row * n + column
    level = tl.load(threshold + row * t_row + column * t_column, inside, 0.0)
    if CHANNELS == 2:
        re = tl.load(x + 2 * at, inside, 0.0)
        im = tl.load(x + 2 * at + 1, inside, 0.0)
        length = tl.sqrt(re * re + im * im)
        scale = tl.where(length <= level, 0.0, 1.0 - level / tl.where(length <= level, 1.0, length))
        tl.store(out + 2 * at, re * scale, inside)
        tl.store(out + 2 * at + 1, im * scale, inside)
    else:
        v = tl.load(x + at, inside, 0.0)
        shrunk = tl.where(v < level, 0.0, v - level)  # false for NaN, which stays
        if not NONNEG:
            shrunk += tl.where(v > -level, 0.0, v + level)
        tl.store(out + at, shrunk, inside)


def soft_threshold(x: Tensor, threshold: Tensor, nonneg: bool, out: Tensor) -> None:
    """x (rows, n), threshold (rows | 1, n | 1)."""
    if x.numel() == 0:
        return
    if x.shape[0] > 1 and x.shape[1] < 128:  # a program for each short row would be mostly idle
        threshold = threshold.expand(x.shape).reshape(1, -1)
        x, out = x.view(1, -1), out.view(1, -1)
    rows, n = x.shape
    channels = 2 if x.is_complex() else 1
    if channels == 2:
        x, out = torch.view_as_real(x), torch.view_as_real(out)
    t_row, t_column = (threshold.stride(i) if threshold.shape[i] > 1 else 0 for i in (0, 1))
    block = min(1024, triton.next_power_of_2(n))
    blocks = triton.cdiv(n, block)
    soft_threshold_kernel[(rows * blocks,)](
        x, threshold, out, n, blocks, t_row, t_column, CHANNELS=channels, NONNEG=nonneg, BLOCK=block
    )
