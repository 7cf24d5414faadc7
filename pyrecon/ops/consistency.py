"""Data consistency of a linear model within an l2-ball around the measurement.

The law. With d = v - center, per sample b::

    project_l2_ball(v, center, radius)[b] = center[b] + d[b] * min(1, radius[b] / |d[b]|)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import COMPLEX, FLOATING, check_dtype, check_like, check_out, check_shape, dense
from pyrecon._library import Op, needs_grad


# --- the reference ---------------------------------------------------------------------------------------------
def _project_reference(v: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    offset = v - center
    norm = torch.linalg.vector_norm(offset, dim=1)
    scale = torch.where(norm > radius, radius / norm, 1.0)
    return torch.where((norm > radius)[:, None], center + scale[:, None] * offset, v)


# --- kernels ---------------------------------------------------------------------------------------------------
def _project_cpp(v: Tensor, center: Tensor, radius: Tensor, out: Tensor) -> None:
    kernel = _core.project_l2_ball_f32 if radius.dtype == torch.float32 else _core.project_l2_ball_f64
    batch, n = v.shape
    n = 2 * n if v.is_complex() else n  # the norm of complex rows is that of their interleaved pairs
    kernel(v.data_ptr(), center.data_ptr(), radius.data_ptr(), out.data_ptr(), batch, n, torch.get_num_threads())


def _project_triton(v: Tensor, center: Tensor, radius: Tensor, out: Tensor) -> None:
    from pyrecon.kernels.consistency import project_l2_ball as launch

    launch(v, center, radius, out)


_project = Op(
    "project_l2_ball(Tensor v, Tensor center, Tensor radius) -> Tensor",
    outputs=lambda v, center, radius: torch.empty_like(v),
    reference=_project_reference,
    kernels={"cpp": _project_cpp, "triton": _project_triton},
)


# --- autograd --------------------------------------------------------------------------------------------------
class _Project(torch.autograd.Function):
    """With u = d/|d| and t = Re<u, g>: outside, dv = r/|d| (g - t u), dcenter = g - dv, dradius = t; inside dv = g."""

    @staticmethod
    def forward(v: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        return _project(v, center, radius)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v, center, radius = ctx.saved_tensors
        offset = v - center
        norm = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        outside = norm > radius[:, None]
        u = offset / torch.where(outside, norm, 1.0)
        t = (u.conj() * g).real.sum(dim=1, keepdim=True)
        dv = torch.where(outside, (radius[:, None] / torch.where(outside, norm, 1.0)) * (g - t * u), g)
        return dv, g - dv, torch.where(outside, t, 0.0)[:, 0]


# --- the public function ---------------------------------------------------------------------------------------
def project_l2_ball(v: Tensor, center: Tensor, radius: Tensor | float, *, out: Tensor | None = None) -> Tensor:
    """Project every row of ``v`` onto the l2-ball of ``radius`` around the same row of ``center``.

    ``out[b] = center[b] + (v[b] - center[b]) * min(1, radius[b] / |v[b] - center[b]|)``

    Parameters
    ----------
    v, center
        ``(B, M)``, float32, float64, complex64 or complex128, same dtype and device.
    radius
        A float or ``(B,)`` of the real dtype; not negative.
    out
        Buffer for the result, ``(B, M)``, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        ``(B, M)``. Rows inside the ball come back bit for bit; a row with a NaN comes back as it came and reaches no
        other row. Differentiable (twice) in ``v``, ``center`` and ``radius``.

    Notes
    -----
    CPU (C++) and GPU (Triton). The norm is accumulated in float64 on a CPU. The data step of DEQ-MPI, Eq. 12.
    """
    check_dtype("v", v, (*FLOATING, *COMPLEX))
    check_shape("v", v, (None, None), "(B, M)")
    check_like("center", center, "v", v)
    check_shape("center", center, v.shape, "(B, M)")
    radius = _radius("radius", radius, v)
    check_out("out", out, v.shape, v, inputs=(v, center, radius))
    if out is None and needs_grad(v, center, radius):
        return _Project.apply(dense(v), dense(center), dense(radius))  # type: ignore[no-any-return, no-untyped-call]
    return _project(dense(v), dense(center), dense(radius), out=out)  # type: ignore[no-any-return]


def _radius(name: str, radius: Tensor | float, like: Tensor) -> Tensor:
    """``radius`` as a tensor (B,) of the real dtype of ``like``."""
    dtype = like.real.dtype if like.is_complex() else like.dtype
    if not isinstance(radius, Tensor):
        if not radius >= 0:
            raise ValueError(f"{name}: {radius} is not a radius, expected a number >= 0")
        return torch.full(like.shape[:1], radius, dtype=dtype, device=like.device)
    check_like(name, radius, "v", like, dtype=dtype)
    check_shape(name, radius, like.shape[:1], "(B,)")
    return radius
