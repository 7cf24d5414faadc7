"""Reconstructions with a quadratic penalty: Tikhonov-Kaczmarz sweeps (l2-ART) and filtered singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from pyrecon._check import check_shape
from pyrecon.models.mpi.system import FactoredSystem
from pyrecon.ops import kaczmarz
from pyrecon.solvers import Solution, Status

_TOLERANCE = 1e-3  # relative gradient below which sweeps count as converged
_PRECISION = 100.0  # times the variance of the noise: good for vessels, with a matrix that is itself measured


@dataclass(frozen=True)
class ART:
    """Kaczmarz sweeps towards ``argmin |A x - y|^2 + weight |x|^2``: :func:`pyrecon.ops.kaczmarz`.

    Attributes
    ----------
    weight
        In units of the rows' energies ``|a_i|^2``. None takes 100 times the variance of the noise, which suits the
        scale that :class:`Reconstructor` gives the problem.
    sweeps
        Passes over all rows. Few passes regularise by themselves, so stopping early is no failure.
    nonneg
        Clip negative values after every sweep.
    order
        Rows in ``"cyclic"`` order, or ``"random"`` with probabilities proportional to their energies.
    """

    weight: float | None = None
    sweeps: int = 10
    nonneg: bool = True
    order: Literal["cyclic", "random"] = "cyclic"

    name: ClassVar[str] = "l2-ART"
    factors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"weight: {self.weight} is negative")
        if self.sweeps < 1:
            raise ValueError(f"sweeps: {self.sweeps}, expected at least one")

    @classmethod
    def paper(cls, snr_db: float) -> Self:
        """As printed in DEQ-MPI section IV-A: weight 10 below 15 dB, 1 below 35 dB, 0.1 from there."""
        return cls(weight=10.0 if snr_db < 15 else 1.0 if snr_db < 35 else 0.1)

    def solve(
        self,
        system: FactoredSystem,
        y: Tensor,
        noise: Tensor,
        *,
        coordinates: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[Solution[Tensor], Tensor]:
        """Images ``(B, N)`` from data ``(B, M)``, and the same again as start for the next frame.

        The solution's residual is the gradient of the objective, less what the sign constraint holds back, relative to
        the gradient at zero.
        """
        system.check_data(y)
        weight = _weight(self.weight, y, noise)
        x = kaczmarz(
            system.matrix, y, x0=start, weight=weight, sweeps=self.sweeps, nonneg=self.nonneg, order=self.order
        )
        misfit = torch.addmm(y, x, system.matrix.T, beta=-1)
        gradient = torch.addmm(weight[:, None] * x, misfit, system.matrix)
        if self.nonneg:
            gradient = torch.where(x > 0, gradient, gradient.clamp(max=0))
        size = torch.linalg.vector_norm(y @ system.matrix, dim=1)
        residual = torch.linalg.vector_norm(gradient, dim=1) / size.clamp(min=torch.finfo(y.dtype).tiny)
        return _solution(x, residual, self.sweeps), x


@dataclass(frozen=True)
class Tikhonov:
    """``argmin |A x - y|^2 + weight |x|^2`` from the singular values, then negative values clipped if ``nonneg``.

    ``weight`` as in :class:`ART`. For many weights at once see :meth:`FactoredSystem.tikhonov`.
    """

    weight: float | None = None
    nonneg: bool = True

    name: ClassVar[str] = "Tikhonov"
    factors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"weight: {self.weight} is negative")

    def solve(
        self,
        system: FactoredSystem,
        y: Tensor,
        noise: Tensor,
        *,
        coordinates: Tensor | None = None,
        start: None = None,
    ) -> tuple[Solution[Tensor], None]:
        """Images ``(B, N)`` from data ``(B, M)``; exact, so it needs no start."""
        coordinates = system.coordinates(y) if coordinates is None else coordinates
        x = system.tikhonov(coordinates, _weight(self.weight, y, noise)[None])[0]
        if self.nonneg:
            x.clamp_(min=0)
        return _solution(x, x.sum(dim=1) * 0, 0), None


def _weight(weight: float | None, y: Tensor, noise: Tensor) -> Tensor:
    """``(B,)``: the weight given, or the one that follows from the noise."""
    check_shape("noise", noise, y.shape[:1], "(B,)")
    if weight is not None:
        return torch.full_like(noise, weight)
    return _PRECISION / y.shape[1] * noise.square()


def _solution(x: Tensor, residual: Tensor, iterations: int) -> Solution[Tensor]:
    status = torch.full(residual.shape, Status.MAX_ITER, dtype=torch.int8, device=x.device)
    status[residual <= _TOLERANCE] = Status.CONVERGED
    status[~torch.isfinite(residual)] = Status.NONFINITE
    return Solution(x, status, torch.full_like(status, iterations, dtype=torch.int32), residual)
