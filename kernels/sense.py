"""Triton kernels of pyrecon.ops.sense: the pointwise parts around torch's cuFFT.

A complex number is an interleaved pair; one program handles BLOCK pixels of one image row set. The centring phases of
the Fourier transform are multiplied in where the data pass anyway.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

Phases = tuple[Tensor, Tensor] | None


@triton.jit
def load_complex(p, index, inside):
    return tl.load(p + 2 * index, inside, 0.0), tl.load(p + 2 * index + 1, inside, 0.0)


@triton.jit
def times(ar, ai, br, bi):
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def times_phase(ar, ai, p, q, pixel, cols, inside):
    pr, pi = load_complex(p, pixel // cols, inside)
    qr, qi = load_complex(q, pixel % cols, inside)
    ar, ai = times(ar, ai, pr, pi)
    return times(ar, ai, qr, qi)


@triton.jit
def expand_kernel(image, maps, p, q, out, coils, pixels, cols, maps_step, PHASES: tl.constexpr, BLOCK: tl.constexpr):
    # One read of the image serves all coils of a sample.
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    xr, xi = load_complex(image, b * pixels + pixel, inside)
    if PHASES:
        xr, xi = times_phase(xr, xi, p, q, pixel, cols, inside)
    for c in range(coils):
        mr, mi = load_complex(maps, (b * maps_step + c) * pixels + pixel, inside)
        vr, vi = times(xr, xi, mr, mi)
        at = out + 2 * ((b * coils + c) * pixels + pixel)
        tl.store(at, vr, inside)
        tl.store(at + 1, vi, inside)


@triton.jit
def combine_kernel(data, maps, p, q, out, coils, pixels, cols, maps_step, PHASES: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    sr = tl.zeros((BLOCK,), data.dtype.element_ty)
    si = tl.zeros((BLOCK,), data.dtype.element_ty)
    for c in range(coils):
        mr, mi = load_complex(maps, (b * maps_step + c) * pixels + pixel, inside)
        er, ei = load_complex(data, (b * coils + c) * pixels + pixel, inside)
        sr += er * mr + ei * mi
        si += ei * mr - er * mi
    if PHASES:  # conj(phase) * s = conj(phase * conj(s))
        sr, si = times_phase(sr, -si, p, q, pixel, cols, inside)
        si = -si
    at = out + 2 * (b * pixels + pixel)
    tl.store(at, sr, inside)
    tl.store(at + 1, si, inside)


@triton.jit
def correlate_kernel(data, image, p, q, out, coils, pixels, cols, PHASES: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    xr, xi = load_complex(image, b * pixels + pixel, inside)
    if PHASES:
        xr, xi = times_phase(xr, xi, p, q, pixel, cols, inside)
    for c in range(coils):
        er, ei = load_complex(data, (b * coils + c) * pixels + pixel, inside)
        at = out + 2 * ((b * coils + c) * pixels + pixel)
        tl.store(at, er * xr + ei * xi, inside)
        tl.store(at + 1, ei * xr - er * xi, inside)


@triton.jit
def weight_kernel(
    data,
    mask,
    p,
    q,
    out,
    coils,
    pixels,
    cols,
    batch_step,
    row_step,
    col_step,
    PHASES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One look at mask and phase serves all coils of a sample.
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    wr = tl.load(mask + b * batch_step + (pixel // cols) * row_step + (pixel % cols) * col_step, inside, 0.0)
    wi = tl.zeros((BLOCK,), mask.dtype.element_ty)
    if PHASES:
        wr, wi = times_phase(wr, wi, p, q, pixel, cols, inside)
    for c in range(coils):
        index = (b * coils + c) * pixels + pixel
        er, ei = load_complex(data, index, inside)
        vr, vi = times(er, ei, wr, wi)
        tl.store(out + 2 * index, vr, inside)
        tl.store(out + 2 * index + 1, vi, inside)


def expand(image: Tensor, maps: Tensor, phases: Phases, out: Tensor) -> None:
    launch(expand_kernel, image, maps, phases, out, out, _step(maps.shape[0], maps.shape[1]))


def combine(coils: Tensor, maps: Tensor, phases: Phases, out: Tensor) -> None:
    launch(combine_kernel, coils, maps, phases, out, coils, _step(maps.shape[0], maps.shape[1]))


def correlate(coils: Tensor, image: Tensor, phases: Phases, out: Tensor) -> None:
    launch(correlate_kernel, coils, image, phases, out, coils)


def weight(coils: Tensor, mask: Tensor, phases: Phases, out: Tensor) -> None:
    batch, _, rows, cols = mask.shape
    steps = _step(batch, rows * cols), _step(rows, cols), _step(cols, 1)
    launch(weight_kernel, coils, mask, phases, out, coils, *steps)


def launch(kernel, first: Tensor, second: Tensor, phases: Phases, out: Tensor, data: Tensor, *steps: int) -> None:
    """Run ``kernel`` over the pixels and samples of ``data`` (B, C, H, W)."""
    if data.numel() == 0:
        return
    batch, coils, rows, cols = data.shape
    p, q = phases if phases is not None else (out, out)  # not read
    tensors = (torch.view_as_real(t) if t.is_complex() else t for t in (first, second, p, q, out))
    block = min(512, triton.next_power_of_2(rows * cols))
    grid = (triton.cdiv(rows * cols, block), batch)
    kernel[grid](*tensors, coils, rows * cols, cols, *steps, PHASES=phases is not None, BLOCK=block)


def _step(size: int, step: int) -> int:
    """The distance to the next item along an axis; 0 where one item serves all."""
    return step if size > 1 else 0
