"""Least squares, voxel by voxel, of spin-echo trains with stimulated echoes: R2, B1 and a real or complex factor.

    argmin over p = (R2, B1, c):   |s - c phi(R2, B1)|^2 + weight |p - prior|^2,    R2 and B1 within bounds

phi are the echoes of an extended phase graph (J. Hennig, J. Magn. Reson. 78, 1988; M. Weigel, J. Magn. Reson. Imaging
41, 2015). Magnetisation along the axis of the pulses (CPMG) keeps it real, with ``F+_j, F-_j, Z_j`` (Z doubled) of the
orders 1, 3, 5, ... in halves of the spacing tau. A pulse of angle ``alpha = B1 angle`` leaves the sum of F+ and F- as
it is, and turns their difference and Z by alpha; then F+ and F- decay by ``exp(-tau R2)``, Z by ``exp(-tau / T1)``, and
all orders move on: ``F+_j`` to ``F+_(j+1)``, ``F-_j`` to ``F-_(j-1)``, ``F-_1`` to ``F+_1``, which is the echo. What
recovers, and what the pulses themselves excite, has even orders and is never an echo. Of N echoes only the orders up to
``min(n, N + 1 - n)`` matter at pulse n: a quarter of the square.

c is eliminated (variable projection). What is left of R2 and B1 has several minima, for slow decays and noise: along a
valley in which a smaller B1 makes up for a larger R2. On a grid its least value along R2 is a function of B1, the two
lowest minima of which are where Newton iterations with the whole Hessian begin. Each step is the least of the quadratic
model over the box that the bounds and a trust region leave, which two parameters allow in closed form, convex or not.
With pulses of pi the signal has no slope in B1 at its bound of 1: only the curvature tells a minimum there from a
maximum, which it leaves.

Everything is computed in double precision. The derivatives of the minimum are those of :mod:`pyrecon.ops._fit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrecon import _core
from pyrecon._check import REAL_OF, check_out, dense
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._fit import CONVERGED, MAX_ITER, NONFINITE, _addresses, _parts
from pyrecon.ops._spin_echo import MultiSpinEcho, echo_train

RATES, FLIPS = 24, 16  # of the grid, fine enough for a parabola along R2 to find the valley's floor
START_R1 = 1.0  # of the grid that voxels with T1 of their own share: it says where to begin only
_EASED = 1e-3  # below it steps are in reach of the minimum: where they stop shrinking, rounding is
_ROUNDING = 1e-13  # of the objective: changes below it say nothing
_CHUNK = 4096  # voxels whose trains autograd records at a time
# Everywhere below: data (B, T, N), spacing (B|1,), angles (T,), r1 (B|1, N|1), b1 (B|1, N|1) where it is given, prior
# (B, P, N), weight (B, N); data, prior and weight in the precision of the data, the others double.


def grid_of(low: float, high: float, b1_low: float, b1_high: float) -> tuple[list[float], list[float]]:
    """R2 and B1 in the middle of parts of equal ratio, and of equal size."""
    rates = [low * (high / low) ** ((i + 0.5) / RATES) for i in range(RATES)]
    return rates, [b1_low + (b1_high - b1_low) * (i + 0.5) / FLIPS for i in range(FLIPS)]


# --- the reference ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _At:
    """Half the objective less a constant, the size of its terms, half its derivatives, and what they are made of."""

    value: Tensor
    size: Tensor
    slope: tuple[Tensor, ...]  # R2, B1
    curvature: tuple[Tensor, ...]  # R2 R2, R2 B1, B1 B1
    factor: Tensor  # (B, K, N)
    norm: Tensor
    cross: tuple[Tensor, ...]  # half the mixed derivatives in the factor and R2, B1: (B, K, N)
    phi: list[Tensor]


class _Voxels:
    """The objective of every voxel as a function of R2 and B1 ``(B, N)``, complex numbers being pairs in an axis K."""

    def __init__(
        self,
        data: Tensor,
        spacing: Tensor,
        angles: Tensor,
        r1: Tensor,
        b1: Tensor | None,
        prior: Tensor | None,
        weight: Tensor | None,
    ) -> None:
        self.s = _parts(data).double()
        self.spacing, self.angles, self.r1, self.b1 = spacing[:, None], angles, r1, b1
        batch, parts, _, n = self.s.shape
        self.w = self.s.new_zeros(batch, n) if weight is None else weight.double()
        self.target = self.s.new_zeros(batch, 2 + parts, n)
        if prior is not None:
            nonlinear = 1 if b1 is not None else 2
            self.target[:, :nonlinear], self.target[:, 2:] = prior[:, :nonlinear], prior[:, nonlinear:]
        self.drawn = self.w if b1 is None else torch.zeros_like(self.w)  # the weight of B1

    def on_grid(self, phi: Tensor, rate: float, b1: Tensor) -> Tensor:
        """Half the objective less a constant where phi (B|1, T, N|1) is known."""
        b = (phi[:, None] * self.s).sum(2) + self.w[:, None] * self.target[:, 2:]
        norm = phi.square().sum(1) + self.w
        pulled = self.w * (rate - self.target[:, 0]) ** 2 + self.drawn * (b1 - self.target[:, 1]) ** 2
        return 0.5 * (pulled - b.square().sum(1) / norm)

    def at(self, rate: Tensor, b1: Tensor) -> _At:
        phi = echo_train(rate, b1, self.spacing, self.r1, self.angles, 2)
        value, slopes, curvatures = phi[0], phi[1:3], phi[3:]
        norm = value.square().sum(1) + self.w
        b = (value[:, None] * self.s).sum(2) + self.w[:, None] * self.target[:, 2:]
        c = b / norm[:, None]
        power, pairs = c.square().sum(1), ((0, 0), (0, 1), (1, 1))
        off = (rate - self.target[:, 0], b1 - self.target[:, 1])
        weights = (self.w, self.drawn)
        along = [(value * d).sum(1) for d in slopes]
        seen = [(d[:, None] * self.s).sum(2) for d in slopes]
        cross = tuple(2 * a[:, None] * c - b for a, b in zip(along, seen, strict=True))
        slope = [power * along[i] - (c * seen[i]).sum(1) + weights[i] * off[i] for i in range(2)]
        curvature = []
        for (i, j), second in zip(pairs, curvatures, strict=True):
            bent = power * ((slopes[i] * slopes[j]).sum(1) + (value * second).sum(1))
            bent = bent - (c * (second[:, None] * self.s).sum(2)).sum(1) - (cross[i] * cross[j]).sum(1) / norm
            curvature.append(bent + weights[i] if i == j else bent)
        pulled = 0.5 * (self.w * off[0].square() + self.drawn * off[1].square())
        fitted = 0.5 * (b * c).sum(1)
        size = torch.where(pulled + fitted > 0, pulled + fitted, 1.0)
        return _At(pulled - fitted, size, tuple(slope), tuple(curvature), c, norm, cross, phi)

    def starts(self, low: float, high: float, b1_low: float, b1_high: float) -> list[list[Tensor]]:
        """Two of value, R2, B1: the least of the minima along B1 on the grid, each the least along R2, by a parabola in
        its logarithm; an infinite value where there is none."""
        rates, flips = grid_of(low, high, b1_low, b1_high)
        none = torch.full_like(self.w, torch.inf)
        least = [self._along_rates(rates, b, trains) for b, trains in self._trains(rates, flips)]
        values = [none, *(value for value, *_ in least), none]
        first, second = [none, torch.ones_like(none), torch.ones_like(none)], [none, none, none]
        for i, found in enumerate(least, 1):
            minimum = (values[i] <= values[i - 1]) & (values[i] < values[i + 1])
            best, good = minimum & (values[i] < first[0]), minimum & (values[i] < second[0])
            for j in range(3):
                second[j] = torch.where(best, first[j], torch.where(good, found[j], second[j]))
                first[j] = torch.where(best, found[j], first[j])
        return [first, second]

    def _along_rates(self, rates: list[float], b1: Tensor, trains: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        values = torch.stack([self.on_grid(phi, rate, b1) for rate, phi in zip(rates, trains, strict=True)])
        values = values.nan_to_num(nan=torch.inf, posinf=torch.inf)
        lowest, at = values.min(0)
        ends = torch.full_like(values[:1], torch.inf)
        before, after = (torch.cat((ends, values, ends)).gather(0, (at + i)[None])[0] for i in (0, 2))
        bend, tilt = before - 2 * lowest + after, before - after
        curved = (bend > 0) & torch.isfinite(bend) & torch.isfinite(tilt)
        shift = torch.where(curved, 0.5 * tilt / bend, 0.0)
        rate = values.new_tensor(rates)[at] * torch.exp(math.log(rates[1] / rates[0]) * shift)
        return torch.where(curved, lowest - 0.25 * tilt * shift, lowest), rate, b1.expand_as(lowest)

    def _trains(self, rates: list[float], flips: list[float]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Every B1 of the grid, or the one that is known, with the trains of all rates."""
        settings = self.spacing, self.r1, self.angles
        if self.b1 is not None:
            b1 = self.b1.expand(self.w.shape)
            yield b1, [echo_train(torch.full_like(self.w, rate), b1, *settings)[0] for rate in rates]
            return
        r1 = self.r1 if self.r1.shape[1] == 1 else torch.full_like(self.spacing, START_R1)
        for flip in flips:
            b1 = torch.full_like(self.spacing, flip)
            (phi,) = echo_train(self.spacing.new_tensor([rates]), b1, self.spacing, r1, self.angles)
            yield b1, list(phi.split(1, 2))


def _least(at: _At, across: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The step (R2, B1) in a box around 0 that makes the quadratic model least, and its value there; relative to the
    objective, for products of curvatures would overflow."""
    (g, f), (rr, rb, bb) = ([v / at.size for v in part] for part in (at.slope, at.curvature))

    def model(x: Tensor, y: Tensor) -> Tensor:
        return x * (g + 0.5 * rr * x + rb * y) + y * (f + 0.5 * bb * y)

    def on_edge(slope: Tensor, bend: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
        lower, upper = ends
        flat = torch.minimum(torch.maximum(-slope / bend, lower), upper)
        further = upper * (slope + 0.5 * bend * upper) < lower * (slope + 0.5 * bend * lower)
        return torch.where(bend > 0, flat, torch.where(further, upper, lower))

    points = [(on_edge(g + rb * y, rr, across), y) for y in along]
    points += [(x, on_edge(f + rb * x, bb, along)) for x in across]
    x, y = points[0]
    least = model(x, y)
    for other in points[1:]:
        value = model(*other)
        better = value < least
        x, y = torch.where(better, other[0], x), torch.where(better, other[1], y)
        least = torch.where(better, value, least)
    det = rr * bb - rb * rb
    p, q = (rb * f - bb * g) / det, (rb * g - rr * f) / det
    inside = (rr > 0) & (det > 0) & (p >= across[0]) & (p <= across[1]) & (q >= along[0]) & (q <= along[1])
    return torch.where(inside, p, x), torch.where(inside, q, y), torch.where(inside, model(p, q), least)


def _moved(p: Tensor, step: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """p + step, which is a bound exactly where the step reaches it."""
    low, high = ends
    return torch.where(step >= high - p, high, torch.where(step <= low - p, low, p + step))


def _minimum(
    voxels: _Voxels,
    start: list[Tensor],
    bounds: tuple[float, float],
    flips: tuple[float, float],
    tol: float,
    max_iter: int,
) -> tuple[Tensor, ...]:
    best, rate, b1 = start
    low, high, b1_low, b1_high = (torch.full_like(best, v) for v in (*bounds, *flips))
    ends = (low, high), ((b1_low, b1_high) if voxels.b1 is None else (b1, b1))
    at = voxels.at(rate, b1)
    running = torch.isfinite(at.value) & torch.isfinite(best)
    lost = ~running | ((at.slope[0] == 0) & (at.curvature[0] == 0))  # not a number, or nothing to fit
    running &= ~lost
    trust, last = torch.full_like(best, 0.5), torch.full_like(best, torch.inf)
    residual, count = torch.full_like(best, torch.inf), torch.zeros_like(best, dtype=torch.int32)
    eased = 0.1 * math.sqrt(tol)
    for _ in range(max_iter):
        if not running.any():
            break
        reach = trust * rate, trust * b1
        across, along = (
            (torch.maximum(low - p, -far), torch.minimum(high - p, far))
            for p, far, (low, high) in zip((rate, b1), reach, ends, strict=True)
        )
        x, y, expected = _least(at, across, along)
        extent = torch.maximum(x.abs() / rate, y.abs() / b1)
        newton = (x.abs() < reach[0]) & (y.abs() < reach[1])
        candidate = _moved(rate, x, ends[0]), _moved(b1, y, ends[1])
        new = voxels.at(*candidate)
        gained = (at.value - new.value) / at.size
        blind = -expected <= _ROUNDING
        ratio = torch.where(blind & torch.isfinite(new.value), 1.0, gained / -expected)
        rounding = newton & (last < _EASED) & (extent >= 0.5 * last)
        better = running & (ratio > 1e-4) & ~rounding
        done = (extent <= tol) | (newton & (extent <= eased)) | rounding  # the square of a step is that after it
        count += running
        residual = torch.where(running, extent, residual)
        rate, b1 = torch.where(better, candidate[0], rate), torch.where(better, candidate[1], b1)
        at = _chosen(better, new, at)
        shrunk, grown = 0.25 * extent, torch.where(newton, trust, (2 * trust).clamp(max=1.0))
        trust = torch.where(ratio > 0.75, grown, torch.where(ratio > 0.25, trust, shrunk))
        last = torch.where(better & newton, extent, torch.inf)
        running = running & ~done
    status = torch.where(lost, NONFINITE, torch.where(running, MAX_ITER, CONVERGED)).to(torch.int8)
    fitted = (rate, b1) if voxels.b1 is None else (rate,)
    value = torch.cat((torch.stack(fitted, 1), at.factor), 1)
    return torch.where(lost, torch.inf, at.value), torch.where(lost[:, None], torch.nan, value), status, count, residual


def _chosen(better: Tensor, new: _At, old: _At) -> _At:
    """The new one where it is better, without what only the backward pass reads."""

    def pick(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(torch.where(better, x, y) for x, y in zip(a, b, strict=True))

    value, size = pick((new.value, new.size), (old.value, old.size))
    slope, curvature = pick(new.slope, old.slope), pick(new.curvature, old.curvature)
    factor = torch.where(better[:, None], new.factor, old.factor)
    return replace(new, value=value, size=size, slope=slope, curvature=curvature, factor=factor)


def _fit_reference(
    data: Tensor,
    spacing: Tensor,
    angles: Tensor,
    r1: Tensor,
    b1: Tensor | None,
    prior: Tensor | None,
    weight: Tensor | None,
    low: float,
    high: float,
    b1_low: float,
    b1_high: float,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    voxels = _Voxels(data, spacing, angles, r1, b1, prior, weight)
    flips = b1_low, b1_high
    first, second = (_minimum(voxels, s, (low, high), flips, tol, max_iter) for s in voxels.starts(low, high, *flips))
    better = second[0] < first[0]
    _, value, status, count, residual = (
        torch.where(better[:, None] if a.dim() == 3 else better, a, b) for a, b in zip(second, first, strict=True)
    )
    return value.to(REAL_OF[data.dtype]), status, count, residual.to(REAL_OF[data.dtype])


def _backward_reference(
    grad: Tensor, value: Tensor, data: Tensor, spacing: Tensor, angles: Tensor, r1: Tensor, b1: Tensor | None,
    prior: Tensor | None, weight: Tensor | None, low: float, high: float, b1_low: float, b1_high: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of the data, and ``u = H^-1 grad`` (B, P, N); both zero where nothing was found."""
    voxels = _Voxels(data, spacing, angles, r1, b1, prior, weight)
    fitted = 2 if b1 is None else 1
    flip = value[:, 1] if b1 is None else b1.expand(voxels.w.shape)
    at = voxels.at(value[:, 0].double(), flip.double())
    at.factor.copy_(value[:, fitted:])
    # In the precision of the value, in which one at its bound is.
    free = [(p > value.new_tensor(a)) & (p < value.new_tensor(b)) for p, a, b in
            zip(value[:, :fitted].unbind(1), (low, b1_low), (high, b1_high), strict=False)]  # fmt: skip
    if b1 is not None:
        free.append(torch.zeros_like(free[0]))
    g, gc = grad.double()[:, :fitted].unbind(1), grad.double()[:, fitted:]
    norm, (cross_r, cross_b), (rr, rb, bb) = at.norm[:, None], at.cross, (v / at.size for v in at.curvature)
    x = torch.where(free[0], (g[0] - (cross_r * gc).sum(1) / at.norm) / at.size, 0.0)
    y = torch.where(free[1], (g[-1] - (cross_b * gc).sum(1) / at.norm) / at.size, 0.0)
    rb = torch.where(free[0] & free[1], rb, 0.0)
    rr, bb = torch.where(free[0], rr, 1.0), torch.where(free[1], bb, 1.0)
    det = rr * bb - rb * rb
    ux, uy = (bb * x - rb * y) / det, (rr * y - rb * x) / det
    uc = (gc - cross_r * ux[:, None] - cross_b * uy[:, None]) / norm
    u = torch.cat((torch.stack((ux, uy)[:fitted], 1), uc), 1)
    known = torch.isfinite(u).all(1)
    turned = at.phi[1] * ux[:, None] + at.phi[2] * uy[:, None]
    moved = at.phi[0][:, None] * uc[:, :, None] + turned[:, None] * at.factor[:, :, None]
    moved = torch.where(known[:, None, None], moved, 0.0).to(value.dtype)
    u = torch.where(known[:, None], u, 0.0).to(value.dtype)
    if data.is_complex():
        return torch.view_as_complex(moved.movedim(1, -1).contiguous()), u
    return moved[:, 0].contiguous(), u


def _settings_backward(
    u: Tensor, value: Tensor, data: Tensor, spacing: Tensor, angles: Tensor, r1: Tensor, b1: Tensor | None
) -> tuple[Tensor, ...]:
    """Of ``<s - f(p), f'(p) u>``: the gradients of spacing, angles, r1 and b1."""
    fitted, known = 2 if b1 is None else 1, torch.isfinite(value).all(1, keepdim=True)
    s, wide = _parts(data).double(), torch.where(known, value, 1.0).double()
    given = [spacing, angles, r1, r1 if b1 is None else b1]
    totals = [torch.zeros_like(t) for t in given]
    for begin in range(0, data.shape[2], _CHUNK):
        some = slice(begin, begin + _CHUNK)
        parts = [t[:, some] if t.dim() == 2 and t.shape[1] > 1 else t for t in given]
        p, along, here = wide[..., some], u[..., some].double(), known[..., some]
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in parts]
            # A lost voxel's own settings may be no numbers.
            own_r1, own_b1 = (torch.where(here[:, 0], t, 1.0) for t in leaves[2:])
            flip = p[:, 1] if b1 is None else own_b1
            phi, dr, db = echo_train(p[:, 0], flip, leaves[0][:, None], own_r1, leaves[1], 1)
            turned = dr * along[:, None, 0]
            if b1 is None:
                turned = turned + db * along[:, None, 1]
            c, uc = p[:, fitted:, None], along[:, fitted:, None]
            left = torch.where(here[:, :, None], s[..., some], 0.0) - c * phi[:, None]
            total = (left * (uc * phi[:, None] + c * turned[:, None])).sum()
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        for whole, part, grad in zip(totals, parts, grads, strict=True):
            if grad is not None:
                (whole if part.shape == whole.shape else whole[:, some]).add_(grad)
    return tuple(totals)


# --- kernels, registration, autograd ---------------------------------------------------------------------------------
def _sizes(data: Tensor, spacing: Tensor, r1: Tensor, b1: Tensor | None) -> tuple[int, ...]:
    """Batch, echoes, voxels, complex, and the steps of spacing, r1 and b1 from sample to sample and voxel to voxel."""
    batch, echoes, n = data.shape

    def steps(t: Tensor | None) -> tuple[int, int]:
        if t is None:
            return 0, 0
        return 0 if t.shape[0] == 1 else t.shape[1], int(t.shape[1] != 1)

    return batch, echoes, n, int(data.is_complex()), int(spacing.shape[0] != 1), *steps(r1), *steps(b1)


def _cpp(
    data: Tensor, spacing: Tensor, angles: Tensor, r1: Tensor, b1: Tensor | None, prior: Tensor | None,
    weight: Tensor | None, low: float, high: float, b1_low: float, b1_high: float, tol: float, max_iter: int,
    value: Tensor, status: Tensor, count: Tensor, residual: Tensor,
) -> None:  # fmt: skip
    kernel = _core.fit_epg_f32 if residual.dtype == torch.float32 else _core.fit_epg_f64
    rates, flips = grid_of(low, high, b1_low, b1_high)
    grid = torch.tensor([*rates, *flips], dtype=torch.float64)
    kernel(
        *_addresses(data, spacing, angles, r1, b1, prior, weight, grid, value, status, count, residual),
        *_sizes(data, spacing, r1, b1), low, high, b1_low, b1_high, tol, max_iter, kernel_threads(),
    )  # fmt: skip


def _backward_cpp(
    grad: Tensor, value: Tensor, data: Tensor, spacing: Tensor, angles: Tensor, r1: Tensor, b1: Tensor | None,
    prior: Tensor | None, weight: Tensor | None, low: float, high: float, b1_low: float, b1_high: float,
    grad_data: Tensor, u: Tensor,
) -> None:  # fmt: skip
    kernel = _core.fit_epg_backward_f32 if u.dtype == torch.float32 else _core.fit_epg_backward_f64
    kernel(
        *_addresses(grad, value, data, spacing, angles, r1, b1, prior, weight, grad_data, u),
        *_sizes(data, spacing, r1, b1), low, high, b1_low, b1_high, kernel_threads(),
    )  # fmt: skip


def _outputs(
    data: Tensor, spacing: Tensor, angles: Tensor, r1: Tensor, b1: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _echoes, n = data.shape
    real = REAL_OF[data.dtype]
    parts = (2 if b1 is None else 1) + (2 if data.is_complex() else 1)
    return (
        data.new_empty(batch, parts, n, dtype=real),
        data.new_empty(batch, n, dtype=torch.int8),
        data.new_empty(batch, n, dtype=torch.int32),
        data.new_empty(batch, n, dtype=real),
    )


_SETTINGS = "Tensor data, Tensor spacing, Tensor angles, Tensor r1, Tensor? b1"
_BOUNDS = "Tensor? prior, Tensor? weight, float low, float high, float b1_low, float b1_high"
_fit = Op(
    f"fit_epg({_SETTINGS}, {_BOUNDS}, float tol, int max_iter) -> (Tensor, Tensor, Tensor, Tensor)",
    outputs=_outputs,
    reference=_fit_reference,
    kernels={"cpp": _cpp},
)
_fit_backward = Op(
    f"fit_epg_backward(Tensor grad, Tensor value, {_SETTINGS}, {_BOUNDS}) -> (Tensor, Tensor)",
    outputs=lambda grad, value, data, *_: (torch.empty_like(data), torch.empty_like(value)),
    reference=_backward_reference,
    kernels={"cpp": _backward_cpp},
)
_fit_settings_backward = Op(  # in plain torch: settings are seldom what is sought
    f"fit_epg_settings_backward(Tensor u, Tensor value, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
    outputs=lambda u, value, data, spacing, angles, r1, b1: tuple(
        torch.empty_like(t) for t in (spacing, angles, r1, r1 if b1 is None else b1)
    ),
    reference=_settings_backward,
    kernels={},
)


class Fit(torch.autograd.Function):
    """The derivatives of the minimum, see the top of this file."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _fit(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:7], output[0])
        ctx.bounds = inputs[7:11]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        *given, prior, weight, value = ctx.saved_tensors
        grad_data, u = _fit_backward(dense(grad), value, *given, prior, weight, *ctx.bounds)
        found: list[Tensor | None] = [grad_data, *[None] * 6]
        if any(ctx.needs_input_grad[1:5]):
            settings = _fit_settings_backward(u, value, *given)
            found[1:5] = settings if given[4] is not None else (*settings[:3], None)
        if prior is not None and weight is not None:
            found[5] = weight[:, None] * u
            found[6] = -torch.where(u == 0, 0.0, (value - prior) * u).sum(1)
        return *found, *[None] * 6


# --- what fit_voxels calls -------------------------------------------------------------------------------------------
def fit_spin_echo(
    model: MultiSpinEcho,
    data: Tensor,
    settings: tuple[Tensor, Tensor, Tensor, Tensor | None],
    prior: Tensor | None,
    weight: Tensor | None,
    inside: Tensor | None,
    bounds: tuple[float, float],
    tol: float,
    max_iter: int,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parameters ``(B, P, ...)`` and maps of status, iterations and the last relative step; all has been checked."""
    batch, _, *space = data.shape
    shape = (batch, len(model.names(data.is_complex())), *space)
    flat = dense(data.flatten(2) if space else data[..., None])
    if inside is not None:
        flat = torch.where(inside[:, None], flat, torch.nan)
    spacing, angles, r1 = (dense(t) for t in settings[:3])
    b1 = None if settings[3] is None else dense(settings[3])
    given = (flat, spacing, angles, r1, b1, prior, weight)
    check_out("out", out, shape, data.real, inputs=[t for t in given if t is not None])
    options = (*bounds, *model.flips, float(tol), max_iter)
    if out is not None and inside is None:
        buffers = (out.view(batch, shape[1], flat.shape[2]), *_outputs(flat, spacing, angles, r1, b1)[1:])
        found = _fit(*given, *options, out=buffers)
    else:
        fits: Any = Fit.apply if out is None and needs_grad(*given) else _fit
        found = fits(*given, *options)
    value, status, count, residual = found
    if inside is not None:
        value, residual = torch.where(inside[:, None], value, 0.0), torch.where(inside, residual, 0.0)
        status = torch.where(inside, status, CONVERGED)
    value = value.reshape(shape)
    if out is not None:
        value = out if inside is None else out.copy_(value)
    status, count, residual = (v.reshape(batch, *space) for v in (status, count, residual))
    return value, status, count, residual
