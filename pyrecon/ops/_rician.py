"""Maximum likelihood, voxel by voxel, of magnitudes of a signal in complex Gaussian noise of known standard deviation.

The magnitude s of a signal f, in noise of standard deviation sigma in its real and in its imaginary part, has the
density ``s / sigma^2 exp(-(s^2 + f^2) / (2 sigma^2)) I0(s f / sigma^2)`` (H. Gudbjartsson, S. Patz, The Rician
distribution of noisy MRI data, Magn. Reson. Med. 34, 1995, eq. 1). Its likelihood (J. Sijbers et al.,
Maximum-likelihood estimation of Rician distribution parameters, IEEE Trans. Med. Imaging 17, 1998) gives

    argmin over p = (R, c):   sum_t [f_t^2 - 2 sigma^2 log I0(s_t f_t / sigma^2)] + weight |p - prior|^2,
    low <= R <= high.

Half of it has in f_t the derivatives, with A = I1 / I0 and z = s f / sigma^2,

    f - s A(z),    1 - (s / sigma)^2 A'(z),    A' = 1 - A / z - A^2.

Everything below is in units of sigma: s and c are divided by it, the weight of the rate by its square. A Newton
iteration in all parameters starts from the least-squares fit to ``sqrt(max(s^2 - 2 sigma^2, 0))``, for the mean of s^2
is f^2 + 2 sigma^2, and ends in the minimum of that basin: among 4,000 decays of eight echoes a start at one of 13 other
rates found a better one for none with M0 = 10 sigma, for 1 % with 5 sigma and for 5 % with 2.5 sigma. Where half the
Hessian has a negative curvature along the rate, its size is taken; where it has one in the linear parameters, the step
is that of ``J^T J``, which bounds them from above (A' is never negative). Steps that would raise the objective are
shortened by damping.

With one linear parameter c and a fixed rate the objective is convex in c^2, for log I0 of a root is concave. So no
signal at all is the likeliest where, at every rate, the mean of s^2 weighed by phi^2 is at most 2 sigma^2. It has no
rate, and is lost like a voxel whose least-squares fit is.

The derivatives of the minimum are those of :mod:`pyrecon.ops._fit`, with this gradient and this Hessian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrecon import _core
from pyrecon._check import dense
from pyrecon._library import Op
from pyrecon._threads import kernel_threads
from pyrecon.ops._fit import CONVERGED, MAX_ITER, NONFINITE, _addresses, _fit, _sizes, shapes
from pyrecon.ops._signals import curve

_EASED = 1e-3  # as in _fit.py
_START = 1e-3  # relative step at which the least-squares fit is near enough
_IDLE = 3  # steps in a row, none shorter, below the rounding of the objective: a plateau, which has no end to walk to
_FAR = 20.0  # from here on the last term of the asymptotic series is below 8e-14 of the first
# Everywhere below: data (B, T, N), curves (B|1, 5, T, N|1), prior (B, P, N), weight and noise (B, N).


# --- Bessel functions ------------------------------------------------------------------------------------------------
@cache
def _asymptotic(terms: int = 24) -> tuple[float, ...]:
    """A(z) = 1 + a_1 / z + a_2 / z^2 + ...: the coefficients that A' = 1 - A / z - A^2 asks for."""
    a = [1.0]
    for k in range(1, terms + 1):
        a.append(0.5 * ((k - 2) * a[k - 1] - sum(a[i] * a[k - i] for i in range(1, k))))
    return tuple(a)


def bessel_ratio(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``A = I1 / I0``, ``z A'`` and ``log I0(z) - z`` for z >= 0, computed in double precision, in the dtype of z."""
    wide = z.double()
    i0, i1 = torch.special.i0e(wide), torch.special.i1e(wide)
    near = wide < 1e-3
    a = i1 / i0
    over = torch.where(near, 0.5 - wide.square() / 16, a / torch.where(near, 1.0, wide))  # A / z
    y = 1 / wide.clamp(min=_FAR)
    far = torch.zeros_like(y)  # z A' = -sum k a_k y^k
    for k, value in reversed(list(enumerate(_asymptotic()))):
        far = far * y - k * value
    slope = torch.where(wide < _FAR, wide * (1 - over - a.square()), far)
    a = torch.where(wide == torch.inf, 1.0, a)
    return a.to(z.dtype), slope.to(z.dtype), torch.log(i0).to(z.dtype)


# --- the reference ---------------------------------------------------------------------------------------------------
@dataclass
class _At:
    """Half the objective and its derivatives at some parameters; matrices are their lower triangles."""

    value: Tensor
    slack: Tensor  # what rounding may add to the value
    power: Tensor  # of the signal
    gradient: list[Tensor]
    hessian: list[list[Tensor]]
    normal: list[list[Tensor]]  # J^T J and the weights
    spread: Tensor  # what eliminating the first of two factors leaves of the last one's

    def taken(self, better: Tensor, new: _At) -> _At:
        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(better, a, b)

        def rows(a: list[list[Tensor]], b: list[list[Tensor]]) -> list[list[Tensor]]:
            return [[pick(x, y) for x, y in zip(one, other, strict=True)] for one, other in zip(a, b, strict=True)]

        return _At(
            pick(new.value, self.value), pick(new.slack, self.slack), pick(new.power, self.power),
            rows([new.gradient], [self.gradient])[0], rows(new.hessian, self.hessian), rows(new.normal, self.normal),
            pick(new.spread, self.spread),
        )  # fmt: skip


class _Voxels:
    """Half the objective of every voxel in units of sigma; parameters (B, N) are the factors and, last, the rate."""

    def __init__(
        self, data: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, noise: Tensor, linear: int
    ) -> None:
        self.s, self.curves, self.linear = data / noise[:, None], curves, linear
        zero = torch.zeros_like(noise)
        w = zero if weight is None else weight
        self.weights = [*[w] * linear, w / noise / noise]  # the square may be no number in single precision
        self.prior = [zero] * (1 + linear) if prior is None else to_sigma(prior, noise)

    def columns(self, p: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The signal, its derivatives in the parameters, and those of these in the rate, (B, T, N)."""
        phi, d1, d2 = shapes(self.curves, p[-1])
        c = p[-2][:, None]
        zero, one = torch.zeros_like(phi), torch.ones_like(phi)
        if self.linear == 1:
            return c * phi, [phi, c * d1], [d1, c * d2]
        return p[0][:, None] + c * phi, [one, phi, c * d1], [zero, d1, c * d2]

    def at(self, p: list[Tensor]) -> _At:
        f, j, j_rate = self.columns(p)
        s, size, last = self.s, f.abs(), self.linear
        z = s * size
        a, za, log = bessel_ratio(z)
        r = f - torch.sign(f) * s * a
        # s^2 A' = s (z A') / |f|, and s^2 / 2 where there is no signal
        q = 1 - torch.where(z < 1e-3, s.square() * (0.5 - 3 / 16 * z.square()), s * za / size)
        off = [x - y for x, y in zip(p, self.prior, strict=True)]
        value = (0.5 * (s - size).square() - log).sum(1)
        eps = torch.finfo(s.dtype).eps
        slack = 8 * eps * ((1 + (s - size).abs()) * (4 + size)).sum(1)
        gradient, hessian, normal = [], [], []
        for i in range(last + 1):
            value = value + 0.5 * self.weights[i] * off[i].square()
            gradient.append((r * j[i]).sum(1) + self.weights[i] * off[i])
            normal.append([(j[i] * j[k]).sum(1) for k in range(i + 1)])
            hessian.append([(q * j[i] * j[k]).sum(1) for k in range(i + 1)])
            normal[i][i] = normal[i][i] + self.weights[i]
            hessian[i][i] = hessian[i][i] + self.weights[i]
        for k in range(last + 1):
            hessian[last][k] = hessian[last][k] + (r * j_rate[k]).sum(1)
        _, spread = self.spread(j[-2])
        return _At(value, slack + eps * value.abs(), f.square().sum(1), gradient, hessian, normal, spread)

    def spread(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """The mean that an offset takes, and the sum of squares about it; with the weight."""
        w = self.weights[0]
        if self.linear == 1:
            return torch.zeros_like(w), phi.square().sum(1) + w
        mean = phi.sum(1) / (phi.shape[1] + w)
        return mean, (phi - mean[:, None]).square().sum(1) + w * (1 + mean.square())

    def moved(self, p: list[Tensor], here: _At, step: list[Tensor], low: float, high: float) -> list[Tensor]:
        """Parameters after a step, taken in the rate, the signal's mean and its size about it.

        These change little along with the rate, while M0 of a decay grows exponentially with it: straight steps in M0
        took up to 50 iterations where five are enough. To first order, which Newton asks for, both are the same.
        """
        rate = (p[-1] + step[-1]).clamp(low, high)
        change, linear = rate - p[-1], self.linear
        mean_there, spread = self.spread(shapes(self.curves, rate)[0])
        scale = (here.spread / spread).sqrt()
        if linear == 1:
            return [(p[0] + step[0] + change * here.normal[1][0] / here.spread) * scale, rate]
        total, along = here.normal[0][0], here.normal[2]
        mean = here.normal[1][0] / total
        last = p[1] + step[1]
        first = p[0] + step[0] + mean * last + change * along[0] / total
        last = (last + change * (along[1] - mean * along[0]) / here.spread) * scale
        return [first - last * mean_there, last, rate]


def to_sigma(value: Tensor, noise: Tensor) -> list[Tensor]:
    """(B, P, N), the rate first, as factors in units of sigma and the rate last."""
    return [*(c / noise for c in value[:, 1:].unbind(1)), value[:, 0]]


def _factors_solved(m: list[list[Tensor]], b: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Of the factors' part of a matrix: the solution, and whether that part is positive."""
    if len(b) == 1:
        return [b[0] / m[0][0]], m[0][0] > 0
    ratio = m[1][0] / m[0][0]
    pivot = m[1][1] - m[1][0] * ratio
    second = (b[1] - ratio * b[0]) / pivot
    return [b[0] / m[0][0] - ratio * second, second], (m[0][0] > 0) & (pivot > 0)


def _step(m: list[list[Tensor]], g: list[Tensor], least: Tensor, most: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """The step ``-m^-1 g`` whose change of rate is within limits, whether the factors' part of m is positive, and
    whether the whole is, or the rate stays at its bound."""
    row = m[-1][:-1]
    y, positive = _factors_solved(m, g[:-1])
    v, _ = _factors_solved(m, row)
    slope = g[-1] - sum((a * b for a, b in zip(row, y, strict=True)), torch.zeros_like(least))
    curvature = m[-1][-1] - sum((a * b for a, b in zip(row, v, strict=True)), torch.zeros_like(least))
    held = ((least >= 0) & (slope > 0)) | ((most <= 0) & (slope < 0))
    change = torch.minimum(torch.maximum(-slope / curvature.abs(), least), most)
    change = torch.where(held | (slope == 0), 0.0, change)
    return [*(-(a + b * change) for a, b in zip(y, v, strict=True)), change], positive, held | (curvature > 0)


def _minimum(
    voxels: _Voxels, p: list[Tensor], low: float, high: float, tol: float, max_iter: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Parameters, status, iterations and the last relative step."""
    here = voxels.at(p)
    vanishing = math.sqrt(torch.finfo(p[0].dtype).eps)  # its square, which the objective depends on, is rounding
    eased = 0.1 * math.sqrt(tol)
    running = torch.isfinite(here.value)
    lost, weighed = ~running, voxels.weights[0] > 0
    damping, last = torch.zeros_like(p[0]), torch.full_like(p[0], torch.inf)
    residual, count = last.clone(), torch.zeros_like(p[0], dtype=torch.int32)
    before, idle = last.clone(), torch.zeros_like(count)  # steps one after another that the objective does not feel

    def damped(m: list[list[Tensor]]) -> list[list[Tensor]]:
        return [[*row[:-1], row[-1] + damping * here.normal[i][i]] for i, row in enumerate(m)]

    for _ in range(max_iter):
        gone = running & (here.power < vanishing) & ~weighed
        lost, running = lost | gone, running & ~gone
        p = [*(torch.where(gone, 0.0, c) for c in p[:-1]), p[-1]]  # the likeliest signal there is none
        least = torch.maximum(low - p[-1], -0.75 * p[-1])  # a quarter to four times the rate
        most = torch.minimum(high - p[-1], 3 * p[-1])
        newton, positive, whole = _step(damped(here.hessian), here.gradient, least, most)
        safe, _, _ = _step(damped(here.normal), here.gradient, least, most)
        step = [torch.where(positive, a, b) for a, b in zip(newton, safe, strict=True)]
        exact = positive & whole & (damping == 0)
        scale = torch.stack([c.abs() for c in p[:-1]]).amax(0).clamp(min=1)
        size = torch.stack([*(c.abs() / scale for c in step[:-1]), step[-1].abs() / p[-1]]).amax(0)
        rounding = exact & (last < _EASED) & (size >= 0.5 * last)
        ends = (exact & (size <= eased)) | ((damping == 0) & (size <= tol)) | rounding
        count += running
        residual = torch.where(running, size, residual)
        moved = voxels.moved(p, here, step, low, high)
        p = [torch.where(running & ends & ~rounding, a, b) for a, b in zip(moved, p, strict=True)]
        running = running & ~ends
        if not running.any():
            break
        there = voxels.at(moved)
        better = running & (there.value <= here.value + here.slack)
        unfelt = better & ((here.value - there.value) <= here.slack) & (size >= 0.5 * before)
        idle, before = torch.where(unfelt, idle + 1, 0), size
        p = [torch.where(better, a, b) for a, b in zip(moved, p, strict=True)]
        here = here.taken(better, there)
        last = torch.where(better & exact, size, torch.inf)
        eased_off = torch.where(damping > 0.01, 0.1 * damping, 0.0)
        damping = torch.where(better, eased_off, (10 * damping).clamp(min=0.1))
        running = running & (idle < _IDLE)
    lost = lost | ~torch.isfinite(torch.stack(p)).all(0)
    p[-1] = torch.where(lost, torch.nan, p[-1])
    status = torch.where(lost, NONFINITE, torch.where(running, MAX_ITER, CONVERGED)).to(torch.int8)
    return p, status, count, residual


def _cleared(data: Tensor, noise: Tensor) -> Tensor:
    """What least squares starts from; data that are negative and noise that is not positive are no numbers."""
    valid = (data >= 0) & ((noise > 0) & torch.isfinite(noise))[:, None]
    return torch.where(valid, data * (1 - 2 * (noise[:, None] / data).square()).clamp(min=0).sqrt(), torch.nan)


def _reference(
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    noise: Tensor,
    low: float,
    high: float,
    linear: int,
    polarity: bool,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    start, *_ = _fit.reference(
        _cleared(data, noise), curves, prior, weight, low, high, linear, polarity, _START, max_iter
    )
    voxels = _Voxels(data, curves, prior, weight, noise, linear)
    p, status, count, residual = _minimum(voxels, to_sigma(start, noise), low, high, tol, max_iter)
    return torch.stack((p[-1], *(c * noise for c in p[:-1])), 1), status, count, residual


def _backward_reference(
    grad: Tensor,
    value: Tensor,
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    noise: Tensor,
    low: float,
    high: float,
    linear: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of data and noise, and ``u = H^-1 grad`` (B, P, N) with H half the Hessian; zero where nothing was
    found."""
    voxels = _Voxels(data, curves, prior, weight, noise, linear)
    p, here = to_sigma(value, noise), voxels.at(to_sigma(value, noise))
    g = [*(c * noise for c in grad[:, 1:].unbind(1)), grad[:, 0]]
    free = (p[-1] > low) & (p[-1] < high)
    endless = torch.full_like(noise, torch.inf)
    matrix = [*here.hessian[:-1], [torch.where(free, m, 0.0) for m in here.hessian[-1]]]
    matrix[-1][-1] = torch.where(free, matrix[-1][-1], 1.0)
    g[-1] = torch.where(free, g[-1], 0.0)
    step, positive, whole = _step(matrix, [-c for c in g], -endless, endless)
    known = positive & whole & torch.isfinite(torch.stack(step)).all(0)
    step = [torch.where(known, c, 0.0) for c in step]
    f, columns, _ = voxels.columns([torch.where(known, c, 1.0) for c in p])
    s = torch.where(known[:, None], voxels.s, 1.0)
    a, za, _ = bessel_ratio(s * f.abs())
    moved = sum((c[:, None] * j for c, j in zip(step, columns, strict=True)), torch.zeros_like(s)) * torch.sign(f)
    grad_data = torch.where(known[:, None], moved * (a + za) / noise[:, None], 0.0)
    grad_noise = torch.where(known, -2 / noise * (moved * s * za).sum(1), 0.0)
    u = [step[-1] / noise / noise, *(c / noise for c in step[:-1])]
    return grad_data, grad_noise, torch.where(known[:, None], torch.stack(u, 1), 0.0)


def _grad_curves(u: Tensor, value: Tensor, data: Tensor, curves: Tensor, noise: Tensor, linear: int) -> Tensor:
    """Of ``<s A - f(p), f'(p) u>``, in the table."""
    known = torch.isfinite(value).all(1, keepdim=True)
    p = torch.where(known, value, 1.0)

    def f(v: Tensor, rows: Tensor) -> Tensor:
        return curve(rows, v[:, :1], tuple(v[:, 1 + i, None] for i in range(linear)))

    with torch.enable_grad():
        table = curves.detach().requires_grad_()
        signal, along = torch.func.jvp(lambda v: f(v, table.movedim(1, 0)), (p,), (u,))  # type: ignore[misc]
        at, level = signal.detach(), noise[:, None]
        s = torch.where(known, data / level, 0.0)
        size = at.abs() / level
        a, za, _ = bessel_ratio(s * size)
        bent = torch.where(size > 0, s * za / size, 0.5 * s.square())  # (s / sigma)^2 A'
        r = torch.sign(at) * s * a * level - at
        total = torch.where(known, r * along - (1 - bent) * along.detach() * signal, 0.0).sum()
        (grad,) = torch.autograd.grad(total, table)
    return grad


def information(value: Tensor, data: Tensor, curves: Tensor, noise: Tensor, linear: int) -> Tensor:
    """(B, N, P, P) in double precision: minus the second derivatives of the log-likelihood, the rate first."""
    value, data, curves, noise = (t.double() for t in (value, data, curves, noise))
    here = _Voxels(data, curves, None, None, noise, linear).at(to_sigma(value, noise))
    order = [linear, *range(linear)]
    scale = [torch.ones_like(noise), *[1 / noise] * linear]
    rows = [
        torch.stack([here.hessian[max(i, k)][min(i, k)] * scale[m] * scale[n] for n, k in enumerate(order)], -1)
        for m, i in enumerate(order)
    ]
    return torch.stack(rows, -2)


# --- kernels, registration, autograd ---------------------------------------------------------------------------------
def _cpp(
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    noise: Tensor,
    low: float,
    high: float,
    linear: int,
    polarity: bool,
    tol: float,
    max_iter: int,
    value: Tensor,
    *maps: Tensor,
) -> None:
    single = data.dtype == torch.float32
    sizes, threads, cleared = _sizes(data, curves), kernel_threads(), torch.empty_like(data)
    clear = _core.rician_cleared_f32 if single else _core.rician_cleared_f64
    clear(*_addresses(data, noise, cleared), *sizes[:3], threads)
    _fit.kernels["cpp"](cleared, curves, prior, weight, low, high, linear, polarity, _START, max_iter, value, *maps)
    kernel = _core.fit_rician_f32 if single else _core.fit_rician_f64  # from value, which it overwrites
    kernel(
        *_addresses(data, curves, prior, weight, noise, value, *maps), *sizes, linear, low, high, tol, max_iter, threads
    )


def _backward_cpp(
    grad: Tensor,
    value: Tensor,
    data: Tensor,
    curves: Tensor,
    prior: Tensor | None,
    weight: Tensor | None,
    noise: Tensor,
    low: float,
    high: float,
    linear: int,
    grad_data: Tensor,
    grad_noise: Tensor,
    u: Tensor,
) -> None:
    kernel = _core.fit_rician_backward_f32 if data.dtype == torch.float32 else _core.fit_rician_backward_f64
    kernel(
        *_addresses(grad, value, data, curves, prior, weight, noise, grad_data, grad_noise, u),
        *_sizes(data, curves), linear, low, high, kernel_threads(),
    )  # fmt: skip


fit_rician = Op(
    "fit_rician(Tensor data, Tensor curves, Tensor? prior, Tensor? weight, Tensor noise, float low, float high, "
    "int linear, bool polarity, float tol, int max_iter) -> (Tensor, Tensor, Tensor, Tensor)",
    outputs=lambda data, curves, prior, weight, noise, *options: _fit.outputs(data, curves, prior, weight, *options),
    reference=_reference,
    kernels={"cpp": _cpp},
)
_fit_rician_backward = Op(
    "fit_rician_backward(Tensor grad, Tensor value, Tensor data, Tensor curves, Tensor? prior, Tensor? weight, "
    "Tensor noise, float low, float high, int linear) -> (Tensor, Tensor, Tensor)",
    outputs=lambda grad, value, data, curves, prior, weight, noise, *_: (
        torch.empty_like(data), torch.empty_like(noise), torch.empty_like(value),
    ),
    reference=_backward_reference,
    kernels={"cpp": _backward_cpp},
)  # fmt: skip
_fit_rician_curves_backward = Op(  # in plain torch, as that of least squares
    "fit_rician_curves_backward(Tensor u, Tensor value, Tensor data, Tensor curves, Tensor noise, int linear)"
    " -> Tensor",
    outputs=lambda u, value, data, curves, *_: torch.empty_like(curves),
    reference=_grad_curves,
    kernels={},
)


class RicianFit(torch.autograd.Function):
    """The derivatives of the minimum, see the top of this file."""

    @staticmethod
    def forward(
        data: Tensor, curves: Tensor, prior: Tensor | None, weight: Tensor | None, noise: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return fit_rician(data, curves, prior, weight, noise, *options)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        data, curves, prior, weight, noise, *options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(data, curves, prior, weight, noise, output[0])
        ctx.options = options[:3]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        data, curves, prior, weight, noise, value = ctx.saved_tensors
        linear = ctx.options[2]
        grad_data, grad_noise, u = _fit_rician_backward(
            dense(grad), value, data, curves, prior, weight, noise, *ctx.options
        )
        found: list[Tensor | None] = [grad_data, None, None, None, grad_noise]
        if ctx.needs_input_grad[1]:
            found[1] = _fit_rician_curves_backward(u, value, data, curves, noise, linear)
        if prior is not None and weight is not None:
            found[2] = weight[:, None] * u
            found[3] = -torch.where(u == 0, 0.0, (value - prior) * u).sum(1)
        return *found, None, None, None, None, None, None
