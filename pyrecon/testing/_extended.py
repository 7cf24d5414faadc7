"""The yardstick of the references: their sums, products and transforms in extended precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pyrecon import _library

_REAL, _COMPLEX = np.longdouble, np.clongdouble
_DOUBLE = (torch.float64, torch.complex128)


@contextmanager
def extended() -> Iterator[None]:
    """In this block, plain torch code computes its double-precision sums in extended precision and rounds them once.

    Matrix products, convolutions, sums, norms and Fourier transforms of float64 and complex128 tensors are computed as
    they are defined, in ``numpy.longdouble`` (64 bits of mantissa on x86: 11 more than a double), not by libraries of
    this machine, whose errors nobody states. What is left is one rounding for each operation. Ops of this package run
    as their references. For tests: up to a hundred times slower.

    Factorisations (Cholesky, SVD, ...) stay with LAPACK: their error is a few eps times a condition, on any machine.
    """
    traced = _library._is_traced
    _library._is_traced = lambda: False  # a dispatch mode looks like tracing, which would hide the references from it
    try:
        with _library.backend("reference"), _Extended():  # type: ignore[no-untyped-call]
            yield
    finally:
        _library._is_traced = traced


class _Extended(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _DEFINITIONS and args[0].dtype in _DOUBLE:
            value = _DEFINITIONS[name](*args, **kwargs)
            return tree_map_only(np.ndarray, lambda v: torch.from_numpy(v).to(args[0].device), value)
        return func(*args, **kwargs)


def dft(x: Any, axis: int = -1, *, inverse: bool = False) -> Any:
    """``sum_j x_j exp(-2 pi i j k / n)`` along an axis, as it stands, in extended precision; no scale, no shifts."""
    x = np.moveaxis(_wide(x), axis, -1)
    angles, turns = _angles(x.shape[-1]), np.arange(x.shape[-1])
    waves = np.cos(angles) + (1j if inverse else -1j) * np.sin(angles)
    return np.moveaxis(x @ waves[np.outer(turns, turns) % len(waves)], -1, axis)


def dst(x: Any, axis: int = -1) -> Any:
    """``sum_j x_j sin(pi j k / (n + 1))``, j and k from 1 to n, likewise."""
    x = np.moveaxis(_wide(x), axis, -1)
    turns = np.arange(1, x.shape[-1] + 1)
    waves = np.sin(_angles(2 * x.shape[-1] + 2))
    return np.moveaxis(x @ waves[np.outer(turns, turns) % len(waves)], -1, axis)


def _angles(n: int) -> Any:
    """The n-ths of a turn, of which whole numbers are reduced exactly."""
    return np.arange(n) * (8 * np.arctan(_REAL(1)) / n)


def _wide(x: Any) -> Any:
    values = x.detach().resolve_conj().resolve_neg().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    return values.astype(_COMPLEX if np.iscomplexobj(values) else _REAL)


def _narrow(x: Any) -> Any:
    return np.ascontiguousarray(x, np.complex128 if np.iscomplexobj(x) else np.float64).reshape(np.shape(x))


# --- what torch's operations are -----------------------------------------------------------------------------------
def _product(a: Tensor, b: Tensor) -> Any:
    return _narrow(_wide(a) @ _wide(b))


def _added_product(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    return _narrow(beta * _wide(c) + alpha * (_wide(a) @ _wide(b)))


def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _narrow(_wide(x).sum(axis=_axes(dim), keepdims=keepdim))


def _norm(x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if ord != 2:
        raise NotImplementedError(f"extended: norm of order {ord}")
    value = _wide(x)
    squares = value.real**2 + value.imag**2 if x.is_complex() else value**2  # abs() would take a root for each
    return _narrow(np.sqrt(squares.sum(axis=_axes(dim), keepdims=keepdim)))


def _axes(dim: Any) -> Any:
    return None if dim is None or dim == [] else tuple(dim) if isinstance(dim, (list, tuple)) else dim


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Any:
    _refuse_all_but_plain(stride, dilation, transposed, groups)
    value = _correlate(_wide(x), _wide(weight), padding)
    return _narrow(value if bias is None else value + _wide(bias).reshape(-1, *[1] * len(padding)))


def _convolution_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Any, ...]:
    _refuse_all_but_plain(stride, dilation, transposed, groups)
    axes = tuple(range(2, x.dim()))
    turned = np.flip(_wide(weight).swapaxes(0, 1), axes)
    of_x = _correlate(_wide(g), turned, [n - 1 - p for n, p in zip(weight.shape[2:], padding, strict=True)])
    of_weight = _correlate(_wide(x).swapaxes(0, 1), _wide(g).swapaxes(0, 1), padding).swapaxes(0, 1)
    of_bias = _wide(g).sum(axis=(0, *axes))
    gradients = (of_x, of_weight, of_bias)
    return tuple(_narrow(v) if asked else None for v, asked in zip(gradients, wanted, strict=True))


def _refuse_all_but_plain(stride: list[int], dilation: list[int], transposed: bool, groups: int) -> None:
    if transposed or groups != 1 or {*stride, *dilation} != {1}:
        raise NotImplementedError("extended: a convolution with a stride, dilation, groups or transposed")


def _correlate(x: Any, weight: Any, padding: list[int]) -> Any:
    """(B, C, *size) with (O, C, *kernel) -> (B, O, *size)."""
    axes = tuple(range(2, x.ndim))
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=axes)  # (B, C, *size, *kernel)
    windows = np.moveaxis(windows, 1, 1 + len(axes))
    place = windows.shape[: 1 + len(axes)]
    value = windows.reshape(math.prod(place), math.prod(weight.shape[1:])) @ weight.reshape(len(weight), -1).T
    return np.moveaxis(value.reshape(*place, len(weight)), -1, 1)


def _fourier(x: Tensor, dim: list[int], normalization: int, forward: bool) -> Any:
    value, count = _wide(x), 1
    for axis in dim:
        value, count = dft(value, axis, inverse=not forward), count * x.shape[axis]
    return _narrow(value / (1, np.sqrt(_REAL(count)), _REAL(count))[normalization])


_DEFINITIONS: dict[str, Callable[..., Any]] = {
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": _product,
    "addmm": _added_product,
    "addmv": _added_product,
    "baddbmm": _added_product,
    "sum": _sum,
    "linalg_vector_norm": _norm,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "_fft_c2c": _fourier,
}
