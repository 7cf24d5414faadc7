"""What the tables and figures share: system matrices, images, and the trained models they need.

A model is shipped with the package, or it is trained once into the study's folder as :data:`RECIPES` says (the shipped
ones with fewer steps, see their cards); an interrupted training goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pyrecon._errors import DataError
from pyrecon.data.mpi import MPISystem, prepare_system
from pyrecon.data.raw import MPICalibration
from pyrecon.experiments.mpi import GRID, Images, generated_images, vessel_images
from pyrecon.models import _weights
from pyrecon.physics.mpi import Scanner

Scale = Literal["quick", "full"]
SNRS = (15.0, 25.0, 35.0)


@dataclass(frozen=True)
class Sizes:
    """How much is computed: images, evaluations of a search, iterations of DIP, noise draws of a phantom."""

    test: int
    validation: int
    budget: int
    dip: int
    repeats: int

    @classmethod
    def of_scale(cls, scale: Scale) -> Sizes:
        """``"quick"``: within an hour on two cores, where no model has to be trained. ``"full"``: as published."""
        return cls(64, 32, 48, 300, 16) if scale == "quick" else cls(3730, 256, 200, 20_000, 100)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: what differs from :meth:`pyrecon.train.Config.of_scale`, on which system matrix, from
    which other model's networks."""

    role: Literal["equilibrium", "denoiser", "unrolled", "end-to-end"]
    changes: dict[str, Any] = field(default_factory=dict)
    gradient: float = 0.5
    upsampled: int = 1
    initial: str | None = None


def penalty(snr_db: float) -> float:
    """Of the data's split: what reaches an equilibrium in the fewest steps at an SNR (see :class:`DEQMPI`)."""
    return 10.0 if snr_db < 30 else 25.0


def _recipes() -> dict[str, Recipe]:
    recipes = {"denoiser": Recipe("denoiser")}
    for snr in (5.0, *SNRS, 45.0):
        level = f"{snr:g}dB"
        common = {"snr_db": snr, "penalty": penalty(snr)}
        ball = f"deq-mpi-{level}"
        recipes |= {
            ball: Recipe("equilibrium", common, initial="denoiser" if snr == 25.0 else "deq-mpi-25dB"),
            f"deq-mpi-learned-{level}": Recipe("equilibrium", common | {"consistency": "learned"}, initial=ball),
            f"deq-mpi-26x52-{level}": Recipe("equilibrium", common, upsampled=2, initial=ball),
            f"unrolled-{level}": Recipe("unrolled", common, initial="denoiser"),
            f"end-to-end-{level}": Recipe("end-to-end", {"snr_db": snr}, initial="denoiser"),
        }
    for gradient in (0.3, 0.6):
        common = {"snr_db": 25.0, "penalty": penalty(25.0)}
        recipes[f"deq-mpi-{gradient}T-25dB"] = Recipe("equilibrium", common, gradient, initial="deq-mpi-25dB")
    return recipes


RECIPES = _recipes()


@dataclass
class Study:
    """One run of the experiments.

    Attributes
    ----------
    folder
        Of results; models trained for them lie in ``folder/models``.
    scale
        ``"quick"`` or ``"full"``: of the evaluation and of models that have to be trained.
    images
        ``"generated"`` vascular trees, ``"retina"``, or a NIfTI angiogram.
    seed
        Of images, noise and searches.
    progress
        Called with what is being done, how many steps are done, and how many there are.
    """

    folder: Path
    scale: Scale = "quick"
    images: str = "generated"
    seed: int = 0
    progress: Callable[[str, int, int], None] = lambda text, done, total: None
    sizes: Sizes | None = None
    _calibrations: dict[float, MPICalibration] = field(default_factory=dict)

    @cached_property
    def amounts(self) -> Sizes:
        return self.sizes or Sizes.of_scale(self.scale)

    def calibration(self, gradient: float = 0.5) -> MPICalibration:
        """A simulated calibration, the same whatever the seed: that of training."""
        if gradient not in self._calibrations:
            self.progress(f"calibrating the scanner at {gradient} T/m", 0, 1)
            self._calibrations[gradient] = Scanner(gradient=gradient).calibrate(GRID, seed=0)
        return self._calibrations[gradient]

    def system(self, gradient: float = 0.5, *, upsampled: int = 1) -> MPISystem:
        """The whitened rows, on a grid ``upsampled`` times as fine."""
        system = prepare_system(self.calibration(gradient))
        return system if upsampled == 1 else system.upsampled(upsampled)

    def test_images(self, upsampled: int = 1) -> Images:
        """Vessels on the grid of a system."""
        shape = (upsampled * GRID.shape[0], upsampled * GRID.shape[1])
        counts: dict[str, Any] = {"test": self.amounts.test, "validation": self.amounts.validation, "seed": self.seed}
        if self.images == "generated":
            return generated_images(**counts, shape=shape)
        return vessel_images(None if self.images == "retina" else self.images, **counts, shape=shape)

    def weights(self, name: str) -> str:
        """Name of shipped weights or path of trained ones, after training them if need be."""
        if name in _weights.shipped() and self.scale == "quick":
            return name
        path = self.folder / "models" / name / "weights.safetensors"
        if not path.exists():
            self._train(name, path.parent)
        return str(path)

    def nearest(self, kind: str, snr_db: float) -> str:
        """Name of the model of a kind for an SNR; at ``"quick"`` scale a shipped one of another SNR will do."""
        name = f"{kind}-{snr_db:g}dB"
        if self.scale == "full" or name in _weights.shipped():
            return name
        others = [other for other in _weights.shipped() if other in RECIPES and other.rpartition("-")[0] == kind]
        return min(others, key=lambda other: abs(_level(other) - snr_db), default=name)

    def _train(self, name: str, folder: Path) -> None:
        from pyrecon.train import Config, Stage, train_deq_mpi

        if name not in RECIPES:
            raise DataError(f"model: {name!r}, expected one of {', '.join(RECIPES)}")
        recipe = RECIPES[name]
        changes = dict(recipe.changes)
        initial = None
        if recipe.initial is not None:
            initial = self.weights(recipe.initial)
            changes["denoiser"] = Stage(0)
        resume = (folder / "config.json").exists()
        config = None if resume else Config.of_scale(self.scale, recipe.role, **changes)
        train_deq_mpi(
            folder,
            None if resume else self.system(recipe.gradient, upsampled=recipe.upsampled),
            config,
            initial=None if resume else initial,
            resume=resume,
            report=lambda p: self.progress(f"{name}: {p.stage}, {p.quality:.1f} dB", p.step, p.steps),
        )


def _level(name: str) -> float:
    """The SNR in a model's name."""
    return float(name.rpartition("-")[2].removesuffix("dB"))
