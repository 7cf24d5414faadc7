"""Data consistency of a linear model within an l2-ball around the measurement.

The laws, per sample b::

    project_l2_ball(v, center, radius)[b] = center[b] + t * min(1, radius[b] / |t|)     with t = v[b] - center[b]

    sm_consistency(A, x, d, y, radius)[b] = z, r, A x[b]     with z = project_l2_ball(A x[b] - d[b], y[b], radius[b])
                                                             and  r = A^H (z + d[b]), its real part for a real x
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import (
    COMPLEX,
    FLOATING,
    REAL_OF,
    check_dtype,
    check_like,
    check_out,
    check_radius,
    check_shape,
    check_tuple,
    dense,
)
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._product import product


# --- the reference ---------------------------------------------------------------------------------------------
def _project_reference(v: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    offset = v - center
    norm = offset.abs().square().sum(dim=1).sqrt()  # torch adds these in cascades, unlike vector_norm
    inside = norm <= radius  # not for NaN, which then shows in the whole row
    scale = torch.where(inside, 1.0, radius / norm)
    return torch.where(inside[:, None], v, center + scale[:, None] * offset)


def _step_reference(
    A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    forward = product(x.to(A.dtype), A.mT) if Ax is None else Ax
    z = _project_reference(forward - d, y, radius)
    r = product(z + d, A.conj())
    return z, r if x.is_complex() else r.real.clone(), forward if Ax is None else _nothing(Ax)


def _nothing(like: Tensor) -> Tensor:
    """Stands for the product among the results of an op that was given it: an op may not return its input."""
    return like.new_empty((0, 0))


# --- kernels ---------------------------------------------------------------------------------------------------
def _project_cpp(v: Tensor, center: Tensor, radius: Tensor, out: Tensor) -> None:
    kernel = _core.project_l2_ball_f32 if radius.dtype == torch.float32 else _core.project_l2_ball_f64
    batch, n = v.shape
    n = 2 * n if v.is_complex() else n  # the norm of complex rows is that of their interleaved pairs
    kernel(v.data_ptr(), center.data_ptr(), radius.data_ptr(), out.data_ptr(), batch, n, kernel_threads())


def _project_triton(v: Tensor, center: Tensor, radius: Tensor, out: Tensor) -> None:
    from pyrecon.kernels.consistency import project_l2_ball as launch

    launch(v, center, radius, out)


_project = Op(
    "project_l2_ball(Tensor v, Tensor center, Tensor radius) -> Tensor",
    outputs=lambda v, center, radius: torch.empty_like(v),
    reference=_project_reference,
    kernels={"cpp": _project_cpp, "triton": _project_triton},
)


def _step_outputs(
    A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(d), torch.empty_like(x), torch.empty_like(d) if Ax is None else _nothing(Ax)


def _step_cpp(
    A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor | None, z: Tensor, r: Tensor, product: Tensor
) -> None:
    kernel = _core.sm_consistency_f32 if radius.dtype == torch.float32 else _core.sm_consistency_f64
    multiply = Ax is None
    ax = product if Ax is None else Ax
    kernel(
        0 if not A.is_complex() else 1 if x.is_complex() else 2,  # enum Field in csrc/cpu/consistency.hpp
        A.data_ptr(), x.data_ptr(), d.data_ptr(), y.data_ptr(), radius.data_ptr(), ax.data_ptr(), z.data_ptr(),
        r.data_ptr(), *A.shape, x.shape[0], multiply, kernel_threads(),
    )  # fmt: skip


def _step_triton(
    A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor | None, z: Tensor, r: Tensor, product: Tensor
) -> None:
    from pyrecon.kernels.consistency import sm_consistency as launch

    launch(A, x, d, y, radius, product if Ax is None else Ax, z, r, multiply=Ax is None)


_step = Op(
    "sm_consistency(Tensor A, Tensor x, Tensor d, Tensor y, Tensor radius, Tensor? Ax) -> (Tensor, Tensor, Tensor)",
    outputs=_step_outputs,
    reference=_step_reference,
    kernels={"cpp": _step_cpp, "triton": _step_triton},
)


# --- autograd --------------------------------------------------------------------------------------------------
def _through_ball(offset: Tensor, radius: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projection in v, center and radius, from g in its result; offset = v - center.

    With u = offset/|offset| and t = Re<u, g>: outside, dv = radius/|offset| (g - t u) and dradius = t; inside, dv = g
    and dradius = 0. Always dcenter = g - dv.
    """
    norm = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
    outside = ~(norm <= radius[:, None])
    norm = torch.where(outside, norm, 1.0)
    u = offset / norm
    t = (u.conj() * g).real.sum(dim=1, keepdim=True)
    dv = torch.where(outside, radius[:, None] / norm * (g - t * u), g)
    return dv, g - dv, torch.where(outside, t, 0.0)[:, 0]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor, center: Tensor, radius: Tensor) -> Tensor:
        return _project(v, center, radius)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v, center, radius = ctx.saved_tensors
        return _through_ball(v - center, radius, g)


class _Step(torch.autograd.Function):
    """In plain torch, so that it can be differentiated again. A given product is an input like any other."""

    @staticmethod
    def forward(
        A: Tensor, x: Tensor, d: Tensor, y: Tensor, radius: Tensor, Ax: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _step(A, x, d, y, radius, Ax)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, Ax = inputs
        ctx.given = Ax is not None
        ctx.save_for_backward(*tensors, output[2] if Ax is None else Ax)

    @staticmethod
    def backward(ctx: Any, gz: Tensor, gr: Tensor, g_product: Tensor) -> tuple[Tensor | None, ...]:
        A, x, d, y, radius, product = ctx.saved_tensors
        offset = product - d - y
        dual = gr.to(A.dtype) @ A.mT  # what r passes on to z and to d
        dv, dy, dradius = _through_ball(offset, radius, gz + dual)
        dA = dx = dAx = None
        if ctx.needs_input_grad[0]:
            z = _project_reference(product - d, y, radius)
            dA = (z + d).mT @ gr.to(A.dtype).conj()
        if ctx.given:
            dAx = dv
        else:
            forward = dv + g_product
            if ctx.needs_input_grad[0]:
                dA = dA + forward.mT @ x.to(A.dtype).conj()
            if ctx.needs_input_grad[1]:
                dx = forward @ A.conj()
                dx = dx if x.is_complex() else dx.real
        return dA, dx, dual - dv, dy, dradius, dAx


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
        ``(B, M)``. Rows inside the ball come back bit for bit. A NaN, in whichever argument, fills its row and reaches
        no other. Differentiable (twice) in ``v``, ``center`` and ``radius``.

    Notes
    -----
    CPU (C++) and GPU (Triton). The norm is accumulated in float64 on a CPU. The data step of DEQ-MPI, Eq. 10.
    """
    check_dtype("v", v, (*FLOATING, *COMPLEX))
    check_shape("v", v, (None, None), "(B, M)")
    check_like("center", center, "v", v)
    check_shape("center", center, v.shape, "(B, M)")
    radius = check_radius("radius", radius, v)
    check_out("out", out, v.shape, v, inputs=(v, center, radius))
    if out is None and needs_grad(v, center, radius):
        return _Project.apply(dense(v), dense(center), dense(radius))  # type: ignore[no-any-return, no-untyped-call]
    return _project(dense(v), dense(center), dense(radius), out=out)  # type: ignore[no-any-return]


def sm_consistency(
    A: Tensor,
    x: Tensor,
    d: Tensor,
    y: Tensor,
    radius: Tensor | float,
    *,
    Ax: Tensor | None = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One data-consistency step of ADMM for a system matrix: the product, the l2-ball and the adjoint, fused.

    ``z = proj(A x - d)`` onto ``|z - y| <= radius``, and ``r = A^H (z + d)``, per sample. For a real image ``x`` under
    a complex matrix, ``r`` is the real part: the adjoint of ``A`` as a map from real images.

    Parameters
    ----------
    A
        ``(M, N)`` system matrix: float32, float64, complex64 or complex128. Dense memory; a transposed view is copied
        at every call.
    x
        ``(B, N)`` image, of the dtype of ``A``, or of its real dtype.
    d, y
        ``(B, M)`` scaled dual variable of the data, and measurement; dtype of ``A``.
    radius
        A float or ``(B,)`` of the real dtype; not negative. For noise of standard deviation sigma in each of M real
        numbers, ``sigma * sqrt(M)``.
    Ax
        ``(B, M)`` the product ``A x`` if it is known: it is then not computed, and ``x`` only says whether ``r`` is
        real. Solvers that mix iterates linearly (Anderson) carry it along.
    out
        Buffers ``(z, r, Ax)`` for the results, dense, sharing no memory with the inputs; the third may be the given
        ``Ax`` itself, otherwise that is copied there. Not differentiable.

    Returns
    -------
    z
        ``(B, M)``; a sample inside its ball has ``z = A x - d``.
    r
        ``(B, N)``, dtype of ``x``.
    Ax
        ``(B, M)``, the given tensor itself if there was one.

        All three are differentiable (twice) in ``A``, ``x``, ``d``, ``y``, ``radius`` and a given ``Ax``, which counts
        as an input of its own: no gradient reaches ``x`` then. A NaN fills its sample and reaches no other.

    Notes
    -----
    CPU (C++) and GPU (Triton, with torch's matrix product from 5 samples on). On a CPU, for up to 3 real or 1 complex
    samples ``A`` is read once: ``r = A^H (y + d) + s A^H (A x - d - y)`` with the ball's scale s known at the end. So
    the rounding error of ``r`` is relative to ``|A|^H (|y| + |d| + radius)``. Long sums go on in float64. Results are
    the same in every run with the same number of threads.

    Gungor et al., DEQ-MPI, IEEE Transactions on Medical Imaging 2024: z is Eq. 5 with Eq. 10, r the data part of Eq. 7.
    """
    check_dtype("A", A, (*FLOATING, *COMPLEX))
    check_shape("A", A, (None, None), "(M, N)")
    real = REAL_OF[A.dtype]
    check_like("x", x, "A", A, dtype=real if isinstance(x, Tensor) and x.dtype == real else A.dtype)
    m, n = A.shape
    check_shape("x", x, (None, n), "(B, N)")
    shape = torch.Size((x.shape[0], m))
    for name, tensor in (("d", d), ("y", y)) if Ax is None else (("d", d), ("y", y), ("Ax", Ax)):
        check_like(name, tensor, "A", A)
        check_shape(name, tensor, shape, "(B, M)")
    radius = check_radius("radius", radius, d)
    if out is None:
        inputs = dense(A), dense(x), dense(d), dense(y), dense(radius), Ax if Ax is None else dense(Ax)
        call = _Step.apply if needs_grad(A, x, d, y, radius, Ax) else _step
        z, r, product = call(*inputs)
        return z, r, product if Ax is None else Ax
    check_tuple("out", out, "z", "r", "Ax")
    tensors = (A, x, d, y, radius) if Ax is None else (A, x, d, y, radius, Ax)
    check_out("out[0]", out[0], shape, d, inputs=tensors)
    check_out("out[1]", out[1], x.shape, x, inputs=(*tensors, out[0]))
    if Ax is not out[2]:
        check_out("out[2]", out[2], shape, d, inputs=(*tensors, *out[:2]))
    if Ax is None:
        _step(dense(A), dense(x), dense(d), dense(y), dense(radius), None, out=out)
    else:
        _step(dense(A), dense(x), dense(d), dense(y), dense(radius), dense(Ax), out=(*out[:2], _nothing(Ax)))
        if out[2] is not Ax:
            out[2].copy_(Ax)
    return out
