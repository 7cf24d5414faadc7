"""Fixed points x = f(x) of batched maps, with Anderson mixing, plain iteration or Broyden's method on one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyrecon._check import check_callable, check_count, check_number, check_returned
from pyrecon._solution import Solution, Status
from pyrecon.ops._anderson import MAX_MEMORY, anderson_advance, join
from pyrecon.solvers._batch import check_state

State = Tensor | tuple[Tensor, ...]

ADVICE = (
    "MAX_ITER, DIVERGED: raise max_iter or tol, lower the solver's beta or damping, or make f contract. NONFINITE: x0, "
    "args or f hold NaN or Inf."
)


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
        if not 1 <= check_count("Anderson: memory", self.memory, 0) <= MAX_MEMORY:
            raise ValueError(f"Anderson: memory={self.memory} is not supported, expected 1 to {MAX_MEMORY}")
        check_number("Anderson: beta", self.beta, -math.inf)
        check_number("Anderson: ridge", self.ridge)
        check_number("Anderson: safeguard", self.safeguard)

    def start(self, batch: int, like: Tensor) -> Stepper:
        return _AndersonRun(self, batch, like)


@dataclass(frozen=True)
class Picard:
    """Plain iteration ``x <- x + damping * (f(x) - x)``."""

    damping: float = 1.0

    def __post_init__(self) -> None:
        check_number("Picard: damping", self.damping, -math.inf)

    def start(self, batch: int, like: Tensor) -> Stepper:
        # On a CPU the kernel of Anderson mixing does it in one pass over memory, in a fifth to a tenth of the time of
        # torch's six. Its Gram matrix is one number then, the norm that the stop test needs anyway.
        if like.is_cpu:
            return _AndersonRun(Anderson(memory=1, beta=self.damping), batch, like)
        return _PicardRun(self.damping)


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
        check_count("Broyden: memory", self.memory)

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


class _PicardRun:
    """No history and no Gram matrix: the step and two norms."""

    def __init__(self, damping: float) -> None:
        self.damping = damping

    def advance(self, x: Tensor, parts: list[Tensor], rows: Tensor) -> Tensor:
        fx = join(parts)
        g = fx - x
        norms = _squares(g, fx)
        x += torch.where((norms.sum(1) < 1e300)[:, None], self.damping * g, 0.0)
        return norms


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
        norms = _squares(g, fx)
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


def _squares(g: Tensor, fx: Tensor) -> Tensor:
    """|g|^2 and |f(x)|^2, ``(A, 2)`` float64, summed as such without a copy in double precision."""
    rows = [torch.view_as_real(v).flatten(1) if v.is_complex() else v for v in (g, fx)]
    return torch.stack([torch.linalg.vector_norm(v, dim=1, dtype=torch.float64).square() for v in rows], dim=1)


class Layout:
    """A state of one or several tensors as rows of one workspace."""

    def __init__(self, x0: State, name: str = "x0") -> None:
        self.is_tuple = isinstance(x0, tuple | list)
        parts = tuple(x0) if isinstance(x0, tuple | list) else (x0,)
        for i, part in enumerate(parts):
            check_state(f"{name}[{i}]" if self.is_tuple else name, part)
        if not parts or any(part.shape[0] != parts[0].shape[0] for part in parts):
            shapes = [tuple(p.shape) for p in parts]
            raise ValueError(f"{name}: expected tensors with one batch size, got shapes {shapes}")
        if len({(part.dtype, part.device) for part in parts}) > 1:
            raise ValueError(f"{name}: the tensors of a state must share their dtype and device")
        self.shapes = [part.shape[1:] for part in parts]
        self.sizes = [math.prod(shape) for shape in self.shapes]

    def pack(self, x: State) -> Tensor:
        """A copy in one row per sample."""
        return join(list(x) if isinstance(x, tuple | list) else [x])

    def unpack(self, rows: Tensor) -> State:
        """Views of the rows."""
        views = tuple(
            piece.unflatten(1, shape) if shape else piece[:, 0]
            for piece, shape in zip(rows.split(self.sizes, dim=1), self.shapes, strict=True)
        )
        return views if self.is_tuple else views[0]

    def returned(self, value: Any, x: State) -> list[Tensor]:
        """The tensors of ``value = f(x)``, checked like arguments: a kernel reads them."""
        state = x if isinstance(x, tuple) else (x,)
        parts = list(value) if isinstance(value, tuple | list) else [value]
        if isinstance(value, tuple | list) != self.is_tuple or len(parts) != len(state):
            came = f"{len(parts)} tensors" if isinstance(value, tuple | list) else type(value).__name__
            expected = f"a tuple of {len(state)} tensors" if self.is_tuple else "one tensor"
            raise TypeError(f"f: returned {came}, expected {expected} like its state")
        if all(isinstance(part, Tensor) for part in parts) and [part.shape[1:] for part in parts] != self.shapes:
            shapes, got = [tuple(s) for s in self.shapes], [tuple(part.shape[1:]) for part in parts]
            raise ValueError(f"f: returned per-sample shapes {got}, the state has {shapes}")
        return [check_returned("f", part, old, "its state") for part, old in zip(parts, state, strict=True)]


@dataclass(frozen=True)
class Shared:
    """An argument of :func:`fixed_point` that belongs to all samples, whatever its first size: ``args=(y, Shared(W))``.

    f is given the value itself.
    """

    value: Any


def bare(args: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments as f gets them."""
    return tuple(a.value if isinstance(a, Shared) else a for a in args)


class _Calls:
    """f on the samples that are still iterated, its results checked, its state guarded.

    f may close over a tensor of the whole batch, ``lambda x: a * x + b``: then it cannot take a part of the samples,
    and from the first time that shows it is given all of them.
    """

    def __init__(self, f: Callable[..., State], layout: Layout, x0: State, args: tuple[Any, ...], batch: int) -> None:
        self.f, self.layout, self.x0, self.batch = f, layout, x0, batch
        self.args, self.part = bare(args), bare(args)
        # Decided once: fewer samples may match another size by chance.
        self.leads = [_is_batched(a, batch) for a in args]
        self.in_parts, self.guarded, self.first = True, torch.is_inference_mode_enabled(), True

    def keep(self, kept: Tensor) -> None:
        """Fewer samples from now on: those where ``kept`` of the last ones."""
        if self.in_parts:
            self.part = tuple(a[kept] if leads else a for a, leads in zip(self.part, self.leads, strict=True))

    def __call__(self, x: Tensor, rows: Tensor, ended: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The iterates ``x`` of the samples ``rows`` and f of them; ``ended`` (B, n) has those of the others."""
        if len(rows) == self.batch:
            return self._guarded(x)
        if self.in_parts:
            version = -1 if self.guarded else x._version
            try:
                return self._guarded(x)
            except Exception:
                if not self.guarded and x._version != version:
                    raise
                self.in_parts = False
        whole = ended.index_copy(0, rows, x)
        state = self.layout.unpack(whole)
        return x, [part[rows] for part in self.layout.returned(self.f(state, *self.args), state)]

    def _guarded(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f may write into its state or return it; both would be taken for an equilibrium, as x is the state."""
        state = self.layout.unpack(x.clone() if self.guarded else x)
        version = -1 if self.guarded else x._version
        parts = self.layout.returned(self.f(state, *self.part), state)
        if self.guarded:
            return x, parts
        written, first = x._version != version, self.first
        self.first = False
        if written and not first:
            raise ValueError("f: writes into its state in some steps; make a new tensor, x * 2 in place of x.mul_(2)")
        memory = x.untyped_storage().data_ptr()
        if written or any(part.untyped_storage().data_ptr() == memory for part in parts):
            # What f wrote is f(x) and stays; x starts again from x0, and f works on copies from now on (one pass over
            # the state per step).
            self.guarded = True
            if first:
                return self.layout.pack(self.x0), parts
            parts = [part.clone() for part in parts]
        return x, parts


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
        ``f(x, *args)`` returns the next state, of the same shapes, dtype and device (under autocast what comes back in
        half precision is cast). It must treat samples independently. It may write into x. Where it closes over tensors
        of the whole batch and so cannot take fewer samples, it is given all of them to the end: pass such tensors in
        ``args``, and samples leave.
    x0
        Start: a tensor ``(B, ...)`` or a tuple of tensors (float32, float64, complex64 or complex128).
    args
        Further arguments. Tensors whose first size is B are taken for batch-leading and are indexed along with the
        samples, except an ``nn.Parameter``. A matrix that belongs to all samples may have that size by chance, which
        cannot be told: say :class:`Shared` of it.
    solver
        :class:`Anderson` (default), :class:`Picard` or :class:`Broyden`.
    tol, max_iter
        Stop test and limit. With ``tol=0`` all iterations are run, and nothing is warned of.
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

    Raises
    ------
    TypeError, ValueError
        An argument does not fit, or what f returned.

    Warns
    -----
    ConvergenceWarning
        If a sample does not converge.
    """
    solution = iterate(f, x0, args, solver, tol, max_iter, check_every, observe)
    return solution.warn_unless_converged("fixed_point", ADVICE) if tol > 0 else solution


@torch.no_grad()
def iterate(
    f: Callable[..., State],
    x0: State,
    args: Sequence[Any],
    solver: FixedPointMethod | None,
    tol: float,
    max_iter: int,
    check_every: int | None = None,
    observe: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Solution[State]:
    """:func:`fixed_point` for callers that have a warning of their own."""
    check_callable("f", f)
    check_number("tol", tol)
    check_count("max_iter", max_iter)
    if check_every is not None:
        check_count("check_every", check_every)
    if observe is not None:
        check_callable("observe", observe)
    args = check_args(args)
    solver = Anderson() if solver is None else solver
    if isinstance(solver, type) or not callable(getattr(solver, "start", None)):
        name = f"the class {solver.__name__}" if isinstance(solver, type) else type(solver).__name__
        raise TypeError(f"solver: expected an instance such as Anderson(), Picard() or Broyden(), got {name}")

    layout = Layout(x0)
    x = layout.pack(x0)
    batch, device = x.shape[0], x.device
    if check_every is None:
        check_every = 5 if x.is_cuda else 1
    run = solver.start(batch, x)
    calls = _Calls(f, layout, x0, args, batch)
    value = x.clone()
    status = torch.full((batch,), int(Status.MAX_ITER), dtype=torch.int8, device=device)
    iterations = torch.zeros(batch, dtype=torch.int32, device=device)
    residual = torch.full((batch,), float("inf"), dtype=torch.float64, device=device)
    first: Tensor | None = None
    rows = torch.arange(batch, device=device)
    for iteration in range(1, max_iter + 1):
        if rows.numel() == 0:
            break
        x, parts = calls(x, rows, value)
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
        fx = join(parts)
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
        calls.keep(keep)
        rows, x = rows[keep], x[keep]
    return Solution(layout.unpack(value), status, iterations, residual.to(x.real.dtype if x.is_complex() else x.dtype))


def check_args(args: Any) -> tuple[Any, ...]:
    """``args`` as a tuple; a bare tensor, whose rows would be taken for so many arguments, is refused."""
    if not isinstance(args, tuple | list):
        raise TypeError(f"args: expected a tuple of further arguments of f, got {type(args).__name__}")
    return tuple(args)


def _is_batched(value: Any, batch: int) -> bool:
    if isinstance(value, nn.Parameter):  # a matrix of weights: samples' own parameters are rare, and work as well
        return False
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.dim() > 0 and value.shape[0] == batch
