"""Per-sample arithmetic of batched solvers, scalars (B,), states (B, ...); and how they call what a user gave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, REAL_OF, check_dtype, check_like, check_returned, check_shape, filled

# A look at a stop test waits for the GPU; a few steps too many cost less than waiting after each.
GPU_STOP_TEST_EVERY = 8


def check_state(name: str, x: Any) -> None:
    """Raise unless ``x`` is a real or complex floating-point tensor ``(B, ...)``."""
    check_dtype(name, x, (*FLOATING, *COMPLEX))
    if x.dim() == 0:
        raise ValueError(f"{name}: has no batch axis, expected (B, ...)")


def applied(name: str, f: Callable[..., Any], x: Tensor, *others: Any, like: Tensor | None = None) -> Tensor:
    """``f(x, *others)`` checked like an argument, ``like`` or else x; ValueError where f writes into x.

    A solver goes on with x after the call, and what f does to it would be a wrong answer without a word.
    """
    given = x.clone() if x.is_inference() else x  # inference tensors do not tell who wrote into them
    version = -1 if x.is_inference() else x._version
    result = check_returned(name, f(given, *others), x if like is None else like)
    if not x.is_inference() and x._version != version:
        raise ValueError(f"{name}: writes into its argument; make a new tensor, x * 2 in place of x.mul_(2)")
    return result


def per_sample(name: str, value: float | Tensor, other: str, state: Tensor) -> Tensor:
    """A number from 0, or a tensor of one or ``(B,)`` of them, as ``(B,)`` in the real type of ``state``."""
    dtype = REAL_OF[state.dtype]
    if not isinstance(value, Tensor):
        return filled(name, value, (len(state),), dtype, state.device)
    check_like(name, value, other, state, dtype=dtype)
    if value.dim():
        check_shape(name, value, (len(state),), "a number or (B,)")
    if not bool((value >= 0).all()):
        raise ValueError(f"{name}: {value.tolist()}, expected numbers >= 0")
    return value.expand(len(state)).clone()


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Re <u, v> per sample, as a double."""
    if u.is_complex():
        u, v = torch.view_as_real(u.resolve_conj()), torch.view_as_real(v.resolve_conj())
    return (torch.linalg.vecdot(u.flatten(1), v.flatten(1)) if u.dim() > 1 else u * v).double()


def norm(u: Tensor) -> Tensor:
    """|u| per sample, as a double."""
    return dot(u, u).sqrt()


def like(scalars: Tensor, state: Tensor) -> Tensor:
    """``scalars`` (B,) as (B, 1, ...) to go with ``state``; floating ones in its real dtype."""
    if scalars.is_floating_point():
        scalars = scalars.to(real_dtype(state))
    return scalars.reshape(-1, *[1] * (state.dim() - 1))


def select(condition: Tensor, a: Tensor, b: Tensor | float) -> Tensor:
    """``a`` for the samples where ``condition`` (B,) holds, else ``b``."""
    return torch.where(like(condition, a), a, b)


def real_dtype(state: Tensor) -> torch.dtype:
    return state.dtype.to_real() if state.is_complex() else state.dtype
