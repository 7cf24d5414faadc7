"""A system matrix factorised once, and data seen in its coordinates.

With the thin singular value decomposition ``A = Q S V^T`` (Q: M x r with orthonormal columns, r the rank) every datum
splits into ``y = Q y_r + y_p`` with ``y_p`` orthogonal to everything the model can produce. No norm ``|A x - y|`` ever
needs more than the r + 1 numbers ``(y_r, |y_p|)``::

    |A x - y|^2 = |S V^T x - y_r|^2 + |y_p|^2

They are ``y`` in the orthonormal basis (Q, y_p / |y_p|). For an MPI scan that is 5,486 numbers in 339.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import FLOATING, check_dtype, check_like, check_shape
from pyrecon.solvers import Solution


class FactoredSystem:
    """A real system matrix, its factors, and the linear reconstructions that are read off them.

    Parameters
    ----------
    matrix
        ``(M, N)`` float32 or float64; complex rows stacked, real parts on top of imaginary parts.
    shape
        Shape of one image, ``prod(shape) == N``.

    Attributes
    ----------
    Q, s, V
        ``(M, r)``, ``(r,)`` descending, ``(N, r)``; computed in float64 when first used, kept in the matrix's
        precision. Singular values below that precision (``eps * s[0]``) are rounding noise of the matrix itself, or of
        the factorisation, and are dropped.
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        check_dtype("matrix", matrix, FLOATING)
        check_shape("matrix", matrix, (None, math.prod(shape)), "(M, N) with N the size of an image")
        if not torch.isfinite(matrix).all():
            raise ValueError("matrix: holds NaN or infinite values")
        if not matrix.any():
            raise ValueError("matrix: is zero")
        self.matrix = matrix.contiguous()
        self.shape = tuple(shape)

    def factorise(self) -> None:
        """Compute the factors now rather than when they are first needed."""
        _ = self._factors

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        q, s, vh = torch.linalg.svd(self.matrix.double(), full_matrices=False)
        dtype = self.matrix.dtype
        noise = max(torch.finfo(dtype).eps, max(self.matrix.shape) * torch.finfo(torch.float64).eps)
        rank = int((s > noise * s[0]).sum())
        return q[:, :rank].to(dtype).contiguous(), s[:rank].to(dtype), vh[:rank].T.to(dtype).contiguous()

    @property
    def Q(self) -> Tensor:
        return self._factors[0]

    @property
    def s(self) -> Tensor:
        return self._factors[1]

    @property
    def V(self) -> Tensor:
        return self._factors[2]

    @property
    def rank(self) -> int:
        return len(self.s)

    def coordinates(self, y: Tensor) -> Tensor:
        """``(B, M)`` data to ``(B, r + 1)``: ``y_r``, then ``|y_p|``."""
        self.check_data(y)
        inside = y @ self.Q
        outside = torch.linalg.vector_norm(torch.addmm(y, inside, self.Q.T, alpha=-1), dim=1, keepdim=True)
        return torch.cat([inside, outside], dim=1)

    def check_data(self, y: Tensor) -> None:
        check_like("y", y, "matrix", self.matrix)
        check_shape("y", y, (None, self.matrix.shape[0]), "(B, M)")

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """``|A x - y|_2`` per sample, ``(B,)``, for images ``(B, N)``."""
        misfit = torch.addmm(y, x, self.matrix.T, beta=-1)
        return torch.linalg.vector_norm(misfit, dim=1)  # type: ignore[no-any-return]

    @property
    def spare_rows(self) -> int:
        """Rows beyond the rank: dimensions of the data that no image reaches."""
        return self.matrix.shape[0] - self.rank

    def noise_norm(self, coordinates: Tensor) -> Tensor:
        """``|noise|_2`` expected in all of y, ``(B,)``, from the part of y that no image explains.

        White noise leaves ``|y_p|^2 = sigma^2 (M - r)``. An error of the model counts as noise here, which is what the
        radius of acceptable misfit should do.
        """
        rows = self.matrix.shape[0]
        if self.spare_rows == 0:
            raise ValueError(
                f"noise: a matrix of {rows} rows and rank {self.rank} leaves nothing to estimate noise from; give it"
            )
        return coordinates[:, -1] * math.sqrt(rows / self.spare_rows)

    def truncated(self, coordinates: Tensor, *, rank: int | None = None, cutoff: float = 0.0) -> Tensor:
        """Truncated-SVD least squares ``(B, N)``: at most ``rank`` singular values, all at least ``cutoff * s[0]``."""
        if rank is not None and rank < 1:
            raise ValueError(f"rank: {rank} is not a number of singular values, expected at least 1")
        if not 0 <= cutoff <= 1:
            raise ValueError(f"cutoff: {cutoff} is not relative to the largest singular value, expected 0 to 1")
        keep = min(self.rank if rank is None else rank, int((self.s >= cutoff * self.s[0]).sum()))
        return torch.mm(coordinates[:, :keep] / self.s[:keep], self.V[:, :keep].T)

    def tikhonov(self, coordinates: Tensor, weights: Tensor | float) -> Tensor:
        """``argmin |A x - y|^2 + weight |x|^2``, ``(B, N)``.

        Many weights at once: ``(W,)``, or ``(W, B)`` with a weight of its own for each sample, give ``(W, B, N)``.
        """
        weight = torch.as_tensor(weights, dtype=self.s.dtype, device=self.s.device)
        if not bool((weight >= 0).all()):
            raise ValueError("weights: expected numbers >= 0")
        if weight.dim() == 1:
            weight = weight[:, None]
        filtered = self.s / (self.s.square() + weight[..., None])
        return torch.matmul(coordinates[:, :-1] * filtered, self.V.T)


class SetUpFirst:
    """A method of :class:`Reconstructor` that loads or prepares something for a system before it sees data."""

    def prepared(self, system: Any, factored: FactoredSystem) -> Any:
        """What :class:`Reconstructor` runs: an object with ``solve``."""
        raise NotImplementedError

    def solve(
        self,
        system: FactoredSystem,
        y: Tensor,
        noise: Tensor,
        *,
        coordinates: Tensor | None = None,
        start: None = None,
    ) -> tuple[Solution[Tensor], None]:
        """Images ``(B, N)`` from data ``(B, M)``, set up anew; to do that once, use :meth:`prepared`."""
        found: tuple[Solution[Tensor], None] = self.prepared(system.matrix, system).solve(
            system, y, noise, coordinates=coordinates
        )
        return found
