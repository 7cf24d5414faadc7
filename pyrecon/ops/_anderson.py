"""Anderson mixing of batched fixed-point iterations.

The law. With the newest k = min(count, m) iterates X_i and residuals G_i = f(X_i) - X_i, per sample::

    a    = argmin_a |sum_i a_i G_i|^2 + lambda |a|^2   subject to  sum_i a_i = 1
    next = sum_i a_i (X_i + beta G_i)

with lambda = ridge * trace(G G^T) / k, or lambda = ridge where ``absolute_ridge``. Complex vectors count as pairs of
reals, so the weights a are real.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrecon import _core
from pyrecon._check import (
    COMPLEX,
    FLOATING,
    REAL_OF,
    check_count,
    check_dtype,
    check_flag,
    check_like,
    check_number,
    check_out,
    check_shape,
    dense,
)
from pyrecon._library import Op, needs_grad
from pyrecon._threads import kernel_threads

MAX_MEMORY = 32  # the small solve lives on the kernel's stack


# --- the reference ---------------------------------------------------------------------------------------------
def _stored(count: Tensor, m: int) -> Tensor:
    """(B | 1, m) bool: which slots hold an iterate."""
    return torch.arange(m, device=count.device) < count.clamp(1, m)[:, None]


def _full_gram(G: Tensor) -> Tensor:
    rows = torch.view_as_real(G).flatten(2) if G.is_complex() else G
    return rows @ rows.mT


def _mix(X: Tensor, G: Tensor, gram: Tensor, count: Tensor, beta: float, ridge: float, absolute: bool) -> Tensor:
    """The mixed iterate from a Gram matrix that is up to date: differentiable in X, G and gram."""
    m = X.shape[1]
    stored = _stored(count, m)
    gram = torch.where(stored[:, :, None] & stored[:, None, :], gram.double(), 0.0)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    shift = torch.full_like(diagonal[:, 0], ridge) if absolute else ridge * diagonal.sum(1) / stored.sum(1)
    # Slots not yet filled get a unit diagonal and a zero right-hand side: their weight is zero.
    system = gram + torch.diag_embed(torch.where(stored, shift[:, None], 1.0).expand_as(diagonal))
    factor, info = torch.linalg.cholesky_ex(system)
    ones = stored.to(gram.dtype).expand_as(diagonal)
    regular = (info == 0)[:, None] & system.isfinite().all(dim=(1, 2))[:, None]
    identity = torch.eye(m, dtype=gram.dtype, device=gram.device).expand_as(factor)
    alpha = torch.cholesky_solve(ones[..., None], torch.where(regular[..., None], factor, identity))[..., 0]
    newest = torch.nn.functional.one_hot((count.clamp_min(1) - 1) % m, m).to(gram.dtype).expand_as(alpha)
    a = torch.where(regular, alpha / alpha.sum(1, keepdim=True), newest).to(REAL_OF[X.dtype])
    safe = torch.where(stored[..., None], X + beta * G, 0.0)  # an unfilled slot may hold anything
    return (a[..., None] * safe).sum(1)


def _refresh(G: Tensor, gram: Tensor, count: Tensor) -> None:
    """Write row and column (count - 1) % m of gram."""
    m = G.shape[1]
    rows = torch.view_as_real(G).flatten(2) if G.is_complex() else G
    slot = ((count.clamp_min(1) - 1) % m).expand(G.shape[0])
    batch = torch.arange(G.shape[0], device=G.device)
    products = (rows @ rows[batch, slot][..., None])[..., 0]
    products = torch.where(_stored(count, m), products, gram[batch, slot])
    gram[batch, slot] = products
    gram[batch, :, slot] = products


def _mix_reference(
    X: Tensor, G: Tensor, gram: Tensor, count: Tensor, beta: float, ridge: float, absolute_ridge: bool
) -> Tensor:
    _refresh(G, gram, count)
    return _mix(X, G, gram, count, beta, ridge, absolute_ridge)


# --- kernels ---------------------------------------------------------------------------------------------------
def _mix_cpp(
    X: Tensor, G: Tensor, gram: Tensor, count: Tensor, beta: float, ridge: float, absolute_ridge: bool, out: Tensor
) -> None:
    kernel = _core.anderson_mix_f32 if gram.dtype == torch.float32 else _core.anderson_mix_f64
    batch, m, n = X.shape
    kernel(
        X.data_ptr(), G.data_ptr(), gram.data_ptr(), count.data_ptr(), int(count.shape[0] > 1), out.data_ptr(),
        batch, m, 2 * n if X.is_complex() else n, beta, ridge, absolute_ridge, kernel_threads(),
    )  # fmt: skip


def _mix_triton(
    X: Tensor, G: Tensor, gram: Tensor, count: Tensor, beta: float, ridge: float, absolute_ridge: bool, out: Tensor
) -> None:
    from pyrecon.kernels.anderson import anderson_mix as launch

    launch(X, G, gram, count, beta, ridge, absolute_ridge, out)


_anderson_mix = Op(
    "anderson_mix(Tensor X, Tensor G, Tensor(a!) gram, Tensor count, float beta, float ridge, bool absolute_ridge)"
    " -> Tensor",
    outputs=lambda X, G, gram, count, beta, ridge, absolute_ridge: X.new_empty(X.shape[0], X.shape[2]),
    reference=_mix_reference,
    kernels={"cpp": _mix_cpp, "triton": _mix_triton},
)


# --- one step of the solver: push f(x), mix, overwrite x -------------------------------------------------------
def join(parts: list[Tensor]) -> Tensor:
    """The tensors of a state side by side, one row per sample."""
    return torch.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts], dim=1)


def _advance_reference(
    x: Tensor,
    parts: list[Tensor],
    rows: Tensor,
    H: Tensor,
    G: Tensor,
    gram: Tensor,
    count: Tensor,
    beta: float,
    ridge: float,
    absolute_ridge: bool,
    safeguard: float,
) -> Tensor:
    m = G.shape[1]
    fx = join(parts)
    g = fx - x
    norms = torch.stack([(v.abs().double() ** 2).sum(1) for v in (g, fx)], dim=1)
    finite = norms.sum(1) < 1e300
    counts = count[rows]
    newest = (counts - 1) % m
    last = torch.where(counts > 0, gram[rows, newest, newest], 0.0)
    restart = finite & (counts > 0) & (norms[:, 0] > safeguard**2 * last) if safeguard > 0 else torch.zeros_like(finite)
    counts = torch.where(restart, 0, counts)
    slot = counts % m
    keep = finite[:, None]
    G[rows, slot] = torch.where(keep, g, G[rows, slot])
    H[rows, slot] = torch.where(keep, x + beta * g, H[rows, slot])
    history, grams, counts = G[rows], gram[rows], counts + 1
    _refresh(history.to(torch.complex128 if history.is_complex() else torch.float64), grams, counts)
    gram[rows] = torch.where(finite[:, None, None], grams, gram[rows])
    mixed = _mix(H[rows], torch.zeros_like(history), grams, counts, 0.0, ridge, absolute_ridge)
    x.copy_(torch.where(keep, mixed, x))
    count[rows] = torch.where(finite, counts, count[rows])
    return norms


def _advance_cpp(
    x: Tensor,
    parts: list[Tensor],
    rows: Tensor,
    H: Tensor,
    G: Tensor,
    gram: Tensor,
    count: Tensor,
    beta: float,
    ridge: float,
    absolute_ridge: bool,
    safeguard: float,
    norms: Tensor,
) -> None:
    kernel = _core.anderson_advance_f32 if REAL_OF[x.dtype] == torch.float32 else _core.anderson_advance_f64
    reals = 2 if x.is_complex() else 1
    parts = [dense(part) for part in parts]
    kernel(
        tuple((part.data_ptr(), reals * part[0].numel()) for part in parts), x.data_ptr(), rows.data_ptr(), x.shape[0],
        H.data_ptr(), G.data_ptr(), gram.data_ptr(), count.data_ptr(), G.shape[1], reals * x.shape[1],
        norms.data_ptr(), beta, ridge, absolute_ridge, safeguard, kernel_threads(),
    )  # fmt: skip


# x (A, n) and parts (A, ...) are the active samples, rows (A,) their places in H, G (B, m, n), gram (B, m, m) float64
# and count (B,). Returns |f(x) - x|^2 and |f(x)|^2, (A, 2) float64. A sample that is not finite changes nothing.
anderson_advance = Op(
    "anderson_advance(Tensor(a!) x, Tensor[] parts, Tensor rows, Tensor(b!) H, Tensor(c!) G, Tensor(d!) gram,"
    " Tensor(e!) count, float beta, float ridge, bool absolute_ridge, float safeguard) -> Tensor",
    outputs=lambda x, *_: x.new_empty((x.shape[0], 2), dtype=torch.float64),
    reference=_advance_reference,
    kernels={"cpp": _advance_cpp},
)


# --- the public function ---------------------------------------------------------------------------------------
def anderson_mix(
    X: Tensor,
    G: Tensor,
    gram: Tensor,
    count: Tensor | int,
    *,
    beta: float = 1.0,
    ridge: float = 1e-4,
    absolute_ridge: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """One step of Anderson mixing for every sample of a batch.

    ``next = sum_i a_i (X_i + beta G_i)``, ``a = argmin |sum_i a_i G_i|^2 + lambda |a|^2`` with ``sum_i a_i = 1``

    Parameters
    ----------
    X, G
        Iterates and residuals ``f(x) - x``, ``(B, m, n)``, m <= 32; float32, float64, complex64 or complex128. The
        history is a ring: iterate number c (from 1) is in slot ``(c - 1) % m``.
    gram
        ``(B, m, m)`` of the real dtype: the products ``Re <G_i, G_j>``. Only the newest row and column are computed;
        they are written in place, the others are taken as they are.
    count
        How many iterates have been stored, at least 1: an int, or ``(B,)`` int64 where samples differ.
    beta
        Mixing: 1 takes ``f`` of the mixed iterates, 0 the mixed iterates themselves.
    ridge, absolute_ridge
        ``lambda = ridge * trace(G G^H) / k``, which scales with the signal. ``absolute_ridge=True`` takes
        ``lambda = ridge``, as published with DEQ-MPI; it stalls where the residuals are small against it.
    out
        Buffer for the result, ``(B, n)``.

    Returns
    -------
    Tensor
        ``(B, n)``. A sample whose Gram matrix is singular beyond the ridge, zero or not finite gets
        ``X + beta G`` of its newest iterate. Differentiable in ``X`` and ``G`` (through the reference).

    Notes
    -----
    Walker and Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011); the ridge as in
    deep equilibrium models. The weights are solved in float64 whatever the dtype.
    """
    check_dtype("X", X, (*FLOATING, *COMPLEX))
    check_shape("X", X, (None, None, None), "(B, m, n)")
    check_like("G", G, "X", X)
    check_shape("G", G, X.shape, "(B, m, n)")
    batch, m, n = X.shape
    if not 1 <= m <= MAX_MEMORY:
        raise ValueError(f"X: a history of {m} is not supported, expected 1 to {MAX_MEMORY}")
    check_like("gram", gram, "X", X, dtype=REAL_OF[X.dtype])
    check_shape("gram", gram, (batch, m, m), "(B, m, m)")
    if isinstance(count, Tensor):
        check_like("count", count, "X", X, dtype=torch.int64)
        check_shape("count", count, (batch,), "(B,)")
    else:
        count = check_count("count", count)
        count = torch.full((1,), count, dtype=torch.int64, device=X.device)
    check_number("beta", beta, -math.inf)
    check_number("ridge", ridge)
    check_flag("absolute_ridge", absolute_ridge)
    if gram.requires_grad:
        raise ValueError("gram: is written in place and must not require grad")
    check_out("gram", gram if gram.is_contiguous() else None, gram.shape, gram, inputs=(X, G, count))
    check_out("out", out, (batch, n), X, inputs=(X, G, gram, count))
    if out is None and needs_grad(X, G):
        with torch.no_grad():
            _refresh(G, gram, count)
        return _mix(X, G, _full_gram(G), count, beta, ridge, absolute_ridge)
    rows = dense(gram)
    result: Tensor = _anderson_mix(dense(X), dense(G), rows, dense(count), beta, ridge, absolute_ridge, out=out)
    if rows is not gram:
        gram.copy_(rows)
    return result
