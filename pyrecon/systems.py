"""The published systems by name: where their model, methods, training and paper are. Loaded on use.

A new system is a line here; ``pyrecon train NAME`` and ``pyrecon reproduce NAME`` are built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrecon.experiments.study import Paper
    from pyrecon.train import Training


@dataclass(frozen=True)
class System:
    """A system's title, and import paths ``"module:name"`` of its parts; empty where it has none."""

    title: str
    model_path: str
    methods_path: str = ""
    training_path: str = ""
    paper_path: str = ""

    @property
    def model(self) -> type[Any]:
        """The model's class."""
        return _loaded(self.model_path)  # type: ignore[no-any-return]

    @property
    def methods(self) -> Mapping[str, type[Any]]:
        """Its methods of ``pyrecon reconstruct``, by name."""
        return _loaded(self.methods_path) if self.methods_path else {}

    @property
    def training(self) -> type[Training]:
        """What ``pyrecon train`` runs."""
        return _loaded(self.training_path)  # type: ignore[no-any-return]

    @property
    def paper(self) -> Paper:
        """What ``pyrecon reproduce`` runs."""
        return _loaded(self.paper_path)  # type: ignore[no-any-return]


def _loaded(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


SYSTEMS: dict[str, System] = {
    "deq-mpi": System(
        "DEQ-MPI: a deep equilibrium reconstruction with learned consistency for magnetic particle imaging",
        model_path="pyrecon.models:DEQMPI",
        methods_path="pyrecon.models.mpi:LEARNED",
        training_path="pyrecon.train.deq_mpi:DEQMPITraining",
        paper_path="pyrecon.experiments.deq_mpi:PAPER",
    ),
}
