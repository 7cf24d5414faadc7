"""The models of the paper's figures, trained in the study's folder, and their maps of the test brains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrecon.data.tubes import TUBES, tubes
from pyrecon.experiments.ledger import Numbers
from pyrecon.experiments.maps import tissue_errors
from pyrecon.experiments.study import Recipe, Scale, Sizes, Study
from pyrecon.metrics import t1_errors
from pyrecon.models._map_network import MapNetwork
from pyrecon.models.map_rivals import load
from pyrecon.ops import SaturationRecovery, fit_voxels
from pyrecon.solvers import conjugate_gradient
from pyrecon.train.map_data import Batch, ScanConfig, as_pool, held_back, scanned, turned_coils
from pyrecon.train.pinqi import Config, PINQITraining, t1_of
from pyrecon.train.task import Diverged

SEEDS = 3
FIT = "sense-fit"  # CG-SENSE and a fit of its images: needs no training
_FIT_ITERATIONS = (5, 10, 20, 40)  # of CG-SENSE, the best of them on validation brains
_TEST_SEED = 10**6  # of the test brains, which no model's seed comes near
_TOGETHER = 8  # samples
# The phantom: coils, noise, delays in s of the reference and its conjugate gradients, which all lines make easy.
_COILS, _TUBE_NOISE = 32, 0.01
REFERENCE_DELAYS = (
    0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0,
)  # fmt: skip
_REFERENCE_ITERATIONS = 10

# Figure 5: label and what differs from PINQI's configuration.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "pinqi": ("PINQI", {}),
    "deept1": ("DeepT1", {"network": "deept1"}),
    "mantis": ("MANTIS", {"network": "mantis"}),
    "dopamine": ("DOPAMINE", {"network": "dopamine"}),
}
# Figure 6, with eight times.
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "pinqi-8": ("PINQI", {}),
    "networks-once": ("networks applied once", {"repeat": False}),
    "no-fit": ("no non-linear solver", {"fit": False}),
    "no-image-net": ("no regularisation of images", {"image_net": False}),
    "no-parameter-net": ("no regularisation of parameters", {"parameter_net": False}),
    "unrolled-network": ("unrolled reconstruction, then network", {"network": "unrolled"}),
    "end-to-end-fit": ("unrolled reconstruction, fit as a layer", {"network": "unrolled", "regression": "fit"}),
    "separate-fit": ("unrolled reconstruction, separate fit", {"network": "unrolled", "regression": "separate"}),
}


def name_of(kind: str, seed: int) -> str:
    return f"{kind}-{seed}"


@dataclass
class PINQIStudy(Study):
    """Models of the paper, trained in the study's folder: none ship.

    ``seeds`` models of every kind are trained, with other brains, scans and first weights each; the test brains and
    their scans are the same for all.
    """

    seeds: int = SEEDS

    training = PINQITraining

    def sizes_of(self, scale: Scale) -> Sizes:
        """Test brains; ``validation`` for the fit after CG-SENSE."""
        return Sizes(test=64 if scale == "quick" else 256, validation=16, budget=0, repeats=0)

    def source(self, recipe: Recipe) -> None:
        """The data are made of nothing but the seed."""

    @cached_property
    def recipes(self) -> Mapping[str, Recipe]:  # type: ignore[override]  # as many as there are seeds
        kinds = {kind: ("five", changes) for kind, (_, changes) in METHODS.items()}
        kinds |= {kind: ("eight", changes) for kind, (_, changes) in ABLATIONS.items()}
        return {
            name_of(kind, seed): Recipe(
                changes.get("network", "pinqi"), changes | {"times": times, "seed": self.seed + seed}
            )
            for kind, (times, changes) in kinds.items()
            for seed in range(self.seeds)
        }

    def config_of(self, kind: str) -> Config:
        """Of the first seed."""
        config: Config = self.config(self.recipes[name_of(kind, 0)])
        return config

    def test_set(self, times: str) -> tuple[Batch, Tensor]:
        """The same brains, masks and noise for every model of some times; and the classes of their pixels."""
        if times not in self._known:
            kind = "pinqi" if times == "five" else "pinqi-8"
            config = replace(self.config_of(kind), seed=_TEST_SEED + self.seed)
            self._known[times] = held_back(config, self.amounts.test)
        return self._known[times]

    @cached_property
    def _known(self) -> dict[str, tuple[Batch, Tensor]]:
        return {}

    def times_of(self, kind: str) -> str:
        return "five" if kind in METHODS or kind == FIT else "eight"

    def model(self, name: str) -> MapNetwork | None:
        """After training it if need be; None where training diverged."""
        try:
            return load(self.weights(name))
        except Diverged:
            return None

    def numbers(self, kind: str, seed: int) -> Numbers:
        """:func:`~pyrecon.metrics.t1_errors` of every test brain by name, those of tissues as ``"grey
        mae"``, ``"steps"`` and ``"curve"`` of validation in the last stage. Empty where training diverged."""
        name = name_of(kind, seed)

        def compute() -> Numbers:
            model = self.model(name)
            if model is None or model.card is None:
                return {}
            found = self._errors(mapped(model, self.test_set(self.times_of(kind))[0]), self.times_of(kind))
            points = model.card.training["curves"][self.config(self.recipes[name]).stages[-1]]
            return found | {
                "steps": [float(step) for step, _ in points],
                "curve": [float(value) for _, value in points],
            }

        return self.ledger.numbers(name, self.settings(name), self.amounts.test, compute, measure="nrmse")

    def results(self, kind: str) -> list[Numbers]:
        """Of all seeds whose training did not diverge."""
        found = (self.numbers(kind, seed) for seed in range(self.seeds))
        return [numbers for numbers in found if numbers]

    def fit_numbers(self, times: str) -> Numbers:
        """Of CG-SENSE and a fit."""

        def compute() -> Numbers:
            return self._errors(self.fitted(times), times)

        name = f"{FIT}-{times}"
        kind = "pinqi" if times == "five" else "pinqi-8"
        configs = {name: replace(self.config_of(kind), seed=_TEST_SEED + self.seed)}
        return self.ledger.numbers(name, configs, self.amounts.test, compute, measure="nrmse")

    def fitted(self, times: str) -> Tensor:
        """T1 ``(B, H, W)`` of CG-SENSE's images, with the iterations that are best on validation brains."""
        kind = "pinqi" if times == "five" else "pinqi-8"
        config = replace(self.config_of(kind), seed=_TEST_SEED + self.seed + 1)
        tuning, _ = held_back(config, self.amounts.validation)

        def cost(iterations: int) -> float:
            return float(t1_errors(sense_fit(tuning, iterations), *_truth(tuning))["nrmse"].mean())

        return sense_fit(self.test_set(times)[0], min(_FIT_ITERATIONS, key=cost))

    def _errors(self, t1: Tensor, times: str) -> Numbers:
        batch, labels = self.test_set(times)
        truth, inside = _truth(batch)
        found = {name: values.tolist() for name, values in t1_errors(t1, truth, inside).items()}
        for tissue, errors in tissue_errors(t1, truth, inside, labels).items():
            found |= {f"{tissue} {name}": values.tolist() for name, values in errors.items()}
        return found

    def tubes(self, seed: int) -> Numbers:
        """Of PINQI with five times on a scan of the nine tubes: ``"mean"`` and ``"std"`` of T1 in each, ``"reference"``
        and its ``"reference std"`` by a fully sampled scan. Empty where training diverged."""
        name = name_of("pinqi", seed)

        def compute() -> Numbers:
            model = self.model(name)
            if model is None:
                return {}
            config = replace(self.config_of("pinqi"), seed=_TEST_SEED + self.seed)
            batch, reference, regions = scan_tubes(config)
            found = {}
            for label, t1 in (("", mapped(model, batch)), ("reference ", sense_fit(reference, _REFERENCE_ITERATIONS))):
                values = [t1[regions == tube] for tube in range(len(TUBES))]
                found[f"{label}mean"] = [float(v.mean()) for v in values]
                found[f"{label}std"] = [float(v.std(correction=0)) for v in values]
            return found

        return self.ledger.numbers(f"tubes-{name}", self.settings(name), len(TUBES), compute, measure="mean")

    def curve(self, kind: str, seed: int) -> list[tuple[int, float]]:
        """Step and validation nRMSE in the last stage."""
        found = self.numbers(kind, seed)
        return [(int(s), v) for s, v in zip(found.get("steps", ()), found.get("curve", ()), strict=True)]

    def maps(self, kind: str) -> Tensor | None:
        """T1 ``(B, H, W)`` of the first seed's model; None where it is not here."""
        name = name_of(kind, 0)
        model = self.model(name) if self.is_here(name) else None
        return None if model is None else mapped(model, self.test_set(self.times_of(kind))[0])


@torch.no_grad()
def mapped(model: MapNetwork, batch: Batch) -> Tensor:
    """T1 ``(B, H, W)`` in seconds."""
    parts = (model(part.k, part.physics, part.times) for part in batch.parts(_TOGETHER))
    return torch.cat([t1_of(found.parameters[-1]) for found in parts])


@torch.no_grad()
def sense_fit(batch: Batch, iterations: int) -> Tensor:
    """T1 ``(B, H, W)`` of a fit to the images of so many conjugate gradients."""
    found = []
    for part in batch.parts(_TOGETHER):
        right = part.physics.adjoint(part.k)
        images = conjugate_gradient(part.physics.gram, right, rtol=0.0, max_iter=iterations).value
        found.append(t1_of(fit_voxels(SaturationRecovery(), images, part.times, bounds=(0.05, 20.0)).value))
    return torch.cat(found)


def scan_tubes(config: ScanConfig) -> tuple[Batch, Batch, Tensor]:
    """The phantom with the scanner's times and lines, and with all lines at 18 delays, both with 32 coils; the number
    of the tube of every pixel ``(1, H, W)`` that is one pixel at least from its border, -1 elsewhere."""
    found = tubes(config.shape, seed=config.seed)
    known = torch.from_numpy(as_pool(found))
    config = replace(config, coils=_COILS, noise_low=_TUBE_NOISE, noise_high=_TUBE_NOISE)
    maps = turned_coils(config)[:1]
    batch = scanned(config, known, maps, 0)
    whole = scanned(config, known, maps, 1, seconds=REFERENCE_DELAYS, acceleration=1.0)
    labels = torch.from_numpy(found.labels).float()[:, None]
    most, least = F.max_pool2d(labels, 3, 1, 1), -F.max_pool2d(-labels, 3, 1, 1)
    return batch, whole, torch.where(most == least, labels, -1.0)[:, 0]


def _truth(batch: Batch) -> tuple[Tensor, Tensor]:
    """T1 and where it counts."""
    return 1 / batch.parameters[:, 0], batch.inside[:, 0]
