"""The soft threshold: the proximal map of the l1 norm.

The law::

    soft_threshold(x, t) = argmin_u 1/2 |u - x|^2 + t |u|_1              (over u >= 0 with nonneg)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import COMPLEX, FLOATING, check_dtype, check_like, check_nonneg, check_out, dense, filled
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads


# --- the reference ---------------------------------------------------------------------------------------------
def _soft_reference(x: Tensor, threshold: Tensor, nonneg: bool) -> Tensor:
    if x.is_complex():
        length = x.abs()
        return x * torch.where(length <= threshold, 0, 1 - threshold / length)
    return x - (torch.minimum(x, threshold) if nonneg else torch.maximum(torch.minimum(x, threshold), -threshold))


# --- kernels ---------------------------------------------------------------------------------------------------
def _soft_cpp(x: Tensor, threshold: Tensor, nonneg: bool, out: Tensor) -> None:
    kernel = _core.soft_threshold_f32 if threshold.dtype == torch.float32 else _core.soft_threshold_f64
    rows, n = x.shape
    kernel(
        x.data_ptr(),
        threshold.data_ptr(),
        out.data_ptr(),
        rows,
        n,
        2 if x.is_complex() else 1,
        *_soft_strides(threshold),
        nonneg,
        kernel_threads(),
    )


def _soft_strides(threshold: Tensor) -> tuple[int, int]:
    """How far the threshold moves from row to row and from column to column."""
    rows, n = threshold.shape
    return (n if rows > 1 else 0), (1 if n > 1 else 0)


def _soft_triton(x: Tensor, threshold: Tensor, nonneg: bool, out: Tensor) -> None:
    from pyrecon.kernels.variation import soft_threshold as launch

    launch(x, threshold, nonneg, out)


_soft = Op(
    "soft_threshold(Tensor x, Tensor threshold, bool nonneg) -> Tensor",
    outputs=lambda x, threshold, nonneg: torch.empty_like(x),
    reference=_soft_reference,
    kernels={"cpp": _soft_cpp, "triton": _soft_triton},
)


# --- autograd --------------------------------------------------------------------------------------------------
class _SoftThreshold(torch.autograd.Function):
    """With u = x/|x| and t = Re<u, g>, where |x| > threshold: dx = g - threshold/|x| (g - u t), dthreshold = -t."""

    @staticmethod
    def forward(x: Tensor, threshold: Tensor, nonneg: bool) -> Tensor:
        return _soft(x, threshold, nonneg)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.nonneg = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, threshold = ctx.saved_tensors
        length = x if ctx.nonneg else x.abs()
        outside = length > threshold
        unit = x / torch.where(outside, length, 1.0) if x.is_complex() else x.sign()
        along = (unit.conj() * g).real if x.is_complex() else unit * g
        dx = g
        if x.is_complex():
            dx = g - threshold / torch.where(outside, length, 1.0) * (g - unit * along)
        return torch.where(outside, dx, 0), torch.where(outside, -along, 0.0).sum_to_size(threshold.shape), None


# --- the public function ---------------------------------------------------------------------------------------
def soft_threshold(x: Tensor, threshold: Tensor | float, *, nonneg: bool = False, out: Tensor | None = None) -> Tensor:
    """Shrink every number towards zero by ``threshold``: ``argmin_u 1/2 |u - x|^2 + threshold * |u|_1``.

    ``sign(x) * max(|x| - threshold, 0)``; for complex numbers the magnitude shrinks and the phase stays; with
    ``nonneg`` the minimum over ``u >= 0``, ``max(x - threshold, 0)``.

    Parameters
    ----------
    x
        Any shape, float32, float64, complex64 or complex128.
    threshold
        A float, ``(B,)`` with B the first axis of ``x``, or a tensor with as many axes as ``x`` that broadcasts to it;
        of the real dtype, not negative.
    nonneg
        Real ``x`` only.
    out
        Buffer for the result, like ``x``, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        Like ``x``; NaN stays NaN. Differentiable (twice) in ``x`` and ``threshold``; at ``|x| = threshold`` the
        gradient is that of the inside, zero.

    Notes
    -----
    CPU (C++) and GPU (Triton), one pass. Squares of complex ``x`` must be representable: in float32 between 1e-18 and
    1e18. Donoho, De-noising by soft-thresholding, IEEE Trans. Inf. Theory 41, 1995.
    """
    check_dtype("x", x, (*FLOATING, *COMPLEX))
    check_nonneg(nonneg, x)
    levels = _per_element("threshold", threshold, x)
    check_out("out", out, x.shape, x, inputs=(x, levels))
    rows, levels = _soft_rows(x.shape, levels)
    flat = dense(x).view(rows)
    levels = dense(levels)
    if out is not None:
        _soft(flat, levels, nonneg, out=out.view(rows))
        return out
    if needs_grad(x, levels):
        return _SoftThreshold.apply(flat, levels, nonneg).view(x.shape)  # type: ignore[no-any-return, no-untyped-call]
    return _soft(flat, levels, nonneg).view(x.shape)  # type: ignore[no-any-return]


def _per_element(name: str, value: Tensor | float, x: Tensor) -> Tensor:
    """``value`` as a tensor of the real dtype with the number of axes of ``x``, each of size 1 or that of ``x``."""
    dtype = x.real.dtype if x.is_complex() else x.dtype
    if not isinstance(value, Tensor):
        return filled(name, value, (1,) * x.dim(), dtype, x.device, finite=False)
    check_like(name, value, "x", x, dtype=dtype)
    aligned = value.reshape(-1, *[1] * (x.dim() - 1)) if value.dim() < x.dim() and value.dim() <= 1 else value
    if aligned.dim() != x.dim() or any(n not in (1, m) for n, m in zip(aligned.shape, x.shape, strict=True)):
        raise ValueError(
            f"{name}: shape {tuple(value.shape)} does not fit, expected (B,) or one that broadcasts to {tuple(x.shape)}"
        )
    return aligned


def _soft_rows(shape: torch.Size, levels: Tensor) -> tuple[tuple[int, int], Tensor]:
    """x as (rows, n) and the threshold as (rows | 1, n | 1): all that the kernels know of broadcasting."""
    total = math.prod(shape)
    if levels.numel() == 1:  # one threshold for all: the common case, 3 us sooner
        return (1, total), levels.reshape(1, 1)
    split = len(shape)
    while split and levels.shape[split - 1] == 1:
        split -= 1
    if split < len(shape) or not split:  # constant over the last axes: one per row
        rows = math.prod(shape[:split])
        n = math.prod(shape[split:])
        return (rows, n), levels.expand((*shape[:split], *levels.shape[split:])).reshape(rows, 1)
    first = 0
    while first < len(shape) and levels.shape[first] == 1:
        first += 1
    if levels.shape[first:] == shape[first:]:  # constant over the first axes: one per column
        n = math.prod(shape[first:])
        return (math.prod(shape[:first]), n), levels.reshape(1, n)
    return (1, total), levels.expand(shape).reshape(1, total)
