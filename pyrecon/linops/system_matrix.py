"""A dense matrix as an operator: the measured system function of magnetic particle imaging, or any small model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, check_count, check_dtype, check_number, check_shape
from pyrecon.linops._base import LinearOperator
from pyrecon.linops.sharded import ShardedSystemMatrix, shard
from pyrecon.ops import sm_consistency

Derived = TypeVar("Derived")


class SystemMatrix(LinearOperator):
    """``A x`` for a dense matrix ``A``: images ``(B, N)`` to data ``(B, M)``.

    Real images under a complex matrix are best served by :meth:`stacked`: the adjoint of a complex operator is complex,
    and half of its work is thrown away with the imaginary part.

    Parameters
    ----------
    matrix
        ``(M, N)``, float32, float64, complex64 or complex128. May require grad, or depend on what does.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        check_dtype("matrix", matrix, (*FLOATING, *COMPLEX))
        check_shape("matrix", matrix, (None, None), "(M, N)")
        self.register_buffer("matrix", matrix)
        self._derived: dict[str, tuple[object, Any]] = {}

    # Of the matrix as it is now: a program may put another one in its place.
    @property
    def domain_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.matrix.shape[1],)

    @property
    def range_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.matrix.shape[0],)

    @classmethod
    def stacked(cls, matrix: Tensor) -> SystemMatrix:
        """The real operator ``[Re A; Im A]`` on real images; :meth:`stack` brings data into its form."""
        return cls(torch.cat((matrix.real, matrix.imag)) if matrix.is_complex() else matrix)

    @staticmethod
    def stack(data: Tensor) -> Tensor:
        """Complex data ``(..., M)`` as ``(..., 2 M)`` reals: real parts first, then imaginary parts."""
        return torch.cat((data.real, data.imag), dim=-1)

    def shard(self, mesh: Any = None) -> ShardedSystemMatrix:
        """The same operator with its rows spread over processes, for a matrix that one device cannot hold.

        Parameters
        ----------
        mesh
            A one-dimensional ``torch.distributed`` device mesh or a process group; default all processes. Every one of
            them calls this with the same matrix, keeps its share of the rows, and may drop the whole one.
        """
        return shard(self.matrix, mesh)

    def consistency(
        self, x: Tensor, d: Tensor, y: Tensor, radius: Tensor | float, *, Ax: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`pyrecon.ops.sm_consistency` with this matrix: ``z, r, Ax``."""
        return sm_consistency(self.matrix, x, d, y, radius, Ax=Ax)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.matrix.dtype) @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y.to(self.matrix.dtype) @ self.matrix.conj()

    def gram(self, x: Tensor) -> Tensor:
        """``A^H A x`` by the ``(N, N)`` Gram matrix, made once in double precision: N/2M of the work of two products.

        While gradients in the matrix are needed, both products are taken instead.
        """
        if self.matrix.requires_grad and torch.is_grad_enabled():
            return self.adjoint(self(x))
        return x.to(self.matrix.dtype) @ self.derived("gram", self._gram)

    def singular_values(self) -> Tensor:
        """All ``min(M, N)`` singular values, largest first, float64."""
        return self.derived("svd", self._svd)[1]

    def pinv(
        self, y: Tensor, *, rtol: float | None = None, max_iter: int | None = None, rank: int | None = None
    ) -> Tensor:
        """Least squares by the truncated singular value decomposition: ``sum_i v_i <u_i, y> / s_i``.

        Parameters
        ----------
        y
            ``(B, M)`` data.
        rtol
            Singular values up to ``rtol`` times the largest are left out. Default: ``max(M, N) * eps`` of the matrix's
            dtype, its numerical rank; for noisy data something above the inverse of their signal-to-noise ratio.
        max_iter
            As in :meth:`LinearOperator.pinv`, and without effect: the decomposition is exact.
        rank
            At most so many singular values are kept (220 to 250 of 338 in DEQ-MPI).

        Returns
        -------
        Tensor
            ``(B, N)``. Differentiable in ``y``; the factors, computed once in float64, are constants.
        """
        check_dtype("y", y, (*FLOATING, *COMPLEX))
        check_shape("y", y, (None, *self.range_shape), "(B, M)")
        if rtol is not None and not check_number("rtol", rtol) < 1:
            raise ValueError(f"rtol: {rtol} is not a fraction of the largest singular value, expected 0 <= rtol < 1")
        if max_iter is not None:
            check_count("max_iter", max_iter, 0)
        if rank is not None:
            check_count("rank", rank, 0)
        u, s, vh = self.derived("svd", self._svd)
        if rtol is None:
            rtol = max(self.matrix.shape) * torch.finfo(self.matrix.dtype).eps
        kept = s > rtol * s[:1]
        if rank is not None:
            kept = kept & (torch.arange(len(s), device=s.device) < rank)
        inverse = torch.where(kept, 1 / s, 0.0)
        return ((y.to(u.dtype) @ u.conj()) * inverse @ vh.conj()).to(self.matrix.dtype)

    def _gram(self, matrix: Tensor) -> Tensor:
        return (matrix.mH @ matrix).mT.contiguous().to(self.matrix.dtype)

    def _svd(self, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh

    def derived(self, name: str, make: Callable[[Tensor], Derived]) -> Derived:
        """``make(matrix in double precision)``, kept until the matrix is replaced, moved or written to."""
        state = self._state()
        known = self._derived.get(name)
        if known is None or known[0] != state:
            matrix = self.matrix.detach()
            known = self._derived[name] = (
                state,
                make(matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)),
            )
        derived: Derived = known[1]
        return derived

    def know_factors(self, u: Tensor, s: Tensor, v: Tensor) -> None:
        """Take ``matrix = u diag(s) v^H``, ``s`` descending, as known; they serve :meth:`pinv` as its own would."""
        wide = torch.complex128 if self.matrix.is_complex() else torch.float64
        self._derived["svd"] = (self._state(), (u.to(wide), s.double(), v.mH.to(wide)))

    def _state(self) -> object:
        """What tells this matrix from another, or from itself before it was written to."""
        matrix = self.matrix
        version = 0 if matrix.is_inference() else matrix._version
        return matrix.data_ptr(), version, matrix.device, matrix.dtype
