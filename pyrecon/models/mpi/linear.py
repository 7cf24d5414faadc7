"""Reconstructions with a quadratic penalty: Tikhonov-Kaczmarz sweeps (l2-ART) and filtered singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from pyrecon.models.method import Progress
from pyrecon.models.mpi.method import Data, MPIMethod
from pyrecon.models.mpi.system import FactoredSystem
from pyrecon.ops import kaczmarz
from pyrecon.solvers import Solution, Status

_TOLERANCE = 1e-3  # relative gradient below which sweeps count as converged
PRECISION = 100.0  # times the variance of the noise: good for vessels, with a matrix that is itself measured


@dataclass(frozen=True)
class ART(MPIMethod):
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
        super().__post_init__()
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"weight: {self.weight} is negative")
        if self.sweeps < 1:
            raise ValueError(f"sweeps: {self.sweeps}, expected at least one")

    @classmethod
    def paper(cls, snr_db: float) -> Self:
        """As printed in DEQ-MPI section IV-A: weight 10 below 15 dB, 1 below 35 dB, 0.1 from there."""
        return cls(weight=10.0 if snr_db < 15 else 1.0 if snr_db < 35 else 0.1)

    def _solve(
        self, system: FactoredSystem, data: Data, start: Tensor | None, progress: Progress
    ) -> tuple[Solution[Tensor], Tensor]:
        """The state is the image. The solution's residual is the gradient of the objective, less what the sign
        constraint holds back, relative to the gradient at zero."""
        y, weight = data.y, _weight(self.weight, data.y, data.noise)
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
class Tikhonov(MPIMethod):
    """``argmin |A x - y|^2 + weight |x|^2`` from the singular values, then negative values clipped if ``nonneg``.

    ``weight`` as in :class:`ART`. For many weights at once see :meth:`FactoredSystem.tikhonov`.
    """

    weight: float | None = None
    nonneg: bool = True

    name: ClassVar[str] = "Tikhonov"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"weight: {self.weight} is negative")

    def _solve(
        self, system: FactoredSystem, data: Data, start: None, progress: Progress
    ) -> tuple[Solution[Tensor], None]:
        x = system.tikhonov(data.coordinates, _weight(self.weight, data.y, data.noise)[None])[0]
        if self.nonneg:
            x.clamp_(min=0)
        return _solution(x, x.sum(dim=1) * 0, 0), None


def _weight(weight: float | None, y: Tensor, noise: Tensor) -> Tensor:
    """``(B,)``: the weight given, or the one that follows from the noise."""
    if weight is not None:
        return torch.full_like(noise, weight)
    return PRECISION / y.shape[1] * noise.square()


def _solution(x: Tensor, residual: Tensor, iterations: int) -> Solution[Tensor]:
    status = torch.full(residual.shape, Status.MAX_ITER, dtype=torch.int8, device=x.device)
    status[residual <= _TOLERANCE] = Status.CONVERGED
    status[~torch.isfinite(residual)] = Status.NONFINITE
    return Solution(x, status, torch.full_like(status, iterations, dtype=torch.int32), residual)
