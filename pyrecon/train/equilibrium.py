"""Training of equilibrium models and their rivals, with and without ground truth: settings, data, stages and card.

:mod:`pyrecon.train.de_prox` and :mod:`pyrecon.train.de_grad` are the two systems.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.data.photographs import Part, photographs
from pyrecon.implicit import Gradient, ImplicitGradient, JacobianFree
from pyrecon.linops import Fourier, Whitened
from pyrecon.losses import equivariant_imaging, supervised
from pyrecon.models.deq import DEGrad, DEProx, UNetRefinement, load
from pyrecon.models.weights import Card
from pyrecon.nn import DnCNN, ResidualUNet
from pyrecon.solvers import Anderson, ConvergenceWarning, Status
from pyrecon.train._files import kept_pool
from pyrecon.train.config import Stage, setting
from pyrecon.train.problem import Batch, Problem, ProblemConfig, ProblemTraining, generator_of
from pyrecon.train.run import Drawn
from pyrecon.train.task import Outcome, Quality, Task
from pyrecon.transforms import Flips, Group, Product, QuarterTurns, Rotations, Shifts, commutes

Model = DEProx | DEGrad | UNetRefinement
GROUPS: dict[str, Group] = {
    "rotations": Rotations(),
    "rotations-and-flips": Product(Rotations(), Flips()),
    "quarter-turns": QuarterTurns(),
    "shifts": Shifts(),
    "flips": Flips(),
}
# Streams of random numbers beside those of the problem: photographs, their noise, transforms of EI.
_PHOTOGRAPHS, _NOISE, _TRANSFORMS = 900, 901, 902
_VALIDATION = 2**20  # no step has that number


@dataclass(frozen=True)
class Config(ProblemConfig):
    """A training run of an equilibrium model, an unrolled network, a network alone, or a denoiser.

    Attributes
    ----------
    form, model, layers
        ``"prox"`` (:class:`~pyrecon.models.DEProx`) or ``"grad"`` (:class:`~pyrecon.models.DEGrad`), as ``"deq"``, as
        ``"unrolled"`` with so many layers; ``"unet"``: :class:`~pyrecon.models.UNetRefinement`; ``"denoiser"``: no
        second stage, for plug-and-play and RED.
    loss
        ``"supervised"``; ``"ei"``: equivariant imaging, from measurements alone; ``"robust-ei"``: with SURE in place
        of measurement consistency, for noisy ones.
    group, weight
        Of equivariant imaging: the transforms, and its weight against measurement consistency.
    network, width, levels, norm, group_norm, convolutions
        The denoiser: :class:`~pyrecon.nn.ResidualUNet`, or :class:`~pyrecon.nn.DnCNN` of so many convolutions.
    step, gradient, tolerance, limit, backward_tolerance
        Of the equilibrium: eta, how gradients pass, relative change and iterations at which it ends, and the relative
        change of its gradient.
    denoiser, equilibrium
        The two stages: D learns to denoise photographs, then trains inside the reconstruction.
    denoiser_noise, photographs
        Standard deviation of the noise, in every channel, that D learns to remove, and the crops that it learns from.
    """

    fixed_mask: bool = setting(True, "", "mri: one mask for all images.")
    validate_every: int = setting(50, "--validate-every", "Steps between validations.", least=1)

    form: Literal["prox", "grad"] = setting("prox", "", "The step of the equilibrium.")
    model: Literal["deq", "unrolled", "unet", "denoiser"] = setting("deq", "", "What is trained.")
    layers: int = setting(5, "--layers", "Of an unrolled model.", least=1, most=1024)
    loss: Literal["supervised", "ei", "robust-ei"] = setting(
        "supervised", "--loss", "ei and robust-ei: from measurements alone."
    )
    group: Literal["rotations", "rotations-and-flips", "quarter-turns", "shifts", "flips"] = setting(
        "rotations", "--group", "Transforms of equivariant imaging."
    )
    weight: float = setting(1.0, "--weight", "Of equivariance against measurement consistency.", above=0)
    network: Literal["unet", "dncnn"] = setting("unet", "", "The denoiser.")
    width: int = setting(16, "", "Channels of the denoiser.", least=1, most=1024)
    levels: int = setting(2, "", "Resolutions of the U-Net.", least=1, most=8)
    norm: Literal["none", "spectral", "weight"] = setting("none", "", "Of the U-Net's weights.")
    group_norm: bool = setting(False, "", "In the U-Net.")
    convolutions: int = setting(8, "", "Of the DnCNN.", least=2, most=64)
    step: float = setting(1.0, "", "eta, over the squared norm of the physics.", above=0)
    gradient: Literal["implicit", "jacobian-free"] = setting(
        "implicit", "--gradient", "Through the equilibrium; jacobian-free is faster."
    )
    tolerance: float = setting(1e-4, "", "Relative change at which the equilibrium ends.", above=0)
    limit: int = setting(40, "", "Most iterations to the equilibrium, and to its gradient.", least=1)
    backward_tolerance: float = setting(3e-3, "", "Relative change at which its gradient ends.", above=0)
    denoiser: Stage = setting(Stage(300, batch=8, halve=100), "--denoiser-steps", "Steps of the denoiser's stage.")
    equilibrium: Stage = setting(Stage(240, batch=8, rate=1e-3, halve=60, clip=1.0))
    denoiser_noise: float = setting(0.05, "", "Noise that the denoiser learns to remove.", above=0)
    photographs: int = setting(256, "", "Crops that the denoiser learns from.", least=1)

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """``"quick"`` in minutes on two cores; ``"full"`` at the published sizes, for a GPU."""
        config = super().of_scale(scale, role, **({} if role is None else {"model": role}) | changes)
        if scale == "full":
            longer = {
                "size": 320 if config.task == "mri" else 128,
                "angles": 50,
                "pool": 2000,
                "width": 64,
                "levels": 4,
            }
            config = replace(config, **(longer | changes))
            config = config.with_stage("denoiser", steps=20_000, halve=5000)
            config = config.with_stage("equilibrium", steps=20_000, halve=5000)
        return config.with_stage("equilibrium", steps=0) if config.model == "denoiser" else config

    @property
    def blind(self) -> bool:
        """Whether no ground truth may be looked at."""
        return self.loss != "supervised"

    @property
    def channels(self) -> int:
        return {"ct": 1, "mri": 2, "deblur": 3}[self.task]


@dataclass
class Data:
    """A problem, and photographs ``(P, C, H, W)`` for the denoiser's stage: first those to train on."""

    config: Config
    problem: Problem
    photographs: Tensor
    held_out_photographs: Tensor

    def to(self, device: torch.device) -> Data:
        moved = (self.photographs.to(device), self.held_out_photographs.to(device))
        return replace(self, problem=self.problem.to(device), photographs=moved[0], held_out_photographs=moved[1])

    def generator(self, stream: int, step: int) -> torch.Generator:
        return generator_of(self.config.seed, stream, step)


# --- stages ----------------------------------------------------------------------------------------------------------
class Denoiser(Task):
    """``|D(x + n) - x|^2`` on photographs, n white. Quality: PSNR."""

    name = "denoiser"

    @property
    def part(self) -> nn.Module:
        denoiser: nn.Module = self.model.denoiser
        return denoiser

    def loss(self, step: int) -> Tensor:
        pool: Tensor = self.data.photographs
        chosen = torch.randint(len(pool), (self.stage.batch,), generator=self.data.generator(_PHOTOGRAPHS, step))
        images = pool[chosen.to(pool.device)]
        return supervised(self._denoised(images, step), images)

    def quality(self) -> dict[str, float]:
        truth = self.data.held_out_photographs
        return {"quality": float(metrics.psnr(self._denoised(truth, _VALIDATION), truth, peak=1.0).mean())}

    def _denoised(self, images: Tensor, step: int) -> Tensor:
        noise = torch.randn(images.shape, generator=self.data.generator(_NOISE, step)).to(images.device)
        denoised: Tensor = self.model.denoiser(images + self.data.config.denoiser_noise * noise)
        return denoised


class Equilibrium(Task):
    """The reconstruction's loss. Quality: with ground truth the PSNR of held-out images, of magnitudes; without it the
    loss of held-out measurements, so that no choice of weights depends on the truth."""

    name = "equilibrium"

    def __init__(self, model: Any, data: Any, stage: Stage) -> None:
        super().__init__(model, data, stage)
        if data.config.blind:
            self.measure = Quality("loss", "", higher=False)

    def loss(self, step: int) -> Tensor:
        problem, config = self.data.problem, self.data.config
        if config.blind:
            return self._unsupervised(problem.measurements(step, self.stage.batch), step)
        batch = problem.batch(step, self.stage.batch).scaled()
        assert batch.images is not None
        return supervised(self.model(batch.y, batch.physics), batch.images)

    def quality(self) -> dict[str, float]:
        problem, config = self.data.problem, self.data.config
        batch = problem.self_validation() if config.blind else problem.validation()
        scaled = batch.scaled()
        found = self.model.reconstruct(scaled.y, scaled.physics)
        values = {
            "residual": float(found.residual.mean()),
            "converged": float((found.status == Status.CONVERGED).float().mean()),
        }
        if config.blind:
            return {"quality": float(self._unsupervised(batch, _VALIDATION)), **values}
        start = _psnr(batch.physics.adjoint(batch.y), batch.images)
        return {"quality": _psnr(found.value * batch.scale, batch.images), "adjoint": start, **values}

    def _unsupervised(self, batch: Batch, step: int) -> Tensor:
        config, scaled = self.data.config, batch.scaled()
        return equivariant_imaging(
            self.model,
            scaled.y,
            scaled.physics,
            GROUPS[config.group],
            weight=config.weight,
            noise_std=noise_std(config, scaled),
            robust=config.loss == "robust-ei",
            generator=self.data.generator(_TRANSFORMS, step),
        )


def noise_std(config: ProblemConfig, scaled: Batch) -> Tensor:
    """The standard deviation of the noise in every entry of a scaled batch's y."""
    level = config.noise_level / scaled.scale.reshape(-1, *[1] * (scaled.y.dim() - 1))
    if isinstance(scaled.physics, Whitened):
        return level * scaled.physics.gain
    if isinstance(scaled.physics, Fourier):
        return level * scaled.physics.mask[:, 0]
    return level


def _psnr(images: Tensor, truth: Tensor | None) -> float:
    assert truth is not None
    shown = (images.abs(), truth.abs()) if truth.is_complex() else (images, truth)
    return float(metrics.psnr(*shown, peak=1.0).mean())


# --- a run -----------------------------------------------------------------------------------------------------------
class EquilibriumTraining(ProblemTraining):
    """What the two systems share."""

    config: Config

    settings = Config
    tasks = (Denoiser, Equilibrium)
    models: ClassVar[Mapping[str, Any]] = {name: name for name in ("deq", "unrolled", "unet", "denoiser")}

    @classmethod
    def pretrained(cls, name: str | Path) -> Model:
        return load(name)

    def data(self, drawn: Drawn) -> Data:
        config = self.config
        if config.loss == "robust-ei" and not config.noise_level:
            raise DataError("loss: robust-ei is for noisy measurements, these have none; take ei")
        problem = self.problem(drawn)
        if config.blind:
            problem = problem.blind()
            self._check_group(problem)
        count = (config.photographs, 32) if config.denoiser.steps else (0, 0)
        shape = (config.channels, config.size, config.size)
        photos = kept_pool(
            self.folder / "photographs.npy", sum(count), shape, lambda first, n: self._photographs(first, n, count[0])
        )
        return Data(config, problem, photos[: count[0]], photos[count[0] :])

    def _check_group(self, problem: Problem) -> None:
        physics = problem.measurements(0, 1).physics
        name = self.config.group
        if commutes(physics, GROUPS[name], physics.adjoint(problem.measurements(0, 1).y)):
            raise DataError(
                f"group: the physics commutes with {name}, so that transformed images show it nothing new and "
                "equivariant imaging has nothing to learn from; take another group, such as rotations"
            )

    def _photographs(self, first: int, count: int, train: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """``(count, C, H, W)``: colours, or luminance, which two channels have times a smooth phase."""
        config, parts = self.config, list[np.ndarray[Any, Any]]()
        here = max(0, min(count, train - first))
        of: list[tuple[Part, int, int]] = [("train", first, here), ("validation", max(0, first - train), count - here)]
        for part, start, number in of:
            if number:
                color = config.channels == 3
                parts.append(photographs(number, config.shape, color=color, part=part, seed=config.seed, first=start))
        images = np.concatenate(parts)
        if config.channels == 3:
            return images
        grey = images[:, None]
        if config.channels == 1:
            return grey
        y, x = np.meshgrid(*2 * [np.linspace(-1, 1, config.size, dtype=np.float32)], indexing="ij")
        rng = np.random.default_rng((config.seed, _PHOTOGRAPHS, first))
        terms = np.stack([np.ones_like(x), x, y, x * y, x**2, y**2])
        phase = np.tensordot(rng.uniform(-np.pi / 2, np.pi / 2, (count, 6)).astype(np.float32), terms, axes=1)[:, None]
        return np.concatenate((grey * np.cos(phase), grey * np.sin(phase)), axis=1)

    def model(self, initial: Path | None) -> Model:
        denoiser, card = self._network(), None
        if initial is not None:
            known = load(initial)
            denoiser, card = known.denoiser, known.card
            if denoiser.channels != self.config.channels:
                raise DataError(
                    f"{initial}: a denoiser of {denoiser.channels} channels, {self.config.task} has "
                    f"{self.config.channels}"
                )
        model = build(self.config, denoiser)
        model.card = card
        return model

    def _network(self) -> Any:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if config.network == "dncnn":
                return DnCNN(config.channels, layers=config.convolutions, width=config.width, bias=True)
            return ResidualUNet(
                config.channels, config.width, config.levels, norm=config.norm, group_norm=config.group_norm
            )

    def finish(self, model: Model, data: Data, outcomes: dict[str, Outcome]) -> None:
        config = self.config
        facts: dict[str, Any] = {"config": asdict(config)}
        facts["quality"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {name: [list(point) for point in outcome.history] for name, outcome in outcomes.items()}
        about = data.problem.about()
        role = "denoiser" if config.model == "denoiser" else "equilibrium"
        if role == "equilibrium" and config.model == "deq":
            facts["converged"] = self._converged(model, data)
        if model.card is not None:
            facts["initial"] = model.card.training  # how the weights that the run began with were made
        model.card = Card(model.system, role, config.shape, about, plain(facts))

    def _converged(self, model: Model, data: Data) -> float:
        """The share of held-out images whose equilibrium was found."""
        batch = data.problem.self_validation().scaled()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            status = model.reconstruct(batch.y.cpu(), batch.physics.cpu()).status
        share = float((status == Status.CONVERGED).float().mean())
        if share < 0.5:
            warnings.warn(
                f"{self.folder}: the equilibrium of {1 - share:.0%} of the held-out images was not found within "
                f"{self.config.limit} iterations; raise limit, lower the rate, or take norm=spectral",
                stacklevel=2,
            )
        return share

    @classmethod
    def advice(cls, model: Model, path: Path) -> str:
        scans = {("de-prox", "mri"), ("de-grad", "ct")}  # what has a method of raw scans
        if model.card is None or model.card.role != "equilibrium":
            return ""
        known = (model.system, model.card.data["task"]) in scans
        return f"pyrecon reconstruct SCAN.h5 -m {model.system} --weights {path}" if known else ""


def build(config: Config, denoiser: nn.Module) -> Model:
    """The model of a configuration around a denoiser."""
    if config.model == "unet":
        return UNetRefinement(denoiser)
    kind = DEProx if config.form == "prox" else DEGrad
    if config.model == "unrolled":
        return kind(denoiser, step=config.step, layers=config.layers)
    gradient: Gradient = JacobianFree()
    if config.gradient == "implicit":
        gradient = ImplicitGradient(solver=Anderson(), tol=config.backward_tolerance, max_iter=config.limit)
    return kind(denoiser, step=config.step, tol=config.tolerance, max_iter=config.limit, gradient=gradient)
