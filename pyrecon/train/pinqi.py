"""``pyrecon train pinqi``: PINQI, its ablations and its rivals on generated brains. Configuration, stages, card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.io.brainweb import read_brainweb
from pyrecon.metrics import t1_errors
from pyrecon.models._map_network import Iterates, MapNetwork
from pyrecon.models.map_rivals import DOPAMINE, MANTIS, DeepT1, Regression, UnrolledMaps, load
from pyrecon.models.pinqi import PINQI
from pyrecon.models.weights import Card
from pyrecon.train.config import Cosine, setting
from pyrecon.train.map_data import Batch, Data, ScanConfig, make_data
from pyrecon.train.problem import generator_of
from pyrecon.train.run import Drawn, Option, Training
from pyrecon.train.task import Outcome, Quality, Task

ROLE = "maps"
Network = Literal["pinqi", "unrolled", "deept1", "mantis", "dopamine"]
_WIDTHS = (1, 2, 3, 4, 4)  # of PINQI's networks' resolutions, in units of the first
_RIVAL_WIDTHS = (1, 2, 4, 8, 8, 8)  # of the rivals', of which DeepT1 has five
_RATE_BOUNDS = (0.05, 20.0)
_MIXTURE = 702
_START_WEIGHT = 0.2  # of DOPAMINE's first parameters in its loss

# Steps of the stages (improvement, reconstruction, suggestion, mapping): all models see as many samples.
_QUICK: dict[str, tuple[int, int, int, int]] = {
    "pinqi": (100, 0, 100, 500),
    "unrolled": (0, 150, 0, 550),
    "deept1": (0, 350, 0, 350),
    "mantis": (0, 0, 0, 700),
    "dopamine": (0, 0, 100, 600),
}
_FULL: dict[str, tuple[int, int, int, int]] = {
    "pinqi": (0, 0, 500, 40_000),
    "unrolled": (0, 3000, 0, 37_500),
    "deept1": (0, 20_250, 0, 20_250),
    "mantis": (0, 0, 0, 40_500),
    "dopamine": (0, 0, 500, 40_000),
}
# The best of trials of the whole schedule at 48 x 48 pixels. DOPAMINE at 3e-3 took three times as long.
_RATES = {"pinqi": 4e-3, "unrolled": 4e-3, "deept1": 3e-3, "mantis": 1e-3, "dopamine": 1e-2}
_OTHER_RATES = {("deept1", "reconstruction"): 1e-3}
_PUBLISHED_RATES = {"pinqi": 4e-3, "unrolled": 4e-3, "deept1": 1e-4, "mantis": 1e-3, "dopamine": 1e-4}


@dataclass(frozen=True)
class Config(ScanConfig):
    """A training run; the scanner's settings are those of :class:`~pyrecon.train.map_data.ScanConfig`.

    Attributes
    ----------
    network
        What is trained; ``--model`` of the command line sets it.
    iterations, width, image_width, image_net, parameter_net, fit, repeat
        Of :class:`~pyrecon.models.PINQI`, and of the others as far as they have them; widths are those of the first
        resolution, published 32 and 16. DOPAMINE always has ten iterations.
    rival_width
        First width of the networks of DeepT1, MANTIS and DOPAMINE; published 64.
    regression
        Of :class:`~pyrecon.models.map_rivals.UnrolledMaps`; ``"separate"``: a fit, and trained on images alone.
    prior
        First weight of P's suggestion; published 3.
    weight_rate
        Rate of the learned weights as a share of the networks'; published 1/4. They do not decay.
    earlier, outside
        Weights in the loss of iterations before the last, and of pixels that are not brain.
    data_loss
        MANTIS: weight of the data in its loss.
    improvement, reconstruction, suggestion, mapping
        The stages: Y alone, from the first images to clean ones; the unrolled images of DeepT1 and of
        ``unrolled``; P alone, from mixtures of both to parameters, or DOPAMINE's first ones; all, or what is left of
        DeepT1.
    """

    network: Network = setting("pinqi", "", "What is trained; --model sets it.")
    iterations: int = setting(3, "--iterations", "Of both minima.", least=1, most=64)
    width: int = setting(8, "", "First width of P.", least=1, most=256)
    image_width: int = setting(8, "", "First width of Y.", least=1, most=256)
    rival_width: int = setting(24, "", "First width of the rivals' networks.", least=1, most=256)
    image_net: bool = setting(True, "", "False: without Y.")
    parameter_net: bool = setting(True, "", "False: without P.")
    fit: bool = setting(True, "", "False: P's suggestion in the place of the fit.")
    repeat: bool = setting(True, "", "False: the networks act in the first iteration alone.")
    regression: Literal["network", "fit", "separate"] = setting("network", "", "unrolled: what maps come from.")
    prior: float = setting(0.1, "", "First weight of P's suggestion.", above=0)
    weight_rate: float = setting(2.0, "", "Rate of the learned weights, in rates of the networks.", above=0)
    earlier: float = setting(0.05, "", "Weight of earlier iterations in the loss.", least=0)
    outside: float = setting(0.01, "", "Weight of pixels that are not brain.", least=0)
    data_loss: float = setting(0.01, "", "MANTIS: weight of the data in the loss.", least=0)
    improvement: Cosine = setting(Cosine(100, batch=4, rate=2e-3, clip=1.0), "--image-steps", "Of Y alone.")
    reconstruction: Cosine = setting(Cosine(0, batch=4, rate=2e-3, clip=1.0), "", "Of unrolled images.")
    suggestion: Cosine = setting(Cosine(100, batch=4, rate=2e-3, clip=1.0), "--parameter-steps", "Of P alone.")
    mapping: Cosine = setting(Cosine(500, batch=4, rate=2e-3, clip=1.0), "--steps", "Of everything.")

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """``"quick"`` in a quarter of an hour on a core, ``"full"`` with the published networks and sizes."""
        network = role or changes.get("network", "pinqi")
        published: dict[str, Any] = {}
        if scale == "full":
            published = {
                "size": 192, "coils": 8, "acceleration": 8.0, "centre": 8, "pool": 8000, "validation": 64,
                "iterations": 5, "width": 32, "image_width": 16, "rival_width": 64, "prior": 3.0, "weight_rate": 0.25,
                "validate_every": 500,
            }  # fmt: skip
        config = super().of_scale(scale, role, **published | {"network": network} | changes)
        steps, rate, batch = (
            (_QUICK, _RATES[network], 4) if scale == "quick" else (_FULL, _PUBLISHED_RATES[network], 16)
        )
        names = config.stage_names()
        counts = dict(zip(names, steps[network], strict=True))
        # Steps of what a model does not have go to everything; those of a fit that is no layer to the images.
        for name, there in (("improvement", config.image_net), ("suggestion", config.parameter_net)):
            if not there:
                counts["mapping"] += counts[name]
                counts[name] = 0
        if network == "unrolled" and config.regression == "separate":
            counts["reconstruction"] += counts["mapping"]
            counts["mapping"] = 0
        decay = 0.01 if network in ("pinqi", "unrolled", "dopamine") else 0.0
        for name in names:
            own = _OTHER_RATES.get((network, name), rate) if scale == "quick" else rate
            stage = Cosine(counts[name], batch=batch, rate=own, clip=1.0, warm_up=counts[name] // 20, decay=decay)
            config = config if name in changes else config.with_stage(name, **asdict(stage))
        return config


# --- stages ----------------------------------------------------------------------------------------------------------
class _Stage(Task):
    measure = Quality("T1 nRMSE", "", higher=False)
    model: MapNetwork
    data: Data

    @property
    def config(self) -> Config:
        config = self.data.config
        assert isinstance(config, Config)
        return config

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Learned weights at a rate of their own, without decay."""
        weights: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.part.named_parameters():
            (weights if name == "raw_weights" else others).append(parameter)
        found: list[dict[str, Any]] = [{"params": others}]
        if weights:
            found.append({"params": weights, "share": self.config.weight_rate, "weight_decay": 0.0})
        return found

    def compared(self, found: Tensor, known: Tensor, batch: Batch, power: int = 2) -> Tensor:
        """Mean of ``|found - known|^power``, less of what is not brain."""
        weight = batch.inside + self.config.outside * ~batch.inside
        value: Tensor = (weight * (found - known).abs().pow(power)).mean()
        return value

    def mapped(self, batch: Batch) -> Iterates:
        found: Iterates = self.model(batch.k, batch.physics, batch.times)
        return found

    def errors(self, parameters: Tensor, batch: Batch) -> float:
        truth, inside = 1 / batch.parameters[:, 0], batch.inside[:, 0]
        return float(t1_errors(t1_of(parameters), truth, inside)["nrmse"].mean())


class Improvement(_Stage):
    """``|Y(y) - y*|^2`` of PINQI's first images. Quality: nRMSE of the images."""

    name = "improvement"
    measure = Quality("nRMSE", "", higher=False)

    @property
    def part(self) -> nn.Module:
        part = self.model.image_net
        assert isinstance(part, nn.Module)
        return part

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch)
        return self.compared(self._improved(batch), batch.images, batch)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        return {"quality": _distance(self._improved(batch), batch.images)}

    def _improved(self, batch: Batch) -> Tensor:
        assert isinstance(self.model, PINQI)
        first = self.model.first(batch.k, batch.physics, self.model.first_iterations)
        return self.model.improve(first, 1 / self.model.iterations)


class Reconstruction(_Stage):
    """The images of the last iteration, ``|y - y*|^2``; DeepT1: ``||y| - |y*||``. Quality: nRMSE of the images."""

    name = "reconstruction"
    measure = Quality("nRMSE", "", higher=False)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Without the network of parameters."""
        network = getattr(self.model, "parameter_net", None)
        others = set(network.parameters()) if isinstance(network, nn.Module) else set()
        return [group | {"params": [p for p in group["params"] if p not in others]} for group in super().groups]

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch)
        images = self._reconstructed(batch)
        if self.model.phase:
            return self.compared(images, batch.images, batch)
        return self.compared(images.abs(), batch.images.abs(), batch, power=1)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        images = self._reconstructed(batch)
        if self.model.phase:
            return {"quality": _distance(images, batch.images)}
        return {"quality": _distance(images.abs(), batch.images.abs())}

    def _reconstructed(self, batch: Batch) -> Tensor:
        run = self.model.reconstructed if isinstance(self.model, DeepT1) else self.model
        return run(batch.k, batch.physics, batch.times).images[-1]


class Suggestion(_Stage):
    """P on mixtures of the first images and clean ones; DOPAMINE: its first parameters. Quality: nRMSE of T1, of
    mixtures from none to all clean."""

    name = "suggestion"

    @property
    def part(self) -> nn.Module:
        part = self.model.start_net if isinstance(self.model, DOPAMINE) else self.model.parameter_net
        assert isinstance(part, nn.Module)
        return part

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch)
        share = torch.rand(self.stage.batch, generator=generator_of(self.config.seed, _MIXTURE, step))
        return self.compared(self._suggested(batch, share.to(batch.parameters)), batch.parameters, batch)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        share = torch.linspace(0, 1, len(batch.k)).to(batch.parameters)
        return {"quality": self.errors(self._suggested(batch, share), batch)}

    def _suggested(self, batch: Batch, share: Tensor) -> Tensor:
        """``share`` of clean images; the iteration is told as if it had brought them."""
        if isinstance(self.model, DOPAMINE):
            return self.model.began(batch.k, batch.physics)
        assert isinstance(self.model, PINQI)
        first = self.model.first(batch.k, batch.physics, self.model.first_iterations)
        mixed = first + share.view(-1, 1, 1, 1) * (batch.images - first)
        return self.model.suggest(mixed, 2 * share)


class Everything(_Stage):
    """The parameters of the last iteration, those of earlier ones by ``earlier``. Quality: nRMSE of T1."""

    name = "mapping"

    @property
    def part(self) -> nn.Module:
        return self.model.parameter_net if isinstance(self.model, DeepT1) else self.model

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch)
        known = batch.targets(self.model.phase)
        *before, last = self.mapped(batch).parameters
        if isinstance(self.model, DeepT1):
            return self.compared(last, known, batch, power=1)
        loss = self.compared(last, known, batch)
        if isinstance(self.model, MANTIS):
            return loss + self.config.data_loss * self._misfit(last, batch)
        if isinstance(self.model, DOPAMINE):
            return loss + _START_WEIGHT * self.compared(before[0], known, batch)
        for parameters in before if self.config.earlier else ():
            loss = loss + self.config.earlier * self.compared(parameters, known, batch)
        return loss

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        found = self.mapped(batch).parameters
        return {"quality": self.errors(found[-1], batch), "first": self.errors(found[0], batch)}

    def watched(self) -> dict[str, Tensor]:
        """The share of samples whose linear system was not solved, and the last iteration's weights."""
        found: dict[str, Tensor] = {}
        if isinstance(self.model, PINQI):
            found |= dict(zip(("l_q", "l_p", "l_y"), self.model.weights[-1].detach(), strict=True))
        elif isinstance(self.model, UnrolledMaps):
            found["l"] = self.model.weights[-1].detach()
        solved = getattr(self.model, "consistency", None)
        if solved is not None and solved.last is not None:
            found["unsolved"] = 1 - solved.last.converged.double().mean()
        return found

    def _misfit(self, parameters: Tensor, batch: Batch) -> Tensor:
        """Of the data, where lines were taken or not, as MANTIS has it."""
        bounded = torch.cat((parameters[:, :1].clamp(*_RATE_BOUNDS), parameters[:, 1:].clamp(-2, 2)), dim=1)
        misfit = batch.physics(self.model.signal(bounded, batch.times)) - batch.k
        value: Tensor = torch.view_as_real(misfit).square().mean()
        return value


def t1_of(parameters: Tensor) -> Tensor:
    """``(B, H, W)`` in seconds, from 0.05 to 20 s: what a network says may be no rate at all."""
    return 1 / parameters[:, 0].clamp(*_RATE_BOUNDS)


def _distance(images: Tensor, known: Tensor) -> float:
    norms = [v.abs().square().flatten(1).sum(1) for v in (images - known, known)]
    return float((norms[0] / norms[1]).sqrt().mean())


# --- a run -----------------------------------------------------------------------------------------------------------
class PINQITraining(Training):
    """PINQI or a rival on generated brains."""

    config: Config

    name = "pinqi"
    settings = Config
    tasks = (Improvement, Reconstruction, Suggestion, Everything)
    models: ClassVar[Mapping[str, Any]] = {name: name for name in _QUICK}
    options = (
        Option("--brainweb", Path, None, "Folder of BrainWeb's segmentations, for brains that are not generated."),
    )

    @classmethod
    def new_source(cls, seed: int, options: Mapping[str, Any]) -> Path | None:
        folder: Path | None = options["brainweb"]
        for _ in () if folder is None else read_brainweb(folder):
            pass  # each is judged before the run begins
        return folder

    @classmethod
    def kept(cls, source: Path | None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return None if source is None else ({}, {"brainweb": str(source.resolve())})

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Path | None:
        return Path(facts["brainweb"]) if facts else None

    @classmethod
    def pretrained(cls, name: str | Path) -> MapNetwork:
        return load(name)

    def data(self, drawn: Drawn) -> Data:
        config = self.config
        ablated = [name for name in ("image_net", "parameter_net", "fit", "repeat") if not getattr(config, name)]
        if ablated and config.network != "pinqi":
            raise DataError(f"{ablated[0]}: false, which is an ablation of pinqi; this is {config.network}")
        if config.regression != "network" and config.network != "unrolled":
            raise DataError(f"regression: {config.regression}, which is for unrolled; this is {config.network}")
        wrong = {"improvement": config.network == "pinqi" and config.image_net}
        wrong["reconstruction"] = config.network in ("unrolled", "deept1")
        wrong["suggestion"] = config.network == "dopamine" or (config.network == "pinqi" and config.parameter_net)
        for name, has in wrong.items():
            if getattr(config, name).steps and not has:
                raise DataError(f"{name}: this {config.network} has nothing to train there; say {name}.steps=0")
        return make_data(config, self.folder, drawn, self.source)

    def model(self, initial: Path | None) -> MapNetwork:
        model = new_model(self.config)
        if initial is not None:
            known = load(initial)
            try:
                model.load_state_dict(known.state_dict())
            except RuntimeError:
                raise DataError(f"{initial}: its networks are others than the configuration says") from None
            model.card = known.card
        return model

    def finish(self, model: MapNetwork, data: Data, outcomes: dict[str, Outcome]) -> None:
        config = self.config
        facts: dict[str, Any] = {"config": asdict(config)}
        facts["quality"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {name: [list(point) for point in outcome.history] for name, outcome in outcomes.items()}
        images = "brains" if self.source is None else "brainweb"
        about = {
            "task": "t1", "network": config.network, "images": images, "times": list(config.seconds),
            "coils": config.coils, "acceleration": config.acceleration, "noise_std": config.noise_high,
        }  # fmt: skip
        if model.card is not None:
            facts["initial"] = model.card.training
        model.card = Card(model.system, ROLE, config.shape, about, plain(facts))


def new_model(config: Config) -> MapNetwork:
    """With random weights of the seed."""
    count, wide = len(config.seconds), config.rival_width
    common: dict[str, Any] = {
        "iterations": config.iterations, "widths": tuple(config.width * k for k in _WIDTHS),
        "image_widths": tuple(config.image_width * k for k in _WIDTHS),
    }  # fmt: skip
    rival = tuple(wide * k for k in _RIVAL_WIDTHS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        match config.network:
            case "unrolled":
                regression: Regression = "network" if config.regression == "network" else "fit"
                return UnrolledMaps(count, regression=regression, **common)
            case "deept1":
                return DeepT1(count, iterations=config.iterations, width=wide, widths=rival[:5])
            case "mantis":
                return MANTIS(count, widths=rival)
            case "dopamine":
                return DOPAMINE(count, width=wide)
        return PINQI(
            count, weights=(0.1, config.prior, 0.1), image_net=config.image_net, parameter_net=config.parameter_net,
            fit=config.fit, repeat=config.repeat, **common,
        )  # fmt: skip
