r"""Fixed points inside models: how gradients pass through ``z = f(z, *args)`` is an object that you choose.

At the fixed point ``z* = f(z*, theta)`` the implicit function theorem gives, for a gradient g with respect to z*::

    dL/dtheta = (df/dtheta)^T u,    u = g + (df/dz)^T u

so the backward pass is a fixed-point problem of its own, linear in u, and no iterate of the forward pass is kept
(Bai, Kolter and Koltun, Deep equilibrium models, NeurIPS 2019). :class:`ImplicitGradient` solves it;
:class:`JacobianFree` takes ``u = g``; :class:`PhantomGradient` and :class:`Unrolled` record some steps.

>>> z = fixed_point_layer(f, z0, (y,), solver=Anderson(), gradient=ImplicitGradient(tol=1e-4))
>>> loss(z).backward()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyrecon._check import check_callable, check_count, check_number
from pyrecon.solvers import Anderson, FixedPointMethod, Solution, Status
from pyrecon.solvers._fixed_point import Layout, State, bare, check_args, iterate

Map = Callable[..., State]


class Gradient(Protocol):
    """How gradients pass through a fixed point."""

    def attach(self, f: Map, start: State, solve: Callable[[], Solution[State]]) -> Solution[State]:
        """Run ``solve`` and return its solution with a value that gradients can pass; ``start`` is x0.

        ``f(z)`` may be called as often as need be: it works on a copy of z, and its result is checked against z.
        """
        ...


@dataclass
class ImplicitGradient:
    """The exact gradient, by solving the adjoint fixed-point problem; memory does not grow with the iterations.

    One application of f at the solution is recorded, so gradients reach whatever f closes over, and several passes that
    share parameters may stand in one loss, each with its own backward solve. Under ``DistributedDataParallel``,
    activation checkpointing and autocast the layer is an ordinary part of the graph. Not twice differentiable.

    Attributes
    ----------
    solver, tol, max_iter
        Of the backward solve; default Anderson mixing. Its stop test is that of :func:`pyrecon.solvers.fixed_point`.
    last
        :class:`pyrecon.solvers.Solution` of the most recent backward solve, without its value: status, iterations and
        residual per sample. A solve that ends at its limit also warns.
    """

    solver: FixedPointMethod = field(default_factory=Anderson)
    tol: float = 1e-5
    max_iter: int = 50
    last: Solution[None] | None = field(default=None, init=False, compare=False)

    def attach(self, f: Map, start: State, solve: Callable[[], Solution[State]]) -> Solution[State]:
        solution = solve()
        z = tuple(part.detach().requires_grad_() for part in _parts(solution.value))
        taped = _parts(f(_like(z, solution.value)))
        value = _Adjoint.apply(self, z, *taped)  # type: ignore[no-untyped-call]
        return _with_value(solution, _like(value, solution.value))

    def adjoint_solve(self, z: tuple[Tensor, ...], taped: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> State:
        """u of ``u = g + (df/dz)^T u``, for ``taped = f(z)`` that was recorded at the solution."""
        batch = len(grads[0])

        def step(u: State, rows: Tensor) -> State:
            # Converged samples have left u; their cotangents are zero and, samples being independent, of no effect.
            whole = [torch.zeros_like(g).index_copy_(0, rows, part) for g, part in zip(grads, _parts(u), strict=True)]
            pulled = torch.autograd.grad(taped, z, whole, retain_graph=True, allow_unused=True)
            return tuple((g if p is None else g + p)[rows] for g, p in zip(grads, pulled, strict=True))

        index = torch.arange(batch, device=grads[0].device)
        with torch.enable_grad():
            solution = iterate(step, grads, (index,), self.solver, self.tol, self.max_iter)
        self.last = Solution(None, solution.status, solution.iterations, solution.residual)
        if self.tol > 0:
            solution.warn_unless_converged(
                "the backward solve of fixed_point_layer", "The gradient is inexact to about that much.", stacklevel=5
            )
        return solution.value


@dataclass(frozen=True)
class JacobianFree:
    """``u = g``: one application of f is recorded (Fung et al., Jacobian-free backpropagation, AAAI 2022).

    A descent direction where f contracts, at the cost of a single backward step.
    """

    def attach(self, f: Map, start: State, solve: Callable[[], Solution[State]]) -> Solution[State]:
        solution = solve()
        return _with_value(solution, f(_detached(solution.value)))


@dataclass(frozen=True)
class PhantomGradient:
    """``steps`` damped steps from the solution are recorded: a Neumann series cut short (Geng et al., NeurIPS 2021).

    ``z <- (1 - damping) z + damping f(z)``; more steps come closer to the exact gradient and take more memory.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        check_count("PhantomGradient: steps", self.steps)
        if not check_number("PhantomGradient: damping", self.damping, above=True) <= 1:
            raise ValueError(f"PhantomGradient: damping={self.damping}, expected a number in (0, 1]")

    def attach(self, f: Map, start: State, solve: Callable[[], Solution[State]]) -> Solution[State]:
        solution = solve()
        z = _detached(solution.value)
        for _ in range(self.steps):
            z = _like(
                tuple(torch.lerp(old, new, self.damping) for old, new in zip(_parts(z), _parts(f(z)), strict=True)), z
            )
        return _with_value(solution, z)


@dataclass(frozen=True)
class Unrolled:
    """``steps`` plain steps from x0, all recorded: an unrolled network with shared weights.

    The layer's solver, tolerance and limit play no part; status and residual say how far the steps have come.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        check_count("Unrolled: steps", self.steps)

    def attach(self, f: Map, start: State, solve: Callable[[], Solution[State]]) -> Solution[State]:
        z = before = start
        for _ in range(self.steps):
            z, before = f(z), z
        with torch.no_grad():
            change, size = (_norms(parts) for parts in (_difference(z, before), _parts(z)))
            residual = change / (size + 1e-5)
            status = torch.full_like(residual, int(Status.MAX_ITER), dtype=torch.int8)
            status[~torch.isfinite(residual)] = int(Status.NONFINITE)
            iterations = torch.full_like(status, self.steps, dtype=torch.int32)
        return Solution(z, status, iterations, residual)


def fixed_point_layer(
    f: Map,
    x0: State,
    args: Sequence[Any] = (),
    *,
    solver: FixedPointMethod | None = None,
    gradient: Gradient | None = None,
    tol: float = 1e-4,
    max_iter: int = 50,
    return_solution: bool = False,
) -> Any:
    """The fixed point ``z = f(z, *args)`` of every sample of a batch, as a layer that gradients pass through.

    Parameters
    ----------
    f
        Any callable or module; ``f(z, *args)`` returns the next state and must treat samples independently. Gradients
        reach its parameters, ``args`` and everything it closes over; none reaches ``x0`` except with
        :class:`Unrolled`.
    x0
        Start: a tensor ``(B, ...)`` or a tuple of tensors.
    args
        Further arguments; tensors whose first size is B are indexed along with the samples, other than parameters and
        what is marked :class:`pyrecon.solvers.Shared`: see :func:`pyrecon.solvers.fixed_point`.
    solver, tol, max_iter
        Of the forward solve: see :func:`pyrecon.solvers.fixed_point`.
    gradient
        :class:`ImplicitGradient` (default), :class:`JacobianFree`, :class:`PhantomGradient` or :class:`Unrolled`.
    return_solution
        Return the whole :class:`~pyrecon.solvers.Solution`: status, iterations and residual per sample.

    Returns
    -------
    Tensor, tuple of Tensor or Solution
        The state like ``x0``. A solve that ends at its limit warns and says what to try.
    """
    gradient = gradient if gradient is not None else ImplicitGradient()
    if isinstance(gradient, type) or not callable(getattr(gradient, "attach", None)):
        name = f"the class {gradient.__name__}" if isinstance(gradient, type) else type(gradient).__name__
        raise TypeError(f"gradient: expected an instance such as ImplicitGradient(), got {name}")
    args = check_args(args)
    recorded = _checked(f, x0, bare(args))
    recording = torch.is_grad_enabled() or isinstance(gradient, Unrolled)

    def solve() -> Solution[State]:
        start = _like(tuple(part.detach() for part in _parts(x0)), x0)
        solution = iterate(f, start, args, solver, tol, max_iter)
        if tol > 0:
            advice = "Raise max_iter, lower Anderson's beta, or make f contract (spectral norms, Jacobian penalty)."
            solution.warn_unless_converged("fixed_point_layer", advice, stacklevel=5 if recording else 4)
        return solution

    solution = gradient.attach(recorded, x0, solve) if recording else solve()
    return solution if return_solution else solution.value


def _checked(f: Map, x0: State, args: tuple[Any, ...] = (), *, name: str = "x0") -> Callable[[State], State]:
    """``z -> f(z, *args)`` that hands f a copy of z, for it may write into it, and checks what it returns."""
    check_callable("f", f)
    layout = Layout(x0, name)

    def call(z: State) -> State:
        given = _like(tuple(part.clone() for part in _parts(z)), z)
        value: State = _like(tuple(layout.returned(f(given, *args), z)), z)
        return value

    return call


class _Adjoint(torch.autograd.Function):
    """The identity on f(z*); its backward replaces g by the solution u of the adjoint problem."""

    @staticmethod
    def forward(ctx: Any, method: ImplicitGradient, z: tuple[Tensor, ...], *taped: Tensor) -> tuple[Tensor, ...]:
        ctx.method, ctx.z = method, z
        ctx.taped = taped
        return tuple(part.view_as(part) for part in taped)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        u = ctx.method.adjoint_solve(ctx.z, ctx.taped, grads)
        return None, None, *_parts(u)


def jacobian_penalty(f: Map, z: State, *, probes: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """``|df/dz|_F^2 / n`` per sample, ``(B,)``, estimated without bias from ``probes`` random vectors (Hutchinson).

    Added to the loss it keeps f a contraction (Bai, Koltun and Kolter, Stabilizing equilibrium models by Jacobian
    regularization, ICML 2021). Differentiable.
    """
    check_count("probes", probes)
    call = _checked(f, z, name="z")
    parts = tuple(part.detach().requires_grad_() for part in _parts(z))
    with torch.enable_grad():
        values = _parts(call(_like(parts, z)))
    total = parts[0].new_zeros(len(parts[0]), dtype=parts[0].real.dtype if parts[0].is_complex() else parts[0].dtype)
    if not any(value.requires_grad for value in values):  # a constant f
        return total
    for _ in range(probes):
        probe = [torch.randn(v.shape, dtype=v.dtype, generator=generator).to(v.device) for v in values]
        pulled = torch.autograd.grad(
            values, parts, probe, create_graph=torch.is_grad_enabled(), retain_graph=True, materialize_grads=True
        )
        total = total + sum(_flat(p).abs().square().sum(1) for p in pulled)
    return total / (probes * max(sum(math.prod(part.shape[1:]) for part in parts), 1))


def residual_curve(
    f: Map, x0: State, args: Sequence[Any] = (), *, solver: FixedPointMethod | None = None, max_iter: int = 50
) -> Tensor:
    """``|f(x) - x| / (|f(x)| + 1e-5)`` of every sample at every step of :func:`~pyrecon.solvers.fixed_point`.

    ``(max_iter, B)`` float64; nothing stops a sample but a NaN, after which its column is NaN. A straight line on a
    logarithmic scale is linear convergence, a plateau an equilibrium that plain or mixed steps do not reach.
    """
    check_count("max_iter", max_iter)
    Layout(x0)
    curve = torch.full((max_iter, len(_parts(x0)[0])), float("nan"), dtype=torch.float64)

    def observe(step: int, rows: Tensor, residual: Tensor) -> None:
        curve[step - 1, rows.cpu()] = residual.double().cpu()

    iterate(f, x0, args, solver, 0.0, max_iter, observe=observe)
    return curve


def spectral_norm(module: nn.Module, *, power_iterations: int = 1) -> nn.Module:
    """``module`` with every convolution's and linear layer's weight divided by its spectral norm, in place.

    That is :func:`torch.nn.utils.parametrizations.spectral_norm` on each, which takes a convolution's weight as the
    matrix of outputs by (inputs times positions): the layer itself may still stretch by up to the square root of the
    number of positions, so :func:`contraction` is the test of what was reached. Residual sums add to it.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for part in [part for part in module.modules() if isinstance(part, layers)]:
        nn.utils.parametrizations.spectral_norm(part, n_power_iterations=power_iterations)
    return module


def contraction(f: Map, z: State, *, steps: int = 20, seed: int = 0) -> Tensor:
    """Spectral norm of ``df/dz`` per sample, ``(B,)``, by power iteration on J^T J, so from below.

    Below 1 the map contracts there, and plain iteration converges nearby.
    """
    check_count("steps", steps)
    call = _checked(f, z, name="z")
    parts = tuple(part.detach().requires_grad_() for part in _parts(z))
    generator = torch.Generator().manual_seed(check_count("seed", seed, 0))
    v = tuple(torch.randn(p.shape, dtype=p.dtype, generator=generator).to(p.device) for p in parts)
    sigma = _norms(v)
    with torch.enable_grad():
        for _ in range(steps):
            v = tuple(p / _spread(_norms(v).clamp_min(1e-30), p) for p in v)
            _, pushed = torch.autograd.functional.jvp(lambda *a: call(_like(a, z)), parts, v)
            sigma = _norms(_parts(pushed))
            _, pulled = torch.autograd.functional.vjp(lambda *a: call(_like(a, z)), parts, pushed)
            v = _parts(pulled)
    return sigma


# --- states of one or several tensors ----------------------------------------------------------------------------
def _parts(state: Any) -> tuple[Tensor, ...]:
    return tuple(state) if isinstance(state, tuple | list) else (state,)


def _like(parts: tuple[Tensor, ...], state: Any) -> Any:
    return tuple(parts) if isinstance(state, tuple | list) else parts[0]


def _detached(state: State) -> State:
    detached: State = _like(tuple(part.detach() for part in _parts(state)), state)
    return detached


def _difference(a: State, b: State) -> tuple[Tensor, ...]:
    return tuple(x - y for x, y in zip(_parts(a), _parts(b), strict=True))


def _norms(parts: Sequence[Tensor]) -> Tensor:
    """|state| per sample."""
    squares = torch.stack([_flat(part.detach()).abs().square().sum(1) for part in parts])
    return squares.sum(0).sqrt()


def _flat(part: Tensor) -> Tensor:
    """One row per sample."""
    return part.flatten(1) if part.dim() > 1 else part[:, None]


def _spread(scalars: Tensor, like: Tensor) -> Tensor:
    return scalars.view(-1, *[1] * (like.dim() - 1))


def _with_value(solution: Solution[State], value: Any) -> Solution[State]:
    return Solution(value, solution.status, solution.iterations, solution.residual)
