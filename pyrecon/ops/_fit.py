"""Least squares, voxel by voxel, of signals with one rate and one or two linear parameters.

    argmin over p = (R, c):   |s - f(c, R)|^2 + weight |p - prior|^2,    low <= R <= high

The linear parameters are eliminated (variable projection: G. H. Golub, V. Pereyra, SIAM J. Numer. Anal. 10, 1973), so
that a function of R is left. Its smallest value on a short grid brackets a minimum, which a Newton iteration finds that
halves the bracket where a step would leave it. What the rest of a function of R has to say about other minima is what
the grid has seen.

Magnitudes of a signal that changes its sign once over the times are fitted with every place of the change on the grid,
and from the best place and its two neighbours on.

At the minimum the gradient of the objective is zero, which gives the derivatives of p in closed form: with H half the
Hessian and u = H^-1 g for an incoming g, they are those of ``<s - f(p), f'(p) u> - weight <p - prior, u>`` with p and u
held fixed. A rate at its bound stays there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrecon import _core
from pyrecon._check import dense
from pyrecon._library import Op
from pyrecon._threads import kernel_threads
from pyrecon.ops._signals import curve

GRID = 16
_EASED = 1e-3  # steps below this fraction of R are in reach of the minimum: where they stop shrinking, rounding is
CONVERGED, MAX_ITER, NONFINITE = 0, 1, 3  # as of Solution
# Everywhere below: data (B, T, N), curves (B|1, 5, T, N|1), prior (B, P, N), weight (B, N).


def grid_of(low: float, high: float) -> list[float]:
    """Rates of equal ratio from low to high."""
    return [low, *(low * (high / low) ** (i / (GRID - 1)) for i in range(1, GRID - 1)), high]  # ends as they are


# --- the reference ---------------------------------------------------------------------------------------------------
def shapes(curves: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi and its first two derivatives in R, (B, T, N)."""
    time, sums, q, rest, u = curves.unbind(1)
    m, e = -torch.expm1(-time * rate[:, None]), torch.exp(-time * rate[:, None])
    slope, below = -time * e, rest + u * m  # dE/dR
    value = torch.where(e < 0.5, (sums - q) + q * e, sums - q * m) / below  # neither hides the smaller of two numbers
    change = (q * rest + u * sums) / below.square()  # dphi/dE: q + u p over the square
    return value, change * slope, slope * (2 * u * change / below * slope - change * time)


class _Voxels:
    """The objective of every voxel as a function of its rate ``(B, N)``.

    Complex numbers are pairs of real ones in an axis K of 2, real ones have a K of 1: data ``s (B, K, T, N)``, factors
    ``(B, K, N)``.
    """

    def __init__(self, s: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, linear: int) -> None:
        self.s, self.curves, self.linear = s, curves, linear
        batch, parts, _, n = s.shape
        self.w = torch.zeros_like(s[:, 0, 0]) if weight is None else weight
        if prior is None:
            self.rate0 = torch.zeros_like(self.w)
            self.factors0 = [s.new_zeros(batch, parts, n) for _ in range(linear)]
        else:
            self.rate0, rest = prior[:, 0], prior[:, 1:]
            self.factors0 = [rest[:, parts * i : parts * (i + 1)] for i in range(linear)]
        if linear == 2:  # a is eliminated by centring: with E near 1 all the while, sums of squares would cancel
            self.count = s.shape[2] + self.w
            self.mean = (s.sum(2) + (self.w[:, None] * self.factors0[0])) / self.count[:, None]
            self.centred = s - self.mean[:, :, None]

    def at(self, rate: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Half the objective less a constant, half its first and second derivative in R, and the factors."""
        phi, d1, d2 = shapes(self.curves, rate)
        pulled = self.w * (rate - self.rate0)
        if self.linear == 1:
            n = phi.square().sum(1) + self.w
            b = (phi[:, None] * self.s).sum(2) + self.w[:, None] * self.factors0[0]
            c = b / n[:, None]
            a1, a2, a3 = (phi * d1).sum(1), d1.square().sum(1), (phi * d2).sum(1)
            b1, b2 = (d1[:, None] * self.s).sum(2), (d2[:, None] * self.s).sum(2)
            power = c.square().sum(1)
            first = power * a1 - (c * b1).sum(1) + pulled
            second = power * (a2 + a3) - (c * b2).sum(1) + self.w
            second = second - (2 * a1[:, None] * c - b1).square().sum(1) / n
            value = 0.5 * (pulled * (rate - self.rate0) - (b * c).sum(1))
            return value, first, second, [c]
        mean = phi.sum(1) / self.count
        e = phi - mean[:, None]
        n = e.square().sum(1) + self.w * mean.square() + self.w
        b = (e[:, None] * self.centred).sum(2)
        b = b + self.w[:, None] * (mean[:, None] * (self.mean - self.factors0[0]) + self.factors0[1])
        c = b / n[:, None]
        a1, a2, a3 = (e * d1).sum(1), d1.square().sum(1), (e * d2).sum(1)
        b1, b2 = (d1[:, None] * self.centred).sum(2), (d2[:, None] * self.centred).sum(2)
        power = c.square().sum(1)
        first = power * a1 - (c * b1).sum(1) + pulled
        second = power * (a2 + a3) - (c * b2).sum(1) + self.w - power * d1.sum(1).square() / self.count
        second = second - (2 * a1[:, None] * c - b1).square().sum(1) / n
        value = 0.5 * (pulled * (rate - self.rate0) - (b * c).sum(1) - self.count * self.mean.square().sum(1))
        return value, first, second, [self.mean - c * mean[:, None], c]


def _parts(data: Tensor) -> Tensor:
    """(B, T, N) real or complex -> (B, K, T, N) real."""
    return torch.view_as_real(data).movedim(-1, 1) if data.is_complex() else data[:, None]


def _signed(s: Tensor, negative: Tensor) -> Tensor:
    """(B, 1, T, N) magnitudes with the first ``negative`` (B, N) of them negative."""
    index = torch.arange(s.shape[2], device=s.device)[:, None]
    return torch.where(index < negative[:, None, None], -s, s)


def _minimum(voxels: _Voxels, low: float, high: float, tol: float, max_iter: int) -> tuple[Tensor, ...]:
    """Rate, half the objective, factors (B, P - 1, N), status, iterations and the last relative step of every voxel."""
    grid = torch.tensor(grid_of(low, high), dtype=torch.float64).to(voxels.w)
    values = torch.stack([voxels.at(rate.expand_as(voxels.w))[0] for rate in grid])
    best = values.nan_to_num(nan=torch.inf).argmin(0)
    rate = grid[best]
    lower, upper = grid[(best - 1).clamp(min=0)], grid[(best + 1).clamp(max=GRID - 1)]
    eased = 0.1 * math.sqrt(tol)
    running = torch.ones_like(best, dtype=torch.bool)
    flat = ~running  # where the last step was made from: nothing to fit
    count = torch.zeros_like(best, dtype=torch.int32)
    last = torch.full_like(rate, torch.inf)  # of a Newton step; infinite after a halving
    residual = torch.full_like(rate, torch.inf)
    for _ in range(max_iter):
        _, first, second, factors = voxels.at(rate)
        upper = torch.where(running & (first > 0), rate, upper)
        lower = torch.where(running & (first < 0), rate, lower)
        newton = -first / second
        enough = newton.abs() <= tol * rate  # less than the bracket's ends are apart, where one of them is the rate
        inside = (second > 0) & (enough | ((rate + newton > lower) & (rate + newton < upper)))
        step = torch.where(first == 0, 0.0, torch.where(inside, newton, 0.5 * (lower + upper) - rate))
        size = step.abs()
        rounding = inside & (last < _EASED * rate) & (size >= 0.5 * last)
        count += running
        residual = torch.where(running, size / rate, residual)
        rate = torch.where(running & ~rounding, (rate + step).clamp(grid[0], grid[-1]), rate)
        last_one = inside & (size <= eased * rate)  # its square, the step after it, is below tol
        none = (first == 0) & (second == 0) & (factors[-1].square().sum(1) == 0)  # a signal may have a plateau
        flat = torch.where(running, none, flat)
        ends = (size <= tol * rate) | last_one | rounding | flat
        last, running = torch.where(inside, size, torch.inf), running & ~ends
        if not running.any():
            break
    value, _, _, factors = voxels.at(rate)
    lost = ~torch.isfinite(value) | flat
    status = torch.where(lost, NONFINITE, torch.where(running, MAX_ITER, CONVERGED)).to(torch.int8)
    return torch.where(lost, torch.nan, rate), value, torch.cat(factors, 1), status, count, residual


def _fit_reference(
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    low: float,
    high: float,
    linear: int,
    polarity: bool,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s = _parts(data)
    if not polarity:
        found = _minimum(_Voxels(s, curves, prior, weight, linear), low, high, tol, max_iter)
    else:
        found = _best_polarity(s, curves, prior, weight, low, high, linear, tol, max_iter)
    rate, _, factors, status, count, residual = found
    return torch.cat((rate[:, None], factors), 1), status, count, residual


def _best_polarity(
    s: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    low: float,
    high: float,
    linear: int,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, ...]:
    images = s.shape[2]
    least = []
    for negative in range(images + 1):
        flipped = s.clone()
        flipped[:, :, :negative].neg_()
        voxels = _Voxels(flipped, curves, prior, weight, linear)
        values = [voxels.at(torch.full_like(voxels.w, rate))[0] for rate in grid_of(low, high)]
        least.append(torch.stack(values).nan_to_num(nan=torch.inf).amin(0))
    middle = torch.stack(least).argmin(0)
    best: tuple[Tensor, ...] | None = None
    for change in (0, -1, 1):
        flipped = _signed(s, (middle + change).clamp(0, images))
        found = _minimum(_Voxels(flipped, curves, prior, weight, linear), low, high, tol, max_iter)
        if best is None:
            best = found
            continue
        better = found[1] < best[1]
        best = tuple(
            torch.where(better[:, None] if new.dim() == 3 else better, new, old)
            for new, old in zip(found, best, strict=True)
        )
    assert best is not None
    return best


def _backward_reference(
    grad: Tensor,
    value: Tensor,
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    low: float,
    high: float,
    linear: int,
    polarity: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of the data, and ``u = H^-1 grad`` (B, P, N); both zero where nothing was found."""
    s, rate = _parts(data), value[:, 0]
    k = s.shape[1]
    factors = [value[:, 1 + k * i : 1 + k * (i + 1)] for i in range(linear)]
    signs = None
    if polarity:
        signs = torch.sign(curve(curves.movedim(1, 0), rate[:, None], tuple(factors)))
        s = s * signs[:, None]
    voxels = _Voxels(s, curves, prior, weight, linear)
    _, _, second, _ = voxels.at(rate)
    phi, d1, _ = shapes(curves, rate)
    g = [grad[:, 1 + k * i : 1 + k * (i + 1)] for i in range(linear)]
    free = (rate > low) & (rate < high)
    if linear == 1:
        (c,) = factors
        norm = (phi.square().sum(1) + voxels.w)[:, None]
        cross = 2 * (phi * d1).sum(1)[:, None] * c - (d1[:, None] * s).sum(2)
        up = torch.where(free, (grad[:, 0] - (cross * g[0]).sum(1) / norm[:, 0]) / second, 0.0)
        uc = [(g[0] - cross * up[:, None]) / norm]
        moved = phi[:, None] * uc[0][:, :, None] + d1[:, None] * (c * up[:, None])[:, :, None]
    else:
        _, c = factors
        mean = (phi.sum(1) / voxels.count)[:, None]
        e = phi - mean
        norm = (e.square().sum(1) + voxels.w * mean[:, 0].square() + voxels.w)[:, None]
        count = voxels.count[:, None]
        with_a = c * d1.sum(1)[:, None]
        with_b = 2 * (e * d1).sum(1)[:, None] * c - (d1[:, None] * voxels.centred).sum(2)
        ga, gb = g[0], g[1] - mean * g[0]
        rest = grad[:, 0] - (with_a * ga / count).sum(1) - (with_b * gb / norm).sum(1)
        up = torch.where(free, rest / second, 0.0)
        ua, ub = (ga - with_a * up[:, None]) / count, (gb - with_b * up[:, None]) / norm
        uc = [ua - mean * ub, ub]
        moved = uc[0][:, :, None] + phi[:, None] * ub[:, :, None] + d1[:, None] * (c * up[:, None])[:, :, None]
    u = torch.cat((up[:, None], *uc), 1)
    lost = ~torch.isfinite(u).all(1)
    u = torch.where(lost[:, None], 0.0, u)
    moved = torch.where(lost[:, None, None], 0.0, moved if signs is None else moved * signs[:, None])
    if data.is_complex():
        return torch.view_as_complex(moved.movedim(1, -1).contiguous()), u
    return moved[:, 0].contiguous(), u


def _grad_curves(u: Tensor, value: Tensor, data: Tensor, curves: Tensor, linear: int, polarity: bool) -> Tensor:
    """Of ``<s - f(p), f'(p) u>``."""
    s, known = _parts(data), torch.isfinite(value).all(1, keepdim=True)
    k, p = s.shape[1], torch.where(known, value, 1.0)

    def split(v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return v[:, None, :1], tuple(v[:, 1 + k * i : 1 + k * (i + 1), None] for i in range(linear))

    with torch.enable_grad():
        table = curves.detach().requires_grad_()
        rows = table.movedim(1, 0)[:, :, None]

        def f(v: Tensor) -> Tensor:
            return curve(rows, *split(v))

        signal, along = torch.func.jvp(f, (p,), (u,))  # type: ignore[misc]
        if polarity:
            s = s * torch.sign(signal.detach())
        total = ((torch.where(known[:, None], s, 0.0) - signal) * along).sum()
        (grad,) = torch.autograd.grad(total, table)
    return grad


# --- kernels, registration, autograd ---------------------------------------------------------------------------------
def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if t is None else t.data_ptr() for t in tensors)


def _sizes(data: Tensor, curves: Tensor) -> tuple[int, ...]:
    """Batch, images, voxels, complex, and the steps of the table from sample to sample and from voxel to voxel."""
    batch, images, n = data.shape
    per_voxel = int(curves.shape[3] != 1 or n == 1)
    per_sample = 0 if curves.shape[0] == 1 else curves.shape[1] * curves.shape[2] * curves.shape[3]
    return batch, images, n, int(data.is_complex()), per_sample, per_voxel


def _cpp(
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    low: float,
    high: float,
    linear: int,
    polarity: bool,
    tol: float,
    max_iter: int,
    value: Tensor,
    status: Tensor,
    count: Tensor,
    residual: Tensor,
) -> None:
    kernel = _core.fit_voxels_f32 if residual.dtype == torch.float32 else _core.fit_voxels_f64
    grid = torch.tensor(grid_of(low, high), dtype=torch.float64)
    kernel(
        *_addresses(data, curves, prior, weight, grid, value, status, count, residual), *_sizes(data, curves), linear,
        polarity, tol, max_iter, kernel_threads(),
    )  # fmt: skip


def _backward_cpp(
    grad: Tensor,
    value: Tensor,
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    low: float,
    high: float,
    linear: int,
    polarity: bool,
    grad_data: Tensor,
    u: Tensor,
) -> None:
    kernel = _core.fit_voxels_backward_f32 if u.dtype == torch.float32 else _core.fit_voxels_backward_f64
    kernel(
        *_addresses(grad, value, data, curves, prior, weight, grad_data, u), *_sizes(data, curves), linear, polarity,
        low, high, kernel_threads(),
    )  # fmt: skip


@lru_cache(maxsize=32)
def _settings(low: float, high: float, tol: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The grid, tol, and the step that is the last but one."""
    return torch.tensor([*grid_of(low, high), tol, 0.1 * math.sqrt(tol)], dtype=dtype, device=device)


def _triton(
    data: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, low: float, high: float, linear: int,
    polarity: bool, tol: float, max_iter: int, *outputs: Tensor,
) -> None:  # fmt: skip
    from pyrecon.kernels.fit import fit_voxels as launch

    settings = _settings(low, high, tol, curves.dtype, curves.device)
    launch(data, curves, prior, weight, settings, linear, polarity, max_iter, *outputs)


def _backward_triton(
    grad: Tensor, value: Tensor, data: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, low: float,
    high: float, linear: int, polarity: bool, grad_data: Tensor, u: Tensor,
) -> None:  # fmt: skip
    from pyrecon.kernels.fit_gradients import fit_voxels_backward as launch

    settings = _settings(low, high, 0.0, curves.dtype, curves.device)
    launch(grad, value, data, curves, prior, weight, settings, linear, polarity, grad_data, u)


def _curves_backward_triton(*arguments: Any) -> None:
    from pyrecon.kernels.fit_gradients import fit_voxels_curves_backward as launch

    launch(*arguments)


def _outputs(
    data: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, low: float, high: float, linear: int,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, _images, n = data.shape
    parts = 1 + linear * (2 if data.is_complex() else 1)
    return (
        curves.new_empty(batch, parts, n),
        curves.new_empty(batch, n, dtype=torch.int8),
        curves.new_empty(batch, n, dtype=torch.int32),
        curves.new_empty(batch, n),
    )


_fit = Op(
    "fit_voxels(Tensor data, Tensor curves, Tensor? prior, Tensor? weight, float low, float high, int linear, "
    "bool polarity, float tol, int max_iter) -> (Tensor, Tensor, Tensor, Tensor)",
    outputs=_outputs,
    reference=_fit_reference,
    kernels={"cpp": _cpp, "triton": _triton},
)
_fit_backward = Op(
    "fit_voxels_backward(Tensor grad, Tensor value, Tensor data, Tensor curves, Tensor? prior, Tensor? weight, "
    "float low, float high, int linear, bool polarity) -> (Tensor, Tensor)",
    outputs=lambda grad, value, data, *_: (torch.empty_like(data), torch.empty_like(value)),
    reference=_backward_reference,
    kernels={"cpp": _backward_cpp, "triton": _backward_triton},
)
_fit_curves_backward = Op(  # on a CPU in plain torch: times are seldom what is sought
    "fit_voxels_curves_backward(Tensor u, Tensor value, Tensor data, Tensor curves, int linear, bool polarity)"
    " -> Tensor",
    outputs=lambda u, value, data, curves, *_: torch.empty_like(curves),
    reference=_grad_curves,
    kernels={"triton": _curves_backward_triton},
)


class Fit(torch.autograd.Function):
    """The derivatives of the minimum, see the top of this file."""

    @staticmethod
    def forward(
        data: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, *options: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _fit(data, curves, prior, weight, *options)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        data, curves, prior, weight, *options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(data, curves, prior, weight, output[0])
        ctx.options = options[:4]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        data, curves, prior, weight, value = ctx.saved_tensors
        low, high, linear, polarity = ctx.options
        grad_data, u = _fit_backward(dense(grad), value, data, curves, prior, weight, low, high, linear, polarity)
        found: list[Tensor | None] = [grad_data, None, None, None]
        if ctx.needs_input_grad[1]:
            found[1] = _fit_curves_backward(u, value, data, curves, linear, polarity)
        if prior is not None and weight is not None:
            found[2] = weight[:, None] * u
            found[3] = -torch.where(u == 0, 0.0, (value - prior) * u).sum(1)
        return *found, None, None, None, None, None, None
