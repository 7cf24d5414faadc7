"""The proximal map of total variation.

The law. With D u = (u[i+1, j] - u[i, j], u[i, j+1] - u[i, j]), zero past the last row and column, and
TV(u) the sum over pixels of |D u| (isotropic) or of the absolute values of its two parts (anisotropic)::

    tv_prox(x, weight) = argmin_u 1/2 |u - x|^2 + weight TV(u)         (over u >= 0 with nonneg)

tv_prox works on the dual: u = P(x - D^T q) for a field q with |q| <= weight at every pixel, P clipping at 0 with
nonneg (Beck and Teboulle 2009, Eqs. 4.1-4.5). The dual function has a gradient of Lipschitz constant |D|^2 <= 8, and q
follows the proximal optimized gradient method: its worst case is half that of FISTA, so 35 iterations do what took 50
(Taylor, Hendrickx and Glineur 2017, Sec. 4.3; Kim and Fessler 2018, Eq. 21, without the special last step). In
our arrangement, with s the part of the momentum that needs no neighbours, an iteration is one pass::

    u = P(x - D^T q);   z = A_k q + B_k D u + s;   s = C_k z - E_k q - E_k/8 D u;   q = z min(1, weight / |z|)

The gradient is taken at points q that are feasible, which makes the duality gap a by-product: the sum over pixels of
weight |D u| - <q, D u>. It bounds |u - u*|^2, both the primal and the dual being off by at least half of that.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrecon import _core
from pyrecon._check import (
    COMPLEX,
    FLOATING,
    check_count,
    check_dtype,
    check_flag,
    check_like,
    check_nonneg,
    check_number,
    check_out,
    check_shape,
    check_tuple,
    dense,
    filled,
)
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads

MAX_ITERATIONS = 10**6  # the coefficients of all of them are held
CERTIFY_EVERY = 5  # iterations between two looks at the duality gap; a look costs two thirds of an iteration


# --- the reference ---------------------------------------------------------------------------------------------
@lru_cache(maxsize=32)
def _schedule(iterations: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Tensor:
    """The five coefficients of each iteration, (iterations, 5): of q, D u and, for the next s, of z, q, D u."""
    # theta is FISTA's sequence; a, b, c weigh the three momentum terms w_k - w_{k-1}, w_k - q_{k-1}, z_{k-1} - q_{k-1}
    # of the method, where w_k = q_{k-1} + D u / 8 is the gradient step.
    theta, gamma, momenta = 1.0, 1.0, []
    for _ in range(iterations + 1):
        following = (1 + math.sqrt(1 + 4 * theta * theta)) / 2
        momenta.append(((theta - 1) / following, theta / following, (theta - 1) / (gamma * following)))
        gamma = (2 * theta + following - 1) / following
        theta = following
    rows = [
        (1 + a - c, (1 + a + b) / 8, next_c, next_a, next_a / 8) for (a, b, c), (next_a, _, next_c) in pairwise(momenta)
    ]
    return torch.tensor(rows, dtype=dtype, device=device).reshape(iterations, 5)


def _differences(u: Tensor) -> Tensor:
    """D: (B, H, W) to (B, 2, H, W)."""
    d = u.new_zeros(u.shape[0], 2, *u.shape[1:])
    d[:, 0, :-1] = u[:, 1:] - u[:, :-1]
    d[:, 1, :, :-1] = u[:, :, 1:] - u[:, :, :-1]
    return d


def _divergence(q: Tensor) -> Tensor:
    """-D^T: (B, 2, H, W) to (B, H, W)."""
    down, right = q[:, 0, :-1], q[:, 1, :, :-1]
    v = q.new_zeros(q.shape[0], *q.shape[2:])
    v[:, :-1] += down
    v[:, 1:] -= down
    v[:, :, :-1] += right
    v[:, :, 1:] -= right
    return v


def _length(z: Tensor, isotropic: bool) -> Tensor:
    """|z| at every pixel, (B, 1, H, W), or of each part, (B, 2, H, W)."""
    return torch.linalg.vector_norm(z, dim=1, keepdim=True) if isotropic else z.abs()


def _project(z: Tensor, weight: Tensor, isotropic: bool) -> Tensor:
    return z * _shrinkage(_length(z, isotropic), weight)


def _shrinkage(length: Tensor, weight: Tensor) -> Tensor:
    """min(1, weight / length), and 0 for weight 0."""
    tiny = torch.finfo(weight.dtype).tiny
    return weight / torch.maximum(length, weight.clamp(min=tiny))


def _image(x: Tensor, q: Tensor, nonneg: bool) -> Tensor:
    u = x + _divergence(q)
    return u.clamp(min=0) if nonneg else u


def _gap(u: Tensor, q: Tensor, weight: Tensor, isotropic: bool) -> Tensor:
    d = _differences(u)
    return (weight * _length(d, isotropic)).sum((1, 2, 3)) - (q.conj() * d).real.sum((1, 2, 3))


def _start(x: Tensor, weight: Tensor, dual: Tensor | None, isotropic: bool) -> tuple[Tensor, Tensor]:
    """The first q, feasible, and s."""
    zero = x.new_zeros(x.shape[0], 2, *x.shape[1:])
    return (zero if dual is None else _project(_inner(dual), weight, isotropic)), zero


def _inner(q: Tensor) -> Tensor:
    """q without what would point out of the image."""
    q = q.clone()
    q[:, 0, -1:] = 0
    q[:, 1, :, -1:] = 0
    return q


def _ascend(
    step: list[float], x: Tensor, weight: Tensor, q: Tensor, s: Tensor, isotropic: bool, nonneg: bool
) -> tuple[Tensor, Tensor]:
    """One iteration: (q, s) to z and the next s. The next q is the projection of z."""
    of_q, of_d, next_z, next_q, next_d = step
    d = _differences(_image(x, q, nonneg))
    z = of_q * q + of_d * d + s
    return z, next_z * z - next_q * q - next_d * d


def _tv_reference(
    x: Tensor, weight: Tensor, dual: Tensor | None, iterations: int, tol: float, isotropic: bool, nonneg: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weight = weight[:, None, None, None]
    q, s = _start(x, weight, dual, isotropic)
    count = torch.zeros(x.shape[:1], dtype=torch.int32, device=x.device)
    running = torch.ones_like(count, dtype=torch.bool)
    enough = tol * torch.linalg.vector_norm(x, dim=(1, 2))
    for k, step in enumerate(_schedule(iterations).tolist()):
        if tol > 0 and k % CERTIFY_EVERY == 0:
            gap = _gap(_image(x, q, nonneg), q, weight, isotropic)
            running = running & ~(gap.clamp(min=0).sqrt() <= enough)
            if not running.any():
                break
        z, following = _ascend(step, x, weight, q, s, isotropic, nonneg)
        goes_on = running[:, None, None, None]
        q, s = torch.where(goes_on, _project(z, weight, isotropic), q), torch.where(goes_on, following, s)
        count += running
    return _image(x, q, nonneg), q, count


def _tv_backward_reference(
    grad_u: Tensor,
    grad_dual: Tensor,
    x: Tensor,
    weight: Tensor,
    dual: Tensor | None,
    count: Tensor,
    iterations: int,
    isotropic: bool,
    nonneg: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reverse mode through the iterations that were run, recomputed from every sqrt(iterations)-th state."""
    steps = _schedule(iterations).tolist()
    level = weight[:, None, None, None]
    runs = [(k < count)[:, None, None, None] for k in range(iterations)]
    q, s = _start(x, level, dual, isotropic)
    stride = math.isqrt(iterations) or 1
    kept = []
    for k in range(iterations):
        if k % stride == 0:
            kept.append((q, s))
        z, following = _ascend(steps[k], x, level, q, s, isotropic, nonneg)
        q, s = torch.where(runs[k], _project(z, level, isotropic), q), torch.where(runs[k], following, s)

    def through_image(g: Tensor, q: Tensor) -> Tensor:
        return torch.where(x + _divergence(q) > 0, g, 0) if nonneg else g

    def through_projection(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        length = _length(z, isotropic)
        outside = length > level
        unit = z / torch.where(outside, length, 1.0)
        along = (unit.conj() * g).real
        along = along.sum(1, keepdim=True) if isotropic else along
        grad_weight = torch.where(outside, along, 0.0).sum((1, 2, 3))
        return torch.where(outside, _shrinkage(length, level) * (g - unit * along), g), grad_weight

    grad_x = through_image(grad_u, q)
    grad_weight = torch.zeros_like(weight)
    gq, gs = grad_dual - _differences(grad_x), torch.zeros_like(s)
    for first in reversed(range(0, iterations, stride)):
        q, s = kept.pop()
        states = []
        for k in range(first, min(first + stride, iterations)):
            z, following = _ascend(steps[k], x, level, q, s, isotropic, nonneg)
            states.append((k, q, z))
            q, s = torch.where(runs[k], _project(z, level, isotropic), q), torch.where(runs[k], following, s)
        for k, q, z in reversed(states):
            of_q, of_d, next_z, next_q, next_d = steps[k]
            gz, gw = through_projection(gq, z)
            gz = gz + next_z * gs
            gd = of_d * gz - next_d * gs
            gv = through_image(-_divergence(gd), q)
            gq_before = of_q * gz - next_q * gs - _differences(gv)
            gq, gs = torch.where(runs[k], gq_before, gq), torch.where(runs[k], gz, gs)
            grad_x = torch.where(runs[k][:, 0], grad_x + gv, grad_x)
            grad_weight = torch.where(runs[k][:, 0, 0, 0], grad_weight + gw, grad_weight)
    if dual is None:
        return grad_x, grad_weight, torch.zeros_like(gq)
    grad_start, gw = through_projection(gq, _inner(dual))
    return grad_x, grad_weight + gw, _inner(grad_start)


# --- kernels and autograd --------------------------------------------------------------------------------------
def _tv_cpp(
    x: Tensor,
    weight: Tensor,
    dual: Tensor | None,
    iterations: int,
    tol: float,
    isotropic: bool,
    nonneg: bool,
    u: Tensor,
    dual_out: Tensor,
    count: Tensor,
) -> None:
    kernel = _core.tv_prox_f32 if weight.dtype == torch.float32 else _core.tv_prox_f64
    sizes = (x.shape[0], 2 if x.is_complex() else 1, x.shape[1], x.shape[2])
    threads = kernel_threads()
    scratch = weight.new_empty(_core.tv_prox_scratch(*sizes, threads, weight.element_size()))
    kernel(
        x.data_ptr(), weight.data_ptr(), 0 if dual is None else dual.data_ptr(), u.data_ptr(), dual_out.data_ptr(),
        count.data_ptr(), scratch.data_ptr(), _schedule(iterations).data_ptr(), *sizes, iterations, tol, isotropic,
        nonneg, threads,
    )  # fmt: skip


def _tv_triton(*arguments: Any) -> None:
    from pyrecon.kernels.variation import tv_prox as launch

    x, weight, dual, iterations, *options = arguments
    steps = _schedule(iterations, weight.dtype, weight.device)
    launch(x, weight, dual, steps, *options)


def _tv_outputs(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width = x.shape
    return torch.empty_like(x), x.new_empty(batch, 2, height, width), x.new_empty(batch, dtype=torch.int32)


_tv = Op(
    "tv_prox(Tensor x, Tensor weight, Tensor? dual, int iterations, float tol, bool isotropic, bool nonneg)"
    " -> (Tensor, Tensor, Tensor)",
    outputs=_tv_outputs,
    reference=_tv_reference,
    kernels={"cpp": _tv_cpp, "triton": _tv_triton},
)

_tv_backward = Op(
    "tv_prox_backward(Tensor grad_u, Tensor grad_dual, Tensor x, Tensor weight, Tensor? dual, Tensor count,"
    " int iterations, bool isotropic, bool nonneg) -> (Tensor, Tensor, Tensor)",
    outputs=lambda grad_u, grad_dual, x, weight, *_: (
        torch.empty_like(x),
        torch.empty_like(weight),
        torch.empty_like(grad_dual),
    ),
    reference=_tv_backward_reference,
    kernels={},
)


class _TVProx(torch.autograd.Function):
    """Exact for the iterations as run: reverse mode through them, from recomputed states."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, dual: Tensor | None, iterations: int, tol: float, isotropic: bool, nonneg: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _tv(x, weight, dual, iterations, tol, isotropic, nonneg)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, weight, dual, iterations, _, isotropic, nonneg = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(x, weight, dual, output[2])
        ctx.options = (iterations, isotropic, nonneg)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_u: Tensor, grad_dual: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, weight, dual, count = ctx.saved_tensors
        grad_x, grad_weight, grad_start = _tv_backward(
            dense(grad_u), dense(grad_dual), x, weight, dual, count, *ctx.options
        )
        return grad_x, grad_weight, None if dual is None else grad_start, None, None, None, None


# --- the public functions --------------------------------------------------------------------------------------
@overload
def tv_prox(
    x: Tensor,
    weight: Tensor | float,
    dual: Tensor | None = ...,
    *,
    iterations: int = ...,
    tol: float = ...,
    isotropic: bool = ...,
    nonneg: bool = ...,
    return_dual: Literal[False] = ...,
    out: Tensor | None = ...,
) -> Tensor: ...
@overload
def tv_prox(
    x: Tensor,
    weight: Tensor | float,
    dual: Tensor | None = ...,
    *,
    iterations: int = ...,
    tol: float = ...,
    isotropic: bool = ...,
    nonneg: bool = ...,
    return_dual: Literal[True],
    out: tuple[Tensor, Tensor] | None = ...,
) -> tuple[Tensor, Tensor]: ...
def tv_prox(
    x: Tensor,
    weight: Tensor | float,
    dual: Tensor | None = None,
    *,
    iterations: int = 50,
    tol: float = 0.0,
    isotropic: bool = True,
    nonneg: bool = False,
    return_dual: bool = False,
    out: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Proximal map of total variation: ``argmin_u 1/2 |u - x|^2 + weight * TV(u)``.

    TV(u) sums ``|D u|`` over the pixels, D u being the differences to the next row and column, zero past the last one.

    Parameters
    ----------
    x
        Images ``(..., H, W)``, float32, float64, complex64 or complex128. A complex image has one joint edge set:
        ``|D u|^2`` sums the squared magnitudes of its complex parts.
    weight
        A float, ``(B,)`` with B the first axis of ``x``, or a tensor that broadcasts to the leading axes; of the real
        dtype, in units of ``x``, not negative.
    dual
        Where to start, ``(..., 2, H, W)``: the dual of an earlier call on a similar image, which makes a few
        iterations enough (ADMM). Zero if not given. It need not be feasible.
    iterations
        Iterations of the proximal optimized gradient method on the dual; with ``tol`` their upper limit.
    tol
        0 runs all iterations. Otherwise a sample stops as soon as its duality gap, looked at every 5 iterations,
        proves ``|u - u*| <= tol * |x|``; the others go on. Rounding limits what can be proved to about 1e-4 in float32
        and 1e-8 in float64.
    isotropic
        ``|D u|`` is the root of the sum of squares of the two differences; if False, the sum of their magnitudes.
    nonneg
        Minimise over ``u >= 0``; real images only.
    return_dual
        Return ``(u, dual)``; then ``u = x - D^T dual``, clipped at 0 with ``nonneg``.
    out
        Buffer for the result, or with ``return_dual`` a pair of them: dense, sharing no memory with the inputs, except
        that the dual may be overwritten by its successor. Not differentiable.

    Returns
    -------
    Tensor
        Like ``x``. Differentiable (once) in ``x``, ``weight`` and ``dual``, exactly for the iterations as run. A NaN
        reaches its own image only.

    Notes
    -----
    CPU (C++) and GPU (Triton). :func:`tv_gap` tells how far a result may be from the solution. Squares of ``weight``
    and of ``x`` must be representable: in float32 between 1e-18 and 1e18.

    References
    ----------
    A. Beck, M. Teboulle, Fast gradient-based algorithms for constrained total variation image denoising and deblurring
    problems, IEEE TIP 18, 2009 (the dual, with constraint). A. Taylor, J. Hendrickx, F. Glineur, Exact worst-case
    performance of first-order methods for composite convex optimization, SIAM J. Optim. 27, 2017, Sec. 4.3; D. Kim,
    J. Fessler, Adaptive restart of the optimized gradient method, J. Optim. Theory Appl. 178, 2018, Eq. 21.
    """
    images, levels, start = _tv_inputs(x, weight, dual, nonneg)
    check_flag("isotropic", isotropic)
    check_count("iterations", iterations, 1, MAX_ITERATIONS)
    check_number("tol", tol)
    check_flag("return_dual", return_dual)
    if out is not None:
        buffers = _tv_buffers(out, return_dual, (x, levels), dual, images.shape)
        _tv(images, levels, start, iterations, tol, isotropic, nonneg, out=buffers)
        return out
    if needs_grad(x, levels, dual):
        result = _TVProx.apply(images, levels, start, iterations, tol, isotropic, nonneg)  # type: ignore[no-untyped-call]
    else:
        result = _tv(images, levels, start, iterations, tol, isotropic, nonneg)
    u = result[0].view(x.shape)
    return (u, result[1].view(_dual_shape(x))) if return_dual else u


def tv_gap(x: Tensor, weight: Tensor | float, dual: Tensor, *, isotropic: bool = True, nonneg: bool = False) -> Tensor:
    """Duality gap of the total variation prox at the image that belongs to ``dual``: ``|u - u*|^2 <= tv_gap``.

    With u = x - D^T dual, clipped at 0 with ``nonneg``, it is the sum over pixels of ``weight |D u| - <dual, D u>``.

    Parameters
    ----------
    x, weight, dual, isotropic, nonneg
        As in :func:`tv_prox`, ``dual`` as returned by it.

    Returns
    -------
    Tensor
        One number per image, ``x.shape[:-2]``; zero at the solution, up to rounding of the order
        ``eps * weight * TV(u)``. Plain torch on every device.
    """
    images, levels, q = _tv_inputs(x, weight, dual, nonneg)
    if q is None:
        raise TypeError("dual: expected a torch.Tensor, got None")
    return _gap(_image(images, q, nonneg), q, levels[:, None, None, None], isotropic).view(x.shape[:-2])


def _dual_shape(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:-2], 2, *x.shape[-2:])


def _tv_inputs(
    x: Tensor, weight: Tensor | float, dual: Tensor | None, nonneg: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images (B, H, W), weights (B,) and duals (B, 2, H, W), checked and dense."""
    check_dtype("x", x, (*FLOATING, *COMPLEX))
    if x.dim() < 2:
        raise ValueError(f"x: shape {tuple(x.shape)} does not fit, expected images (..., H, W)")
    check_nonneg(nonneg, x)
    lead, size = x.shape[:-2], x.shape[-2:]
    batch = math.prod(lead)
    levels = dense(_per_image("weight", weight, x, lead).reshape(batch))
    if dual is not None:
        check_like("dual", dual, "x", x)
        check_shape("dual", dual, _dual_shape(x), "(..., 2, H, W)")
        dual = dense(dual).view(batch, 2, *size)
    return dense(x).view(batch, *size), levels, dual


def _per_image(name: str, value: Tensor | float, x: Tensor, lead: torch.Size) -> Tensor:
    """``value`` as a tensor of the real dtype of ``x`` and of the shape ``lead``."""
    dtype = x.real.dtype if x.is_complex() else x.dtype
    if not isinstance(value, Tensor):
        return filled(name, value, lead, dtype, x.device, finite=False)
    check_like(name, value, "x", x, dtype=dtype)
    if value.shape == lead:
        return value
    aligned = value.reshape(-1, *[1] * (len(lead) - 1)) if value.dim() == 1 and lead else value
    if value.dim() > 0 and (
        aligned.dim() != len(lead) or any(n not in (1, m) for n, m in zip(aligned.shape, lead, strict=True))
    ):
        raise ValueError(
            f"{name}: shape {tuple(value.shape)} does not fit, expected (B,) or a shape like {tuple(lead)}"
        )
    return aligned.expand(lead)


def _tv_buffers(
    out: Tensor | tuple[Tensor, Tensor],
    return_dual: bool,
    inputs: tuple[Tensor, Tensor],
    dual: Tensor | None,
    shape: torch.Size,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel writes: u, its dual and the counts."""
    x = inputs[0]
    if return_dual:
        check_tuple("out", out, "u", "dual")
    elif isinstance(out, tuple):
        raise TypeError("out: expected one tensor; a pair (u, dual) goes with return_dual=True")
    image, final = out if isinstance(out, tuple) else (out, None)
    sources = inputs if dual is None else (*inputs, dual)
    check_out("out", image, x.shape, x, inputs=sources)
    if final is None:
        final = x.new_empty(_dual_shape(x))
    else:
        in_place = dual is not None and final.data_ptr() == dual.data_ptr() and dual.is_contiguous()
        check_out("out[1]", final, _dual_shape(x), x, inputs=(*inputs, image) if in_place else (*sources, image))
    count = x.new_empty(shape[0], dtype=torch.int32)
    return image.view(shape), final.view(shape[0], 2, *shape[1:]), count
