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


@dataclass(frozen=True)
class Data:
    """Frames as a method gets them, checked: data ``(B, M)``, the norm of their noise ``(B,)``, their coordinates
    ``(B, r + 1)`` (where a method needs no factors, the data again)."""

    y: Tensor
    noise: Tensor
    coordinates: Tensor


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
            Data ``(B, M)`` and the expected norm of the noise in them, ``(B,)``. A frame with NaN ends as an image of
            NaN with status NONFINITE and does not touch the others.
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
        return self._solve(system, Data(y, noise, y if coordinates is None else coordinates), start, progress)

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
