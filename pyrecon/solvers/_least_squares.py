"""Least squares for ``A x = y`` from A and its adjoint, batched: conjugate gradients and SIRT, which stop at the noise.

Both semi-converge on ill-posed problems: the error of x falls, then grows as noise is fitted. ``atol`` set to the norm
of the noise ends a run where the data are explained (Morozov's discrepancy principle).

Sources: CGLS, Hestenes and Stiefel, J Res Natl Bur Stand 49:409 (1952), in the form of Bjorck, Numerical Methods for
Least Squares Problems (1996), Sec. 7.4; SIRT, Gregor and Benson, IEEE Trans Med Imaging 27:918 (2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import check_callable, check_count, check_flag, check_like, check_number, check_shape
from pyrecon._solution import Solution, Status
from pyrecon._threads import one_thread_if_small, outside
from pyrecon.solvers._batch import GPU_STOP_TEST_EVERY, applied, check_state, dot, like, norm, real_dtype, select

Map = Callable[[Tensor], Tensor]

_ADVICE = (
    "MAX_ITER: raise max_iter, atol or tol. DIVERGED: A_adjoint is not the adjoint of A, or the relaxation is too "
    "large. NONFINITE: A, y or x0 holds NaN or Inf."
)
_DIVERGED_GROWTH = 1e3  # of the residual over its smallest so far


def cgls(
    A: Map,
    A_adjoint: Map,
    y: Tensor,
    *,
    x0: Tensor | None = None,
    damping: float = 0.0,
    atol: float | Tensor = 0.0,
    rtol: float = 1e-6,
    max_iter: int = 100,
) -> Solution[Tensor]:
    """Minimise ``|A x - y|^2 + damping |x|^2`` by conjugate gradients, each sample of a batch by itself.

    Never forms ``A^H A``: the residual r = y - A x is carried along, so the misfit is known at every step.

    Parameters
    ----------
    A, A_adjoint
        A linear map of samples, ``(B, ...)`` to ``(B, ...)``, and its adjoint.
    y
        Data ``(B, ...)``, real or complex.
    x0
        Start; zero by default. With ``damping`` the penalty is on ``x`` itself.
    damping
        Tikhonov weight.
    atol
        A sample stops when ``|y - A x| <= atol``, a number or ``(B,)``: the norm of the noise. 0: not by that.
    rtol
        A sample stops when ``|A^H (y - A x) - damping x| <= rtol |A^H y|``: the minimum is reached.
    max_iter
        Iterations at most.

    Returns
    -------
    Solution
        ``residual`` is ``|y - A x|`` as the recursion carries it. No gradient flows through. Status DIVERGED: the
        residual grew, which it cannot with the right adjoint.

    Warns
    -----
    ConvergenceWarning
        If a sample stopped by neither test.
    """
    _check_pair(A, A_adjoint, y, max_iter)
    check_number("damping", damping)
    check_number("rtol", rtol)
    limit = _limit(atol, y)
    A, A_adjoint = outside(A), outside(A_adjoint)
    with torch.no_grad(), one_thread_if_small(y.numel()):
        solution = _cgls(A, A_adjoint, y, x0, damping, limit, rtol, max_iter)
    return solution.warn_unless_converged("cgls", _ADVICE)


def _cgls(
    A: Map, A_adjoint: Map, y: Tensor, x0: Tensor | None, damping: float, limit: Tensor, rtol: float, max_iter: int
) -> Solution[Tensor]:
    back = _backprojected(A_adjoint, y, x0)
    size = norm(back)
    x = torch.zeros_like(back) if x0 is None else x0.detach().clone()
    r = y.clone() if x0 is None else y - applied("A", A, x, like=y)
    s = back if x0 is None else applied("A_adjoint", A_adjoint, r, like=back) - damping * x
    p, ss, misfit = s, dot(s, s), norm(r)
    energy = misfit.square() + damping * dot(x, x)
    run = _Run(misfit, limit, y)
    run.converge(ss.sqrt() <= rtol * size)
    for k in range(max_iter):
        if run.over(k):
            break
        active = run.active
        q = applied("A", A, p, like=y)
        curvature = dot(q, q) + damping * dot(p, p)
        alpha = torch.where(active & (curvature > 0), ss / curvature, 0)
        x_new, r_new = x + like(alpha, x) * p, r - like(alpha, r) * q
        misfit = norm(r_new)
        energy_new = misfit.square() + damping * dot(x_new, x_new) if damping else misfit.square()
        run.step(misfit, grown=energy_new > (1 + 1e-3) * energy)
        x, r = select(run.moved, x_new, x), select(run.moved, r_new, r)
        energy = energy_new
        s = applied("A_adjoint", A_adjoint, r, like=x)
        s = s - damping * x if damping else s
        ss_new = dot(s, s)
        run.converge(ss_new.sqrt() <= rtol * size)
        p = s + like(torch.where(ss > 0, ss_new / ss, 0), s) * p
        ss = ss_new
    return run.solution(x)


def sirt(
    A: Map,
    A_adjoint: Map,
    y: Tensor,
    *,
    x0: Tensor | None = None,
    relaxation: float = 1.0,
    nonneg: bool = False,
    atol: float | Tensor = 0.0,
    tol: float = 1e-4,
    max_iter: int = 200,
) -> Solution[Tensor]:
    """Simultaneous iterative reconstruction: ``x <- P(x + relaxation C A^T R (y - A x))``, P clipping at 0 if nonneg.

    R and C divide by the sums of A's rows and columns, so that ``C A^T R A`` has no eigenvalue beyond 1: it converges
    to a least-squares solution in the norm of R for any relaxation below 2. For maps without negative entries.

    Parameters
    ----------
    A, A_adjoint
        A linear map of samples with entries >= 0, and its adjoint. The sums are A and its adjoint applied to ones.
    y
        Data ``(B, ...)``, real.
    x0
        Start; zero by default.
    relaxation
        Above 0 and below 2.
    nonneg
        Keep x >= 0.
    atol
        A sample stops when ``|y - A x| <= atol``, a number or ``(B,)``: the norm of the noise. 0: not by that.
    tol
        A sample stops when a step changes x by at most ``tol`` of it.
    max_iter
        Iterations at most.

    Returns
    -------
    Solution
        ``residual`` is ``|y - A x|``. No gradient flows through. Status DIVERGED: it grew a thousand times.

    Warns
    -----
    ConvergenceWarning
        If a sample stopped by neither test.
    """
    _check_pair(A, A_adjoint, y, max_iter)
    check_flag("nonneg", nonneg)
    check_number("tol", tol)
    if not 0 < check_number("relaxation", relaxation) < 2:
        raise ValueError(f"relaxation: {relaxation} does not fit, expected a number above 0 and below 2")
    if y.is_complex():
        raise TypeError(f"y: dtype {y.dtype} is not supported, expected real numbers")
    limit = _limit(atol, y)
    A, A_adjoint = outside(A), outside(A_adjoint)
    with torch.no_grad(), one_thread_if_small(y.numel()):
        solution = _sirt(A, A_adjoint, y, x0, relaxation, nonneg, limit, tol, max_iter)
    return solution.warn_unless_converged("sirt", _ADVICE)


def _sirt(
    A: Map,
    A_adjoint: Map,
    y: Tensor,
    x0: Tensor | None,
    relaxation: float,
    nonneg: bool,
    limit: Tensor,
    tol: float,
    max_iter: int,
) -> Solution[Tensor]:
    columns = _inverse("A_adjoint", _backprojected(A_adjoint, torch.ones_like(y), x0))
    rows = _inverse("A", applied("A", A, torch.ones_like(columns), like=y))
    x = torch.zeros_like(columns) if x0 is None else x0.detach().clone()
    r = y if x0 is None else y - applied("A", A, x, like=y)
    run = _Run(norm(r), limit, y)
    for k in range(max_iter):
        if run.over(k):
            break
        x_new = x + relaxation * columns * applied("A_adjoint", A_adjoint, rows * r, like=x)
        x_new = x_new.clamp(min=0) if nonneg else x_new
        r_new = y - applied("A", A, x_new, like=y)
        run.step(norm(r_new))
        run.converge(norm(x_new - x) <= tol * norm(x_new))
        x, r = select(run.moved, x_new, x), select(run.moved, r_new, r)
    return run.solution(x)


class _Run:
    """Status, iterations and residual of every sample; ``moved`` are those that the last step may change."""

    def __init__(self, misfit: Tensor, limit: Tensor, y: Tensor) -> None:
        self.limit = limit
        self.dtype, self.every = real_dtype(y), GPU_STOP_TEST_EVERY if y.is_cuda else 1
        self.status = torch.full(limit.shape, Status.MAX_ITER, dtype=torch.int8, device=y.device)
        self.iterations = torch.zeros(limit.shape, dtype=torch.int32, device=y.device)
        self.misfit = self.smallest = misfit
        self.moved = self.active
        self._end(~misfit.isfinite(), Status.NONFINITE)
        self._end(misfit <= limit, Status.CONVERGED)

    @property
    def active(self) -> Tensor:
        return self.status == Status.MAX_ITER

    def over(self, k: int) -> bool:
        return k % self.every == 0 and not bool(self.active.any())

    def step(self, misfit: Tensor, grown: Tensor | None = None) -> None:
        active = self.active
        self.iterations += active
        finite = misfit.isfinite()
        self._end(~finite, Status.NONFINITE)
        self._end(misfit > _DIVERGED_GROWTH * self.smallest if grown is None else grown, Status.DIVERGED)
        self.moved = active & finite & (self.status != Status.DIVERGED)
        self.misfit = torch.where(self.moved, misfit, self.misfit)
        self.smallest = torch.minimum(self.smallest, self.misfit)
        self._end(misfit <= self.limit, Status.CONVERGED)

    def converge(self, reached: Tensor) -> None:
        self._end(reached, Status.CONVERGED)

    def solution(self, x: Tensor) -> Solution[Tensor]:
        return Solution(x, self.status, self.iterations, self.misfit.to(self.dtype))

    def _end(self, which: Tensor, status: Status) -> None:
        self.status = torch.where(self.active & which, int(status), self.status).to(torch.int8)


def _check_pair(A: Any, A_adjoint: Any, y: Any, max_iter: int) -> None:
    check_callable("A", A)
    check_callable("A_adjoint", A_adjoint)
    check_state("y", y)
    check_count("max_iter", max_iter, 0)


def _limit(atol: float | Tensor, y: Tensor) -> Tensor:
    """``atol`` as (B,) doubles."""
    if not isinstance(atol, Tensor):
        return torch.full(y.shape[:1], check_number("atol", atol), dtype=torch.float64, device=y.device)
    if atol.shape not in ((), y.shape[:1]):
        raise ValueError(f"atol: shape {tuple(atol.shape)} does not fit, expected a number or (B,) = ({len(y)},)")
    if not bool((atol >= 0).all()):
        raise ValueError("atol: holds a negative number or NaN, expected numbers >= 0")
    return atol.to(torch.float64).to(y.device).expand(y.shape[:1])


def _backprojected(A_adjoint: Map, y: Tensor, x0: Tensor | None) -> Tensor:
    """``A^H y``, whose shape is that of the solution; x0 must have it."""
    back = A_adjoint(y)
    check_state("A_adjoint: what it returned", back)
    if len(back) != len(y) or back.device != y.device:
        raise ValueError(
            f"A_adjoint: returned {tuple(back.shape)} on {back.device} for y {tuple(y.shape)} on {y.device}, expected "
            "the same batch and device"
        )
    if x0 is not None:
        check_like("x0", x0, "A_adjoint(y)", back)
        check_shape("x0", x0, back.shape, "the shape of A_adjoint(y)")
    return back


def _inverse(name: str, sums: Tensor) -> Tensor:
    """1 / sums, 0 where A has nothing; float rounding is nothing too."""
    if not sums.numel():
        return sums
    largest = sums.amax(dim=tuple(range(1, sums.dim())), keepdim=True)
    if bool((sums < -1e-4 * largest).any()):
        raise ValueError(
            f"{name}: has negative entries (applied to ones it gave {float(sums.min()):.3g}); SIRT needs none"
        )
    return torch.where(sums > 1e-6 * largest, 1 / sums, 0)
