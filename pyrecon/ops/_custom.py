"""Least squares, voxel by voxel, of any differentiable signal: Levenberg-Marquardt on all voxels at once.

Each voxel has its own normal equations, damping and end. Everything is done in double precision. At the end stands one
Newton step with the whole Hessian, recorded by autograd with the Hessian held fixed: the derivative of that step is the
one of the minimum (implicit function theorem), with regard to whatever the signal was made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrecon._check import check_callable, check_flag, check_number, check_returned
from pyrecon._library import needs_grad
from pyrecon._solution import Status

Start = Sequence[Sequence[float | Tensor]]


@dataclass(frozen=True)
class CustomSignal:
    """A signal model of one's own, for :func:`pyrecon.ops.fit_voxels`.

    Attributes
    ----------
    function
        ``function(times, *parameters)``, as for scipy's ``curve_fit``: ``times`` ``(B|1, T, ...)``, each parameter
        ``(B, 1, ...)`` real, both with as many axes as the data; returns ``(B, T, ...)``, real or complex like the
        data. Of differentiable torch operations, each voxel on its own. What else it holds may require gradients.
    names, units
        Of the parameters.
    start
        Candidates, each with a number or a map for every parameter; or a function ``(data, times)`` that returns such.
        Every voxel begins with the one that fits it best.
    bounds
        ``(low, high)`` of every parameter; infinite ones are none.
    derived
        ``derived(*parameters)``: the maps that are read off a fit, by name; default the parameters.
    """

    function: Callable[..., Tensor]
    names: tuple[str, ...]
    start: Start | Callable[[Tensor, Tensor], Start]
    bounds: tuple[tuple[float, float], ...]
    units: tuple[str, ...] = ()
    derived: Callable[..., dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        check_callable("function", self.function)
        if not self.names:
            raise ValueError("names: a signal has at least one parameter")
        if len(self.bounds) != len(self.names):
            raise ValueError(f"bounds: {len(self.bounds)} pairs, but {len(self.names)} parameters")
        for name, (low, high) in zip(self.names, self.bounds, strict=True):
            ends = [check_number(f"bounds of {name}", b, -float("inf"), finite=False) for b in (low, high)]
            if not ends[0] < ends[1]:
                raise ValueError(f"bounds of {name}: {low} to {high} leave nothing")
        if self.units and len(self.units) != len(self.names):
            raise ValueError(f"units: {len(self.units)}, but {len(self.names)} parameters")

    def signal(self, times: Tensor, p: Tensor) -> Tensor:
        """Of parameters ``(B, P, ...)``."""
        return self.function(times, *p.split(1, 1))


@dataclass(frozen=True)
class _Problem:
    model: CustomSignal
    data: Tensor  # (B, T, ...), double
    times: Tensor
    prior: Tensor | None
    weight: Tensor  # (B, 1, ...)

    def signal(self, p: Tensor) -> Tensor:
        return check_returned("function", self.model.signal(self.times, p), self.data, "the data")

    def objective(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of squares ``(B, 1, ...)``, infinite where it is no number, and the residual."""
        residual = self.data - self.signal(p)
        value = _squared(residual).sum(1, keepdim=True)
        if self.prior is not None:
            value = value + self.weight * (p - self.prior).square().sum(1, keepdim=True)
        return value.nan_to_num(nan=torch.inf, posinf=torch.inf), residual

    def descent(self, p: Tensor) -> Tensor:
        """Minus half the gradient, ``(B, P, ...)``, recorded where gradients are."""
        with torch.enable_grad():
            at = p if p.requires_grad else p.detach().requires_grad_()
            residual = self.data - self.signal(at)
            half = -0.5 * _squared(residual).sum()
            (found,) = torch.autograd.grad(half, at, create_graph=True)
        return found if self.prior is None else found - self.weight * (at - self.prior)

    def jacobian(self, p: Tensor) -> list[Tensor]:
        """Derivatives of the signal in each parameter, ``(B, T, ...)``."""
        return [torch.func.jvp(self.signal, (p,), (_unit(p, i),))[1] for i in range(p.shape[1])]


def _squared(v: Tensor) -> Tensor:
    return torch.view_as_real(v).square().sum(-1) if v.is_complex() else v.square()


def _unit(p: Tensor, i: int) -> Tensor:
    along = torch.zeros_like(p)
    along[:, i] = 1
    return along


def _solved(a: list[list[Tensor]], g: list[Tensor]) -> list[Tensor]:
    """By Cholesky, of symmetric matrices as lists of maps; not a number where they are not positive."""
    n = len(g)
    low = [[torch.empty(0)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            rest = a[i][j] - sum((low[i][k] * low[j][k] for k in range(j)), torch.zeros_like(g[0]))
            low[i][j] = rest.sqrt() if i == j else rest / low[j][j]
    y: list[Tensor] = []
    for i in range(n):
        y.append((g[i] - sum((low[i][k] * y[k] for k in range(i)), torch.zeros_like(g[0]))) / low[i][i])
    for i in reversed(range(n)):
        y[i] = (y[i] - sum((low[k][i] * y[k] for k in range(i + 1, n)), torch.zeros_like(g[0]))) / low[i][i]
    return y


def _frozen(p: Tensor, g: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Parameters at a bound that the gradient would push past it."""
    return ((p <= low) & (g < 0)) | ((p >= high) & (g > 0))


def _begin(problem: _Problem, low: Tensor, high: Tensor) -> Tensor:
    given = problem.model.start
    candidates = given(problem.data, problem.times) if callable(given) else given
    names, data = problem.model.names, problem.data
    best: Tensor | None = None
    for candidate in candidates:
        if len(candidate) != len(names):
            raise ValueError(f"start: {len(candidate)} values, but {len(names)} parameters")
        shape = (data.shape[0], 1, *data.shape[2:])
        maps = [torch.as_tensor(v, dtype=torch.float64, device=data.device).expand(shape) for v in candidate]
        p = torch.minimum(torch.maximum(torch.cat(maps, 1), low), high)
        value, _ = problem.objective(p)
        if best is None:
            best, least = p, value
            continue
        better = value < least
        best, least = torch.where(better, p, best), torch.where(better, value, least)
    if best is None:
        raise ValueError("start: is empty, give at least one candidate")
    return best


def fit_custom(
    model: CustomSignal,
    data: Tensor,
    times: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameters ``(B, P, ...)`` and maps ``(B, ...)`` of status, iterations and the last relative step."""
    wide = data.to(torch.complex128 if data.is_complex() else torch.float64)
    level = torch.zeros(1, dtype=torch.float64, device=data.device) if weight is None else weight.double()[:, None]
    problem = _Problem(model, wide, times.double(), None if prior is None else prior.double(), level)
    ends = torch.tensor(model.bounds, dtype=torch.float64, device=data.device)
    low, high = (ends[:, k].view(1, -1, *[1] * (data.dim() - 2)) for k in (0, 1))
    with torch.no_grad():
        p, status, count, residual = _minimised(problem, low, high, tol, max_iter)
    # What is lost leaves the recorded step, whose derivatives it would spoil for the times that all voxels share.
    fine = torch.isfinite(p).all(1, keepdim=True) & (status != Status.NONFINITE)[:, None]
    problem = replace(problem, data=torch.where(fine, problem.data, 0.0))
    inner = torch.minimum(torch.maximum(torch.ones_like(p), low), high)
    p = _newton(problem, torch.where(fine, p, inner), low, high, fine)
    lost = (status == Status.NONFINITE)[:, None]
    return torch.where(lost, torch.nan, p).to(data.real.dtype), status, count, residual.to(data.real.dtype)


def _minimised(problem: _Problem, low: Tensor, high: Tensor, tol: float, max_iter: int) -> tuple[Tensor, ...]:
    p = _begin(problem, low, high)
    value, residual = problem.objective(p)
    lost = ~torch.isfinite(value)
    damping = torch.full_like(value, 1e-3)
    running = ~lost
    count = torch.zeros_like(value, dtype=torch.int32)
    relative = torch.full_like(value, torch.inf)
    parameters = range(p.shape[1])
    for _ in range(max_iter):
        if not running.any():
            break
        columns = problem.jacobian(p)
        g = [(c.conj() * residual).real.sum(1, keepdim=True) for c in columns]
        a = [[(columns[i].conj() * columns[j]).real.sum(1, keepdim=True) for j in range(i + 1)] for i in parameters]
        if problem.prior is not None:
            g = [g[i] - problem.weight * (p[:, i : i + 1] - problem.prior[:, i : i + 1]) for i in parameters]
            for i in parameters:
                a[i][i] = a[i][i] + problem.weight
        held = _frozen(p, torch.cat(g, 1), low, high).split(1, 1)
        for i in parameters:
            g[i] = torch.where(held[i], 0.0, g[i])
            for j in range(i):
                a[i][j] = torch.where(held[i] | held[j], 0.0, a[i][j])
            a[i][i] = torch.where(held[i] | (a[i][i] == 0), 1.0, a[i][i] * (1 + damping))
        step = torch.cat(_solved(a, g), 1).nan_to_num(nan=0.0)
        candidate = torch.minimum(torch.maximum(p + step, low), high)
        new, new_residual = problem.objective(candidate)
        size = ((candidate - p).abs() / (p.abs() + 1e-12)).amax(1, keepdim=True)
        better = running & (new < value)
        count += running
        relative = torch.where(running, size, relative)
        # A step that rounding keeps from being better has arrived; so has a small one that was.
        ends = (size <= tol) | (~better & ((size <= 1e-7) | (damping > 1e12)))
        p, value = torch.where(better, candidate, p), torch.where(better, new, value)
        residual = torch.where(better, new_residual, residual)
        damping = torch.where(better, 0.1 * damping, 10 * damping)
        running = running & ~ends
    status = torch.where(lost, int(Status.NONFINITE), torch.where(running, int(Status.MAX_ITER), 0)).to(torch.int8)
    return p, status[:, 0], count[:, 0], relative[:, 0]


def _newton(problem: _Problem, p: Tensor, low: Tensor, high: Tensor, fine: Tensor) -> Tensor:
    """One step with the whole Hessian, which is held fixed."""
    parameters = range(p.shape[1])
    with torch.enable_grad():
        at = p.detach().requires_grad_()
        down = problem.descent(at)
        # Rows of half the Hessian, which is symmetric.
        rows = [-torch.autograd.grad(down, at, _unit(p, i), retain_graph=True)[0] for i in parameters]
    slope, held = down.detach(), _frozen(p, down.detach(), low, high)
    a = [[torch.where(held[:, i : i + 1] | held[:, j : j + 1], float(i == j), rows[i][:, j : j + 1])
          for j in range(i + 1)] for i in parameters]  # fmt: skip
    step = torch.cat(_solved(a, list(torch.where(held, 0.0, slope).split(1, 1))), 1)
    known = fine & torch.isfinite(step).all(1, keepdim=True)
    small = known & ((step.abs() / (p.abs() + 1e-12)).amax(1, keepdim=True) < 1e-3)
    value = torch.minimum(torch.maximum(p + torch.where(small, step, 0.0), low), high)
    sources = (problem.data - problem.signal(p), problem.weight, problem.prior)
    if not needs_grad(*sources):
        return value
    # Its derivative: the same system, whose right-hand side is recorded; where it cannot be solved, a zero.
    for i in parameters:
        a[i] = [torch.where(known, a[i][j], float(i == j)) for j in range(i + 1)]
    recorded = torch.where(held | ~known, 0.0, problem.descent(p))
    again = torch.cat(_solved(a, list(recorded.split(1, 1))), 1)
    return value + (again - again.detach())


def inversion_recovery(
    repetition_time: Tensor | float,
    *,
    magnitude: bool = False,
    is_complex: bool = False,
    efficiency: float | None = None,
) -> CustomSignal:
    """``M0 (1 - (1 + k) exp(-TI R1) + k exp(-TR R1))`` with k the efficiency; or its magnitude.

    The steady state of an inversion that leaves -k of what there is, an excitation by 90 degrees TI later, and recovery
    from zero until the next inversion, TR after the last; refocusing pulses and echo times are taken to be short. Where
    every image has the same TR, ``a + b exp(-TI R1)`` of :class:`InversionRecovery` is the same signal, and faster.

    Parameters
    ----------
    repetition_time
        Seconds: a number, or a tensor that broadcasts to the data, such as ``(1, T, 1, 1)`` where images differ.
    magnitude, is_complex
        Of the data; complex ones have M0_re and M0_im.
    efficiency
        k, 1 for a perfect inversion; None: fitted between 0.5 and 1.3. More than 1 are inversion times that are longer
        than the true ones, as where they count from the beginning of a pulse of some milliseconds.
    """
    check_flag("magnitude", magnitude)
    check_flag("is_complex", is_complex)
    if magnitude and is_complex:
        raise ValueError("magnitude, is_complex: magnitudes are not complex")
    if efficiency is not None and not 0 < check_number("efficiency", efficiency) <= 1:
        raise ValueError(f"efficiency: {efficiency}, expected more than 0 and at most 1")
    if not isinstance(repetition_time, Tensor):
        check_number("repetition_time", repetition_time, above=True)
    parts = 2 if is_complex else 1

    def shape(times: Tensor, rate: Tensor, eta: Tensor | float) -> Tensor:
        tr = repetition_time.to(rate) if isinstance(repetition_time, Tensor) else repetition_time
        return 1 - (1 + eta) * torch.exp(-times * rate) + eta * torch.exp(-tr * rate)

    def signal(times: Tensor, rate: Tensor, *rest: Tensor) -> Tensor:
        factor = torch.complex(rest[0], rest[1]) if is_complex else rest[0]
        whole = factor * shape(times, rate, efficiency if efficiency is not None else rest[-1])
        return whole.abs() if magnitude else whole

    def start(data: Tensor, times: Tensor) -> Start:
        """Rates of equal ratio, each with the M0 that fits best: a guess at M0 fails where nothing has recovered. They
        are close enough that the best one has the signs of the best fit, across which no descent leads."""
        eta = 0.95 if efficiency is None else efficiency
        found = list[list[float | Tensor]]()
        for rate in torch.logspace(math.log10(0.1), math.log10(100.0), 64, dtype=torch.float64, device=data.device):
            known = shape(times, rate, eta)
            known = known.abs() if magnitude else known
            factor = (known * data).sum(1, keepdim=True) / known.square().sum(1, keepdim=True)
            parts = (factor.real, factor.imag) if is_complex else (factor,)
            found.append([float(rate), *parts, *([eta] if efficiency is None else [])])
        return found

    def derived(rate: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        factor = torch.complex(rest[0], rest[1]) if is_complex else rest[0]
        return {"T1": 1 / rate, "M0": factor} | ({"efficiency": rest[-1]} if efficiency is None else {})

    free = ((-torch.inf, torch.inf),) * parts if not magnitude else ((0.0, torch.inf),)
    fitted = efficiency is None
    return CustomSignal(
        signal,
        ("R1", *(("M0_re", "M0_im") if is_complex else ("M0",)), *(("efficiency",) * fitted)),
        start,
        ((0.05, 100.0), *free, *(((0.5, 1.3),) * fitted)),
        ("1/s", *("unit of the data",) * parts, *(("",) * fitted)),
        derived,
    )
