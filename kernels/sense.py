"""Triton kernels of pyrecon/ops/_sense.py: the pointwise parts around torch's cuFFT.

The centred transform is F = Q FFT P with diagonal phases P and Q, multiplied in where the data pass anyway: there are
no fftshift copies. A complex number is an interleaved pair; one program handles BLOCK pixels of all coils of a sample.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

Phases = tuple[Tensor, Tensor] | None  # along rows and columns


# --- the operators ---------------------------------------------------------------------------------------------
def forward(image: Tensor, maps: Tensor, mask: Tensor, out: Tensor) -> None:
    before, after = centring(image)
    expand(image, maps, before, out)
    weight(transform(torch.fft.fftn, out, (-2, -1)), mask, after, out)


def adjoint(kspace: Tensor, maps: Tensor, mask: Tensor, out: Tensor) -> None:
    combine(from_kspace(kspace, mask), maps, centring(kspace)[0], out)


def maps_adjoint(kspace: Tensor, image: Tensor, mask: Tensor, out: Tensor) -> None:
    correlate(from_kspace(kspace, mask), image, centring(kspace)[0], out)


def normal(image: Tensor, maps: Tensor, mask: Tensor, out: Tensor) -> None:
    axes = tuple(axis for axis in (-2, -1) if mask.shape[axis] > 1)
    coils = image.new_empty(image.shape[0], *maps.shape[1:])
    expand(image, maps, None, coils)
    spectrum = transform(torch.fft.fftn, coils, axes)
    weight(spectrum, torch.fft.ifftshift(mask, dim=(-2, -1)).square(), None, spectrum)
    combine(transform(torch.fft.ifftn, spectrum, axes), maps, None, out)


def from_kspace(kspace: Tensor, mask: Tensor) -> Tensor:
    coils = torch.empty_like(kspace)
    p, q = centring(kspace)[1]
    weight(kspace, mask, (p.conj().resolve_conj(), q.conj().resolve_conj()), coils)
    return transform(torch.fft.ifftn, coils, (-2, -1))


def transform(function, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if not axes or x.numel() == 0:
        return x
    result: Tensor = function(x, dim=axes, norm="ortho")
    return result.contiguous()  # a transform of one axis may come back transposed


def centring(like: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Phases along rows and columns before and after an uncentred transform that make it a centred one."""
    before, after = zip(*(centring_axis(n, like.dtype, like.device) for n in like.shape[-2:]), strict=True)
    return before, after


@cache
def centring_axis(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # exp(-2 pi i (j - c)(k - c) / n) = exp(2 pi i c j / n) exp(-2 pi i j k / n) exp(2 pi i c (k - c) / n), c = n // 2
    c, j = n // 2, torch.arange(n)
    angles = (torch.remainder(c * index, n).double() * (2 * torch.pi / n) for index in (j, j - c))
    before, after = (torch.polar(torch.ones_like(a), a).to(dtype=dtype, device=device) for a in angles)
    return before, after


# --- kernels ---------------------------------------------------------------------------------------------------


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
def expand_kernel(image, maps, p, q, out, coils, pixels, cols, per_maps, PHASES: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    xr, xi = load_complex(image, b * pixels + pixel, inside)
    if PHASES:
        xr, xi = times_phase(xr, xi, p, q, pixel, cols, inside)
    for c in range(coils):
        mr, mi = load_complex(maps, (b // per_maps * coils + c) * pixels + pixel, inside)
        vr, vi = times(xr, xi, mr, mi)
        at = out + 2 * ((b * coils + c) * pixels + pixel)
        tl.store(at, vr, inside)
        tl.store(at + 1, vi, inside)


@triton.jit
def combine_kernel(data, maps, p, q, out, coils, pixels, cols, per_maps, PHASES: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    sr = tl.zeros((BLOCK,), data.dtype.element_ty)
    si = tl.zeros((BLOCK,), data.dtype.element_ty)
    for c in range(coils):
        mr, mi = load_complex(maps, (b // per_maps * coils + c) * pixels + pixel, inside)
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
    per_mask,
    batch_step,
    row_step,
    col_step,
    PHASES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    wr = tl.load(
        mask + b // per_mask * batch_step + (pixel // cols) * row_step + (pixel % cols) * col_step, inside, 0.0
    )
    wi = tl.zeros((BLOCK,), mask.dtype.element_ty)
    if PHASES:
        wr, wi = times_phase(wr, wi, p, q, pixel, cols, inside)
    for c in range(coils):
        index = (b * coils + c) * pixels + pixel
        er, ei = load_complex(data, index, inside)
        vr, vi = times(er, ei, wr, wi)
        tl.store(out + 2 * index, vr, inside)
        tl.store(out + 2 * index + 1, vi, inside)


# --- launchers -------------------------------------------------------------------------------------------------
def expand(image: Tensor, maps: Tensor, phases: Phases, out: Tensor) -> None:
    launch(expand_kernel, image, maps, phases, out, out, out.shape[0] // max(maps.shape[0], 1))


def combine(coils: Tensor, maps: Tensor, phases: Phases, out: Tensor) -> None:
    launch(combine_kernel, coils, maps, phases, out, coils, out.shape[0] // max(maps.shape[0], 1))


def correlate(coils: Tensor, image: Tensor, phases: Phases, out: Tensor) -> None:
    launch(correlate_kernel, coils, image, phases, out, coils)


def weight(coils: Tensor, mask: Tensor, phases: Phases, out: Tensor) -> None:
    batch, _, rows, cols = mask.shape
    per_mask = coils.shape[0] // max(batch, 1)
    launch(weight_kernel, coils, mask, phases, out, coils, per_mask, rows * cols, _step(rows, cols), _step(cols, 1))


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
