"""Kaczmarz' steps one by one in plain torch: what defines the op, and its gradients where they are differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrecon.ops._kaczmarz_order import check_rows


def _rows(order: Tensor | None, A: Tensor, sweep: int) -> list[int]:
    """The rows that a sweep visits; ``order`` is ``(K,)`` for every sweep, ``(sweeps, K)`` or None: each row once."""
    if order is None:
        return list(range(A.shape[0]))
    check_rows(order, A.shape[0])
    rows: list[int] = (order if order.dim() == 1 else order[sweep]).tolist()
    return rows


def _positive(x: Tensor) -> Tensor:
    return torch.complex(x.real.clamp(min=0), torch.zeros_like(x.real)) if x.is_complex() else x.clamp(min=0)


def _step_size(numerator: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    norm = (a * a.conj()).real.sum() + weight
    return torch.where(norm != 0, numerator / torch.where(norm != 0, norm, 1), 0)  # a zero row is skipped


def _history(
    A: Tensor,
    y: Tensor,
    x0: Tensor | None,
    dual: Tensor | None,
    weight: Tensor,
    order: Tensor | None,
    sweeps: int,
    nonneg: bool,
) -> tuple[Tensor, Tensor, list[list[tuple[int, Tensor, Tensor, Tensor]]], list[Tensor]]:
    """x, dual, for each step of each sweep its row, x before it, multiplier and dual after it; x before positivity."""
    x = y.new_zeros(y.shape[0], A.shape[1]) if x0 is None else x0.clone()
    w = list((torch.zeros_like(y) if dual is None else dual).unbind(1))
    history, unclipped = [], []
    for sweep in range(sweeps):
        steps = []
        for i in _rows(order, A, sweep):
            a = A[i]
            alpha = _step_size(y[:, i] - x @ a - weight * w[i], a, weight)
            w[i] = w[i] + alpha
            steps.append((i, x, alpha, w[i]))
            x = x + alpha[:, None] * a.conj()
        history.append(steps)
        unclipped.append(x)
        if nonneg:
            x = _positive(x)
    return x, torch.stack(w, dim=1) if w else torch.zeros_like(y), history, unclipped


def reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, dual, _, _ = _history(*arguments)
    return x, dual


def trace_reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, nonneg = arguments[1], arguments[-1]
    x, dual, history, unclipped = _history(*arguments)
    multipliers = [torch.stack([s[2] for s in steps], 1) if steps else y.new_empty(y.shape[0], 0) for steps in history]
    active = [(u.real >= 0).to(u.real.dtype) for u in unclipped] if nonneg else []
    return x, dual, torch.stack(multipliers), torch.stack(active) if active else y.real.new_empty(0, *x.shape)


def backward_reference(
    A: Tensor,
    y: Tensor,
    x0: Tensor | None,
    dual: Tensor | None,
    weight: Tensor,
    order: Tensor | None,
    multipliers: Tensor,
    active: Tensor,
    gx: Tensor,
    gdual: Tensor,
    sweeps: int,
    nonneg: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to A, y, x0, dual and weight, step by step in reverse; differentiable, and needs no ``multipliers``."""
    _, _, history, unclipped = _history(A, y, x0, dual, weight, order, sweeps, nonneg)
    gA, gy, gw = (list(torch.zeros_like(t).unbind(d)) for t, d in ((A, 0), (y, 1), (y, 1)))
    gw = list(gdual.unbind(1))
    gweight = torch.zeros_like(weight)
    for steps, end in zip(reversed(history), reversed(unclipped), strict=True):
        if nonneg:
            gx = masked(gx, (end.real >= 0).to(weight.dtype))
        for i, x, alpha, w in reversed(steps):
            a = A[i]
            beta = _step_size(gx @ a + gw[i], a, weight)  # the gradient of the numerator
            direct = alpha @ gx.conj() - beta @ x.conj()
            gA[i] = gA[i] + direct - 2 * (alpha * beta.conj()).real.sum() * a
            gweight = gweight - (beta.conj() * w).real
            gx = gx - beta[:, None] * a.conj()
            gw[i] = gw[i] - weight * beta
            gy[i] = gy[i] + beta
    if not gA:
        return torch.zeros_like(A), torch.zeros_like(y), gx, gdual.clone(), gweight
    return torch.stack(gA), torch.stack(gy, 1), gx, torch.stack(gw, 1), gweight


def masked(g: Tensor, active: Tensor) -> Tensor:
    """The gradient through positivity."""
    return torch.complex(g.real * active, torch.zeros_like(active)) if g.is_complex() else g * active
