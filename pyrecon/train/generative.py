"""``pyrecon train generative``: a generative prior by maximum likelihood, on magnitude images alone.

The gradient of the likelihood is that of ``mean R(data) - mean R(samples)``, and samples are persistent chains of
Langevin steps: Zach, Knoll, Pock, Stable deep MRI reconstruction using generative priors, 2023, sections 2.1 and 2.4.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon._errors import DataError, MissingDependency
from pyrecon._plain import plain
from pyrecon.data.magnitudes import Kind, draw_magnitudes
from pyrecon.io import written_whole
from pyrecon.io.folders import ImageFolder, Part
from pyrecon.models.generative import LEVELS, ROLE, GenerativePrior
from pyrecon.models.weights import Card, find_weights
from pyrecon.ops import langevin_step
from pyrecon.train._files import kept_pool
from pyrecon.train._replay import Replay
from pyrecon.train.config import Halved, RunConfig, Stage, setting
from pyrecon.train.problem import FolderTraining, generator_of
from pyrecon.train.run import Drawn
from pyrecon.train.task import DivergenceWarning, Outcome, Task

Images = Literal["mixed", "anatomy", "heads", "knees", "textures", "folder"]
_KINDS: dict[str, tuple[Kind, ...]] = {
    "mixed": ("heads", "knees", "textures"),
    "anatomy": ("heads", "knees"),
    "heads": ("heads",),
    "knees": ("knees",),
    "textures": ("textures",),
}
# Streams of random numbers.
_CHOSEN, _DATA, _START, _VALIDATION = range(4)
_CENTRAL = 11  # slices of a volume, as published
_LOOK = 10  # steps between two looks at the signs of divergence
_SHOWN = 16  # chains in a picture


@dataclass(frozen=True)
class Config(RunConfig):
    """A training run of the prior.

    Attributes
    ----------
    size, width, growth, absolute
        Of the network: :class:`~pyrecon.nn.EnergyNet`.
    images
        What the images show; ``"folder"``: files of the user's, of volumes the central 11 slices.
    pool, validation
        Images drawn for the run.
    step, noise_std
        Of a Langevin step ``u - step/2 grad R + noise_std xi``.
    langevin, ramp
        Steps a chain takes at update h: ``ceil(langevin (1 - exp(-h / ramp)))``.
    buffer, buffer_file
        Chains that persist, in memory or in a file of the run.
    renewed, patience
        Chance of a chain to begin anew at a visit, from the pixels of an image in random order or from an image; and
        its visits before it counts in the loss. Those that a run begins with count at once.
    smoothing
        Standard deviation of the noise that is added to data.
    score, score_noise
        Times ``mean |smoothing / T grad R(x + s n) - n|^2``, n white and s from smoothing to ``score_noise``, as often
        in every octave. At s = smoothing it is denoising score matching, whose minimum is that of the likelihood; from
        further away the gradient points at the data as steeply, which chains from noise take long to teach, and
        Langevin steps go there straight. Where R is constant it is 1. 0, as published: the likelihood alone.
    regulariser
        Times ``mean R(data)^2 + mean R(samples)^2``, which holds energies near 0.
    gradient_clip
        Bound on the norm of an image's gradient in a Langevin step; 0: none.
    energy
        The updates. Its ``clip`` bounds the gradient of the weights.
    """

    size: int = setting(32, "--size", "Pixels along an axis.", least=8, most=1024)
    width: int = setting(8, "--width", "Channels that the network begins with.", least=1, most=1024)
    growth: float = setting(2.0, "", "Of its channels from stage to stage.", least=1, most=4)
    absolute: bool = setting(False, "", "The energy's absolute value, as published.")
    images: Images = setting("mixed", "--images", "What the images show.")
    pool: int = setting(1024, "--pool", "Training images.", least=1)
    validation: int = setting(16, "--validation", "Validation images.", least=1, most=4096)
    step: float = setting(4.0, "", "Of Langevin: u - step/2 grad R.", above=0, most=1e6)
    noise_std: float = setting(0.02, "", "Of its noise.", above=0, most=10)
    langevin: int = setting(20, "--langevin", "Langevin steps an update, in the end.", least=1, most=100_000)
    ramp: float = setting(300.0, "", "Updates over which they grow to that.", above=0, most=1e9)
    buffer: int = setting(256, "--buffer", "Chains that persist.", least=1, most=10_000_000)
    buffer_file: bool = setting(False, "", "Chains in a file, not in memory.")
    renewed: float = setting(0.02, "", "Chance of a chain to begin anew.", least=0, most=1)
    patience: int = setting(5, "", "Visits of a new chain before it counts.", least=0, most=2**30)
    smoothing: float = setting(0.03, "", "Noise added to data.", above=0, most=10)
    score: float = setting(1.0, "--score", "Weight of denoising score matching.", least=0, most=1e6)
    score_noise: float = setting(0.5, "", "Largest noise of score matching.", above=0, most=10)
    regulariser: float = setting(1.0, "", "Weight of the energies' squares.", least=0, most=1e6)
    gradient_clip: float = setting(1.0, "", "Bound on an image's gradient in a Langevin step.", least=0, most=1e9)
    energy: Halved = setting(
        Halved(1000, batch=16, rate=1e-3, clip=1.0, at=(300, 500, 700, 850, 1000)), "--steps", "Updates."
    )

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """``"quick"``: 32 pixels in minutes on one core. ``"full"``: as published, for a GPU and weeks."""
        own: dict[str, Any] = {}
        if scale == "full":
            own = {
                "size": 320, "width": 48, "growth": 1.75, "absolute": True, "pool": 5324, "validation": 64,
                "step": 2.0, "noise_std": 7.5e-3, "langevin": 500, "ramp": 1000.0, "buffer": 8000, "buffer_file": True,
                "renewed": 0.01, "patience": 0, "smoothing": 0.015, "score": 0.0, "regulariser": 0.0,
                "gradient_clip": 0.0, "validate_every": 500,
                "energy": Halved(27_000, batch=50, rate=5e-4, method="adabelief"),
            }  # fmt: skip
        return super().of_scale(scale, role, **own | changes)

    def langevin_at(self, step: int) -> int:
        """Langevin steps of update ``step``, counted from 0."""
        return math.ceil(self.langevin * -math.expm1(-(step + 1) / self.ramp))


@dataclass
class Data:
    """Images ``(P, size, size)`` from 0 to 1 to train on and held out, and where the run keeps its files."""

    config: Config
    pool: Tensor
    held_out: Tensor
    folder: Path

    def to(self, device: torch.device) -> Data:
        return replace(self, pool=self.pool.to(device), held_out=self.held_out.to(device))

    def generator(self, stream: int, step: int) -> torch.Generator:
        return generator_of(self.config.seed, stream, step)


# --- the updates -----------------------------------------------------------------------------------------------------
class Energy(Task):
    """``mean R(data) - mean R(samples)``, and a regulariser.

    Quality: the PSNR of held-out images from a third of their Fourier coefficients, at random places and without
    noise: the energy's minimum among all images with those coefficients. No weight of a data term is fitted for it, and
    it asks what a prior is for, where the gap of the energies says only whether sampling keeps up.
    """

    name = "energy"

    def __init__(self, model: GenerativePrior, data: Data, stage: Stage) -> None:
        super().__init__(model, data, stage)
        self._replay: Replay | None = None
        self._watched: dict[str, Tensor] = {}
        self._step = 0  # updates done
        self.signs = Signs()

    @property
    def replay(self) -> Replay:
        """Made when it is first asked for: a stage that is done needs none."""
        if self._replay is None:
            config, pool = self.data.config, self.data.pool
            path = self.data.folder / "replay.npy" if config.buffer_file else None

            def draw(first: int, count: int) -> Tensor:  # half of them data
                generator = self.data.generator(_START, first)
                images = pool[torch.randint(len(pool), (count,), generator=generator).to(pool.device)].cpu()
                return torch.where((torch.arange(count) % 2 == 0)[:, None, None], images, permuted(images, generator))

            self._replay = Replay(config.buffer, config.size, draw, visits=config.patience, path=path)
        return self._replay

    def state(self) -> dict[str, Tensor]:
        return self.replay.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.replay.load_state(state)

    def saved(self) -> None:
        self.replay.saved()

    def loss(self, step: int) -> Tensor:
        config, model, count = self.data.config, self.model, self.stage.batch
        generator = self.data.generator(_DATA, step)
        images = self._data(count, generator)
        clean = images
        images = images + config.smoothing * torch.randn(images.shape, generator=generator).to(images.device)
        samples, counted, facts = self._sampled(step)
        watching = step % _LOOK == 0
        images.requires_grad_(watching)
        energies: Tensor = model.energy(torch.cat((images, samples)))
        data, drawn = energies[:count], energies[count:]
        loss = data.mean() - (counted * drawn).sum()
        if config.regulariser:
            loss = loss + config.regulariser * (data.square().mean() + (counted * drawn.square()).sum())
        if watching:
            (slope,) = torch.autograd.grad(data.sum(), images, retain_graph=True)
            facts["gradient_data"] = slope.flatten(1).norm(dim=1).mean()
        if config.score:
            error = self._score_error(clean, generator)
            facts["score_error"] = error.detach()
            loss = loss + config.score * error
        known, found = data.detach(), drawn.detach()
        gap = found.mean() - known.mean()
        facts |= {"energy_data": known.mean(), "energy_samples": found.mean()}
        facts["gap"] = gap / (known.var(correction=0) + found.var(correction=0)).sqrt().clamp(min=1e-12)
        if watching:
            for text in self.signs.look({name: float(value) for name, value in facts.items()}):
                warnings.warn(f"step {step}: {text}", DivergenceWarning, stacklevel=2)
        self._watched |= facts
        self._step = step + 1
        return loss

    def watched(self) -> dict[str, Tensor]:
        slopes = [p.grad.norm() for p in self.part.parameters() if p.grad is not None]
        return self._watched | {"gradient_weights": torch.stack(slopes).norm()} if slopes else self._watched

    def _score_error(self, images: Tensor, generator: torch.Generator) -> Tensor:
        config = self.data.config
        share = torch.rand(len(images), 1, 1, generator=generator)
        level = config.smoothing * max(config.score_noise / config.smoothing, 1.0) ** share
        unit = torch.randn(images.shape, generator=generator)
        noisy = (images + (level * unit).to(images.device)).requires_grad_()
        (slope,) = torch.autograd.grad(self.model.energy(noisy).sum(), noisy, create_graph=True)
        error: Tensor = config.smoothing / self.model.temperature * slope - unit.to(images.device)
        return error.square().mean()

    def _data(self, count: int, generator: torch.Generator) -> Tensor:
        pool: Tensor = self.data.pool
        return pool[torch.randint(len(pool), (count,), generator=generator).to(pool.device)]

    def _sampled(self, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Chains after their steps, the weight of each in the loss, and what is watched."""
        config, replay, count = self.data.config, self.replay, self.stage.batch
        generator = self.data.generator(_CHOSEN, step)
        chosen = torch.randperm(config.buffer, generator=generator)[:count]
        samples = replay.read(chosen)
        anew = torch.rand(count, generator=generator) < config.renewed
        if anew.any():
            fresh = self._data(count, generator).cpu()
            whole = (torch.rand(count, generator=generator) < 0.5)[:, None, None]
            fresh = torch.where(whole, fresh, permuted(fresh, generator))
            samples = torch.where(anew[:, None, None], fresh, samples)
            replay.visits[chosen[anew]] = 0
        samples = samples.to(self.data.pool.device)
        steps = config.langevin_at(step)
        clipped = torch.zeros((), device=samples.device)
        norm = clipped
        for j in range(steps):
            slope = self.model.gradient(samples)
            norms = slope.flatten(1).norm(dim=1)
            norm = norms.mean()
            if config.gradient_clip:
                clipped = clipped + (norms > config.gradient_clip).float().mean()
                slope *= (config.gradient_clip / norms.clamp(min=1e-30)).clamp(max=1)[:, None, None]
            langevin_step(
                samples, slope, config.step, config.noise_std, seed=config.seed,
                counter=step * config.langevin + j, out=samples,
            )  # fmt: skip
        replay.write(chosen, samples)
        replay.visits[chosen] += 1
        old = (replay.visits[chosen] > config.patience).float().to(samples.device)
        old = old if bool(old.any()) else torch.ones_like(old)  # nobody has waited long enough: better these than none
        return samples, old / old.sum(), {"gradient_samples": norm, "clipped": clipped / steps}

    # --- validation --------------------------------------------------------------------------------------------------
    def quality(self) -> dict[str, float]:
        truth: Tensor = self.data.held_out
        found, start = completed(self.model, truth, self.data.generator(_VALIDATION, 0))
        values = {"quality": _psnr(found, truth), "zero_filled": _psnr(start, truth)}
        values["energy_held_out"] = float(self.model.energy(truth).detach().mean())
        if self._step:  # before it there is nothing to see but what the run begins with
            path = self.data.folder / self.name / f"samples-{self._step:06d}.png"
            _picture(path, self.replay.read(torch.arange(min(_SHOWN, self.replay.count))))
        return values


def completed(
    model: GenerativePrior, truth: Tensor, generator: torch.Generator, *, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """The energy's minimum among real images with a third of the Fourier coefficients of ``truth`` ``(B, n, n)``, and
    the zero-filled images, where it begins.

    By projected subgradient steps whose lengths fall from a twentieth of the start's norm to 0. The energy is piecewise
    linear: its gradient does not vanish towards a minimum, and steps of one length end where they began to circle.
    """
    mask = third(truth.shape[-1], generator).to(truth.device)
    known = torch.fft.fft2(truth)

    def projected(u: Tensor) -> Tensor:
        kept: Tensor = torch.fft.ifft2(torch.where(mask, known, torch.fft.fft2(u))).real
        return kept

    start = u = projected(torch.zeros_like(truth))
    length = 0.05 * start.flatten(1).norm(dim=1)
    for k in range(iterations):
        slope = model.gradient(u)
        norm = slope.flatten(1).norm(dim=1).clamp(min=1e-30)
        u = projected(u - (length * (1 - k / iterations) / norm)[:, None, None] * slope)
    return u, start


def third(n: int, generator: torch.Generator) -> Tensor:
    """``(n, n)`` bool: about a third of the frequencies, with every one its negative, and the mean (at index 0)."""
    order = torch.rand(n, n, generator=generator)
    back = -torch.arange(n) % n
    order = torch.maximum(order, order[back][:, back])
    mask = order >= torch.quantile(order.flatten().double(), 2 / 3)
    mask[0, 0] = True
    return mask


def permuted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image's own pixels in random order: noise that keeps the histogram."""
    flat = images.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(1)
    return flat.gather(1, order).view_as(images)


def levels_of(images: Tensor) -> Tensor:
    """The model's ``levels`` of images ``(P, n, n)``, evenly among them."""
    chosen = images[torch.linspace(0, len(images) - 1, LEVELS[0]).long()].flatten(1).sort(1).values
    return chosen[:, torch.linspace(0, chosen.shape[1] - 1, LEVELS[1]).long()]


class Signs:
    """Early signs that training diverges, each told once: seen long before a number stops being one."""

    def __init__(self) -> None:
        self._slopes: list[float] = []
        self._far = self._bound = 0
        self._told: set[str] = set()

    def look(self, facts: Mapping[str, float]) -> list[str]:
        """What is new to tell of the watched values of a step; call it every tenth one."""
        advice = "; take a lower rate, a larger regulariser, or more Langevin steps"
        said: dict[str, str] = {}
        slope, usual = facts["gradient_data"], self._slopes[-30:]
        if len(usual) >= 5 and slope > 4 * float(np.median(usual)):
            said["slope"] = (
                f"the gradient of the energy at the data rose to {slope:.3g} from {np.median(usual):.3g}, an early "
                f"sign of divergence{advice}"
            )
        self._slopes.append(slope)
        self._far = self._far + 1 if facts["gap"] > 5 else 0
        if self._far >= 3:
            said["gap"] = (
                f"the samples' mean energy is {facts['gap']:.1f} standard deviations above that of the data: the "
                f"chains do not follow the energy{advice}"
            )
        self._bound = self._bound + 1 if facts["clipped"] > 0.95 else 0
        if self._bound >= 10:
            said["clipped"] = (
                f"{facts['clipped']:.0%} of the Langevin steps are as long as gradient_clip allows: the energy has "
                f"become steeper than the steps are made for{advice}"
            )
        new = {name: text for name, text in said.items() if name not in self._told}
        self._told |= set(new)
        return list(new.values())


def _psnr(images: Tensor, truth: Tensor) -> float:
    return float(metrics.psnr(images, truth, peak=1.0).mean())


def _picture(path: Path, images: Tensor) -> None:
    """A grid of images, white at 1, as PNG."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("pillow", "train", "pictures of samples") from error
    shown = (255 * images.clamp(0, 1)).round().to(torch.uint8).numpy()
    across = math.ceil(math.sqrt(len(shown)))
    zoom = max(1, 96 // shown.shape[1])
    shown = np.pad(shown.repeat(zoom, 1).repeat(zoom, 2), ((0, -len(shown) % across), (1, 1), (1, 1)))
    rows = [np.concatenate(list(shown[i : i + across]), axis=1) for i in range(0, len(shown), across)]
    with written_whole(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")


# --- a run -----------------------------------------------------------------------------------------------------------
class GenerativeTraining(FolderTraining):
    """A generative prior on magnitude images."""

    config: Config

    name = "generative"
    settings = Config
    tasks = (Energy,)
    models: ClassVar[Mapping[str, Any]] = {"prior": None}

    @classmethod
    def pretrained(cls, name: str | Path) -> GenerativePrior:
        return GenerativePrior.load(find_weights(name))

    def data(self, drawn: Drawn) -> Data:
        config, folder = self.config, None
        if config.energy.batch > config.buffer:
            raise DataError(f"buffer: {config.buffer} chains, expected at least a batch, {config.energy.batch}")
        if (config.images == "folder") != (self.source is not None):
            said = "give --folder too" if self.source is None else f"give --images folder too, not {config.images}"
            raise DataError(f"images: {config.images} with{'out' if self.source is None else ''} a folder; {said}")
        if self.source is not None:
            folder = ImageFolder(self.source, magnitudes=True, central=_CENTRAL)

        def draw(first: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
            here = max(0, min(count, config.pool - first))
            of: list[tuple[Part, int, int]] = [
                ("train", first, here), ("validation", max(0, first - config.pool), count - here),
            ]  # fmt: skip
            return np.concatenate([self._images(folder, *one) for one in of if one[2]])

        total = config.pool + config.validation
        images = kept_pool(self.folder / "pool.npy", total, (config.size,) * 2, draw, drawn, chunk=32)
        return Data(config, images[: config.pool], images[config.pool :], self.folder)

    def _images(
        self, folder: ImageFolder | None, part: Part, first: int, count: int
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        config = self.config
        if folder is None:
            # Validation images are those of another seed, and of other photographs.
            seed = config.seed if part == "train" else config.seed + 2**31
            return draw_magnitudes(config.size, first, count, seed, kinds=_KINDS[config.images], part=part)
        images = folder.read(part, first, count, (config.size, config.size))
        low, high = (f(images, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        return np.asarray((images - low) / np.maximum(high - low, 1e-30), np.float32)

    def model(self, initial: Path | None) -> GenerativePrior:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = GenerativePrior(
                config.size, config.width, growth=config.growth, absolute=config.absolute, step=config.step,
                noise_std=config.noise_std,
            )  # fmt: skip
        if initial is not None:
            known = GenerativePrior.load(initial)
            if known.network.config != model.network.config:
                raise DataError(f"{initial}: has the network {known.network.config}, expected {model.network.config}")
            model.load_state_dict(known.state_dict())
            model.card = known.card
        return model

    def finish(self, model: GenerativePrior, data: Data, outcomes: dict[str, Outcome]) -> None:
        config = self.config
        model.levels.copy_(levels_of(data.pool.cpu()))
        facts: dict[str, Any] = {"config": asdict(config)}
        facts["quality_db"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {name: [list(point) for point in outcome.history] for name, outcome in outcomes.items()}
        if model.card is not None:
            facts["initial"] = model.card.training  # how the weights that the run began with were made
        about = {
            "images": config.images, "grid": [config.size, config.size], "peak": 1.0,
            "normalisation": "every image divided by its maximum", "smoothing": config.smoothing,
        }  # fmt: skip
        model.card = Card(model.system, ROLE, (config.size, config.size), about, plain(facts))
