"""Triton kernels of pyrecon/ops/_joint.py: one program for BLOCK pixels of a sample, twice over its coils.

The second time the numbers come from the cache: 15 coils x 4 arrays x 1 KiB of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyrecon.kernels.sense import load_complex

BLOCK = 128


@triton.jit
def _inverse(squared):
    """0/0 = 0; a NaN stays one."""
    empty = squared == 0
    return tl.where(empty, 0.0, 1.0 / tl.sqrt(tl.where(empty, 1.0, squared)))


@triton.jit
def _store_complex(p, index, re, im, inside):
    tl.store(p + 2 * index, re, inside)
    tl.store(p + 2 * index + 1, im, inside)


@triton.jit
def coils_kernel(maps, previous, inertia, image, bar, out, coils, pixels, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    u = tl.load(image + b * pixels + pixel, inside, 0.0)
    squared = tl.zeros_like(u)
    for c in range(coils):
        at = (b * coils + c) * pixels + pixel
        re, im = load_complex(maps, at, inside)
        if previous is not None:
            beta = tl.load(inertia + b)
            pr, pi = load_complex(previous, at, inside)
            re += beta * (re - pr)
            im += beta * (im - pi)
            _store_complex(bar, at, re, im, inside)
        squared += re * re + im * im
    scale = u * _inverse(squared)
    for c in range(coils):
        at = (b * coils + c) * pixels + pixel
        if previous is not None:
            re, im = load_complex(bar, at, inside)
        else:
            re, im = load_complex(maps, at, inside)
        _store_complex(out, at, re * scale, im * scale, inside)


@triton.jit
def step_kernel(maps, response, data, image, step, out, along, coils, pixels, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    u = tl.load(image + b * pixels + pixel, inside, 0.0)
    squared = tl.zeros_like(u)
    s = tl.zeros_like(u)
    for c in range(coils):
        at = (b * coils + c) * pixels + pixel
        re, im = load_complex(maps, at, inside)
        wr, wi = load_complex(response, at, inside)
        if data is not None:
            zr, zi = load_complex(data, at, inside)
            wr -= zr
            wi -= zi
        squared += re * re + im * im
        s += re * wr + im * wi
    inverse = _inverse(squared)
    s *= inverse
    tl.store(along + b * pixels + pixel, s, inside)
    s *= inverse
    scale = u * inverse
    if step is not None:
        scale *= tl.load(step + b)
    for c in range(coils):
        at = (b * coils + c) * pixels + pixel
        re, im = load_complex(maps, at, inside)
        wr, wi = load_complex(response, at, inside)
        if data is not None:
            zr, zi = load_complex(data, at, inside)
            wr -= zr
            wi -= zi
        yr = scale * (wr - re * s)
        yi = scale * (wi - im * s)
        if step is not None:
            yr = re - yr
            yi = im - yi
        _store_complex(out, at, yr, yi, inside)


@triton.jit
def test_kernel(
    proposal, maps, moved, step, image, along, data, unit, combined, partial, coils, pixels, blocks, bound,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    u = tl.load(image + b * pixels + pixel, inside, 0.0)
    before = tl.zeros_like(u)
    after = tl.zeros_like(u)
    distance = tl.zeros_like(u)
    for c in range(coils):
        at = (b * coils + c) * pixels + pixel
        re, im = load_complex(maps, at, inside)
        pr, pi = load_complex(proposal, at, inside)
        before += re * re + im * im
        after += pr * pr + pi * pi
        distance += (pr - re) * (pr - re) + (pi - im) * (pi - im)
    old = _inverse(before)
    new = _inverse(after)
    slope = tl.zeros_like(u)
    turned = tl.zeros_like(u)
    total = tl.zeros_like(u)
    for c in range(coils):
        at = (b * coils + c) * pixels + pixel
        re, im = load_complex(maps, at, inside)
        pr, pi = load_complex(proposal, at, inside)
        yr, yi = load_complex(moved, at, inside)
        zr, zi = load_complex(data, at, inside)
        pr *= new
        pi *= new
        er = pr - re * old
        ei = pi - im * old
        slope += (re - yr) * er + (im - yi) * ei
        turned += er * er + ei * ei
        total += pr * zr + pi * zi
        _store_complex(unit, at, pr, pi, inside)
    tl.store(combined + b * pixels + pixel, total, inside)
    s = tl.load(along + b * pixels + pixel, inside, 0.0)
    shrunk = before * old - after * new
    excess = shrunk * slope / tl.load(step + b) + turned * u * (tl.cast(bound, u.dtype) * u - s) * 0.5
    excess = tl.where((before == 0) | (after == 0), 0.0, excess)
    at = partial + 3 * (b * blocks + tl.program_id(0))
    tl.store(at, tl.sum(tl.where(inside, distance, 0.0).to(tl.float64)))
    tl.store(at + 1, tl.sum(excess.to(tl.float64)))
    tl.store(at + 2, tl.sum((turned * u * u).to(tl.float64)))


def coils(image: Tensor, maps: Tensor, out: Tensor) -> None:
    _launch(coils_kernel, maps, maps, None, None, image, None, out)


def extrapolate(maps: Tensor, previous: Tensor, inertia: Tensor, image: Tensor, bar: Tensor, out: Tensor) -> None:
    _launch(coils_kernel, maps, maps, previous, inertia, image, bar, out)


def coils_backward(g: Tensor, image: Tensor, maps: Tensor, along: Tensor, out: Tensor) -> None:
    _launch(step_kernel, maps, maps, g, None, image, None, out, along)


def maps_step(
    maps: Tensor, response: Tensor, data: Tensor, image: Tensor, step: Tensor, out: Tensor, along: Tensor
) -> None:
    _launch(step_kernel, maps, maps, response, data, image, step, out, along)


def maps_test(
    proposal: Tensor, maps: Tensor, moved: Tensor, step: Tensor, image: Tensor, along: Tensor, data: Tensor,
    bound: float, unit: Tensor, combined: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    batch, coils_, rows, cols = maps.shape
    blocks = triton.cdiv(rows * cols, BLOCK)
    partial = sums.new_empty((batch, blocks, 3), dtype=torch.float64)
    tensors = (_reals(t) for t in (proposal, maps, moved, step, image, along, data, unit, combined, partial))
    if maps.numel():
        test_kernel[(blocks, batch)](*tensors, coils_, rows * cols, blocks, bound, BLOCK=BLOCK)
    sums.copy_(partial.sum(dim=1))


def _launch(kernel, like: Tensor, *tensors: Tensor | None) -> None:
    batch, coils_, rows, cols = like.shape
    if like.numel():
        grid = (triton.cdiv(rows * cols, BLOCK), batch)
        kernel[grid](*(_reals(t) for t in tensors), coils_, rows * cols, BLOCK=BLOCK)


def _reals(t: Tensor | None) -> Tensor | None:
    return torch.view_as_real(t) if t is not None and t.is_complex() else t
