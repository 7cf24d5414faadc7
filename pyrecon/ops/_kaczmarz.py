"""Tikhonov-Kaczmarz: sweeps of row projections, batched over right-hand sides.

The law. Row i of a sweep, for every sample b, with lambda = weight[b] and multipliers w (the dual)::

    alpha = (y_i - <a_i, x> - lambda w_i) / (|a_i|^2 + lambda)        <a, x> = sum_j a_j x_j, not conjugated
    x    += alpha conj(a_i)
    w_i  += alpha

and after each sweep, if asked, x = max(Re x, 0). This is Kaczmarz' method for the consistent system
``A x + sqrt(lambda) v = y`` in (x, v) with v = sqrt(lambda) w. Written with w, the invariant ``x - x0 = A^H (w - w0)``
holds for every weight, zero too, and the transposed recursion is the same recursion.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import (
    COMPLEX,
    FLOATING,
    check_count,
    check_dtype,
    check_flag,
    check_like,
    check_out,
    check_shape,
    check_tuple,
    dense,
    filled,
)
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._kaczmarz_order import check_rows, rows_of
from pyrecon.ops._kaczmarz_reference import backward_reference, masked, reference, trace_reference

# --- kernels ---------------------------------------------------------------------------------------------------
_SUFFIX = {torch.float32: "f32", torch.float64: "f64", torch.complex64: "c64", torch.complex128: "c128"}


def _steps(A: Tensor, order: Tensor | None) -> int:
    return A.shape[0] if order is None else order.shape[-1]


def _sizes(A: Tensor, y: Tensor, order: Tensor | None, sweeps: int, nonneg: bool) -> tuple[int, ...]:
    return y.shape[0], *A.shape, _steps(A, order), sweeps, order is not None and order.dim() == 2, nonneg


def _addresses(tensors: tuple[Tensor | None, ...], outs: tuple[Tensor, ...], workspace: Tensor) -> tuple[int, ...]:
    unused = (None,) * (4 - len(outs))
    return tuple(0 if t is None else t.data_ptr() for t in (*tensors, *outs, *unused, workspace))


def _cpp(
    A: Tensor,
    y: Tensor,
    x0: Tensor | None,
    dual: Tensor | None,
    weight: Tensor,
    order: Tensor | None,
    sweeps: int,
    nonneg: bool,
    *outs: Tensor,
) -> None:
    if order is not None:
        check_rows(order, A.shape[0])
    suffix, sizes, threads = _SUFFIX[A.dtype], _sizes(A, y, order, sweeps, nonneg), kernel_threads()
    workspace = weight.new_empty(getattr(_core, f"kaczmarz_workspace_{suffix}")(sizes, threads))
    addresses = _addresses((A, y, x0, dual, weight, order), outs, workspace)
    getattr(_core, f"kaczmarz_{suffix}")(addresses, sizes, threads)


def _cuda(
    A: Tensor,
    y: Tensor,
    x0: Tensor | None,
    dual: Tensor | None,
    weight: Tensor,
    order: Tensor | None,
    sweeps: int,
    nonneg: bool,
    *outs: Tensor,
) -> None:
    from pyrecon import _cuda as module

    suffix, sizes, device = _SUFFIX[A.dtype], _sizes(A, y, order, sweeps, nonneg), A.get_device()
    workspace = weight.new_empty(getattr(module, f"kaczmarz_workspace_{suffix}")(sizes, device))
    addresses = _addresses((A, y, x0, dual, weight, order), outs, workspace)
    stream = torch.cuda.current_stream(device).cuda_stream
    getattr(module, f"kaczmarz_{suffix}")(addresses, sizes, device, stream)


def _outputs(A: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape[0], A.shape[1]), y.new_empty(y.shape)


def _trace_outputs(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    A, y, _, _, weight, order, sweeps, nonneg = arguments
    x, dual = _outputs(A, y)
    multipliers = y.new_empty(sweeps, y.shape[0], _steps(A, order))
    return x, dual, multipliers, weight.new_empty(sweeps if nonneg else 0, *x.shape)


_ARGUMENTS = "Tensor A, Tensor y, Tensor? x0, Tensor? dual, Tensor weight, Tensor? order"

_kaczmarz = Op(
    f"kaczmarz({_ARGUMENTS}, int sweeps, bool nonneg) -> (Tensor, Tensor)",
    outputs=_outputs,
    reference=reference,
    kernels={"cpp": _cpp, "cuda": _cuda},
)

# The same, and what the backward needs: the multiplier of every step and where positivity cut after every sweep.
_trace = Op(
    f"kaczmarz_trace({_ARGUMENTS}, int sweeps, bool nonneg) -> (Tensor, Tensor, Tensor, Tensor)",
    outputs=_trace_outputs,
    reference=trace_reference,
    kernels={"cpp": _cpp, "cuda": _cuda},
)


# --- gradients -------------------------------------------------------------------------------------------------
# With g the gradient of x and h that of w, one step back is
#     beta = (<a_i, g> + h_i) / (|a_i|^2 + lambda),   g -= beta conj(a_i),   h_i -= lambda beta,   gy_i += beta:
# the step of the law itself for y = -h, started from g and a zero dual u, with alpha = -beta; at its end gy = -u and
# the gradient of w0 is h + lambda u. So the kernels of the forward run the backward, in reverse order.
def _reversed(A: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return torch.arange(A.shape[0] - 1, -1, -1, device=A.device)
    return order.flip(tuple(range(order.dim())))


def _of_sweep(order: Tensor | None, sweep: int) -> Tensor | None:
    return order[sweep] if order is not None and order.dim() == 2 else order


def _adjoint(
    A: Tensor, weight: Tensor, order: Tensor | None, active: Tensor, gx: Tensor, h: Tensor, sweeps: int, nonneg: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to y, x0 and dual, by differentiable runs of the op itself."""
    back = _reversed(A, order)
    if not nonneg:
        gx, u = _run(A, -h, gx, None, weight, back, sweeps, False)
        return -u, gx, h + weight[:, None] * u
    gy = torch.zeros_like(h)
    for sweep in reversed(range(sweeps)):
        gx, u = _run(A, -h, masked(gx, active[sweep]), None, weight, _of_sweep(back, sweeps - 1 - sweep), 1, False)
        gy, h = gy - u, h + weight[:, None] * u
    return gy, gx, h


_CHUNK = 256  # steps whose gradients to A are formed together: two products of matrices instead of 256 rank-B updates


def _backward_into(
    A: Tensor,
    y: Tensor,
    x0: Tensor | None,
    dual: Tensor | None,
    weight: Tensor,
    order: Tensor | None,
    multipliers: Tensor,
    active: Tensor,
    gx: Tensor,
    gdual: Tensor,
    sweeps: int,
    nonneg: bool,
    *outs: Tensor,
) -> None:
    """All gradients. With alpha, beta the steps' multipliers forward and back, g and x the states after and before::

        dA_k = alpha_k conj(g_k) - beta_k conj(x_k) - 2 Re(alpha_k conj(beta_k)) a_k,   dlambda = -Re(conj(beta_k) w_k)

    summed over the batch. Within a chunk g_k and x_k differ from the states g and x at its start by sums of rows, so

        dA = alpha^T conj(g) - beta^T conj(x) + (strictly lower part of C - lower part of C^H) A
        C  = alpha^T conj(beta).
    """
    gA, gy, gx0, gdual0, gweight = (out.zero_() for out in outs)
    back = _reversed(A, order)
    betas, starts, h = [], [], gdual
    for sweep in reversed(range(sweeps)):
        g = masked(gx, active[sweep]) if nonneg else gx
        rows = _of_sweep(back, sweeps - 1 - sweep)
        gx, u, minus_beta, _ = _trace(A, -h, g, None, weight, rows, 1, False)
        betas.append(-minus_beta[0].flip(1))
        starts.append(gx)
        gy -= u
        h = h + weight[:, None] * u
    gx0.copy_(gx)
    gdual0.copy_(h)

    x = torch.zeros_like(gx) if x0 is None else x0.clone()
    w = torch.zeros_like(y) if dual is None else dual.clone()
    forward_order = torch.arange(A.shape[0], device=A.device) if order is None else order
    for sweep in range(sweeps):
        rows, g = _of_sweep(forward_order, sweep), starts[sweeps - 1 - sweep]
        assert rows is not None
        for begin in range(0, rows.shape[0], _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            i = rows[chunk]
            a, alpha, beta = A[i], multipliers[sweep][:, chunk], betas[sweeps - 1 - sweep][:, chunk]
            C = alpha.mT @ beta.conj()
            gA.index_add_(0, i, alpha.mT @ g.conj() - beta.mT @ x.conj() + (C.tril(-1) - C.mH.tril()) @ a)
            repeated = (i[:, None] == i).to(alpha.dtype).tril()  # a row may come twice in a chunk
            gweight -= (beta.conj() * (w[:, i] + alpha @ repeated.mT)).real.sum(1)
            w.index_add_(1, i, alpha)
            x += alpha @ a.conj()
            g = g + beta @ a.conj()
        if nonneg:
            x = masked(x, active[sweep])


_backward = Op(
    f"kaczmarz_backward({_ARGUMENTS}, Tensor multipliers, Tensor active, Tensor gx, Tensor gdual, "
    "int sweeps, bool nonneg) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    outputs=lambda A, y, x0, dual, weight, order, multipliers, active, gx, *_: (
        torch.empty_like(A),
        torch.empty_like(y),
        torch.empty_like(gx),
        torch.empty_like(y),
        torch.empty_like(weight),
    ),
    reference=backward_reference,
    kernels={"cpp": _backward_into, "cuda": _backward_into},
)


class _Kaczmarz(torch.autograd.Function):
    """Gradients to A, y, x0, dual and weight; the kernel's own recursion in reverse, see above."""

    @staticmethod
    def forward(
        A: Tensor,
        y: Tensor,
        x0: Tensor | None,
        dual: Tensor | None,
        weight: Tensor,
        order: Tensor | None,
        sweeps: int,
        nonneg: bool,
        trace: bool,
    ) -> tuple[Tensor, ...]:
        if trace:
            return _trace(A, y, x0, dual, weight, order, sweeps, nonneg)  # type: ignore[no-any-return]
        return (*_kaczmarz(A, y, x0, dual, weight, order, sweeps, nonneg), y.new_empty(0), weight.new_empty(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.sweeps, ctx.nonneg = inputs[6:8]
        ctx.save_for_backward(*inputs[:6], *output[2:])
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx: Any, gx: Tensor, gdual: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        A, y, x0, dual, weight, order, multipliers, active = ctx.saved_tensors
        gx, gdual = dense(gx), dense(gdual)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[4]:
            # Differentiated twice, the step-by-step form is recorded: as slow as any loop over rows in torch.
            all_gradients = backward_reference if torch.is_grad_enabled() else _backward
            gA, gy, gx0, gw, gweight = all_gradients(
                A, y, x0, dual, weight, order, multipliers, active, gx, gdual, ctx.sweeps, ctx.nonneg
            )
        else:
            gA = gweight = None
            gy, gx0, gw = _adjoint(A, weight, order, active, gx, gdual, ctx.sweeps, ctx.nonneg)
        return gA, gy, None if x0 is None else gx0, None if dual is None else gw, gweight, None, None, None, None


def _run(
    A: Tensor,
    y: Tensor,
    x0: Tensor | None,
    dual: Tensor | None,
    weight: Tensor,
    order: Tensor | None,
    sweeps: int,
    nonneg: bool,
) -> tuple[Tensor, Tensor]:
    if needs_grad(A, y, x0, dual, weight):
        trace = nonneg or needs_grad(A, weight)
        x, dual, *_ = _Kaczmarz.apply(A, y, x0, dual, weight, order, sweeps, nonneg, trace)  # type: ignore[no-untyped-call]
        return x, dual
    return _kaczmarz(A, y, x0, dual, weight, order, sweeps, nonneg)  # type: ignore[no-any-return]


# --- the public function ---------------------------------------------------------------------------------------
@overload
def kaczmarz(
    A: Tensor,
    y: Tensor,
    *,
    x0: Tensor | None = None,
    dual: Tensor | None = None,
    weight: Tensor | float = 0.0,
    sweeps: int = 1,
    nonneg: bool = False,
    order: Tensor | Literal["cyclic", "random"] | None = None,
    seed: int | None = None,
    return_dual: Literal[False] = False,
    out: Tensor | None = None,
) -> Tensor: ...


@overload
def kaczmarz(
    A: Tensor,
    y: Tensor,
    *,
    x0: Tensor | None = None,
    dual: Tensor | None = None,
    weight: Tensor | float = 0.0,
    sweeps: int = 1,
    nonneg: bool = False,
    order: Tensor | Literal["cyclic", "random"] | None = None,
    seed: int | None = None,
    return_dual: Literal[True],
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]: ...


def kaczmarz(
    A: Tensor,
    y: Tensor,
    *,
    x0: Tensor | None = None,
    dual: Tensor | None = None,
    weight: Tensor | float = 0.0,
    sweeps: int = 1,
    nonneg: bool = False,
    order: Tensor | Literal["cyclic", "random"] | None = None,
    seed: int | None = None,
    return_dual: bool = False,
    out: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Tikhonov-Kaczmarz sweeps over the rows of ``A``, for all right-hand sides ``y`` at once.

    For every row i of a sweep, with ``lambda = weight[b]`` and the dual w::

        alpha = (y_i - <a_i, x> - lambda w_i) / (|a_i|^2 + lambda);   x += alpha conj(a_i);   w_i += alpha

    Without ``nonneg`` and with every row visited again and again, x tends to the minimiser of
    ``|A x - y|^2 + lambda |x|^2``; with ``lambda = 0`` to a least-squares solution only if ``A x = y`` can be solved.

    Parameters
    ----------
    A
        ``(M, N)`` system matrix, float32, float64, complex64 or complex128. Rows of zeros are skipped when the weight
        is zero.
    y
        ``(B, M)`` data, dtype and device of ``A``.
    x0
        ``(B, N)`` start, default zero. Given without ``dual``, the regulariser is ``lambda |x - x0|^2``.
    dual
        ``(B, M)`` start of the dual, default zero: what a run with ``return_dual=True`` returned. Since
        ``x - x0 = A^H (w - w0)`` the pair continues a run exactly, and after a change of ``y`` or ``weight`` (the next
        frame of a stream) it is a warm start that still tends to the minimiser above. Rows scaled by
        ``sqrt(lambda)`` give the dual of the literature, ``v = sqrt(lambda) w``.
    weight
        Tikhonov weight lambda >= 0, a float or ``(B,)`` of the real dtype (a tensor is not scanned for its sign).
    sweeps
        How many times the order is run through, at least 1.
    nonneg
        After each sweep keep the real part of x, negative values set to zero: a complex x becomes real.
    order
        ``"cyclic"`` (or None): rows 0 to M - 1. An int64 tensor ``(K,)`` of row numbers, repeated in every sweep, or
        ``(sweeps, K)``; K may differ from M. ``"random"``: M draws a sweep by row energy, see :func:`kaczmarz_order`.
    seed
        Of the random order, default 0; refused with any other order.
    return_dual
        Return ``(x, dual)`` instead of x.
    out
        Buffer for x ``(B, N)``, or with ``return_dual`` a pair of buffers, dense, sharing no memory with the inputs.
        Not differentiable.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        x ``(B, N)``, and the dual ``(B, M)`` if asked for. Differentiable (twice) in ``A``, ``y``, ``x0``, ``dual`` and
        ``weight``; ``order`` is held fixed. A NaN in one sample reaches no other sample.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit, named in the message. A row number outside ``A`` is an error on a CPU; on a GPU, where
        looking would stop the stream, the result is NaN.

    Notes
    -----
    CPU (C++) and GPU (CUDA). Every step is a projection, so rounding errors never grow: after K steps the result is
    within ``8 + sqrt(min(K, N))`` eps of the exact recursion, relative to the largest element (tested). l2-ART of
    DEQ-MPI; Kaczmarz 1937; the dual: Herman, Lent and Hurwitz, J. Inst. Math. Appl. 25 (1980) 361.
    """
    check_dtype("A", A, (*FLOATING, *COMPLEX))
    check_shape("A", A, (None, None), "(M, N)")
    rows, columns = A.shape
    check_like("y", y, "A", A)
    check_shape("y", y, (None, rows), "(B, M)")
    batch = y.shape[0]
    if x0 is not None:
        check_like("x0", x0, "A", A)
        check_shape("x0", x0, (batch, columns), "(B, N)")
        x0 = dense(x0)
    if dual is not None:
        check_like("dual", dual, "A", A)
        check_shape("dual", dual, (batch, rows), "(B, M)")
        dual = dense(dual)
    weight = _weight(weight, y)
    check_flag("nonneg", nonneg)
    check_count("sweeps", sweeps)
    order = rows_of(order, seed, A, sweeps)
    A, y = dense(A), dense(y)
    if out is None:
        x, dual = _run(A, y, x0, dual, weight, order, sweeps, nonneg)
        return (x, dual) if return_dual else x
    inputs = [t for t in (A, y, x0, dual, weight, order) if t is not None]
    if return_dual:
        check_tuple("out", out, "x", "dual")
        check_out("out[0]", out[0], (batch, columns), y, inputs=inputs)
        check_out("out[1]", out[1], (batch, rows), y, inputs=[*inputs, out[0]])
        return _kaczmarz(A, y, x0, dual, weight, order, sweeps, nonneg, out=out)  # type: ignore[no-any-return]
    if not isinstance(out, Tensor):
        raise TypeError(f"out: expected a torch.Tensor, got {type(out).__name__}; a pair goes with return_dual=True")
    check_out("out", out, (batch, columns), y, inputs=inputs)
    _kaczmarz(A, y, x0, dual, weight, order, sweeps, nonneg, out=(out, torch.empty_like(y)))
    return out


def _weight(weight: Tensor | float, y: Tensor) -> Tensor:
    """``weight`` as a dense tensor (B,) of the real dtype of ``y``."""
    dtype = y.real.dtype if y.is_complex() else y.dtype
    if not isinstance(weight, Tensor):
        return filled("weight", weight, y.shape[:1], dtype, y.device)
    check_like("weight", weight, "y", y, dtype=dtype)
    check_shape("weight", weight, y.shape[:1], "(B,)")
    return dense(weight)
