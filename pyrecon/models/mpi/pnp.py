"""PP-MPI: plug-and-play ADMM, a denoiser that knows nothing of the scanner in place of a proximal map.

Askin et al., PP-MPI: a deep plug-and-play prior for magnetic particle imaging reconstruction, MLMIR 2022; as compared
with in DEQ-MPI, section IV-A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyrecon._check import check_shape
from pyrecon.data.mpi import MPISystem
from pyrecon.models.deq_mpi import DEQMPI, Role
from pyrecon.models.method import SetUpFirst
from pyrecon.models.mpi.deq import shipped
from pyrecon.models.mpi.system import FactoredSystem, compressed, row_gain
from pyrecon.models.weights import check_role, find_weights
from pyrecon.nn import BallConsistency
from pyrecon.solvers import Solution


@dataclass(frozen=True)
class PnP(SetUpFirst):
    """Plug-and-play ADMM: the step of :class:`pyrecon.models.DEQMPI` with the l2-ball and a trained denoiser.

    From zero, ``iterations`` times::

        z0 = proj(A x - d0)  onto the ball of radius epsilon |noise| around y
        z1 = RDN(strength (x - d1)) / strength
        x  = (I + c A^T A)^-1 (c A^T (z0 + d0) + z1 + d1),    then both duals

    in the r + 1 coordinates of the data (:func:`pyrecon.models.mpi.system.compressed`), the same iterates as in all M
    rows. A's rows have a mean energy of 0.34, and an image has the scale that :class:`Reconstructor` gives it.

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
    epsilon
        Radius of the ball as a multiple of the expected norm of the noise.
    iterations
        Plain steps, 150 as published.
    """

    weights: str | None = None
    strength: float = 1.0
    penalty: float = 1.0
    epsilon: float = 1.0
    iterations: int = 150

    name: ClassVar[str] = "PP-MPI"
    role: ClassVar[Role] = "denoiser"
    factors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("strength", "penalty"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number above 0")
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon: {self.epsilon} is negative")
        if self.iterations < 1:
            raise ValueError(f"iterations: {self.iterations}, expected at least one")

    def prepared(self, system: MPISystem | Tensor, factored: FactoredSystem) -> ReadyPnP:
        """The denoiser, loaded and checked; what :class:`Reconstructor` runs."""
        name, path = next(iter(shipped(self.role).items())) if self.weights is None else (self.weights, None)
        path = path or find_weights(name)
        trained = DEQMPI.load(path)
        check_role(path.name, trained, self.role, self.name)
        # The consistency that a training run with learned consistency has in its weights is none of a denoiser's.
        denoise = trained.rdn.scaled(self.strength)
        model = DEQMPI(denoise, BallConsistency(), iterations=self.iterations, penalty=self.penalty)
        return ReadyPnP(model.eval(), factored, self.epsilon)


class ReadyPnP:
    """A model and the compressed system."""

    def __init__(self, model: DEQMPI, system: FactoredSystem, epsilon: float) -> None:
        self.model, self.epsilon = model.to(system.matrix), epsilon
        self.gain = row_gain(system.matrix)
        self.problem = compressed(system, gain=self.gain)

    def solve(
        self,
        system: FactoredSystem,
        y: Tensor,
        noise: Tensor,
        *,
        coordinates: Tensor | None = None,
        start: None = None,
    ) -> tuple[Solution[Tensor], None]:
        """As :meth:`PnP.solve`."""
        coordinates = system.coordinates(y) if coordinates is None else coordinates
        check_shape("noise", noise, coordinates.shape[:1], "(B,)")
        data, radius = self.gain * coordinates, self.epsilon * self.gain * noise
        zero = data.new_zeros(len(data), len(system.V))
        found = self.model.reconstruct(self.problem, data, radius, zero)
        image = found.value.flatten(1).clamp(min=0)
        return Solution(image, found.status, found.iterations, found.residual), None
