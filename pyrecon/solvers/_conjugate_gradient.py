"""Conjugate gradients for Hermitian positive definite systems, batched, differentiable without unrolling.

Per sample, with r = b - A x, p = r and <u, v> the real part of the inner product over all but the batch axis::

    alpha = |r|^2 / <p, A p>,  x += alpha p,  r -= alpha A p,  beta = |r_new|^2 / |r|^2,  p = r + beta p

and with a preconditioner M, z = M r: ``<r, z>`` in place of ``|r|^2``, and p from z.

Source: Hestenes and Stiefel, J Res Natl Bur Stand 49:409 (1952); with M, Golub and Van Loan, Matrix computations, 11.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrecon._check import check_callable, check_count, check_like, check_number, check_shape
from pyrecon._solution import Solution, Status
from pyrecon._threads import one_thread_if_small, outside
from pyrecon.solvers._batch import GPU_STOP_TEST_EVERY, applied, check_state, dot, like, norm, real_dtype, select

_ADVICE = (
    "MAX_ITER: raise max_iter or rtol, or add a multiple of the identity to A. DIVERGED: A, or the preconditioner, is "
    "not Hermitian positive definite. NONFINITE: A, b or x0 holds NaN or Inf."
)


def conjugate_gradient(
    A: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    x0: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iter: int = 100,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Solution[Tensor]:
    """Solve ``A x = b`` for every sample of a batch.

    A sample stops when ``|b - A x| <= max(rtol * |b|, atol)`` and is not touched again; it takes its own steps and
    cannot disturb the others.

    Parameters
    ----------
    A
        Linear, Hermitian positive definite (semi-definite if b is in its range), acting on each sample by itself: a
        function or a :class:`~pyrecon.linops.LinearOperator`, ``(B, ...) -> (B, ...)``.
    b
        ``(B, ...)``, float32, float64, complex64 or complex128, on any device.
    x0
        Start, of the shape of b; zero by default. No gradient flows to it.
    rtol, atol
        Tolerances of the stop test, relative to ``|b|`` and absolute. The backward solve uses the same ratio to the
        norm of its right-hand side. With both 0 all iterations are made, and nothing is warned of.
    max_iter
        Iterations at most.
    preconditioner
        M, a cheap approximation of ``A^-1``: linear, Hermitian positive definite, each sample by itself. It changes how
        many iterations are needed, not what they lead to, and serves the backward solve too.

    Returns
    -------
    Solution
        ``value`` is x, differentiable once in b and in all that A closes over: the backward pass solves
        ``A v = gradient`` and sends v through one application of A, so memory does not grow with the iterations.
        ``residual`` is ``|b - A x|`` as the recursion carries it. Status DIVERGED: ``<p, A p> <= 0`` or
        ``<r, M r> <= 0`` came up, so A or M is not positive definite. NONFINITE: a NaN or Inf did, and the value is the
        last finite iterate.

    Warns
    -----
    ConvergenceWarning
        If a sample does not converge, in the solution or in the backward pass.
    """
    check_callable("A", A)
    check_state("b", b)
    if x0 is not None:
        check_like("x0", x0, "b", b)
        check_shape("x0", x0, b.shape, "the shape of b")
    check_number("rtol", rtol)
    check_number("atol", atol)
    check_count("max_iter", max_iter, 0)
    if preconditioner is not None:
        check_callable("preconditioner", preconditioner)

    theirs = outside(A)
    with torch.no_grad(), one_thread_if_small(b.numel()):
        size = norm(b)
        limit = torch.clamp(rtol * size, min=atol)
        solution = _iterate(theirs, b, x0, limit, max_iter, preconditioner)
    if rtol > 0 or atol > 0:
        solution.warn_unless_converged("conjugate_gradient", _ADVICE)
    if not torch.is_grad_enabled():
        return solution
    residual = b - applied("A", A, solution.value)
    if not residual.requires_grad:
        return solution

    def solve(g: Tensor) -> Tensor:
        # A gradient has a scale of its own, so what atol means to b is carried over as a relative tolerance.
        relative = torch.where(size > 0, limit / size, rtol)
        theirs = outside(A)
        with one_thread_if_small(g.numel()):
            adjoint = _iterate(theirs, g, None, relative * norm(g), max_iter, preconditioner)
        return adjoint.warn_unless_converged("conjugate_gradient, backward pass", _ADVICE).value

    # The value plus A^-1 (b - A x) with x held fixed: zero in value, right in its derivative.
    value = _Implicit.apply(solution.value, residual, solve)  # type: ignore[no-untyped-call]
    return Solution(value, solution.status, solution.iterations, solution.residual)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.solve(g), None


def _iterate(
    A: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None,
    limit: Tensor,
    max_iter: int,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Solution[Tensor]:
    """The recursion; ``limit`` (B,) is the residual norm at which a sample stops. Scalars per sample are double."""
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - applied("A", A, x)
    M = None if preconditioner is None else outside(preconditioner)
    rr = dot(r, r)
    z = r if M is None else applied("preconditioner", M, r)
    rz = rr if M is None else dot(r, z)
    p = z
    limit = limit.square()

    status = torch.full(rr.shape, Status.MAX_ITER, dtype=torch.int8, device=b.device)
    iterations = torch.zeros(rr.shape, dtype=torch.int32, device=b.device)
    if M is not None:
        status = torch.where(rz <= 0, Status.DIVERGED, status)
    status = torch.where(rr <= limit, Status.CONVERGED, status)
    status = torch.where(rr.isfinite() & limit.isfinite(), status, Status.NONFINITE)
    active = status == Status.MAX_ITER
    every = GPU_STOP_TEST_EVERY if b.is_cuda else 1
    for k in range(max_iter):
        if k % every == 0 and not active.any():
            break
        p = select(active, p, 0)  # a NaN of a sample that has stopped must not come back as 0 * NaN
        Ap = applied("A", A, p)
        curvature = dot(p, Ap)
        iterations += active
        status = torch.where(active & (curvature <= 0), Status.DIVERGED, status)
        status = torch.where(active & ~curvature.isfinite(), Status.NONFINITE, status)
        active = status == Status.MAX_ITER
        alpha = torch.where(active, rz / curvature, 0)
        r = select(active, r - like(alpha, b) * Ap, r)
        rr = torch.where(active, dot(r, r), rr)
        status = torch.where(active & ~rr.isfinite(), Status.NONFINITE, status)
        status = torch.where(active & (rr <= limit), Status.CONVERGED, status)
        moved = active & (status != Status.NONFINITE)
        x = select(moved, x + like(alpha, b) * p, x)
        active = status == Status.MAX_ITER
        z = r if M is None else applied("preconditioner", M, r)
        rz_new = rr if M is None else torch.where(active, dot(r, z), rz)
        if M is not None:
            status = torch.where(active & ~(rz_new > 0), Status.DIVERGED, status)
            active = status == Status.MAX_ITER
        p = z + like(rz_new / rz, b) * p
        rz = rz_new
    return Solution(x, status, iterations, rr.sqrt().to(real_dtype(b)))
