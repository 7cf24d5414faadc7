"""``pyrecon train pinqi``: T1 maps from undersampled k-space of generated brains. Configuration, data, stages, card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.data.brains import brains
from pyrecon.linops import Sense
from pyrecon.models.pinqi import PINQI
from pyrecon.models.weights import Card, find_weights
from pyrecon.physics.mri import coil_maps
from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, Stage, setting
from pyrecon.train.problem import generator_of
from pyrecon.train.run import Drawn, Training
from pyrecon.train.task import Outcome, Quality, Task

ROLE = "maps"
# Saturation times of the paper, seconds.
TIMES: dict[str, tuple[float, ...]] = {
    "five": (0.5, 1.0, 1.5, 2.0, 8.0),
    "eight": (0.5, 0.7, 0.9, 1.1, 1.3, 1.6, 2.0, 8.0),
}
_WIDTHS = (1, 2, 3, 4, 4)  # of the networks' resolutions, in units of the first
_ORIENTATIONS = 32  # of the coils
_CHOSEN, _SCANS, _MIXTURE, _VALIDATION = 700, 701, 702, 2**20
_PARTS = 4  # numbers a pixel in the pool: 1 / T1, M0 as re and im, inside


@dataclass(frozen=True)
class Config(RunConfig):
    """A training run.

    Attributes
    ----------
    size, coils, times
        Pixels along an axis, receive coils, and the saturation times.
    acceleration, centre
        Lines per one taken, and how many are always taken; the others are drawn with density ``exp(-2.5 t^2) + 1/16``,
        t from -1 to 1, for every image anew.
    noise_low, noise_high
        Deviation of the noise in real and imaginary part, drawn for every sample; M0 is about 1.
    iterations, width, image_width, image_net, fit, repeat
        Of :class:`~pyrecon.models.PINQI`; widths are those of the first resolution, published 32 and 16.
    prior
        First weight of P's suggestion; published 3.
    earlier, outside
        Weights in the loss of iterations before the last, and of pixels that are not brain.
    improvement, suggestion, splitting
        The stages: Y alone, from the first images to clean ones; P alone, from mixtures of both to parameters; all.
    """

    validate_every: int = setting(50, "--validate-every", "Steps between validations.", least=1)

    size: int = setting(96, "--size", "Pixels along an axis.", least=8, most=1024)
    coils: int = setting(6, "--coils", "Receive coils.", least=1, most=256)
    times: Literal["five", "eight"] = setting("five", "--times", "Saturation times of the paper.")
    acceleration: float = setting(4.0, "--acceleration", "Lines per one taken.", least=1, most=64)
    centre: int = setting(10, "--centre", "Lines that are always taken.", least=0, most=1024)
    noise_low: float = setting(0.001, "", "Of the noise, which is drawn between.", least=0, most=10)
    noise_high: float = setting(0.04, "--noise", "Largest noise.", least=0, most=10)
    pool: int = setting(512, "--pool", "Brains to train on.", least=1)
    validation: int = setting(16, "--validation", "Brains to validate on.", least=1)
    iterations: int = setting(3, "--iterations", "Of both minima.", least=1, most=64)
    width: int = setting(8, "", "First width of P.", least=1, most=256)
    image_width: int = setting(8, "", "First width of Y.", least=1, most=256)
    image_net: bool = setting(True, "", "False: without Y.")
    fit: bool = setting(True, "", "False: P's suggestion in the place of the fit.")
    repeat: bool = setting(True, "", "False: the networks act in the first iteration alone.")
    prior: float = setting(0.1, "", "First weight of P's suggestion.", above=0)
    earlier: float = setting(0.05, "", "Weight of earlier iterations in the loss.", least=0)
    outside: float = setting(0.01, "", "Weight of pixels that are not brain.", least=0)
    improvement: Stage = setting(Stage(200, batch=4, rate=2e-3, halve=80, clip=1.0), "--image-steps", "Of Y alone.")
    suggestion: Stage = setting(Stage(200, batch=8, rate=2e-3, halve=80, clip=1.0), "--parameter-steps", "Of P alone.")
    splitting: Stage = setting(Stage(400, batch=4, rate=2e-3, halve=120, clip=1.0), "--steps", "Of everything.")

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """``"quick"`` in an hour or two on two cores, ``"full"`` with the published networks and sizes."""
        config = super().of_scale(scale, role, **changes)
        if scale == "full":
            published = {
                "size": 192, "coils": 8, "acceleration": 8.0, "centre": 8, "pool": 8000, "validation": 64,
                "iterations": 5, "width": 32, "image_width": 16, "prior": 3.0, "validate_every": 500,
            }  # fmt: skip
            config = replace(config, **(published | changes))
            config = config.with_stage("improvement", steps=0)
            config = config.with_stage("suggestion", steps=2000, batch=16, rate=3e-4, halve=0)
            config = config.with_stage("splitting", steps=40_000, batch=16, rate=4e-3, halve=8000)
        return config if config.image_net else config.with_stage("improvement", steps=0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def seconds(self) -> tuple[float, ...]:
        return TIMES[self.times]


@dataclass(frozen=True)
class Batch:
    """Scans of brains that are known: parameters ``(B, 3, H, W)`` (1 / T1, M0), clean images ``(B, T, H, W)``."""

    k: Tensor
    physics: Sense
    times: Tensor
    parameters: Tensor
    images: Tensor
    inside: Tensor


@dataclass
class Data:
    """Brains ``(N, 4, H, W)``, first those to train on, and coil maps ``(32, C, H, W)``."""

    config: Config
    pool: Tensor
    held_out: Tensor
    maps: Tensor

    def to(self, device: torch.device) -> Data:
        return replace(self, pool=self.pool.to(device), held_out=self.held_out.to(device), maps=self.maps.to(device))

    def batch(self, step: int, count: int) -> Batch:
        """Random brains, scanned anew."""
        generator = generator_of(self.config.seed, _CHOSEN, step)
        chosen = torch.randint(len(self.pool), (count,), generator=generator)
        return scanned(self.config, self.pool[chosen.to(self.pool.device)], self.maps, step)

    def validation(self) -> Batch:
        """The held-out brains, with the same scans at all times."""
        return scanned(self.config, self.held_out, self.maps, _VALIDATION)


def scanned(config: Config, known: Tensor, maps: Tensor, step: int) -> Batch:
    """Brains of a pool in random coils, on random lines of every image, with noise: a function of the step."""
    generator, count = generator_of(config.seed, _SCANS, step), len(known)
    turned = torch.randint(len(maps), (count,), generator=generator)
    masks = lines(config, count * len(config.seconds), generator).view(count, -1, 1, config.size, 1)
    physics = Sense(maps[turned.to(maps.device)][:, None], masks.to(maps.device))
    times = torch.tensor(config.seconds).to(known)
    parameters = known[:, :3]
    factor = torch.complex(parameters[:, 1], parameters[:, 2])
    images = factor[:, None] * -torch.expm1(-times.view(1, -1, 1, 1) * parameters[:, :1])
    clean = physics(images)
    low, high = config.noise_low, config.noise_high
    level = low + (high - low) * torch.rand(count, 1, 1, 1, 1, generator=generator)
    noise = level * torch.view_as_complex(torch.randn(*clean.shape, 2, generator=generator))
    k = clean + physics.mask * noise.to(clean)
    return Batch(k, physics, times, parameters, images, known[:, 3:] > 0.5)


def lines(config: Config, count: int, generator: torch.Generator) -> Tensor:
    """``(count, H)``: 1 where a line is taken."""
    n, centre = config.size, config.centre
    wanted = max(round(n / config.acceleration), centre)
    middle = torch.arange(n) - n // 2
    inner = (middle >= -(centre // 2)) & (middle < centre - centre // 2)
    density = torch.exp(-2.5 * (middle / (n / 2)) ** 2) + 1 / 16
    # The largest of random numbers to the power of 1 / density: without replacement, by the density.
    keys = torch.rand(count, n, generator=generator).clamp(min=1e-12).log() / density
    keys = torch.where(inner, torch.inf, keys)
    mask = torch.zeros(count, n)
    return mask.scatter_(1, keys.topk(wanted, dim=1).indices, 1.0)


def error(parameters: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
    """nRMSE of T1 over the brain, ``|T1 - ref| / |ref|``, per sample."""
    t1, known = 1 / parameters[:, :1].clamp(min=1e-3), 1 / truth[:, :1]
    square = torch.where(inside, (t1 - known).square(), 0.0).flatten(1).sum(1)
    return (square / torch.where(inside, known.square(), 0.0).flatten(1).sum(1)).sqrt()


# --- stages ----------------------------------------------------------------------------------------------------------
class _Stage(Task):
    def compared(self, parameters: Tensor, batch: Batch) -> Tensor:
        weight = batch.inside + self.data.config.outside * ~batch.inside
        value: Tensor = (weight * (parameters - batch.parameters).square()).mean()
        return value


class Improvement(_Stage):
    """``|Y(y) - y*|^2`` of the first images. Quality: nRMSE of the images."""

    name = "improvement"
    measure = Quality("nRMSE", "", higher=False)

    @property
    def part(self) -> nn.Module:
        part: nn.Module = self.model.image_net
        return part

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch)
        change = self._improved(batch) - batch.images
        value: Tensor = change.real.square().mean() + change.imag.square().mean()
        return value

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        norms = [v.abs().square().flatten(1).sum(1) for v in (self._improved(batch) - batch.images, batch.images)]
        return {"quality": float((norms[0] / norms[1]).sqrt().mean())}

    def _improved(self, batch: Batch) -> Tensor:
        first: Tensor = self.model.first(batch.k, batch.physics)
        improved: Tensor = self.model.improve(first, 1 / self.model.iterations)
        return improved


class Suggestion(_Stage):
    """P on mixtures of the first images and clean ones. Quality: nRMSE of T1, of mixtures from none to all clean."""

    name = "suggestion"
    measure = Quality("T1 nRMSE", "", higher=False)

    @property
    def part(self) -> nn.Module:
        part: nn.Module = self.model.parameter_net
        return part

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch)
        share = torch.rand(self.stage.batch, generator=generator_of(self.data.config.seed, _MIXTURE, step))
        return self.compared(self._suggested(batch, share.to(batch.parameters)), batch)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        share = torch.linspace(0, 1, len(batch.k)).to(batch.parameters)
        return {"quality": float(error(self._suggested(batch, share), batch.parameters, batch.inside).mean())}

    def _suggested(self, batch: Batch, share: Tensor) -> Tensor:
        """``share`` of clean images; the iteration is told as if it had brought them."""
        first = self.model.first(batch.k, batch.physics)
        mixed = first + share.view(-1, 1, 1, 1) * (batch.images - first)
        suggestion: Tensor = self.model.suggest(mixed, 2 * share)
        return suggestion


class Splitting(_Stage):
    """The parameters of the last iteration, those of earlier ones by ``earlier``. Quality: nRMSE of T1."""

    name = "splitting"
    measure = Quality("T1 nRMSE", "", higher=False)

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch)
        *before, last = self.model(batch.k, batch.physics, batch.times).parameters
        loss = self.compared(last, batch)
        weight = self.data.config.earlier
        return (
            loss + weight * sum((self.compared(p, batch) for p in before), torch.zeros_like(loss)) if weight else loss
        )

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        found = self.model(batch.k, batch.physics, batch.times).parameters
        values = {"quality": float(error(found[-1], batch.parameters, batch.inside).mean())}
        return values | {"first": float(error(found[0], batch.parameters, batch.inside).mean())}

    def watched(self) -> dict[str, Tensor]:
        """The share of samples whose linear system was not solved, and the splitting's weights."""
        last = self.model.consistency.last
        named = zip(("l_q", "l_p", "l_y"), self.model.weights[-1].detach(), strict=True)
        return dict(named) | ({} if last is None else {"unsolved": 1 - last.converged.double().mean()})


# --- a run -----------------------------------------------------------------------------------------------------------
class PINQITraining(Training):
    """PINQI on generated brains."""

    config: Config

    name = "pinqi"
    settings = Config
    tasks = (Improvement, Suggestion, Splitting)
    models: ClassVar[Mapping[str, Any]] = {"pinqi": "pinqi"}

    @classmethod
    def pretrained(cls, name: str | Path) -> PINQI:
        return PINQI.load(find_weights(name))

    def data(self, drawn: Drawn) -> Data:
        config = self.config
        if config.noise_low > config.noise_high:
            raise DataError(f"noise_low: {config.noise_low}, expected at most noise_high, {config.noise_high}")
        if config.centre > config.size:
            raise DataError(f"centre: {config.centre} lines, the images have {config.size}")

        def part(first: int, count: int) -> NDArray[np.float32]:
            """Each part by a stream of its own: held-out brains do not depend on the pool's size."""
            inside = max(0, min(count, config.pool - first))
            found = [_drawn(config, 0, first, inside)] if inside else []
            if inside < count:
                found.append(_drawn(config, 1, max(0, first - config.pool), count - inside))
            return np.concatenate(found)

        total = config.pool + config.validation
        pool = kept_pool(self.folder / "pool.npy", total, (_PARTS, *config.shape), part, drawn, chunk=32)
        turns = np.random.default_rng((config.seed, _SCANS)).uniform(0, 2 * np.pi, _ORIENTATIONS)
        maps = torch.cat([coil_maps(config.shape, config.coils, turn=float(turn)) for turn in turns])
        return Data(config, pool[: config.pool], pool[config.pool :], maps)

    def model(self, initial: Path | None) -> PINQI:
        model = new_model(self.config)
        if initial is not None:
            known = PINQI.load(initial)
            try:
                model.load_state_dict(known.state_dict())
            except RuntimeError:
                raise DataError(f"{initial}: its networks are others than the configuration says") from None
            model.card = known.card
        return model

    def finish(self, model: PINQI, data: Data, outcomes: dict[str, Outcome]) -> None:
        config = self.config
        facts: dict[str, Any] = {"config": asdict(config)}
        facts["quality"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {name: [list(point) for point in outcome.history] for name, outcome in outcomes.items()}
        about = {
            "task": "t1", "images": "brains", "times": list(config.seconds), "coils": config.coils,
            "acceleration": config.acceleration, "noise_std": config.noise_high,
        }  # fmt: skip
        if model.card is not None:
            facts["initial"] = model.card.training
        model.card = Card(model.system, ROLE, config.shape, about, plain(facts))


def new_model(config: Config) -> PINQI:
    """With random weights of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return PINQI(
            len(config.seconds), iterations=config.iterations, weights=(0.1, config.prior, 0.1),
            widths=tuple(config.width * k for k in _WIDTHS), image_net=config.image_net, fit=config.fit,
            image_widths=tuple(config.image_width * k for k in _WIDTHS), repeat=config.repeat,
        )  # fmt: skip


def _drawn(config: Config, part: int, first: int, count: int) -> NDArray[np.float32]:
    found = brains(count, config.shape, seed=2 * config.seed + part, first=first)
    return np.stack((1 / found.t1, found.m0.real, found.m0.imag, found.inside), axis=1).astype(np.float32)
