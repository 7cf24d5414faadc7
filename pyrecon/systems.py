"""The published systems by name: where their model, methods, training and paper are. Loaded on use.

A new system is a line here; ``pyrecon train NAME`` and ``pyrecon reproduce NAME`` are built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pyrecon.experiments.study import Paper
    from pyrecon.train import Training


@dataclass(frozen=True)
class System:
    """A system's title, and import paths ``"module:name"`` of its parts; empty where it has none.

    ``paper_name`` is what ``pyrecon reproduce`` calls its paper, where several systems are of one; else as the system.
    """

    title: str
    model_path: str
    methods_path: str = ""
    training_path: str = ""
    paper_path: str = ""
    paper_name: str = ""

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
    "de-prox": System(
        "EI-DEQ: equivariant deep equilibrium models, with a proximal step (DE-Prox)",
        model_path="pyrecon.models:DEProx",
        methods_path="pyrecon.models.mri:LEARNED",
        training_path="pyrecon.train.de_prox:DEProxTraining",
        paper_path="pyrecon.experiments.ei_deq:PAPER",
        paper_name="ei-deq",
    ),
    "de-grad": System(
        "EI-DEQ: equivariant deep equilibrium models, with a gradient step (DE-Grad)",
        model_path="pyrecon.models:DEGrad",
        methods_path="pyrecon.models.ct:LEARNED",
        training_path="pyrecon.train.de_grad:DEGradTraining",
        paper_path="pyrecon.experiments.ei_deq:PAPER",
        paper_name="ei-deq",
    ),
    "luser": System(
        "LUSER: loop-unrolled reconstruction with shallow equilibria, and its rivals",
        model_path="pyrecon.models:LUSER",
        methods_path="pyrecon.models.mri:LEARNED",
        training_path="pyrecon.train.luser:LUSERTraining",
        paper_path="pyrecon.experiments.luser:PAPER",
    ),
    "pinqi": System(
        "PINQI: T1 maps straight from undersampled data, by half-quadratic splitting",
        model_path="pyrecon.models:PINQI",
        methods_path="pyrecon.models.mri:MAPPING",
        training_path="pyrecon.train.pinqi:PINQITraining",
        paper_path="pyrecon.experiments.pinqi:PAPER",
    ),
    "supervised-mri": System(
        "Rivals of the generative prior that are trained with ground truth: a U-Net, the variational network",
        model_path="pyrecon.models:VarNet",
        methods_path="pyrecon.models.mri:LEARNED",
        training_path="pyrecon.train.supervised_mri:SupervisedMRITraining",
        paper_path="pyrecon.experiments.stable_mri:PAPER",
        paper_name="stable-mri",
    ),
    "generative": System(
        "Stable MRI: a generative prior on magnitude images, trained by maximum likelihood",
        model_path="pyrecon.models:GenerativePrior",
        methods_path="pyrecon.models.mri:METHODS",
        training_path="pyrecon.train.generative:GenerativeTraining",
        paper_path="pyrecon.experiments.stable_mri:PAPER",
        paper_name="stable-mri",
    ),
}


def having(part: Literal["training", "paper"]) -> dict[str, System]:
    """Systems that have the part, by the name of their command."""
    found = {name: system for name, system in SYSTEMS.items() if getattr(system, f"{part}_path")}
    return {system.paper_name or name if part == "paper" else name: system for name, system in found.items()}
