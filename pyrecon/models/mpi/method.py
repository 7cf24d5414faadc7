"""What the methods of magnetic particle imaging share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pyrecon._check import check_like, check_shape
from pyrecon.data.mpi import MPISystem
from pyrecon.models.method import Method, Progress, silent
from pyrecon.models.mpi.system import FactoredSystem
from pyrecon.solvers import Solution

# Of the radius in the range of A. At 1 all misfit that noise explains is allowed, and images are smoothed. The best of
# five on scanners of training, whose matrices have had their noise taken out, for all methods but l1:
# pyrecon reproduce deq-mpi --experiment kappa.
KAPPA = 0.8


def trained_kappa(kappa: float, system: FactoredSystem) -> float:
    """That of weights with their ``kappa`` for a matrix: ``KAPPA kappa`` where noise was taken out of it.

    Such a matrix has left the directions that it hardly sees, and image and noise share the others. Of one as it is, or
    without noise, most directions hold noise alone, and who explains a third of it has it in the image.
    """
    return KAPPA * kappa if system.denoised else kappa


@dataclass(frozen=True)
class Data:
    """Frames as a method gets them, checked.

    Attributes
    ----------
    y
        Data ``(B, M)``.
    noise
        ``(B,)`` expected norm of all that is no signal of the image, ``sigma sqrt(M)``.
    coordinates
        Of y, ``(B, r + 1)``; where a method needs no factors, y again.
    rank
        r; None where there are no factors.
    noisy
        Whether the matrix holds noise of its own.
    """

    y: Tensor
    noise: Tensor
    coordinates: Tensor
    rank: int | None
    noisy: bool = False

    def ball(self, kappa: float) -> tuple[Tensor, Tensor]:
        """Centre ``(B, r + 1)``, in coordinates, and radius ``(B,)`` of what explains the data: to within
        ``kappa sigma sqrt(r)`` in the range of A, where alone images differ.

        A ball of ``|noise|`` around all of y, as published, leaves in the range of A what is left of it by the part y_p
        of the data outside: a small difference of large random numbers. And it is slow where y_p is large, as a
        projection onto it moves everything by the same small share. With a noisy matrix that is an advantage: its range
        is not that of images, and who follows the data there follows noise. Then the ball is that of :meth:`radius`.
        """
        if self.noisy:
            return self.coordinates, self.radius(kappa)
        center = self.coordinates.clone()
        center[:, -1] = 0
        return center, kappa * (self._rank * self._variance).sqrt()

    def radius(self, kappa: float) -> Tensor:
        """``(B,)`` of the ball around all of y that leaves as much in the range of A,
        ``sqrt(|y_p|^2 + (kappa sigma)^2 r)``, for what has to see all rows."""
        return (self.coordinates[:, -1].square() + (kappa**2 * self._rank) * self._variance).sqrt()

    @property
    def signal(self) -> Tensor:
        """``(B,)`` norm of what images explain: in the range of A, less the noise there."""
        if self.rank is None:
            return (self.y.square().sum(dim=1) - self.noise.square()).clamp(min=0).sqrt()
        return (self.coordinates[:, :-1].square().sum(dim=1) - self.rank * self._variance).clamp(min=0).sqrt()

    @property
    def _rank(self) -> int:
        assert self.rank is not None, "a ball in the range of A is for methods with factors"
        return self.rank

    @property
    def _variance(self) -> Tensor:
        return self.noise.square() / self.y.shape[1]

    def of(self, frames: Tensor) -> Data:
        """Some of the frames, by number."""
        return Data(self.y[frames], self.noise[frames], self.coordinates[frames], self.rank, self.noisy)


class MPIMethod(Method):
    """A reconstruction of frames with a system matrix: ``min R(x)`` for data ``y = A x + noise``.

    Attributes
    ----------
    factors
        Whether it needs the singular values, which are dear for a large matrix.
    volumes
        Whether it is for grids of more than two axes, too.
    """

    factors: ClassVar[bool] = True
    volumes: ClassVar[bool] = True

    def prepare(self, system: FactoredSystem, source: MPISystem | None = None) -> MPIMethod:
        """What solves with this system: itself, or something that has loaded and checked what it needs, once.

        ``source`` is where the rows of ``system`` come from in the scan, None where they come from nowhere known.
        """
        return self

    def solve(
        self,
        system: FactoredSystem,
        y: Tensor,
        noise: Tensor,
        *,
        coordinates: Tensor | None = None,
        start: Any = None,
        progress: Progress = silent,
    ) -> tuple[Solution[Tensor], Any]:
        """Images ``(B, N)`` from data ``(B, M)``, and the state that they ended in.

        Parameters
        ----------
        system
            The system matrix; the one that was prepared for, where something was.
        y, noise
            Data ``(B, M)`` and the expected norm of the noise in them, ``(B,)``, errors of the matrix included. A frame
            with NaN ends as an image of NaN with status NONFINITE and does not touch the others.
        coordinates
            ``system.coordinates(y)`` where it is known already.
        start
            State of an earlier run with the same batch size; None: the method's own first state.
        progress
            Called with the share of the batch that is done, by methods that take long.
        """
        if coordinates is None and self.factors:
            coordinates = system.coordinates(y)
        else:
            system.check_data(y)
        check_like("noise", noise, "y", y)
        check_shape("noise", noise, y.shape[:1], "(B,)")
        rank = system.rank if self.factors else None
        data = Data(y, noise, y if coordinates is None else coordinates, rank, system.noisy)
        return self._solve(system, data, start, progress)

    def _solve(
        self, system: FactoredSystem, data: Data, start: Any, progress: Progress
    ) -> tuple[Solution[Tensor], Any]:
        ready = self.prepare(system)
        if ready is self:
            raise NotImplementedError(f"{type(self).__name__}: a method defines _solve, or prepares what does")
        return ready._solve(system, data, start, progress)

    def carry(self, state: Any, last: Tensor, count: int) -> Any:
        """The state that ``count`` frames start from, given the one that an earlier batch ended in and the index
        ``(1,)`` in it of a frame that came out well; None where the method does not start from anything."""
        return state[last].repeat(count, 1) if isinstance(state, Tensor) else None
