"""Models of the paper on equivariant equilibria: how each is trained, on which images all are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon.experiments.ledger import Numbers
from pyrecon.experiments.search import Range, search
from pyrecon.experiments.study import Recipe, Scale, Sizes, Study
from pyrecon.interop.denoisers import deepinv_dncnn
from pyrecon.models.deq import LIMIT, DEGrad, DEProx, Equilibrium, for_inference, load
from pyrecon.solvers import ConvergenceWarning, Status
from pyrecon.train.equilibrium import Config, EquilibriumTraining, Model
from pyrecon.train.problem import Batch, Problem, draw, operator_of
from pyrecon.transforms import QuarterTurns

TASKS = ("mri", "ct")
SEEDS = 3
LAYERS = (1, 3, 5, 7)
TRAINED = ("id", "jfb", "unet", *(f"unrolled-{layers}" for layers in LAYERS))
LOSSES = ("supervised", "self")
_ONCE = ("unrolled-1", "unrolled-3", "unrolled-7")
_FORM = {"mri": "prox", "ct": "grad"}
# 48 x 48 pixels have a 44th of the samples of 320 x 320: at 8x, 288 of them are left for a whole head.
_QUICK: dict[str, dict[str, Any]] = {"mri": {"acceleration": 4.0}, "ct": {"angles": 16}}
# SURE in place of measurement consistency was no better in the one run that was made (21.8 against 21.9 dB, unrolled,
# 32 x 32, 4x).
SELF = {"mri": "ei", "ct": "ei"}


def _changes(kind: str) -> dict[str, Any]:
    name, _, layers = kind.partition("-")
    if name == "unrolled":
        return {"layers": int(layers)}
    return {"gradient": "jacobian-free"} if kind == "jfb" else {}


def _recipes(seeds: int) -> dict[str, Recipe]:
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
                for seed in range(seeds):
                    changes = own | _changes(kind) | {"seed": seed}
                    name = f"{task}-{loss}-{kind}-{seed}"
                    found[name] = Recipe(role, changes, initial=f"{task}-denoiser", quick=quick)
    return found


@dataclass
class EIDEQStudy(Study):
    """Models are trained in the study's folder. Tables have those of ``kinds``, ``seeds`` of each."""

    training = EquilibriumTraining
    begun: ClassVar[tuple[str, ...]] = ("denoiser",)

    kinds: tuple[str, ...] = TRAINED
    seeds: int = SEEDS
    _tests: dict[str, Batch] = field(default_factory=dict)

    @cached_property
    def recipes(self) -> Mapping[str, Recipe]:  # type: ignore[override]  # as many as there are seeds
        return _recipes(self.seeds)

    def sizes_of(self, scale: Scale) -> Sizes:
        """Test images, images and evaluations of the search for PnP and RED."""
        return Sizes(test=64, validation=16, budget=24, repeats=0) if scale == "quick" else Sizes(256, 32, 48, 0)

    def source(self, recipe: Recipe) -> None:
        """The data are made of nothing but the seed."""

    def config(self, recipe: Recipe) -> Config:
        """The study's seed sets the recipes' apart from those of another study."""
        config: Config = super().config(recipe)
        return replace(config, seed=config.seed + max(SEEDS, self.seeds) * self.seed)

    def test(self, task: str) -> Batch:
        """Test images with their measurements, the same for every model."""
        if task not in self._tests:
            config = self.config(self.recipes[f"{task}-supervised-id-0"])
            none = torch.zeros(0, *config.image_shape)
            self._tests[task] = Problem(config, none, none, operator_of(config)).test(self.amounts.test)
        return self._tests[task]

    def found(self, name: str) -> Tensor:
        """What the model of a recipe makes of the test measurements of its task."""
        return applied(self._loaded(name), self.test(name.partition("-")[0]))[0]

    def numbers(self, name: str) -> Numbers:
        """On the test images: ``psnr`` in dB, ``missed`` the share of equilibria that was not reached, and how
        equivariant the ``pipeline`` is and, of an equilibrium, its ``step``, dB."""

        def compute() -> Numbers:
            task, model = name.partition("-")[0], self._loaded(name)
            batch, physics = self.test(task), self.test(task).physics
            assert batch.images is not None
            images, missed = applied(model, batch)
            found = {"psnr": quality(images, batch), "missed": [missed]}

            def pipeline(x: Tensor) -> Tensor:  # measurements without noise
                return applied(model, replace(batch, images=None, y=physics(x)))[0]

            def step(x: Tensor) -> Tensor:  # of the equilibrium, from x with the data A x
                small = x / batch.scale
                with torch.no_grad():
                    moved: Tensor = model.step(small, physics.gram(small), physics) * batch.scale
                return moved

            found["pipeline"] = equivariance(pipeline, batch.images)
            if isinstance(model, Equilibrium):
                found["step"] = equivariance(step, batch.images)
            return found

        # Of the others nothing is iterated to a limit of the evaluation's own.
        evaluation = {"limit": LIMIT} if self.recipes[name].role == "deq" else None
        return self.ledger.numbers(name, self.settings(name), self.amounts.test, compute, evaluation)

    def seeds_of(self, kind: str) -> range:
        """Of the unrolled twins those with other than five layers are trained once at quick scale."""
        return range(1 if self.scale == "quick" and kind in _ONCE else self.seeds)

    def _loaded(self, name: str) -> Any:
        model = load(self.weights(name))
        if isinstance(model, Equilibrium):
            for_inference(model)
        return model

    def plug_and_play(self, task: str) -> Numbers:
        """``psnr`` of PnP or RED with a DnCNN that knows nothing of the task, with the ``strength`` and ``step`` that
        were best on other images; ``own`` is 1 where the DnCNN is not deepinv's."""

        def compute() -> Numbers:
            denoiser, own = self._denoiser(task)
            config = self.config(self.recipes[f"{task}-supervised-id-0"])
            truth = draw(config, "validation", 0, self.amounts.validation)
            batch = Problem(config, truth, truth, operator_of(config)).validation()

            def score(settings: dict[str, Any]) -> float:
                found = quality(applied(_plug_and_play(task, denoiser, settings), batch)[0], batch)
                return sum(found) / len(found)

            budget = self.amounts.budget
            best = search({"strength": Range(0.01, 1.0), "step": Range(0.2, 1.0)}, score, budget=budget).settings
            images, _ = applied(_plug_and_play(task, denoiser, best), self.test(task))
            settings = {name: [float(best[name])] for name in ("strength", "step")}
            return {"psnr": quality(images, self.test(task)), "own": [float(own)], **settings}

        evaluation = {"limit": LIMIT, "budget": self.amounts.budget, "validation": self.amounts.validation}
        name, settings = f"{task}-plug-and-play", self.settings(f"{task}-dncnn")
        return self.ledger.numbers(name, settings, self.amounts.test, compute, evaluation)

    def found_by_denoiser(self, task: str) -> Tensor:
        """The images of :meth:`plug_and_play`."""
        known = self.plug_and_play(task)
        settings = {name: known[name][0] for name in ("strength", "step")}
        return applied(_plug_and_play(task, self._denoiser(task)[0], settings), self.test(task))[0]

    def _denoiser(self, task: str) -> tuple[Any, bool]:
        """deepinv's, or our own."""
        known = deepinv_dncnn()
        return (load(self.weights(f"{task}-dncnn")).denoiser, True) if known is None else (known, False)


def _plug_and_play(task: str, denoiser: Any, settings: Mapping[str, Any]) -> Model:
    form = DEProx if _FORM[task] == "prox" else DEGrad
    return form(denoiser, strength=settings["strength"], step=settings["step"], tol=1e-3, max_iter=LIMIT)


def applied(model: Any, batch: Batch) -> tuple[Tensor, float]:
    """Images in the scale of the batch, nothing where an equilibrium is not finite; the share that was not reached."""
    scaled = batch.scaled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # tables say how many
        found = model.reconstruct(scaled.y, scaled.physics)
    missed = float((found.status != Status.CONVERGED).float().mean())
    return found.value.nan_to_num(0.0) * batch.scale, missed


def equivariance(f: Callable[[Tensor], Tensor], images: Tensor) -> list[float]:
    """PSNR of ``f(T x)`` against ``T f(x)`` for a quarter turn T, a peak of 1, per image, dB."""
    turn = QuarterTurns().by(1)
    values: list[float] = metrics.psnr(f(turn(images)), turn(f(images)), peak=1.0).tolist()
    return values


def quality(images: Tensor, batch: Batch) -> list[float]:
    """PSNR of every image against a peak of 1, of magnitudes, dB."""
    assert batch.images is not None
    shown = (images.abs(), batch.images.abs()) if images.is_complex() else (images, batch.images)
    values: list[float] = metrics.psnr(*shown, peak=1.0).tolist()
    return values
