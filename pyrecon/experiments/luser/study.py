"""The models of the paper's tables, trained in the study's folder, and their images of the test set."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrecon.experiments.ledger import Numbers
from pyrecon.experiments.study import Recipe, Scale, Sizes, Study
from pyrecon.models._data_step import Reconstructor
from pyrecon.models.luser import load
from pyrecon.train.luser import Config, LUSERTraining, physics_of, psnr, ssim
from pyrecon.train.problem import Batch, Problem, make_problem
from pyrecon.train.task import Diverged

LABELS = {"lu-dncnn": "LU-DnCNN", "deq4ip": "DEQ4IP", "luser-sw": "LUSER-SW", "luser-dw": "LUSER-DW"}
TASKS: dict[str, dict[str, Any]] = {
    "deblur": {"task": "deblur"},
    "ct": {"task": "ct", "noise_std": 0.01},
    "mri-4x": {"task": "mri", "acceleration": 4.0, "noise_std": 0.01},
    "mri-8x": {"task": "mri", "acceleration": 8.0, "noise_std": 0.01},
}
ROWS = tuple((network, loss) for network in LABELS for loss in ("final", "aux") if (network, loss) != ("deq4ip", "aux"))
SEEDS = 3
_AUXILIARY = {"final": 0.0, "aux": 1.0}


def name_of(task: str, network: str, loss: str, seed: int) -> str:
    return f"{task}-{network}-{loss}-{seed}"


@dataclass(frozen=True)
class Result:
    """Of one trained model on the test images: ``(images,)`` each, and whether its equilibria were reached."""

    psnr: np.ndarray[Any, np.dtype[np.float64]]
    ssim: np.ndarray[Any, np.dtype[np.float64]]
    converged: float


@dataclass
class LUSERStudy(Study):
    """Models of the paper, trained in the study's folder: none ship.

    ``seeds`` models of every kind are trained, with other images, noise and first weights each; the test images are the
    same for all.
    """

    seeds: int = SEEDS

    training = LUSERTraining

    def sizes_of(self, scale: Scale) -> Sizes:
        """Test images; nothing is searched."""
        return Sizes(test=64 if scale == "quick" else 256, validation=0, budget=0, repeats=0)

    def source(self, recipe: Recipe) -> None:
        """The data are made of nothing but the seed."""

    @cached_property
    def recipes(self) -> Mapping[str, Recipe]:  # type: ignore[override]  # as many as there are seeds
        return {
            name_of(task, network, loss, seed): Recipe(
                network, changes | {"auxiliary": _AUXILIARY[loss], "seed": self.seed + seed}
            )
            for task, changes in TASKS.items()
            for network, loss in ROWS
            for seed in range(self.seeds)
        }

    def config_of(self, task: str, network: str = "luser-dw") -> Config:
        """Of the first seed, final loss."""
        config: Config = self.config(Recipe(network, TASKS[task] | {"seed": self.seed}))
        return config

    def model(self, name: str) -> Reconstructor | None:
        """After training it if need be; None where training diverged."""
        try:
            return load(self.weights(name))
        except Diverged:
            return None

    def test_set(self, task: str) -> Batch:
        """The same images, masks and noise for every model of a task."""
        config = self.config_of(task)
        return problem_of(config, self.folder / "test").test(self.amounts.test).scaled()

    def numbers(self, name: str) -> Numbers:
        """``psnr`` and ``ssim`` of the test images, ``converged`` the share of them whose equilibria were reached,
        ``steps`` and ``curve`` of validation, ``unsolved`` the share of solves in training that ended at their limit,
        forward or backward. Empty where training diverged."""

        def compute() -> Numbers:
            model = self.model(name)
            if model is None or model.card is None:
                return {}
            task, network, _ = self._split(name)
            images, converged = self._reconstructed(model, task)
            config, truth = self.config_of(task, network), self.test_set(task).images
            assert truth is not None
            points = model.card.training["curves"]["reconstruction"]
            logged = _logged(self.folder / "models" / name / "reconstruction", ("unsolved", "unsolved_backward"))
            shares = list(logged)
            return {
                "psnr": psnr(config, images, truth).tolist(),
                "ssim": ssim(config, images, truth).tolist(),
                "converged": [converged],
                "steps": [float(step) for step, _ in points],
                "curve": [float(value) for _, value in points],
                "unsolved": [float(np.mean(shares))] if shares else [],
            }

        return self.ledger.numbers(name, self.settings(name), self.amounts.test, compute)

    def reconstructed(self, name: str) -> Tensor | None:
        """What a model makes of the test set; None where it is not here."""
        model = self.model(name) if self.is_here(name) else None
        return None if model is None else self._reconstructed(model, self._split(name)[0])[0]

    def result(self, task: str, network: str, loss: str, seed: int) -> Result | None:
        """None where training diverged."""
        found = self.numbers(name_of(task, network, loss, seed))
        if not found:
            return None
        return Result(np.array(found["psnr"]), np.array(found["ssim"]), found["converged"][0])

    def results(self, task: str, network: str, loss: str) -> list[Result]:
        """Of all seeds whose training did not diverge."""
        found = (self.result(task, network, loss, seed) for seed in range(self.seeds))
        return [result for result in found if result is not None]

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Step and validation PSNR."""
        found = self.numbers(name)
        return [(int(s), v) for s, v in zip(found.get("steps", ()), found.get("curve", ()), strict=True)]

    def unsolved(self, name: str) -> float | None:
        """Mean share of solves that ended at their limit in training, forward or backward; None where none are made."""
        share = self.numbers(name).get("unsolved", [])
        return share[0] if share else None

    def _reconstructed(self, model: Reconstructor, task: str) -> tuple[Tensor, float]:
        found, converged = [], []
        for part in parts(self.test_set(task), 16):
            solution = model.reconstruct(part.y, physics_of(model, part))
            found.append(solution.value)
            converged.append(solution.converged)
        return torch.cat(found), float(torch.cat(converged).double().mean())

    def _split(self, name: str) -> tuple[str, str, str]:
        """Task, network and loss of a recipe."""
        return next((t, n, loss) for t in TASKS for n, loss in ROWS if name.startswith(f"{t}-{n}-{loss}-"))


def problem_of(config: Config, folder: Path) -> Problem:
    """Without images to train on."""
    from dataclasses import replace

    folder = folder / f"{config.task}-{config.size}"
    folder.mkdir(parents=True, exist_ok=True)
    return make_problem(replace(config, pool=1, validation=1), folder)


def parts(batch: Batch, count: int) -> Iterator[Batch]:
    """Of at most ``count`` samples, each with the masks that are its own."""
    from pyrecon.linops import Fourier

    assert batch.images is not None
    for first in range(0, len(batch.y), count):
        rows = slice(first, first + count)
        physics = batch.physics
        if isinstance(physics, Fourier) and len(physics.mask) > 1:
            height, width = physics.domain_shape
            physics = Fourier(physics.mask[rows], (height, width))
        scale = batch.scale[rows] if len(batch.scale) > 1 else batch.scale
        yield Batch(batch.images[rows], batch.y[rows], physics, scale)


def _logged(folder: Path, names: tuple[str, ...]) -> Iterator[float]:
    for path in sorted(folder.glob("log/*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield from (float(row[name]) for name in names if row.get(name))
