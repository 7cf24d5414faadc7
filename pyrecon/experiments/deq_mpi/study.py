"""What the tables and figures share: system matrices, images, and the trained models they need.

A model is shipped with the package, or it is trained once into the study's folder as :data:`RECIPES` says (the shipped
ones with fewer steps, see their cards); an interrupted training goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyrecon._errors import DataError
from pyrecon.data.mpi import MPISystem, prepare_system
from pyrecon.data.raw import MPICalibration
from pyrecon.experiments.mpi import GRID, Images, generated_images, vessel_images
from pyrecon.models.deq_mpi import Role
from pyrecon.models.weights import shipped_weights
from pyrecon.physics.mpi import Scanner

if TYPE_CHECKING:
    from pyrecon.train import Config

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

    def on_grid(self, upsampled: int) -> Sizes:
        """A search on ``upsampled^2`` times the voxels has as many times fewer images, for the same time."""
        return replace(self, validation=max(1, self.validation // upsampled**2))


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: what differs from :meth:`pyrecon.train.Config.of_scale`, on which system matrix, from
    which other model's networks. ``without`` names stages that are left out, ``quick`` has further changes at
    ``"quick"`` scale, those of single stages as mappings."""

    role: Role
    changes: dict[str, Any] = field(default_factory=dict)
    gradient: float = 0.5
    upsampled: int = 1
    initial: str | None = None
    without: tuple[str, ...] = ()
    quick: dict[str, Any] = field(default_factory=dict)


# Networks that come from an equilibrium already gain most of what another SNR or system matrix asks for in 200 steps.
_FURTHER = {"equilibrium": {"steps": 200, "rate": 5e-4, "halve": 50}}
_FIVE_STEPS = {"equilibrium": {"steps": 400, "halve": 100}}
_ALONE = {"end_to_end": {"steps": 600, "halve": 150}}
LEVELS = (5.0, *SNRS, 45.0)
# The model at 25 dB is the first; each other level begins with the next one to it.
_NEXT = {5.0: 15.0, 15.0: 25.0, 35.0: 25.0, 45.0: 35.0}


def penalty(snr_db: float) -> float:
    """Of the data's split: what reaches an equilibrium in the fewest steps at an SNR (see :class:`DEQMPI`)."""
    return 10.0 if snr_db < 30 else 25.0 if snr_db < 40 else 60.0


def _recipes() -> dict[str, Recipe]:
    recipes = {"denoiser": Recipe("denoiser")}
    for snr in LEVELS:
        level = f"{snr:g}dB"
        common = {"snr_db": snr, "penalty": penalty(snr)}
        ball = f"deq-mpi-{level}"
        if snr in _NEXT:
            recipes[ball] = Recipe("equilibrium", common, initial=f"deq-mpi-{_NEXT[snr]:g}dB", quick=_FURTHER)
        else:
            recipes[ball] = Recipe("equilibrium", common, initial="denoiser")
        learned = common | {"consistency": "learned"}
        recipes |= {
            f"deq-mpi-learned-{level}": Recipe("equilibrium", learned, initial=ball, quick=_FURTHER),
            f"deq-mpi-26x52-{level}": Recipe("equilibrium", common, upsampled=2, initial=ball, quick=_FURTHER),
            f"unrolled-{level}": Recipe("unrolled", common, initial="denoiser", quick=_FIVE_STEPS),
            f"end-to-end-{level}": Recipe("end-to-end", {"snr_db": snr}, initial="denoiser", quick=_ALONE),
        }
    for gradient in (0.3, 0.6):
        common = {"snr_db": 25.0, "penalty": penalty(25.0)}
        name = f"deq-mpi-{gradient}T-25dB"
        recipes[name] = Recipe("equilibrium", common, gradient, initial="deq-mpi-25dB", quick=_FURTHER)
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
        counts: dict[str, Any] = {
            "test": self.amounts.test,
            "validation": self.amounts.on_grid(upsampled).validation,
            "seed": self.seed,
        }
        if self.images == "generated":
            return generated_images(**counts, shape=shape)
        return vessel_images(None if self.images == "retina" else self.images, **counts, shape=shape)

    def weights(self, name: str) -> str:
        """Name of shipped weights or path of trained ones, after training them if need be."""
        if name in shipped_weights() and self.scale == "quick":
            return name
        if name not in RECIPES:
            raise DataError(f"model: {name!r}, expected one of {', '.join(RECIPES)}")
        return self.trained(name, RECIPES[name])

    def trained(self, name: str, recipe: Recipe) -> str:
        """Path of weights that are trained in the study's folder, as a recipe says, if they are not there."""
        path = self.folder / "models" / name / "weights.safetensors"
        if not path.exists():
            self._train(name, recipe, path.parent)
        return str(path)

    def nearest(self, kind: str, snr_db: float) -> str:
        """Name of the model of a kind for an SNR; at ``"quick"`` scale a shipped one of another SNR will do."""
        name = f"{kind}-{snr_db:g}dB"
        if self.scale == "full" or name in shipped_weights():
            return name
        others = [other for other in shipped_weights() if other in RECIPES and other.rpartition("-")[0] == kind]
        return min(others, key=lambda other: abs(_level(other) - snr_db), default=name)

    def config(self, recipe: Recipe) -> Config:
        """The schedule of a recipe at the study's scale."""
        from pyrecon.train import Config

        config = Config.of_scale(self.scale, recipe.role, **recipe.changes)
        if self.scale == "quick":
            for name, value in recipe.quick.items():
                mapping = isinstance(value, dict)
                config = config.with_stage(name, **value) if mapping else replace(config, **{name: value})
        left_out = recipe.without if recipe.initial is None else ("denoiser", *recipe.without)
        for stage in left_out:
            config = config.with_stage(stage, steps=0)
        return config

    def _train(self, name: str, recipe: Recipe, folder: Path) -> None:
        from pyrecon.train import train_deq_mpi

        resume = (folder / "config.json").exists()
        initial = None if resume or recipe.initial is None else self.weights(recipe.initial)
        train_deq_mpi(
            folder,
            None if resume else self.system(recipe.gradient, upsampled=recipe.upsampled),
            None if resume else self.config(recipe),
            initial=initial,
            resume=resume,
            report=lambda p: self.progress(f"{name}: {p.stage}, {p.quality:.1f} dB", p.step, p.steps),
        )


def _level(name: str) -> float:
    """The SNR in a model's name."""
    return float(name.rpartition("-")[2].removesuffix("dB"))
