"""``pyrecon train de-prox``: random heads in a single-coil scan to weights. Configuration, data, stages and card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from pyrecon import metrics
from pyrecon._plain import plain
from pyrecon.implicit import Gradient, ImplicitGradient, JacobianFree
from pyrecon.linops import Fourier
from pyrecon.losses import supervised
from pyrecon.models.deq import DEProx
from pyrecon.models.weights import Card
from pyrecon.nn import ResidualDenoiser
from pyrecon.physics.mri import gaussian_lines, head_phantom
from pyrecon.train._files import kept_pool
from pyrecon.train.config import RunConfig, Stage, setting
from pyrecon.train.run import Drawn, Training
from pyrecon.train.task import Outcome, Task

_VALIDATION = 2**20  # the stream of random numbers that validation takes: no step has that number


@dataclass(frozen=True)
class Config(RunConfig):
    """A training run of DE-Prox.

    Attributes
    ----------
    size
        Images of ``size x size`` pixels.
    acceleration, noise_std
        Lines of Gaussian density, another mask for every image, and the noise of a complex k-space sample against an
        image of peak 1.
    pool, validation
        Images drawn for the run.
    width, layers
        Of :class:`~pyrecon.nn.ResidualDenoiser`.
    denoiser, equilibrium
        The two stages: D learns to denoise, then trains on at the equilibrium.
    denoiser_noise
        Standard deviation of real and imaginary part of the noise that D learns to remove.
    gradient
        Through the equilibrium.
    tolerance, limit, backward_tolerance
        Of the equilibrium, and the tolerance of its gradient.
    """

    size: int = setting(64, "--size", "Pixels along an axis.", least=8, most=1024)
    acceleration: float = setting(4.0, "--acceleration", "Of the k-space lines.", least=1, most=64)
    noise_std: float = setting(0.01, "--noise", "Of a k-space sample, for images of peak 1.", above=0, most=1)
    pool: int = setting(512, "--pool", "Training images.", least=1)
    validation: int = setting(32, "--validation", "Validation images.", least=1)
    width: int = setting(16, "", "Channels of the denoiser.", least=1, most=1024)
    layers: int = setting(4, "", "Convolutions of the denoiser.", least=2, most=1024)
    denoiser: Stage = setting(Stage(300, batch=8, halve=100), "--denoiser-steps", "Steps of the denoiser's stage.")
    equilibrium: Stage = setting(Stage(150, batch=8, rate=5e-4, halve=50, clip=1.0))
    denoiser_noise: float = setting(0.05, "", "Noise that the denoiser learns to remove.", above=0)
    gradient: Literal["implicit", "jacobian-free"] = setting(
        "implicit", "--gradient", "Through the equilibrium; jacobian-free is faster."
    )
    tolerance: float = setting(1e-4, "", "Relative change at which the equilibrium ends.", above=0)
    limit: int = setting(40, "", "Most iterations to the equilibrium, and to its gradient.", least=1)
    backward_tolerance: float = setting(3e-3, "", "Relative change at which its gradient ends.", above=0)

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """``"quick"`` in minutes on two cores; ``"full"`` at the published size, 320 x 320, for a GPU."""
        config = super().of_scale(scale, role, **changes)
        if scale == "full":
            longer = {"size": 320, "pool": 4000, "width": 64, "layers": 8, "acceleration": 8.0, "noise_std": 0.05}
            config = replace(config, **(longer | changes))
            config = config.with_stage("denoiser", steps=20_000, halve=5000)
            config = config.with_stage("equilibrium", steps=20_000, halve=5000)
        return config


@dataclass
class Scans:
    """Images ``(P, H, W)`` of peak 1, and what a scanner makes of them."""

    config: Config
    pool: Tensor
    held_out: Tensor

    def to(self, device: torch.device) -> Scans:
        return replace(self, pool=self.pool.to(device), held_out=self.held_out.to(device))

    def images(self, step: int, batch: int) -> Tensor:
        generator = self._generator(step)
        return self.pool[torch.randint(len(self.pool), (batch,), generator=generator).to(self.pool.device)]

    def noise(self, like: Tensor, step: int) -> Tensor:
        """Complex, of standard deviation 1 in real and in imaginary part."""
        drawn = torch.randn(*like.shape, 2, generator=self._generator(step, 1))
        return torch.view_as_complex(drawn).to(like.device)

    def measured(self, images: Tensor, step: int) -> tuple[Tensor, Fourier]:
        """k-space in the scale of the model, where the brightest pixel of ``A^H y`` is 1, and its physics."""
        shape = (images.shape[1], images.shape[2])
        centre = max(4, shape[0] // 8)
        masks = gaussian_lines(
            shape, self.config.acceleration, acl=centre, batch=len(images), seed=self.config.seed + 17 * step
        )
        physics = Fourier(masks.to(images.device), shape)
        noise = self.config.noise_std / np.sqrt(2) * self.noise(images, step)
        return physics(images) + physics.mask[:, 0] * noise, physics

    def _generator(self, step: int, purpose: int = 0) -> torch.Generator:
        state = np.random.SeedSequence([self.config.seed, step, purpose]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def brightest(y: Tensor, physics: Fourier) -> Tensor:
    """``(B, 1, 1)``: the brightest pixel of ``A^H y``."""
    return physics.adjoint(y).abs().amax(dim=(1, 2), keepdim=True)


class Denoiser(Task):
    """``|D(x + n) - x|^2``, n white. Quality: PSNR of magnitudes."""

    name = "denoiser"

    @property
    def part(self) -> nn.Module:
        denoiser: nn.Module = self.model.denoiser
        return denoiser

    def loss(self, step: int) -> Tensor:
        images = self.data.images(step, self.stage.batch)
        return supervised(self._denoised(images, step), images)

    def quality(self) -> dict[str, float]:
        truth = self.data.held_out
        return {"quality": _psnr(self._denoised(truth, _VALIDATION), truth)}

    def _denoised(self, images: Tensor, step: int) -> Tensor:
        noise = self.data.config.denoiser_noise * self.data.noise(images, step)
        denoised: Tensor = self.model.denoiser(images + noise)
        return denoised


class Equilibrium(Task):
    """``|x* - x|^2`` at the fixed point, for scans of images x. Quality: PSNR of magnitudes."""

    name = "equilibrium"

    def loss(self, step: int) -> Tensor:
        images = self.data.images(step, self.stage.batch)
        y, physics = self.data.measured(images, step)
        scale = brightest(y, physics)
        return supervised(self.model(y / scale, physics), images / scale)

    def quality(self) -> dict[str, float]:
        truth = self.data.held_out
        y, physics = self.data.measured(truth, _VALIDATION)
        scale = brightest(y, physics)
        found = self.model.reconstruct(y / scale, physics)
        return {
            "quality": _psnr(found.value * scale, truth),
            "zero_filled": _psnr(physics.adjoint(y), truth),
            "residual": float(found.residual.mean()),
        }


def _psnr(images: Tensor, truth: Tensor) -> float:
    return float(metrics.psnr(images.abs(), truth.abs()).mean())


class DEProxTraining(Training):
    """DE-Prox on random heads in a single-coil scan."""

    config: Config

    name = "de-prox"
    settings = Config
    tasks = (Denoiser, Equilibrium)
    models: ClassVar[Mapping[str, Any]] = {"de-prox": "equilibrium"}

    @classmethod
    def pretrained(cls, name: str | Path) -> DEProx:
        return DEProx.from_pretrained(name)

    def data(self, drawn: Drawn) -> Scans:
        config, shape = self.config, (self.config.size, self.config.size)
        parts = kept_pool(
            self.folder / "pool.npy",
            config.pool + config.validation,
            (*shape, 2),
            lambda first, count: heads(config.seed, first, count, shape),
            drawn,
            chunk=32,
        )
        images = torch.view_as_complex(parts)
        return Scans(config, images[: config.pool], images[config.pool :])

    def model(self, initial: Path | None) -> DEProx:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            denoiser: nn.Module = ResidualDenoiser(config.width, config.layers)
        card = None
        if initial is not None:
            known = DEProx.load(initial)
            denoiser, card = known.denoiser, known.card
        gradient: Gradient = JacobianFree()
        if config.gradient == "implicit":
            gradient = ImplicitGradient(tol=config.backward_tolerance, max_iter=config.limit)
        model = DEProx(denoiser, tol=config.tolerance, max_iter=config.limit, gradient=gradient)
        model.card = card
        return model

    def finish(self, model: DEProx, data: Scans, outcomes: dict[str, Outcome]) -> None:
        config = self.config
        facts: dict[str, Any] = {"config": asdict(config)}
        facts["quality_db"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {name: [list(point) for point in outcome.history] for name, outcome in outcomes.items()}
        about = {"images": "random heads", "acceleration": config.acceleration, "noise_std": config.noise_std}
        model.card = Card("de-prox", "equilibrium", (config.size, config.size), about, plain(facts))

    @classmethod
    def advice(cls, model: DEProx, path: Path) -> str:
        return f"pyrecon reconstruct SCAN.h5 -m de-prox --weights {path}"


def heads(seed: int, first: int, count: int, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``(count, H, W, 2)``: each a function of its number alone."""
    numbers = np.random.SeedSequence([seed, 1]).generate_state(1)[0] + np.arange(first, first + count)
    heads = torch.cat([head_phantom(shape, seed=int(number)) for number in numbers])
    return torch.view_as_real(heads).numpy()
