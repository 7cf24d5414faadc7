"""Discrete sine transform of type I, and the proximal map of smoothness that it diagonalises.

The laws. With N = n + 1 and k = 1..n along each of the given axes::

    dst1(x)_k                    = sqrt(2 / N) sum_j x_j sin(pi j k / N)             (its own inverse)
    prox_smooth_maps(maps, w)    = argmin_s 1/2 |s - maps|^2 + w/2 |D s|^2 = (1 + w D^T D)^-1 maps

D s are the n + 1 differences along every axis with a zero before the first and after the last number, and D^T D has
the sines as eigenvectors, with the sums over the axes of lambda_k = 2 - 2 cos(pi k / N) as eigenvalues.

The C++ kernel transforms one axis only, the one that costs less, and solves tridiagonal systems along the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import pi, prod, sqrt
from typing import Any

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import COMPLEX, FLOATING, REAL_OF, check_count, check_dtype, check_like, check_out, dense, filled
from pyrecon._library import Op, _is_traced, needs_grad
from pyrecon._threads import kernel_threads
from pyrecon.ops._product import product


# --- the reference: planes (P, R, C), transformed along the rows' axis R, along C, or both -------------------------
@lru_cache(maxsize=32)
def _sines(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal matrix of the transform, (n, n). It is symmetric."""
    k = torch.arange(1, n + 1)
    angles = (torch.outer(k, k) % (2 * n + 2)).double() * (pi / (n + 1))  # a reduced angle keeps its digits
    return (sqrt(2 / (n + 1)) * angles.sin()).to(device, dtype)


def _eigenvalues(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """2 - 2 cos(pi k / N), without cancellation."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    return (4 * (k * (pi / (2 * n + 2))).sin().square()).to(device, dtype)


def _dst_reference(x: Tensor, rows: bool, cols: bool) -> Tensor:
    if cols:
        x = product(x, _sines(x.shape[-1], x.dtype, x.device))
    if rows:
        x = product(_sines(x.shape[-2], x.dtype, x.device), x)
    return x


def _prox_reference(maps: Tensor, weight: Tensor, rows: bool, cols: bool) -> Tensor:
    level = weight.repeat_interleave(maps.shape[0] // max(len(weight), 1))[:, None, None]
    damping = torch.ones_like(level)
    for axis, wanted in ((1, rows), (2, cols)):
        if wanted:
            eigenvalues = _eigenvalues(maps.shape[axis], weight.dtype, maps.device)
            damping = damping + level * eigenvalues.unsqueeze(2 - axis)
    return _dst_reference(_dst_reference(maps, rows, cols) / damping, rows, cols)


# --- kernels ---------------------------------------------------------------------------------------------------
def _dst_cpp(x: Tensor, rows: bool, cols: bool, out: Tensor) -> None:
    suffix = "f32" if REAL_OF[x.dtype] == torch.float32 else "f64"
    plans = (_plan(x.shape[1] if rows else 0, suffix), _plan(x.shape[2] if cols else 0, suffix))
    getattr(_core, f"dst1_{suffix}")(
        x.data_ptr(), out.data_ptr(), *(p.data_ptr() for p in plans), *x.shape, 1 + x.is_complex(),
        kernel_threads(),
    )  # fmt: skip


def _prox_cpp(maps: Tensor, weight: Tensor, rows: bool, cols: bool, out: Tensor) -> None:
    suffix = "f32" if weight.dtype == torch.float32 else "f64"
    _, n_rows, n_cols = maps.shape
    transform_rows = rows and cols and _cost(n_rows) <= _cost(n_cols)
    transformed = 0 if not (rows and cols) else n_rows if transform_rows else n_cols
    getattr(_core, f"prox_smooth_maps_{suffix}")(
        maps.data_ptr(), weight.data_ptr(), out.data_ptr(), _plan(transformed, suffix).data_ptr(), *maps.shape,
        1 + maps.is_complex(), len(weight), rows and not transform_rows, kernel_threads(),
    )  # fmt: skip


@lru_cache(maxsize=64)
def _plan(n: int, suffix: str) -> Tensor:
    """Tables of the C++ transform of n numbers; empty, at address 0, for none."""
    make = getattr(_core, f"sine_plan_{suffix}")
    memory = torch.empty(make(n + 1, 0) if n else 0, dtype=torch.uint8)
    if n:
        make(n + 1, memory.data_ptr())
    return memory


@lru_cache(maxsize=64)
def _cost(n: int) -> float:
    """What the C++ transform of n numbers costs for each of them."""
    return _core.sine_cost(n + 1) / n if n else 0.0


def _dst_triton(x: Tensor, rows: bool, cols: bool, out: Tensor) -> None:
    from pyrecon.kernels.sine import dst1 as launch

    launch(x, rows, cols, _sines, out)


def _prox_triton(maps: Tensor, weight: Tensor, rows: bool, cols: bool, out: Tensor) -> None:
    from pyrecon.kernels.sine import prox_smooth_maps as launch

    launch(maps, weight, rows, cols, _sines, _eigenvalues, out)


_dst = Op(
    "dst1(Tensor x, bool rows, bool cols) -> Tensor",
    outputs=lambda x, rows, cols: torch.empty_like(x),
    reference=_dst_reference,
    kernels={"cpp": _dst_cpp, "triton": _dst_triton},
)
_prox = Op(
    "prox_smooth_maps(Tensor maps, Tensor weight, bool rows, bool cols) -> Tensor",
    outputs=lambda maps, weight, rows, cols: torch.empty_like(maps),
    reference=_prox_reference,
    kernels={"cpp": _prox_cpp, "triton": _prox_triton},
)


# --- autograd: both maps are linear and their own adjoint ------------------------------------------------------
class _DST(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, rows: bool, cols: bool) -> Tensor:
        return _dst(x, rows, cols)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.axes = inputs[1:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _DST.apply(dense(g), *ctx.axes), None, None  # type: ignore[no-untyped-call]


class _Prox(torch.autograd.Function):
    """With p = prox(g): dmaps = p, and ds/dweight = -(1 + w D^T D)^-1 D^T D s gives dweight = -Re <D p, D s>."""

    @staticmethod
    def forward(maps: Tensor, weight: Tensor, rows: bool, cols: bool) -> Tensor:
        return _prox(maps, weight, rows, cols)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.axes = inputs[2:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        weight, s = ctx.saved_tensors
        p = _Prox.apply(dense(g), weight, *ctx.axes)  # type: ignore[no-untyped-call]
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = weight.new_zeros(weight.shape)
            for axis, wanted in zip((1, 2), ctx.axes, strict=True):
                if wanted:
                    products = (_differences(p, axis).conj() * _differences(s, axis)).real
                    d_weight = d_weight - products.reshape(len(weight), -1).sum(1)
        return p, d_weight, None, None


def _differences(s: Tensor, axis: int) -> Tensor:
    """D along one axis: n + 1 of them."""
    border = s.new_zeros([1 if a == axis else size for a, size in enumerate(s.shape)])
    return torch.diff(s, dim=axis, prepend=border, append=border)


def _transform(x: Tensor, rows: bool, cols: bool, out: Tensor | None = None) -> Tensor:
    if out is None and needs_grad(x):
        return _DST.apply(x, rows, cols)  # type: ignore[no-any-return, no-untyped-call]
    return _dst(x, rows, cols, out=out)  # type: ignore[no-any-return]


def _smooth(maps: Tensor, weight: Tensor, rows: bool, cols: bool, out: Tensor | None = None) -> Tensor:
    if out is None and needs_grad(maps, weight):
        return _Prox.apply(maps, weight, rows, cols)  # type: ignore[no-any-return, no-untyped-call]
    return _prox(maps, weight, rows, cols, out=out)  # type: ignore[no-any-return]


# --- the public functions --------------------------------------------------------------------------------------
def dst1(x: Tensor, dims: int | Sequence[int] = (-2, -1), *, out: Tensor | None = None) -> Tensor:
    """Orthonormal discrete sine transform of type I along ``dims``; it is its own inverse.

    ``X_k = sqrt(2 / (n + 1)) * sum_j x_j sin(pi j k / (n + 1))``, j, k = 1..n, along each of the axes.

    Parameters
    ----------
    x
        Any shape, float32, float64, complex64 or complex128.
    dims
        One or more axes, of any size; the last two are done in one pass over memory.
    out
        Buffer for the result, like ``x``, dense, sharing no memory with it. Not differentiable.

    Returns
    -------
    Tensor
        Like ``x``. Differentiable, any number of times.

    Notes
    -----
    CPU (C++) and GPU (Triton). On a CPU the work per number grows with log n where the prime factors of n + 1 are 257
    or less or n + 1 is itself prime, and with n otherwise; the relative error is that of a few roundings. Rader,
    Discrete Fourier transforms when the number of data samples is prime, Proc. IEEE 56, 1968; Makhoul, A fast cosine
    transform in one and two dimensions, IEEE Trans. ASSP 28, 1980.
    """
    check_dtype("x", x, (*FLOATING, *COMPLEX))
    axes = _axes("dims", dims, x)
    check_out("out", out, x.shape, x, inputs=(x,))
    value, shape = dense(x), x.shape
    steps: list[tuple[tuple[int, int, int], bool, bool]] = []
    if axes[-2:] == [x.dim() - 2, x.dim() - 1]:
        steps.append(((prod(shape[:-2]), shape[-2], shape[-1]), True, True))
        axes = axes[:-2]
    for a in axes:
        before, after = prod(shape[:a]), prod(shape[a + 1 :])
        last = a == x.dim() - 1
        steps.append(((1, before, shape[a]), False, True) if last else ((before, shape[a], after), True, False))
    for planes, rows, cols in steps[:-1]:
        value = _transform(value.view(planes), rows, cols)
    planes, rows, cols = steps[-1]
    if out is None:
        return _transform(value.view(planes), rows, cols).view(shape)
    _transform(value.view(planes), rows, cols, out.view(planes))
    return out


def prox_smooth_maps(
    maps: Tensor, weight: Tensor | float, dims: int | Sequence[int] = (-2, -1), *, out: Tensor | None = None
) -> Tensor:
    """Proximal map of smoothness: ``argmin_s 1/2 |s - maps|^2 + weight/2 |D s|^2``.

    ``D s`` are the differences of neighbours along ``dims``, n + 1 on an axis of n numbers, with zeros outside. The
    regulariser of coil sensitivity maps; with it iPALM takes ``weight = mu / L``.

    Parameters
    ----------
    maps
        Any shape, float32, float64, complex64 or complex128; with a weight per sample, batch first.
    weight
        A float, or a tensor of the real dtype, one number or ``(B,)``; not negative. A tensor on a GPU is not looked
        at, as that would wait for the device: what a negative weight gives there is undefined.
    dims
        One or more axes, of any size; not the first one if the weight is ``(B,)``.
    out
        Buffer for the result, like ``maps``, dense, sharing no memory with the inputs. Not differentiable.

    Returns
    -------
    Tensor
        Like ``maps``. Differentiable, any number of times, in ``maps`` and ``weight``. A NaN reaches only what it is
        connected with along ``dims``.

    Notes
    -----
    CPU (C++) and GPU (Triton). One axis is transformed by :func:`dst1`, whichever costs less, and tridiagonal systems
    are solved along the other (Hockney, J. ACM 12, 1965); with more axes the others are transformed first; with one no
    transform is needed. The maps of Zach, Knoll and Pock, Stable deep MRI reconstruction using
    generative priors, IEEE TMI 42, 2023.
    """
    check_dtype("maps", maps, (*FLOATING, *COMPLEX))
    axes = _axes("dims", dims, maps)
    levels = _weight(weight, maps, axes)
    check_out("out", out, maps.shape, maps, inputs=(maps, levels))
    if len(axes) == 1 and axes[0] < maps.dim() - 1:
        a, shape = axes[0], maps.shape
        planes = (prod(shape[:a]), shape[a], prod(shape[a + 1 :]))
        result = _smooth(dense(maps).view(planes), levels, True, False, None if out is None else out.view(planes))
        return result.view(shape) if out is None else out
    ends = list(range(maps.dim() - len(axes), maps.dim()))
    moved = dense(maps.movedim(axes, ends))
    signals = moved.view(prod(moved.shape[: ends[0]]), *moved.shape[ends[0] :])
    in_place = axes == ends
    result = _smooth_last(signals, levels, out.view(signals.shape) if out is not None and in_place else None)
    if out is None:
        return result.view(moved.shape).movedim(ends, axes).contiguous()
    if not in_place:
        out.copy_(result.view(moved.shape).movedim(ends, axes))
    return out


def _smooth_last(x: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """The prox over all axes of x but the first, of which every ``len(x) / len(weight)`` share a weight."""
    signals, *size = x.shape
    if len(size) == 2:
        return _smooth(x, weight, True, True, out)
    if len(size) == 1:
        planes = (len(weight), signals // max(len(weight), 1), size[0])
        return _smooth(x.view(planes), weight, False, True, None if out is None else out.view(planes)).view(x.shape)
    # Transformed along the first of the axes, each of its planes is a problem of one axis less:
    # (1 + w lambda_k) s + w D^T D s = v
    n, rest = size[0], prod(size[1:])
    level = weight.repeat_interleave(signals // max(len(weight), 1))[:, None]
    damping = 1 + level * _eigenvalues(n, weight.dtype, weight.device)
    spectrum = _transform(x.view(signals, n, rest), True, False) / damping[:, :, None]
    s = _smooth_last(spectrum.view(signals * n, *size[1:]), (level / damping).reshape(-1), None)
    planes = (signals, n, rest)
    return _transform(s.view(planes), True, False, None if out is None else out.view(planes)).view(x.shape)


def _axes(name: str, dims: int | Sequence[int], x: Tensor) -> list[int]:
    """The axes as sorted numbers from 0."""
    given = tuple(dims) if isinstance(dims, tuple | list) else (dims,)
    for d in given:
        check_count(name, d, -x.dim(), x.dim() - 1)
    rank = x.dim()
    # No sort and no `in`: traced with dynamic shapes, Dynamo holds these integers for sizes, which it only compares.
    axes = [a for a in range(rank) if any(d == a or d == a - rank for d in given)]
    if not axes or len(axes) != len(given):
        raise ValueError(f"{name}: {given} does not fit, expected distinct axes of a tensor of shape {tuple(x.shape)}")
    return axes


def _weight(weight: Tensor | float, maps: Tensor, axes: list[int]) -> Tensor:
    """``weight`` as a dense tensor (1,) or (B,)."""
    dtype = REAL_OF[maps.dtype]
    if not isinstance(weight, Tensor):
        return filled("weight", weight, (1,), dtype, maps.device)
    check_like("weight", weight, "maps", maps, dtype=dtype)
    if weight.dim() and (weight.shape != maps.shape[:1] or axes[0] == 0):
        raise ValueError(
            f"weight: shape {tuple(weight.shape)} does not fit, expected one number, or (B,) with B the first axis of "
            f"maps {tuple(maps.shape)}, which is not among dims"
        )
    if weight.is_cpu and not _is_traced() and bool((weight < 0).any()):
        raise ValueError(f"weight: {weight.min().item()} does not fit, expected numbers >= 0")
    return dense(weight.reshape(-1))
