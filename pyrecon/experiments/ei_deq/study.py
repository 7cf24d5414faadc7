"""Models of the paper on equivariant equilibria: how each is trained, on which images all are compared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon.experiments.search import Range, search
from pyrecon.experiments.study import Recipe, Scale, Sizes, Study
from pyrecon.models.deq import DEGrad, DEProx, load
from pyrecon.solvers import ConvergenceWarning, Status
from pyrecon.train.equilibrium import Config, EquilibriumTraining, Model
from pyrecon.train.problem import Batch, Problem, draw, operator_of

TASKS = ("mri", "ct")
SEEDS = (0, 1, 2)
LAYERS = (1, 3, 5, 7)
TRAINED = ("id", "jfb", "unet", *(f"unrolled-{layers}" for layers in LAYERS))
LOSSES = ("supervised", "self")
_FORM = {"mri": "prox", "ct": "grad"}
# 48 x 48 pixels have a 44th of the samples of 320 x 320: at 8x, 288 of them are left for a whole head.
_QUICK: dict[str, dict[str, Any]] = {"mri": {"acceleration": 4.0}, "ct": {"angles": 16}}
# SURE in place of measurement consistency was no better at this noise (21.8 against 21.9 dB, unrolled, 32 x 32, 4x).
SELF = {"mri": "ei", "ct": "ei"}


def _changes(kind: str) -> dict[str, Any]:
    name, _, layers = kind.partition("-")
    if name == "unrolled":
        return {"layers": int(layers)}
    return {"gradient": "jacobian-free"} if kind == "jfb" else {}


def _recipes() -> dict[str, Recipe]:
    """``"ct-self-id-0"``: task, loss, model, seed. All of a task begin with one denoiser, ``"ct-denoiser"``."""
    found = {}
    for task in TASKS:
        base = {"task": task, "form": _FORM[task]}
        quick = _QUICK[task]
        found[f"{task}-denoiser"] = Recipe("denoiser", base, quick=quick)
        found[f"{task}-dncnn"] = Recipe("denoiser", base | {"network": "dncnn", "width": 32}, quick=quick)
        for loss in LOSSES:
            own = base | {"loss": "supervised" if loss == "supervised" else SELF[task]}
            for kind in TRAINED:
                role = "unrolled" if kind.startswith("unrolled") else "unet" if kind == "unet" else "deq"
                for seed in SEEDS:
                    changes = own | _changes(kind) | {"seed": seed}
                    name = f"{task}-{loss}-{kind}-{seed}"
                    found[name] = Recipe(role, changes, initial=f"{task}-denoiser", quick=quick)
    return found


@dataclass
class EIDEQStudy(Study):
    """Models are trained in the study's folder: none ship. ``kinds`` and ``seeds`` are those that tables have."""

    training = EquilibriumTraining
    recipes: ClassVar[Mapping[str, Recipe]] = _recipes()
    begun: ClassVar[tuple[str, ...]] = ("denoiser",)

    kinds: tuple[str, ...] = TRAINED
    seeds: tuple[int, ...] = SEEDS
    # Of every model's equilibria, the share that was not reached.
    missed: dict[str, float] = field(default_factory=dict)
    _found: dict[str, Tensor] = field(default_factory=dict)
    _tests: dict[str, Batch] = field(default_factory=dict)

    def sizes_of(self, scale: Scale) -> Sizes:
        """Test images, images and evaluations of the search for PnP and RED."""
        return Sizes(test=64, validation=16, budget=24, repeats=0) if scale == "quick" else Sizes(256, 32, 48, 0)

    def source(self, recipe: Recipe) -> None:
        """The data are made of nothing but the seed."""

    def config(self, recipe: Recipe) -> Config:
        """The study's seed sets the recipes' apart from those of another study."""
        config: Config = super().config(recipe)
        return replace(config, seed=config.seed + len(SEEDS) * self.seed)

    def test(self, task: str) -> Batch:
        """Test images with their measurements, the same for every model."""
        if task not in self._tests:
            config = self.config(self.recipes[f"{task}-supervised-id-0"])
            none = torch.zeros(0, *config.image_shape)
            self._tests[task] = Problem(config, none, none, operator_of(config)).test(self.amounts.test)
        return self._tests[task]

    def found(self, name: str) -> Tensor:
        """What the model of a recipe makes of the test measurements of its task."""
        if name not in self._found:
            model, batch = load(self.weights(name)), self.test(name.partition("-")[0])
            self._found[name], self.missed[name] = applied(model, batch)
        return self._found[name]

    def quality(self, name: str) -> list[float]:
        """PSNR of every test image, dB."""
        return quality(self.found(name), self.test(name.partition("-")[0]))

    def with_denoiser(self, task: str) -> tuple[Tensor, dict[str, Any]]:
        """PnP or RED with a DnCNN that knows nothing of the task, and the settings that were best on other images."""
        config = self.config(self.recipes[f"{task}-supervised-id-0"])
        denoiser = load(self.weights(f"{task}-dncnn")).denoiser
        truth = draw(config, "validation", 0, self.amounts.validation)
        problem = Problem(config, truth, truth, operator_of(config))
        batch = problem.validation()
        assert batch.images is not None
        form = DEProx if _FORM[task] == "prox" else DEGrad

        def model(settings: Mapping[str, Any]) -> Model:
            return form(denoiser, strength=settings["strength"], step=settings["step"], tol=1e-3, max_iter=100)

        def score(settings: dict[str, Any]) -> float:
            found = quality(applied(model(settings), batch)[0], batch)
            return sum(found) / len(found)

        budget = self.amounts.budget
        best = search({"strength": Range(0.01, 1.0), "step": Range(0.2, 1.0)}, score, budget=budget).settings
        return applied(model(best), self.test(task))[0], best


def applied(model: Any, batch: Batch) -> tuple[Tensor, float]:
    """Images in the scale of the batch, nothing where an equilibrium is not finite; the share that was not reached."""
    scaled = batch.scaled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # tables say how many
        found = model.reconstruct(scaled.y, scaled.physics)
    missed = float((found.status != Status.CONVERGED).float().mean())
    return found.value.nan_to_num(0.0) * batch.scale, missed


def quality(images: Tensor, batch: Batch) -> list[float]:
    """PSNR of every image against a peak of 1, of magnitudes, dB."""
    assert batch.images is not None
    shown = (images.abs(), batch.images.abs()) if images.is_complex() else (images, batch.images)
    values: list[float] = metrics.psnr(*shown, peak=1.0).tolist()
    return values
