"""Fixed points x = f(x) of batched maps, with Anderson mixing, plain iteration or Broyden's method on one loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrecon.ops._anderson import anderson_advance, join
from pyrecon.solvers._solution import Solution, Status

State = Tensor | tuple[Tensor, ...]


class Stepper(Protocol):
    """One run of a method: holds its history."""

    def advance(self, x: Tensor, parts: list[Tensor], rows: Tensor) -> Tensor:
        """Overwrite the iterates ``x (A, n)`` given ``parts = f(x)``; return |f(x) - x|^2 and |f(x)|^2, ``(A, 2)``."""
        ...


class FixedPointMethod(Protocol):
    """A method of :func:`fixed_point`: makes a stepper for a batch."""

    def start(self, batch: int, like: Tensor) -> Stepper: ...


@dataclass(frozen=True)
class Anderson:
    """Anderson mixing over the last ``memory`` iterates (:func:`pyrecon.ops.anderson_mix` gives the law).

    Attributes
    ----------
    memory
        Length of the history, 1 to 32.
    beta
        Mixing parameter.
    ridge, absolute_ridge
        Regularisation of the small solve, relative to the mean diagonal of its matrix unless absolute.
    safeguard
        A sample whose |f(x) - x| exceeds this multiple of its last one forgets its history and takes a plain step;
        0 switches that off.
    """

    memory: int = 5
    beta: float = 1.0
    ridge: float = 1e-4
    absolute_ridge: bool = False
    safeguard: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.memory <= 32:
            raise ValueError(f"Anderson: memory={self.memory} is not supported, expected 1 to 32")
        if self.ridge < 0 or self.safeguard < 0:
            raise ValueError("Anderson: ridge and safeguard must not be negative")

    def start(self, batch: int, like: Tensor) -> Stepper:
        return _AndersonRun(self, batch, like)


@dataclass(frozen=True)
class Picard:
    """Plain iteration ``x <- x + damping * (f(x) - x)``."""

    damping: float = 1.0

    def start(self, batch: int, like: Tensor) -> Stepper:
        return _AndersonRun(Anderson(memory=1, beta=self.damping), batch, like)


@dataclass(frozen=True)
class Broyden:
    """Broyden's good method with limited memory: ``x <- x + J g``, J a rank-one-updated inverse of -(f' - I).

    Attributes
    ----------
    memory
        Rank-one updates kept; when they are full the history starts again from the plain step.
    """

    memory: int = 10

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise ValueError(f"Broyden: memory={self.memory} is not supported, expected at least 1")

    def start(self, batch: int, like: Tensor) -> Stepper:
        return _BroydenRun(self, batch, like)


class _AndersonRun:
    def __init__(self, method: Anderson, batch: int, like: Tensor) -> None:
        m, n = method.memory, like.shape[1]
        self.method = method
        self.H = like.new_empty(batch, m, n)
        self.G = like.new_empty(batch, m, n)
        self.gram = torch.zeros(batch, m, m, dtype=torch.float64, device=like.device)
        self.count = torch.zeros(batch, dtype=torch.int64, device=like.device)

    def advance(self, x: Tensor, parts: list[Tensor], rows: Tensor) -> Tensor:
        o = self.method
        return anderson_advance(  # type: ignore[no-any-return]
            x, parts, rows, self.H, self.G, self.gram, self.count, o.beta, o.ridge, o.absolute_ridge, o.safeguard
        )


class _BroydenRun:
    """Inverse Jacobian of g(x) = f(x) - x as -I + sum_i u_i v_i^T, per sample."""

    def __init__(self, method: Broyden, batch: int, like: Tensor) -> None:
        m, n = method.memory, like.shape[1]
        self.memory = m
        self.U = like.new_zeros(batch, m, n)
        self.V = like.new_zeros(batch, m, n)
        self.step = like.new_zeros(batch, n)
        self.g = like.new_zeros(batch, n)
        self.count = torch.zeros(batch, dtype=torch.int64, device=like.device)

    def advance(self, x: Tensor, parts: list[Tensor], rows: Tensor) -> Tensor:
        fx = join(parts)
        g = fx - x
        norms = torch.stack([(v.abs().double() ** 2).sum(1) for v in (g, fx)], dim=1)
        finite = (norms.sum(1) < 1e300)[:, None]
        U, V, step, count = self.U[rows], self.V[rows], self.step[rows], self.count[rows]
        change = g - self.g[rows]

        def inverse(v: Tensor) -> Tensor:
            return -v + (U * (V.conj() * v[:, None]).sum(2, keepdim=True)).sum(1)

        def inverse_adjoint(v: Tensor) -> Tensor:
            return -v + (V * (U.conj() * v[:, None]).sum(2, keepdim=True)).sum(1)

        # Sherman-Morrison: J <- J + (s - J y) (J^H s)^H / <s, J y> with step s and change of residual y.
        right = inverse_adjoint(step)
        denominator = (right.conj() * change).sum(1, keepdim=True)
        usable = (count > 0)[:, None] & (denominator.abs() > torch.finfo(g.dtype).tiny) & finite
        left = torch.where(usable, (step - inverse(change)) / torch.where(usable, denominator, 1.0), 0.0)
        full = (count > self.memory)[:, None, None]
        U, V = torch.where(full, 0.0, U), torch.where(full, 0.0, V)
        count = torch.where(full[:, 0, 0], 0, count)
        batch, slot = torch.arange(len(rows), device=x.device), (count - 1).clamp_min(0)
        fill = usable & (count > 0)[:, None]
        U[batch, slot] = torch.where(fill, left, U[batch, slot])
        V[batch, slot] = torch.where(fill, right, V[batch, slot])
        move = torch.where(finite, -inverse(g), 0.0)
        x += move
        self.U[rows], self.V[rows], self.step[rows] = U, V, move
        self.g[rows] = torch.where(finite, g, self.g[rows])
        self.count[rows] = torch.where(finite[:, 0], count + 1, self.count[rows])
        return norms


class _Layout:
    """A state of one or several tensors as rows of one workspace."""

    def __init__(self, x0: State) -> None:
        self.is_tuple = isinstance(x0, tuple)
        parts = x0 if isinstance(x0, tuple) else (x0,)
        if not parts or any(part.dim() < 1 or part.shape[0] != parts[0].shape[0] for part in parts):
            raise ValueError(f"x0: expected tensors with one batch size, got shapes {[tuple(p.shape) for p in parts]}")
        if len({(part.dtype, part.device) for part in parts}) > 1:
            raise ValueError("x0: the tensors of a state must share their dtype and device")
        self.shapes = [part.shape[1:] for part in parts]
        self.sizes = [part[0].numel() for part in parts] if parts[0].shape[0] else [0 for _ in parts]

    def pack(self, x: State) -> Tensor:
        """A copy in one row per sample."""
        return join(self.parts(x))

    def unpack(self, rows: Tensor) -> State:
        """Views of the rows."""
        views = tuple(
            piece.unflatten(1, shape) if shape else piece[:, 0]
            for piece, shape in zip(rows.split(self.sizes, dim=1), self.shapes, strict=True)
        )
        return views if self.is_tuple else views[0]

    def parts(self, x: State) -> list[Tensor]:
        """The tensors of ``f(x)``, checked against the state's shapes."""
        parts = list(x) if isinstance(x, tuple | list) else [x]
        if [part.shape[1:] for part in parts] != self.shapes:
            expected, got = [tuple(s) for s in self.shapes], [tuple(part.shape[1:]) for part in parts]
            raise ValueError(f"f: returned per-sample shapes {got}, the state has {expected}")
        return parts


def fixed_point(
    f: Callable[..., State],
    x0: State,
    args: Sequence[Any] = (),
    *,
    solver: FixedPointMethod | None = None,
    tol: float = 1e-4,
    max_iter: int = 50,
    check_every: int | None = None,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Solution[State]:
    """Solve ``x = f(x, *args)`` for every sample of a batch, without recording gradients.

    A sample stops when ``|f(x) - x| / (|f(x)| + 1e-5) <= tol`` over its whole state. On a CPU it then leaves the batch:
    ``f`` is called with the remaining samples only, so a converged sample costs nothing more.

    Parameters
    ----------
    f
        ``f(x, *args)`` returns the next state, of the same shapes. It must treat samples independently.
    x0
        Start: a tensor ``(B, ...)`` or a tuple of tensors (float32, float64, complex64 or complex128).
    args
        Further arguments. Tensors whose first size is B are batch-leading and are indexed along with the samples.
    solver
        :class:`Anderson` (default), :class:`Picard` or :class:`Broyden`.
    tol, max_iter
        Stop test and limit.
    check_every
        Steps between stop tests. Each test waits for the device, so the default is 5 on a GPU and 1 on a CPU, where a
        sample that stops at once costs nothing more.
    observe
        Called after every step with its number from 1, the samples that are still iterated ``(A,)``, and what the stop
        test sees of them, ``(A,)``.

    Returns
    -------
    Solution
        ``value`` is ``f(x)`` at the last iterate (the last finite ``x`` where that is not finite), ``residual`` what
        the stop test saw there. Status DIVERGED: the limit came with a residual above the first one.
    """
    if max_iter < 1:
        raise ValueError(f"max_iter: {max_iter}, expected at least 1")
    if check_every is not None and check_every < 1:
        raise ValueError(f"check_every: {check_every}, expected at least 1")
    with torch.no_grad():
        return _solve(f, x0, tuple(args), solver or Anderson(), tol, max_iter, check_every, observe)


def _is_batched(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch


def _solve(
    f: Callable[..., State],
    x0: State,
    args: tuple[Any, ...],
    solver: FixedPointMethod,
    tol: float,
    max_iter: int,
    check_every: int | None,
    observe: Callable[[int, Tensor, Tensor], None] | None,
) -> Solution[State]:
    layout = _Layout(x0)
    x = layout.pack(x0)
    batch, device = x.shape[0], x.device
    if check_every is None:
        check_every = 5 if x.is_cuda else 1
    run = solver.start(batch, x)
    value = x.clone()
    status = torch.full((batch,), int(Status.MAX_ITER), dtype=torch.int8, device=device)
    iterations = torch.zeros(batch, dtype=torch.int32, device=device)
    residual = torch.full((batch,), float("inf"), dtype=torch.float64, device=device)
    first: Tensor | None = None
    rows = torch.arange(batch, device=device)
    batched = [_is_batched(a, batch) for a in args]  # decided once: fewer samples may match another size by chance
    current = args
    for iteration in range(1, max_iter + 1):
        if rows.numel() == 0:
            break
        parts = layout.parts(f(layout.unpack(x), *current))
        norms = run.advance(x, parts, rows)
        error = norms[:, 0].sqrt() / (norms[:, 1].sqrt() + 1e-5)
        finite = norms.sum(1) < 1e300
        first = error if first is None else first
        if observe is not None:
            observe(iteration, rows, error)
        if iteration % check_every and iteration < max_iter:
            continue  # nothing here reads a number back: the device runs ahead
        residual[rows], iterations[rows] = error, iteration
        done = (error <= tol) & finite
        stop = done | ~finite
        if iteration < max_iter and not bool(stop.any()):
            continue
        fx = layout.pack(tuple(parts) if layout.is_tuple else parts[0])
        leaving = stop if iteration < max_iter else torch.ones_like(stop)
        good = leaving & finite
        value[rows[good]] = fx[good]
        bad = leaving & ~finite
        value[rows[bad]] = x[bad]  # advance leaves a sample that is not finite as it was
        status[rows[done]] = int(Status.CONVERGED)
        status[rows[~finite]] = int(Status.NONFINITE)
        if iteration == max_iter:
            worse = good & ~done & (error > first[rows])
            status[rows[worse]] = int(Status.DIVERGED)
        keep = ~leaving
        current = tuple(a[keep] if leads else a for a, leads in zip(current, batched, strict=True))
        rows, x = rows[keep], x[keep]
    return Solution(layout.unpack(value), status, iterations, residual.to(x.real.dtype if x.is_complex() else x.dtype))
