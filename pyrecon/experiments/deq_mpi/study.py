"""What the tables and figures share: system matrices, images, and the recipes of the models they need.

The shipped models were trained with fewer steps, see their cards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyrecon.experiments.study as study
from pyrecon._errors import DataError
from pyrecon.data.mpi import GRID, MPISystem
from pyrecon.data.raw import MPICalibration
from pyrecon.experiments.mpi_data import Images, generated_images, measured_system, vessel_images
from pyrecon.experiments.study import Scale
from pyrecon.models.weights import shipped_weights
from pyrecon.physics.mpi import Scanner
from pyrecon.train.deq_mpi import DEQMPITraining
from pyrecon.train.mpi_data import Source

SNRS = (15.0, 25.0, 35.0)


@dataclass(frozen=True)
class Sizes(study.Sizes):
    """And iterations of DIP."""

    dip: int

    @classmethod
    def of_scale(cls, scale: Scale) -> Sizes:
        """``"quick"``: within an hour on two cores, where no model has to be trained. ``"full"``: as published."""
        quick = cls(test=64, validation=32, budget=48, dip=300, repeats=16)
        return quick if scale == "quick" else cls(test=3730, validation=256, budget=200, dip=20_000, repeats=100)


@dataclass(frozen=True)
class Recipe(study.Recipe):
    """And on which system matrix: its selection field in T/m, and by how much its grid is refined; and whether on
    patches of the study's angiogram."""

    selection_field: float = 0.5
    upsampled: int = 1
    angiogram: bool = False


# At "quick" scale. DEQ-MPI and what it is compared with see as many images, of the same vessels and scanners: half of
# the steps are of other scanners than the own. The model at 25 dB is the first of a kind; each other level begins with
# the next one to it.
_SCANNERS = 24
LEVELS = (5.0, *SNRS, 45.0)
_NEXT = {5.0: 15.0, 15.0: 25.0, 35.0: 25.0, 45.0: 35.0}
_FIRST = {"equilibrium": {"steps": 3700, "halve": 925}}
_NEXT_LEVEL = {"equilibrium": {"steps": 800, "rate": 5e-4, "halve": 200}}
_FIRST_ALONE = {"end_to_end": {"steps": 925, "halve": 231}}  # of four times as many images
_NEXT_ALONE = {"end_to_end": {"steps": 200, "rate": 5e-4, "halve": 50}}
# Networks that come from an equilibrium already gain most of what another system matrix asks for in few steps.
_FURTHER = {"equilibrium": {"steps": 300, "rate": 5e-4, "halve": 75}}


def penalty(snr_db: float) -> float:
    """Of the data's split: what reaches an equilibrium in the fewest steps at an SNR (see :class:`DEQMPI`)."""
    return 10.0 if snr_db < 30 else 25.0 if snr_db < 40 else 60.0


def _recipes() -> dict[str, Recipe]:
    recipes = {"denoiser": Recipe("denoiser")}
    for snr in LEVELS:
        level = f"{snr:g}dB"
        common = {"snr_db": snr, "penalty": penalty(snr)}
        travels = common | {"scanners": _SCANNERS}
        alone = {"snr_db": snr, "scanners": _SCANNERS}
        further, single = (_NEXT_LEVEL, _NEXT_ALONE) if snr in _NEXT else (_FIRST, _FIRST_ALONE)

        def before(kind: str, snr: float = snr) -> str:
            return f"{kind}-{_NEXT[snr]:g}dB" if snr in _NEXT else "denoiser"

        ball = f"deq-mpi-{level}"
        learned = common | {"consistency": "learned"}
        recipes |= {
            ball: Recipe("equilibrium", travels, initial=before("deq-mpi"), quick=further),
            f"unrolled-{level}": Recipe("unrolled", travels, initial=before("unrolled"), quick=further),
            f"end-to-end-{level}": Recipe("end-to-end", alone, initial=before("end-to-end"), quick=single),
            f"deq-mpi-learned-{level}": Recipe("equilibrium", learned, initial=ball, quick=_FURTHER),
            f"deq-mpi-26x52-{level}": Recipe("equilibrium", common, upsampled=2, initial=ball, quick=_FURTHER),
        }
    for strength in (0.3, 0.6):
        common = {"snr_db": 25.0, "penalty": penalty(25.0)}
        name = f"deq-mpi-{strength}T-25dB"
        recipes[name] = Recipe("equilibrium", common, selection_field=strength, initial="deq-mpi-25dB", quick=_FURTHER)
    return recipes


RECIPES = _recipes()


@dataclass
class Study(study.Study):
    """DEQ-MPI's: ``images`` are ``"generated"`` vascular trees, ``"retina"``, or a NIfTI angiogram.

    ``angiogram`` is a NIfTI volume to train on, ``released`` a file of weights that the authors released.
    """

    angiogram: Path | None = None
    released: Path | None = None
    _calibrations: dict[float, MPICalibration] = field(default_factory=dict)

    training = DEQMPITraining
    recipes: ClassVar[dict[str, Recipe]] = RECIPES
    begun = ("denoiser",)

    def sizes_of(self, scale: Scale) -> Sizes:
        return Sizes.of_scale(scale)

    def source(self, recipe: Recipe) -> Source:
        source = Source.of(self.system(recipe.selection_field, upsampled=recipe.upsampled))
        if not recipe.angiogram:
            return source
        if self.angiogram is None:
            raise DataError("--angiogram: a model is to be trained on one, expected a NIfTI volume")
        return source.with_images(self.angiogram)

    def calibration(self, selection_field: float = 0.5) -> MPICalibration:
        """A simulated calibration, the same whatever the seed: that of training."""
        if selection_field not in self._calibrations:
            self.progress(f"calibrating the scanner at {selection_field} T/m", 0, 1)
            self._calibrations[selection_field] = Scanner(gradient=selection_field).calibrate(GRID, seed=0)
        return self._calibrations[selection_field]

    def system(self, selection_field: float = 0.5, *, upsampled: int = 1) -> MPISystem:
        """The whitened rows, on a grid ``upsampled`` times as fine."""
        system = measured_system(self.calibration(selection_field))
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

    def nearest(self, kind: str, snr_db: float) -> str:
        """Name of the model of a kind for an SNR; at ``"quick"`` scale a shipped one of another SNR will do."""
        name = f"{kind}-{snr_db:g}dB"
        if self.scale == "full" or name in shipped_weights():
            return name
        others = [other for other in shipped_weights() if other in RECIPES and other.rpartition("-")[0] == kind]
        return min(others, key=lambda other: abs(_level(other) - snr_db), default=name)


def _level(name: str) -> float:
    """The SNR in a model's name."""
    return float(name.rpartition("-")[2].removesuffix("dB"))
