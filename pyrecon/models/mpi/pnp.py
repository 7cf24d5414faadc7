"""PP-MPI: plug-and-play ADMM, a denoiser that knows nothing of the scanner in place of a proximal map.

Askin et al., PP-MPI: a deep plug-and-play prior for magnetic particle imaging reconstruction, MLMIR 2022; as compared
with in DEQ-MPI, section IV-A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyrecon._check import check_number
from pyrecon.data.mpi import MPISystem
from pyrecon.models.deq_mpi import DEQMPI, Role
from pyrecon.models.method import Progress
from pyrecon.models.mpi.deq import shipped
from pyrecon.models.mpi.method import KAPPA, Data, MPIMethod
from pyrecon.models.mpi.system import FactoredSystem, compressed
from pyrecon.models.weights import check_role, find_weights
from pyrecon.nn import BallConsistency
from pyrecon.solvers import Solution


@dataclass(frozen=True)
class PnP(MPIMethod):
    """Plug-and-play ADMM: the step of :class:`pyrecon.models.DEQMPI` with the l2-ball and a trained denoiser.

    From zero, ``iterations`` times::

        z0 = proj(A x - d0)  onto the ball around y in the range of A
        z1 = RDN(strength (x - d1)) / strength
        x  = (I + c A^T A)^-1 (c A^T (z0 + d0) + z1 + d1),    then both duals

    in the coordinates of the data (:func:`pyrecon.models.mpi.system.compressed`). A's rows
    have a mean energy of 0.34, and an image has the scale that :class:`Reconstructor` gives it.

    Attributes
    ----------
    weights
        A file of weights whose role is ``"denoiser"``, or the name of shipped ones; None takes those that ship.
        ``pyrecon train deq-mpi --model denoiser`` makes them.
    strength
        The denoiser, trained at one noise level, acts as one for noise that is ``strength`` times weaker: smaller
        values smooth more.
    penalty
        c, of the data's split against the image's: how fast which singular values follow.
    kappa
        Of the ball: the misfit in the range of A as a multiple of the noise expected there.
    iterations
        Plain steps, 150 as published.
    """

    weights: str | None = None
    strength: float = 1.0
    penalty: float = 1.0
    kappa: float = KAPPA
    iterations: int = 150

    name: ClassVar[str] = "PP-MPI"
    role: ClassVar[Role] = "denoiser"
    volumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "penalty"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number above 0")
        check_number("kappa", self.kappa)
        if self.iterations < 1:
            raise ValueError(f"iterations: {self.iterations}, expected at least one")

    def prepare(self, system: FactoredSystem, source: MPISystem | None = None) -> ReadyPnP:
        """The denoiser, loaded and checked."""
        path = next(iter(shipped(self.role).values())) if self.weights is None else find_weights(self.weights)
        trained = DEQMPI.load(path)
        check_role(path.name, trained.card, self.role, self.name)
        # The consistency that a training run with learned consistency has in its weights is none of a denoiser's.
        denoise = trained.rdn.scaled(self.strength)
        model = DEQMPI(denoise, BallConsistency(), iterations=self.iterations, penalty=self.penalty)
        return ReadyPnP(model.eval().to(system.matrix), system, self.kappa)


class ReadyPnP(MPIMethod):
    """A model and the compressed system."""

    name: ClassVar[str] = PnP.name

    def __init__(self, model: DEQMPI, system: FactoredSystem, kappa: float) -> None:
        self.model, self.kappa = model, kappa
        self.problem = compressed(system)

    def _solve(
        self, system: FactoredSystem, data: Data, start: None, progress: Progress
    ) -> tuple[Solution[Tensor], None]:
        center, radius = data.ball(self.kappa)
        zero = center.new_zeros(len(center), len(system.V))
        found = self.model.reconstruct(self.problem, system.gain * center, system.gain * radius, zero)
        image = found.value.flatten(1).clamp(min=0)
        return Solution(image, found.status, found.iterations, found.residual), None
