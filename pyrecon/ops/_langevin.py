"""Langevin steps with noise from a counter: the same numbers on every device, however a batch is split.

The law. For every real number i of x, a complex number being two (real, imaginary), and with xi of the stream below::

    x'_i = x_i - step/2 grad_i + noise_std xi_i            (its positive part with nonneg)

The stream ``xi(seed, counter)``, i counting from the start of the whole batch in 64 bits: Philox 4x32-10 with the key
(seed mod 2^32, seed div 2^32) turns the four words (c mod 2^32, c div 2^32, counter mod 2^32, counter div 2^32), where
c = 16 (i div 64) + i mod 16, into words w_0 ... w_3; number i takes word (i div 16) mod 4. Words v = w_0, w = w_1 make
two numbers, and w_2, w_3 two more (Box and Muller)::

    u = fl(v div 2 | 1) / 2^31        f = fl(4 w as a signed number) / 2^32        fl: rounded to single precision
    (a, b) = sqrt(-2 log u) (+-cos(pi f / 2), sin(pi f / 2))          - if the highest bit of w is set
    (first, second) = (b, a) if the next bit of w is set, else (a, b)

u and f are the same numbers in every precision, so runs in single and double precision see the same noise. The largest
number is 6.55, with a probability of 5e-10 per number to lie beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import (
    COMPLEX,
    FLOATING,
    REAL_OF,
    check_count,
    check_dtype,
    check_like,
    check_nonneg,
    check_out,
    check_shape,
    dense,
    filled,
)
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads


# --- the reference ---------------------------------------------------------------------------------------------
def _philox(c: Tensor, counter: Tensor | int, seed: int) -> list[Tensor]:
    """The four words of Philox 4x32-10 at the 64-bit counters (c, counter), as int64 below 2^32."""

    def halves(v: Any) -> tuple[Any, Any]:  # products wrap at 64 bits and shifts bring the sign down: masked
        return v & 0xFFFFFFFF, v >> 32 & 0xFFFFFFFF

    w0, w1 = halves(c)
    w2, w3 = (torch.zeros_like(c) + v for v in halves(counter))
    k0, k1 = halves(seed)
    for _ in range(10):
        (low_0, high_0), (low_1, high_1) = halves(w0 * 0xD2511F53), halves(w2 * 0xCD9E8D57)
        w0, w1, w2, w3 = high_1 ^ w1 ^ k0, low_1, high_0 ^ w3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [w0, w1, w2, w3]


def _noise(x: Tensor, seed: int, counter: int, offset: int, clock: Tensor | None) -> Tensor:
    """xi for the numbers of x, the first of which is number ``offset`` of the batch."""
    dtype, width = REAL_OF[x.dtype], 2 if x.is_complex() else 1
    i = width * offset + torch.arange(width * x.numel(), device=x.device)
    words = _philox((i >> 6) * 16 + (i & 15), counter if clock is None else clock + counter, seed)
    pair = i & 32 != 0
    v, w = torch.where(pair, words[2], words[0]), torch.where(pair, words[3], words[1])
    u = (v >> 1 | 1).to(torch.float32).to(dtype) / 2**31
    f = ((w << 34) >> 32).to(torch.float32).to(dtype) / 2**32
    radius, angle = (-2 * u.log()).sqrt(), math.pi / 2 * f
    a = radius * angle.cos() * torch.where(w & 1 << 31 != 0, -1, 1)
    second = (i & 16 != 0) ^ (w & 1 << 30 != 0)
    xi = torch.where(second, radius * angle.sin(), a)
    return torch.view_as_complex(xi.view(*x.shape, 2)) if x.is_complex() else xi.view(x.shape)


def _per_sample(rows: Tensor, x: Tensor) -> Tensor:
    """``rows`` (1,) or (B,) so that it broadcasts with x."""
    return rows.view(-1, *[1] * (x.dim() - 1)) if x.dim() else rows.view(())


def _reference(
    x: Tensor,
    grad: Tensor,
    step: Tensor,
    noise_std: Tensor,
    seed: int,
    counter: int,
    offset: int,
    clock: Tensor | None,
    nonneg: bool,
) -> Tensor:
    v = x - _per_sample(step, x) / 2 * grad + _per_sample(noise_std, x) * _noise(x, seed, counter, offset, clock)
    return v.clamp(min=0) if nonneg else v


def _take_in(x: Tensor, mean: Tensor, m2: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and m2 of one sample more (Welford 1962), of which there were ``count``."""
    delta = x - mean
    new = mean + delta / (count + 1).to(m2.dtype)
    return new, m2 + (delta * (x - new).conj()).real if x.is_complex() else m2 + delta * (x - new)


def _moments_reference(
    x: Tensor, grad: Tensor, step: Tensor, noise_std: Tensor, mean: Tensor, m2: Tensor, count: Tensor, *stream: Any
) -> tuple[Tensor, Tensor, Tensor]:
    v = _reference(x, grad, step, noise_std, *stream)
    return v, *_take_in(v, mean, m2, count)


# --- kernels ---------------------------------------------------------------------------------------------------
def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _moments_cpp(
    x: Tensor,
    grad: Tensor,
    step: Tensor,
    noise_std: Tensor,
    mean: Tensor | None,
    m2: Tensor | None,
    count: Tensor | None,
    seed: int,
    counter: int,
    offset: int,
    clock: Tensor | None,
    nonneg: bool,
    out: Tensor,
    new_mean: Tensor | None,
    new_m2: Tensor | None,
) -> None:
    kernel = _core.langevin_step_f32 if step.dtype == torch.float32 else _core.langevin_step_f64
    width, rows = 2 if x.is_complex() else 1, step.shape[0]
    kernel(
        x.data_ptr(),
        grad.data_ptr(),
        step.data_ptr(),
        noise_std.data_ptr(),
        _address(mean),
        _address(m2),
        _address(count),
        _address(clock),
        out.data_ptr(),
        _address(new_mean),
        _address(new_m2),
        rows,
        width * x.numel() // max(rows, 1),
        seed,
        counter,
        width * offset,
        x.is_complex(),
        nonneg,
        kernel_threads(),
    )


def _moments_triton(*arguments: Any) -> None:
    from pyrecon.kernels.langevin import langevin_step as launch

    launch(*arguments)


def _without_moments(kernel: Any) -> Any:
    def run(x: Tensor, grad: Tensor, step: Tensor, noise_std: Tensor, *others: Any) -> None:
        kernel(x, grad, step, noise_std, None, None, None, *others, None, None)

    return run


_STREAM = "SymInt seed, SymInt counter, SymInt offset, Tensor? clock, bool nonneg"

_step = Op(
    f"langevin_step(Tensor x, Tensor grad, Tensor step, Tensor noise_std, {_STREAM}) -> Tensor",
    outputs=lambda x, *_: torch.empty_like(x),
    reference=_reference,
    kernels={"cpp": _without_moments(_moments_cpp), "triton": _without_moments(_moments_triton)},
)
_moments = Op(
    "langevin_moments(Tensor x, Tensor grad, Tensor step, Tensor noise_std, Tensor mean, Tensor m2, Tensor count, "
    f"{_STREAM}) -> (Tensor, Tensor, Tensor)",
    outputs=lambda x, grad, step, noise_std, mean, m2, *_: (
        torch.empty_like(x),
        torch.empty_like(mean),
        torch.empty_like(m2),
    ),
    reference=_moments_reference,
    kernels={"cpp": _moments_cpp, "triton": _moments_triton},
)


# --- autograd --------------------------------------------------------------------------------------------------
class _LangevinStep(torch.autograd.Function):
    """dx = g where x' > 0 or without nonneg; dgrad = -step/2 dx; dstep, dnoise_std: sums of -grad/2 dx and xi dx."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, step: Tensor, noise_std: Tensor, *stream: Any) -> Tensor:
        return _step(x, grad, step, noise_std, *stream)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *_, clock, nonneg = inputs
        # The clock may have moved on by the time of the backward.
        ctx.save_for_backward(*inputs[:3], output if nonneg else None, None if clock is None else clock.clone())
        ctx.stream = inputs[4:7]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, grad, step, output, clock = ctx.saved_tensors
        if output is not None:
            g = torch.where(output > 0, g, 0)
        of_grad = -_per_sample(step, x) / 2 * g if ctx.needs_input_grad[1] else None
        of_step = -_row_sums(g, grad, step) / 2 if ctx.needs_input_grad[2] else None
        of_std = None
        if ctx.needs_input_grad[3]:
            zero = torch.zeros_like(x)
            xi = _step(zero, zero, torch.zeros_like(step), torch.ones_like(step), *ctx.stream, clock, False)
            of_std = _row_sums(g, xi, step)
        return g, of_grad, of_step, of_std, *(None,) * 5


def _row_sums(g: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Re <g, v> for each of the rows (1,) or (B,)."""
    product = (g * v.conj()).real if g.is_complex() else g * v
    return product.reshape(rows.shape[0], -1).sum(1)


# --- the public functions --------------------------------------------------------------------------------------
@dataclass
class Moments:
    """Running mean and variance of every number of a tensor, fed by :func:`langevin_step` or :meth:`update`.

    Attributes
    ----------
    mean
        Mean of the samples taken in, like them.
    m2
        Sum of ``|sample - mean|^2``, of the samples' shape and real dtype: for complex numbers both parts together.
    count
        How many samples: a 0-d int64 tensor on their device, so that a CUDA graph can count.
    """

    mean: Tensor
    m2: Tensor
    count: Tensor

    @classmethod
    def zeros_like(cls, x: Tensor) -> Moments:
        """No samples yet, of tensors like ``x``."""
        check_dtype("x", x, (*FLOATING, *COMPLEX))
        mean = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        m2 = torch.zeros(x.shape, dtype=REAL_OF[x.dtype], device=x.device)
        return cls(mean, m2, torch.zeros((), dtype=torch.int64, device=x.device))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in a sample (Welford's update), in place, in plain torch."""
        check_dtype("x", x, (*FLOATING, *COMPLEX))
        self._check(x)
        mean, m2 = _take_in(x, self.mean, self.m2, self.count)
        self.mean.copy_(mean)
        self.m2.copy_(m2)
        self.count += 1

    def variance(self, correction: int = 1) -> Tensor:
        """``m2 / (count - correction)``: unbiased by default; NaN while there are too few samples."""
        n = self.count - correction
        return torch.where(n > 0, self.m2 / n.clamp(min=1).to(self.m2.dtype), torch.nan)

    def std(self, correction: int = 1) -> Tensor:
        """Square root of :meth:`variance`."""
        return self.variance(correction).sqrt()

    def _check(self, x: Tensor) -> None:
        check_like("moments.mean", self.mean, "x", x)
        check_shape("moments.mean", self.mean, x.shape, "the shape of x")
        check_like("moments.m2", self.m2, "x", x, dtype=REAL_OF[x.dtype])
        check_shape("moments.m2", self.m2, x.shape, "the shape of x")
        check_like("moments.count", self.count, "x", x, dtype=torch.int64)
        check_shape("moments.count", self.count, (), "a number")
        if not (self.mean.is_contiguous() and self.m2.is_contiguous()):
            raise ValueError("moments: mean and m2 must be contiguous; make them with Moments.zeros_like(x)")


def langevin_step(
    x: Tensor,
    grad: Tensor,
    step: Tensor | float,
    noise_std: Tensor | float | None = None,
    *,
    seed: int,
    counter: int | Tensor,
    offset: int = 0,
    nonneg: bool = False,
    moments: Moments | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One step of the unadjusted Langevin algorithm: ``x - step/2 * grad + noise_std * xi``, in one pass over memory.

    With ``grad`` the gradient of H and the default noise it samples from ``exp(-H)``, up to a bias that vanishes with
    the step. The standard normal numbers xi depend on ``seed``, ``counter`` and their place alone: not on the device,
    the number of threads, the precision or how a batch is split.

    Parameters
    ----------
    x, grad
        Samples ``(B, ...)`` and the gradient there, like them: float32, float64, complex64 or complex128. The gradient
        of a real function of complex numbers is in torch's convention, ``dH/dRe + i dH/dIm``.
    step
        A number or ``(B,)``, in units of ``x^2`` for a dimensionless H, not negative.
    noise_std
        Standard deviation of the noise, a number or ``(B,)``; ``sqrt(step)`` if not given. For complex ``x`` the real
        and the imaginary part each get independent noise of this standard deviation.
    seed
        Of the stream of numbers, 0 to 2^63 - 1.
    counter
        Number of the step, 0 to 2^63 - 1: a stream has different, independent numbers for each. An int, or a 0-d int64
        tensor on the device of ``x``, which is read when the kernel runs: a captured CUDA graph that adds 1 to it draws
        new numbers whenever it is replayed.
    offset
        Index of the first number of ``x`` in the whole batch, when ``x`` is a part of one.
    nonneg
        Project onto ``x >= 0``; real numbers only.
    moments
        Running mean and variance that take the result in, in place, in the same pass: see :class:`Moments`. Leave it
        out during burn-in. With gradients recorded it takes a second pass.
    out
        Buffer for the result, dense; it may be ``x`` or ``grad`` itself and else shares no memory with the inputs. Not
        differentiable.

    Returns
    -------
    Tensor
        Like ``x``. Differentiable (any number of times) in ``x``, ``grad``, ``step`` and ``noise_std`` for fixed xi;
        where the projection acts, the gradient is zero. A NaN stays with its number.

    Notes
    -----
    CPU (C++) and GPU (Triton). Integers of the stream agree to the bit everywhere, numbers to rounding; on one
    processor the results for any split of the batch and any number of threads agree to the bit. In single precision
    xi is within 6 units in the last place of the law. Under ``torch.func.vmap`` every slice gets the same xi.

    References
    ----------
    G. Roberts, R. Tweedie, Exponential convergence of Langevin distributions and their discrete approximations,
    Bernoulli 2, 1996. J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011. B. Welford, Note on a
    method for calculating corrected sums of squares and products, Technometrics 4, 1962.
    """
    check_dtype("x", x, (*FLOATING, *COMPLEX))
    check_like("grad", grad, "x", x)
    check_shape("grad", grad, x.shape, "the shape of x")
    check_nonneg(nonneg, x)
    if moments is not None and not isinstance(moments, Moments):
        raise TypeError(f"moments: expected a Moments, got {type(moments).__name__}")
    steps = _rows("step", step, x)
    if noise_std is None:
        stds = steps.sqrt()
    else:
        stds = _rows("noise_std", noise_std, x)
        if steps.shape != stds.shape:
            steps, stds = (t.contiguous() for t in torch.broadcast_tensors(steps, stds))
    clock = None
    if isinstance(counter, Tensor):
        check_like("counter", counter, "x", x, dtype=torch.int64)
        check_shape("counter", counter, (), "a number")
        clock, counter = counter, 0
    for name, value in (("seed", seed), ("counter", counter), ("offset", offset)):
        check_count(name, value, 0, 2**63 - 1)
    _check_buffers(x, grad, (steps, stds), moments, out)
    inputs = dense(x), dense(grad), steps, stds
    stream = seed, counter, offset, clock, nonneg
    if out is None and needs_grad(x, grad, steps, stds):
        result: Tensor = _LangevinStep.apply(*inputs, *stream)  # type: ignore[no-untyped-call]
        if moments is not None:
            moments.update(result.detach())
        return result
    if moments is None:
        return _step(*inputs, *stream, out=out)  # type: ignore[no-any-return]
    if out is None:
        out = torch.empty_like(inputs[0])
    mean, m2, count = moments.mean, moments.m2, moments.count
    _moments(*inputs, mean, m2, count, *stream, out=(out, mean, m2))
    count += 1
    return out


def _rows(name: str, value: Tensor | float, x: Tensor) -> Tensor:
    """``value`` as (1,) or (B,) in the real dtype of x, dense."""
    dtype = REAL_OF[x.dtype]
    if not isinstance(value, Tensor):
        return filled(name, value, (1,), dtype, x.device, finite=False)
    check_like(name, value, "x", x, dtype=dtype)
    if value.dim() and (value.dim() != 1 or not x.dim() or value.shape[0] != x.shape[0]):
        batch = x.shape[0] if x.dim() else "none"
        raise ValueError(f"{name}: shape {tuple(value.shape)} does not fit, expected a number or (B,) = ({batch},)")
    return dense(value).reshape(-1)


def _check_buffers(
    x: Tensor, grad: Tensor, rows: tuple[Tensor, Tensor], moments: Moments | None, out: Tensor | None
) -> None:
    """What is written shares no memory with anything else; out may be x or grad, number for number."""
    state: tuple[Tensor, ...] = (x, grad)
    if moments is not None:
        moments._check(x)
        check_out("moments.mean", moments.mean, x.shape, x, inputs=(*state, *rows, moments.m2))
        check_out("moments.m2", moments.m2, x.shape, moments.m2, inputs=(*state, *rows))
    if out is not None:
        check_like("out", out, "x", x)
        others = state
        if not torch.compiler.is_compiling():
            others = tuple(t for t in state if t.data_ptr() != out.data_ptr() or not t.is_contiguous())
        buffers = () if moments is None else (moments.mean, moments.m2)
        check_out("out", out, x.shape, x, inputs=(*others, *rows, *buffers))
