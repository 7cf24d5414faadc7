"""Smoothed total variation: the energy of Charbonnier's penalty, its gradient, and a quadratic form above it.

The law. With D_y, D_x differences to the pixel below and to the right, zero past the last row and column, and at every
pixel r = sqrt((D_y u)^2 + (D_x u)^2 + epsilon^2)::

    charbonnier             R(u) = sum r             grad R(u) = D_y^T (D_y u / r) + D_x^T (D_x u / r)
    charbonnier_curvature   Q(u, d) = sum ((D_y d)^2 + (D_x d)^2) / r

The root is concave in its square, so ``R(u + d) <= R(u) + <grad R(u), d> + Q(u, d) / 2`` for all d.

Source: Charbonnier, Blanc-Feraud, Aubert and Barlaud, Deterministic edge-preserving regularization in computed imaging,
IEEE Trans Image Process 6:298, 1997.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrecon import _core
from pyrecon._check import FLOATING, check_dtype, check_like, check_number, check_out, check_shape, check_tuple, dense
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads


# --- the reference ---------------------------------------------------------------------------------------------
def _differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """Down and to the right."""
    return F.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1)), F.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))


def _adjoint(down: Tensor, right: Tensor) -> Tensor:
    """D^T of differences, which are zero past the last row and column."""
    return F.pad(down[:, :-1], (0, 0, 1, 0)) - down + F.pad(right[:, :, :-1], (1, 0)) - right


def _roots(u: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    down, right = _differences(u)
    return down, right, (down.square() + right.square() + epsilon**2).sqrt()


def _reference(u: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    down, right, root = _roots(u, epsilon)
    return root.flatten(1).sum(1, dtype=torch.float64).to(u.dtype), _adjoint(down / root, right / root)


def _curvature_reference(u: Tensor, d: Tensor, epsilon: float) -> Tensor:
    down, right = _differences(d)
    forms = (down.square() + right.square()) / _roots(u, epsilon)[2]
    return forms.flatten(1).sum(1, dtype=torch.float64).to(u.dtype)


def _hessian(u: Tensor, v: Tensor, epsilon: float) -> Tensor:
    """Of R at u, times v: ``D^T (D v / r - D u <D u, D v> / r^3)``, in operations that autograd knows."""
    down, right, root = _roots(u, epsilon)
    v_down, v_right = _differences(v)
    along = (down * v_down + right * v_right) / root.square()
    return _adjoint((v_down - down * along) / root, (v_right - right * along) / root)


# --- kernels ---------------------------------------------------------------------------------------------------
def _cpp(u: Tensor, epsilon: float, energy: Tensor, gradient: Tensor) -> None:
    if not u.numel():
        energy.zero_()
        return
    kernel = _core.charbonnier_f32 if u.dtype == torch.float32 else _core.charbonnier_f64
    kernel(u.data_ptr(), energy.data_ptr(), gradient.data_ptr(), epsilon, *u.shape, kernel_threads())


def _curvature_cpp(u: Tensor, d: Tensor, epsilon: float, out: Tensor) -> None:
    if not u.numel():
        out.zero_()
        return
    kernel = _core.charbonnier_curvature_f32 if u.dtype == torch.float32 else _core.charbonnier_curvature_f64
    kernel(u.data_ptr(), d.data_ptr(), out.data_ptr(), epsilon, *u.shape, kernel_threads())


def _triton(u: Tensor, epsilon: float, energy: Tensor, gradient: Tensor) -> None:
    from pyrecon.kernels.charbonnier import energy_and_gradient as launch

    launch(u, epsilon, energy, gradient)


def _curvature_triton(u: Tensor, d: Tensor, epsilon: float, out: Tensor) -> None:
    from pyrecon.kernels.charbonnier import curvature as launch

    launch(u, d, epsilon, out)


_charbonnier = Op(
    "charbonnier(Tensor u, float epsilon) -> (Tensor, Tensor)",
    outputs=lambda u, epsilon: (u.new_empty(u.shape[0]), torch.empty_like(u)),
    reference=_reference,
    kernels={"cpp": _cpp, "triton": _triton},
)
_curvature = Op(
    "charbonnier_curvature(Tensor u, Tensor d, float epsilon) -> Tensor",
    outputs=lambda u, d, epsilon: u.new_empty(u.shape[0]),
    reference=_curvature_reference,
    kernels={"cpp": _curvature_cpp, "triton": _curvature_triton},
)


# --- autograd --------------------------------------------------------------------------------------------------
class _Charbonnier(torch.autograd.Function):
    @staticmethod
    def forward(u: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        return _charbonnier(u, epsilon)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.epsilon = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g_energy: Tensor | None, g_gradient: Tensor | None) -> tuple[Tensor | None, None]:
        u, gradient = ctx.saved_tensors
        result = None
        if g_energy is not None:
            if needs_grad(u):  # a gradient of the gradient
                gradient = _Charbonnier.apply(u, ctx.epsilon)[1]  # type: ignore[no-untyped-call]
            result = g_energy[:, None, None] * gradient
        if g_gradient is not None:
            second = _hessian(u, g_gradient, ctx.epsilon)
            result = second if result is None else result + second
        return result, None


# --- the public functions --------------------------------------------------------------------------------------
def charbonnier(u: Tensor, epsilon: float, *, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Smoothed total variation of images and its gradient: ``sum over pixels of sqrt(|D u|^2 + epsilon^2)``.

    Parameters
    ----------
    u
        ``(B, H, W)``, float32 or float64.
    epsilon
        Positive, in units of the image: differences below it are smoothed, beyond it edges are kept. In single
        precision from 1.1e-19 to 1.8e19, so that its square is a number.
    out
        Buffers for the results, dense, sharing no memory with ``u`` or each other. Not differentiable.

    Returns
    -------
    energy, gradient
        ``(B,)`` and ``(B, H, W)`` like ``u``; sums are taken in double precision. Differentiable any number of times in
        ``u``, the gradient too. A NaN reaches its neighbours, and the energy of its own image.

    Notes
    -----
    CPU (C++) and GPU (Triton), one pass. On a CPU results do not depend on the number of threads. Charbonnier et al.,
    IEEE Trans Image Process 6:298, 1997.
    """
    _check("u", u)
    number = _checked("epsilon", epsilon, u)
    if out is not None:
        check_tuple("out", out, "energy", "gradient")
        check_out("out[0]", out[0], u.shape[:1], u, inputs=(u,))
        check_out("out[1]", out[1], u.shape, u, inputs=(u, out[0]))
    u = dense(u)
    if out is None and needs_grad(u):
        return _Charbonnier.apply(u, number)  # type: ignore[no-untyped-call,no-any-return]
    return _charbonnier(u, number, out=out)  # type: ignore[no-any-return]


def charbonnier_curvature(u: Tensor, d: Tensor, epsilon: float, *, out: Tensor | None = None) -> Tensor:
    """``sum |D d|^2 / sqrt(|D u|^2 + epsilon^2)``, ``(B,)``: how far :func:`charbonnier` may rise above its tangent at
    ``u`` within a step ``d``, times two. Not differentiable."""
    _check("u", u)
    check_like("d", d, "u", u)
    check_shape("d", d, u.shape, "(B, H, W) of u")
    number = _checked("epsilon", epsilon, u)
    for name, value in (("u", u), ("d", d)):
        if needs_grad(value):
            raise ValueError(f"{name}: is not differentiable here, detach it")
    check_out("out", out, u.shape[:1], u, inputs=(u, d))
    return _curvature(dense(u), dense(d), number, out=out)  # type: ignore[no-any-return]


def _check(name: str, u: Tensor) -> None:
    check_dtype(name, u, FLOATING)
    check_shape(name, u, (None, None, None), "(B, H, W)")


def _checked(name: str, epsilon: float, u: Tensor) -> float:
    """A positive number whose square is one in the precision of ``u``: flat pixels would be 0 / 0 else."""
    number = check_number(name, epsilon, above=True)
    limits = torch.finfo(u.dtype)
    if not limits.tiny <= number * number <= limits.max:
        raise ValueError(
            f"{name}: {number:g} does not fit {u.dtype}, expected {limits.tiny**0.5:.2g} to {limits.max**0.5:.2g}"
        )
    return number
