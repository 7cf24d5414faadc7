"""What a reconstruction method is, in every modality."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrecon.models.mpi.system import FactoredSystem
from pyrecon.solvers import Solution


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
