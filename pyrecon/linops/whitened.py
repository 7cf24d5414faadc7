"""An operator in coordinates where its singular values are one, so that its adjoint is its pseudo-inverse."""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, check_count, check_dtype, check_number, check_shape
from pyrecon.linops._base import LinearOperator

# Entries of the matrix: 2 GiB in double precision, of which the decomposition needs about four times as much.
_MOST = 2**28
_CHUNK = 64  # columns that are made at once


class Whitened(LinearOperator):
    """``W x = V_r^H x`` of ``A = U S V^H``: images ``(B, *domain_shape)`` to ``(B, r)``, the r largest singular values.

    ``W W^H = I``, hence ``W^+ = W^H`` and a gradient step of length one solves the least-squares problem. Data of A
    become data of W by ``transform(y) = S_r^-1 U_r^H y``. White noise of A is not white in these data: coordinate i has
    ``gain[i] = 1 / s_i`` times the standard deviation, for which ``rtol`` is the limit.

    The decomposition is dense and in double precision, of at most 2^28 entries: 128 x 128 pixels at 16,000 data.

    Parameters
    ----------
    operator
        A, real or complex, on one device. It is read once and not kept.
    rtol
        Singular values up to ``rtol`` times the largest are left out, and with them what they see.
    dtype
        Of what is kept: float32 or float64; complex numbers have the complex type of that precision.
    """

    matrix: Tensor
    gain: Tensor
    _left: Tensor

    def __init__(self, operator: LinearOperator, *, rtol: float = 1e-3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if not isinstance(operator, LinearOperator):
            raise TypeError(f"operator: expected a LinearOperator, got {type(operator).__name__}")
        if not check_number("rtol", rtol) < 1:
            raise ValueError(f"rtol: {rtol} is not a fraction of the largest singular value, expected 0 <= rtol < 1")
        if dtype not in FLOATING:
            raise TypeError(f"dtype: {dtype} is not supported, expected float32 or float64")
        rows, columns = prod(operator.range_shape), prod(operator.domain_shape)
        if rows * columns > _MOST:
            raise ValueError(
                f"operator: {rows} data of {columns} unknowns make {rows * columns / 2**30:.1f} Gi entries, "
                f"expected at most {_MOST / 2**30} Gi to decompose; take smaller images or fewer data, or the operator "
                "as it is and its pinv"
            )
        u, s, vh = torch.linalg.svd(_dense(operator), full_matrices=False)
        kept = int((s > rtol * s[:1]).sum())
        if not kept:
            raise ValueError("operator: is zero, there is nothing to whiten")
        self.domain_shape, self.range_shape = operator.domain_shape, (kept,)
        self.data_shape = operator.range_shape
        held = dtype.to_complex() if u.is_complex() else dtype
        self.register_buffer("matrix", vh[:kept].to(held).contiguous())
        self.register_buffer("gain", (1 / s[:kept]).to(dtype))
        self.register_buffer("_left", (u[:, :kept].mH / s[:kept, None]).to(held).contiguous())

    def transform(self, y: Tensor) -> Tensor:
        """Data of A ``(B, *data_shape)`` as data of this operator: ``S_r^-1 U_r^H y``."""
        check_dtype("y", y, (*FLOATING, *COMPLEX))
        check_shape("y", y, (None, *self.data_shape), "(B, *data_shape)")
        whitened: Tensor = y.flatten(1).to(self._left.dtype) @ self._left.mT
        return whitened

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.matrix.dtype) @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        images: Tensor = (y.to(self.matrix.dtype) @ self.matrix.conj()).reshape(-1, *self.domain_shape)
        return images

    def pinv(self, y: Tensor, *, rtol: float | None = None, max_iter: int | None = None) -> Tensor:
        """The adjoint, which is the pseudo-inverse; ``rtol`` and ``max_iter`` are those of other operators' pinv."""
        if rtol is not None:
            check_number("rtol", rtol)
        if max_iter is not None:
            check_count("max_iter", max_iter, 0)
        return self.adjoint(y)


def _dense(operator: LinearOperator) -> Tensor:
    """The matrix ``(M, N)`` in double precision, from products with the shorter side's unit vectors."""
    like = operator._random(operator.domain_shape, 0, 1)
    wide = torch.complex128 if like.is_complex() else torch.float64
    rows, columns = prod(operator.range_shape), prod(operator.domain_shape)
    parts = []
    with torch.no_grad():
        by_rows = rows < columns
        n, shape = (rows, operator.range_shape) if by_rows else (columns, operator.domain_shape)
        for first in range(0, n, _CHUNK):
            count = min(_CHUNK, n - first)
            unit = torch.zeros(count, n, dtype=wide, device=like.device)
            unit[torch.arange(count), first + torch.arange(count)] = 1
            unit = unit.unflatten(1, shape)
            parts.append((operator.adjoint(unit) if by_rows else operator(unit)).flatten(1))
    matrix = torch.cat(parts)
    matrix = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    if not math.isfinite(float(matrix.abs().sum())):
        raise ValueError("operator: its products with unit vectors hold NaN or infinite values")
    return matrix.conj() if by_rows else matrix.mT
