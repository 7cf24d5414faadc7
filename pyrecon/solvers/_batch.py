"""Per-sample arithmetic of batched solvers: scalars are (B,), states (B, ...) real or complex."""

from __future__ import annotations

import torch
from torch import Tensor

# A look at a stop test waits for the GPU; a few steps too many cost less than waiting after each.
GPU_STOP_TEST_EVERY = 8


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
