"""Proximal methods for ``minimise f(x) + g(x) + h(K x)``: f smooth, g and h with a cheap proximal map.

Sources: FISTA, Beck and Teboulle, SIAM J Imaging Sci 2:183 (2009), with the restart of O'Donoghue and Candes, Found
Comput Math 15:715 (2015); primal-dual: Condat, J Optim Theory Appl 158:460 (2013), Algorithm 3.1, which is that of
Chambolle and Pock for f = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrecon._check import check_callable, check_count, check_flag, check_number, check_returned
from pyrecon._solution import Solution, Status
from pyrecon._threads import one_thread_if_small, outside
from pyrecon.solvers._batch import GPU_STOP_TEST_EVERY, applied, check_state, dot, like, norm, real_dtype, select

State = tuple[Tensor, ...]
Map = Callable[[Tensor], Tensor]
Prox = Callable[[Tensor, Tensor], Tensor]

_ADVICE = (
    "MAX_ITER: raise max_iter or tol. DIVERGED: the step is too long, see its bound in the documentation of the "
    "solver. NONFINITE: the data or x0 hold NaN or Inf."
)
# A convergent run moves at most a few times further in a later step than in its first; a divergent one grows for ever.
_DIVERGED_GROWTH = 1e6


def fista(
    gradient: Map,
    prox: Prox,
    x0: Tensor,
    *,
    step: float | Tensor,
    max_iter: int = 100,
    tol: float = 1e-4,
    restart: bool = True,
) -> Solution[Tensor]:
    """Minimise ``f(x) + g(x)`` by accelerated proximal gradient steps, each sample of a batch by itself.

    ``x_new = prox(z - step * gradient(z), step)``, then z is x_new carried on along its way from x.

    Parameters
    ----------
    gradient
        ``z -> grad f(z)``, ``(B, ...)`` to the same shape, in torch's convention for complex z (``A^H (A z - y)`` for
        ``1/2 |A z - y|^2``).
    prox
        ``(v, step) -> argmin_u 1/2 |u - v|^2 + step * g(u)``; step is ``(B, 1, ...)``, broadcasting with v.
    x0
        Start, ``(B, ...)``, real or complex.
    step
        Positive, a float or ``(B,)``; at most 1 / L for a gradient with Lipschitz constant L.
    max_iter
        Iterations at most.
    tol
        A sample stops when ``|x_new - z| <= tol * |x_new|``.
    restart
        Drop a sample's momentum when it points uphill.

    Returns
    -------
    Solution
        ``residual`` is ``|x_new - z| / |x_new|``. No gradient flows through. Status DIVERGED: the change grew a
        million times over that of the first step.
    """
    check_callable("gradient", gradient)
    check_callable("prox", prox)
    check_flag("restart", restart)
    check_state("x0", x0)
    step = _positive("step", step, x0)
    gradient, prox = outside(gradient), outside(prox)

    def advance(state: State) -> tuple[State, Tensor, Tensor]:
        x, z, t = state
        x_new = check_returned("prox", prox(z - step * applied("gradient", gradient, z), step), x)
        moved = z - x_new
        if restart:
            uphill = dot(moved, x_new - x) > 0
            t = torch.where(uphill, 1.0, t)
        t_new = (1 + (1 + 4 * t * t).sqrt()) / 2
        z = x_new + like((t - 1) / t_new, x) * (x_new - x)
        change = norm(moved)
        return (x_new, z, t_new), change, _ratio(change, x_new)

    t = torch.ones(len(x0), dtype=torch.float64, device=x0.device)
    with one_thread_if_small(x0.numel()):
        solution = _iterate(advance, (x0.detach().clone(), x0.detach().clone(), t), max_iter, tol)
    return solution.warn_unless_converged("fista", _ADVICE)


def primal_dual(
    gradient: Map,
    prox: Prox | None,
    K: Map,
    K_adjoint: Map,
    dual_prox: Prox,
    x0: Tensor,
    *,
    step: float | Tensor,
    dual_step: float | Tensor,
    max_iter: int = 200,
    tol: float = 1e-4,
) -> Solution[Tensor]:
    """Minimise ``f(x) + g(x) + h(K x)`` by primal-dual splitting, each sample of a batch by itself.

    ``x_new = prox(x - step * (gradient(x) + K^H u), step)``, ``u_new = dual_prox(u + dual_step * K (2 x_new - x))``.

    Parameters
    ----------
    gradient, prox
        Of f and g as in :func:`fista`; ``prox=None`` for g = 0.
    K, K_adjoint
        A linear map of samples and its adjoint.
    dual_prox
        ``(v, dual_step) -> prox`` of ``dual_step * h*``, the conjugate of h. For h = weight * norm it is the projection
        onto the ball of radius weight of the dual norm, whatever the step.
    x0
        Start, ``(B, ...)``; the dual starts at zero.
    step, dual_step
        Positive, floats or ``(B,)`` with ``1 / step - dual_step * |K|^2 >= L / 2``, L the Lipschitz constant of the
        gradient.
    max_iter
        Iterations at most.
    tol
        A sample stops when the relative changes of x and of u are both at most tol.

    Returns
    -------
    Solution
        ``value`` is x, ``residual`` the larger of the two relative changes. No gradient flows through.
    """
    for name, given in (("gradient", gradient), ("K", K), ("K_adjoint", K_adjoint), ("dual_prox", dual_prox)):
        check_callable(name, given)
    if prox is not None:
        check_callable("prox", prox)
    check_state("x0", x0)
    step, dual_step = _positive("step", step, x0), _positive("dual_step", dual_step, x0)
    gradient, K, K_adjoint, dual_prox = outside(gradient), outside(K), outside(K_adjoint), outside(dual_prox)
    prox = None if prox is None else outside(prox)

    def advance(state: State) -> tuple[State, Tensor, Tensor]:
        x, u = state
        x_new = x - step * (applied("gradient", gradient, x) + applied("K_adjoint", K_adjoint, u, like=x))
        x_new = x_new if prox is None else check_returned("prox", prox(x_new, step), x)
        sigma = like(dual_step.flatten(), u)
        forward = check_returned("K", K(2 * x_new - x), u, "the dual")
        u_new = check_returned("dual_prox", dual_prox(u + sigma * forward, sigma), u, "the dual")
        change, dual_change = norm(x_new - x), norm(u_new - u)
        return (x_new, u_new), change, torch.maximum(_ratio(change, x_new), _ratio(dual_change, u_new))

    with torch.no_grad():
        dual = K(x0.detach().clone())
        check_state("K: what it returned", dual)
        if len(dual) != len(x0) or dual.device != x0.device:
            raise ValueError(
                f"K: returned {tuple(dual.shape)} on {dual.device} for x0 {tuple(x0.shape)} on {x0.device}, expected "
                "the same batch and device"
            )
        start = (x0.detach().clone(), torch.zeros_like(dual))
    with one_thread_if_small(x0.numel()):
        solution = _iterate(advance, start, max_iter, tol)
    return solution.warn_unless_converged("primal_dual", _ADVICE)


@torch.no_grad()
def _iterate(
    advance: Callable[[State], tuple[State, Tensor, Tensor]], state: State, max_iter: int, tol: float
) -> Solution[Tensor]:
    """Repeat ``state, change, residual = advance(state)``, freezing each sample at its end."""
    check_count("max_iter", max_iter, 0)
    check_number("tol", tol)
    batch, device = len(state[0]), state[0].device
    status = torch.full((batch,), Status.MAX_ITER, dtype=torch.int8, device=device)
    iterations = torch.zeros(batch, dtype=torch.int32, device=device)
    residual = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
    limit = torch.zeros_like(residual)
    every = GPU_STOP_TEST_EVERY if state[0].is_cuda else 1
    for k in range(max_iter):
        active = status == Status.MAX_ITER
        if k % every == 0 and not active.any():
            break
        new, change, ratio = advance(state)
        iterations += active
        residual = torch.where(active, ratio, residual)
        if k == 0:
            limit = _DIVERGED_GROWTH * change
        finite = change.isfinite() & ~ratio.isnan()
        status = torch.where(active & (ratio <= tol), Status.CONVERGED, status)
        status = torch.where(active & (change > limit), Status.DIVERGED, status)
        status = torch.where(active & ~finite, Status.NONFINITE, status)
        moved = active & finite
        state = tuple(select(moved, value, old) for value, old in zip(new, state, strict=True))
    return Solution(state[0], status, iterations, residual.to(real_dtype(state[0])))


def _positive(name: str, step: float | Tensor, x0: Tensor) -> Tensor:
    """``step`` as (B, 1, ...) in the real dtype of x0."""
    if not isinstance(step, Tensor):
        step = torch.tensor(check_number(name, step))
    elif step.is_complex() or step.dtype == torch.bool:
        raise TypeError(f"{name}: dtype {step.dtype} is not supported, expected real numbers")
    steps = step.to(dtype=real_dtype(x0), device=x0.device)
    if steps.dim() > 1 or (steps.dim() == 1 and len(steps) != len(x0)):
        raise ValueError(f"{name}: shape {tuple(steps.shape)} does not fit, expected a number or (B,) = ({len(x0)},)")
    if not bool((steps > 0).all()):
        raise ValueError(f"{name}: {step.tolist()}, expected positive numbers")
    return like(steps.expand(len(x0)), x0)


def _ratio(change: Tensor, value: Tensor) -> Tensor:
    """``change / |value|``, 0 where both vanish."""
    return torch.where(change == 0, 0.0, change / norm(value))
