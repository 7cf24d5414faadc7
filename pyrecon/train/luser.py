"""``pyrecon train luser``: LUSER and its rivals on CT, MRI or deblurring. Configuration, stages and card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.implicit import ImplicitGradient
from pyrecon.linops import LinearOperator, gaussian_kernel
from pyrecon.losses import supervised
from pyrecon.models._data_step import Reconstructor
from pyrecon.models.luser import LUSER, ROLE, load
from pyrecon.models.unrolled import DEQ4IP, UnrolledDnCNN
from pyrecon.models.weights import Card, find_weights
from pyrecon.solvers import Solution
from pyrecon.train.config import Stage, setting
from pyrecon.train.problem import Batch, Problem, ProblemConfig, ProblemTraining
from pyrecon.train.run import Drawn
from pyrecon.train.task import Outcome, Task

Network = Literal["luser-dw", "luser-sw", "lu-dncnn", "deq4ip"]
# Of Adam: the best of trials of 100 to 300 steps at 32 x 32 pixels. At twice its rate LUSER lost the equilibria of its
# first stage in deblurring, and 1 dB with them.
_RATES = {
    "luser-dw": {"ct": 2e-3, "mri": 2e-3, "deblur": 1e-3},
    "luser-sw": {"ct": 2e-3, "mri": 2e-3, "deblur": 1e-3},
    "lu-dncnn": {"ct": 1e-2, "mri": 3e-3, "deblur": 3e-3},
    "deq4ip": {"ct": 1e-3, "mri": 1e-3, "deblur": 1e-3},
}
_CHANNELS = {"ct": 1, "mri": 2, "deblur": 3}
# Of the paper: 320 and 362 pixels of fastMRI and LoDoPaB-CT, CelebA cut to 128.
_PUBLISHED_SIZES = {"ct": 362, "mri": 320, "deblur": 128}


@dataclass(frozen=True)
class Config(ProblemConfig):
    """A training run of LUSER or a rival; the problem's settings are those of
    :class:`~pyrecon.train.problem.ProblemConfig`.

    Attributes
    ----------
    network
        What is trained; ``--model`` of the command line sets it.
    unrolled
        Stages K of LUSER and LU-DnCNN.
    width, groups, spread
        Of LUSER's block.
    dncnn_width, layers
        Of the rivals' DnCNN.
    auxiliary
        Weight in the loss of the mean over the stages before the last; 0: the last image alone.
    learned_kernel
        deblur: the blur's 243 weights begin at the true ones and are trained too. As the paper's table of sizes counts
        them: for all models but LUSER-DW.
    tolerance, limit, backward_tolerance
        Of LUSER's equilibria, and the tolerance of their gradients.
    deq4ip_tolerance, deq4ip_limit
        Of the equilibrium of DEQ4IP.
    denoiser
        DEQ4IP's DnCNN learns to denoise first, which also gives it the statistics of its batch norm; ``denoiser_noise``
        is what it removes. The others begin at random.
    """

    network: Network = setting("luser-dw", "", "What is trained; --model sets it.")
    unrolled: int = setting(8, "--stages", "Stages of LUSER and LU-DnCNN.", least=1, most=64)
    width: int = setting(32, "", "Channels of LUSER's block.", least=1, most=1024)
    groups: int = setting(1, "", "Groups of its group norm.", least=1, most=1024)
    spread: float = setting(1.0, "", "Of the first biases that LUSER's equilibria begin with.", least=0, most=1e3)
    dncnn_width: int = setting(64, "", "Channels of the rivals' DnCNN.", least=1, most=1024)
    layers: int = setting(17, "", "Convolutions of the rivals' DnCNN.", least=2, most=1024)
    auxiliary: float = setting(0.0, "--auxiliary", "Weight of earlier stages in the loss.", least=0, most=1e6)
    learned_kernel: bool = setting(False, "", "deblur: the blur is learned too.")
    denoiser: Stage = setting(Stage(0, batch=8), "--denoiser-steps", "Steps of DEQ4IP's DnCNN as a denoiser.")
    reconstruction: Stage = setting(Stage(400, batch=4, halve=100, clip=1.0), "--steps", "Steps of the whole model.")
    denoiser_noise: float = setting(0.05, "", "Noise that DEQ4IP's DnCNN learns to remove.", above=0, most=10)
    tolerance: float = setting(1e-2, "", "Relative change at which LUSER's equilibria end.", above=0)
    limit: int = setting(20, "", "Most iterations to them, and to their gradients.", least=1, most=1000)
    backward_tolerance: float = setting(1e-2, "", "Relative change at which gradients of equilibria end.", above=0)
    deq4ip_tolerance: float = setting(1e-3, "", "Relative change at which DEQ4IP's equilibrium ends.", above=0)
    deq4ip_limit: int = setting(30, "", "Most iterations to it, and to its gradient.", least=1, most=1000)

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """``"quick"`` in minutes on two cores; ``"full"`` with the published networks and sizes, for a GPU."""
        network = role or changes.get("network", "luser-dw")
        task = changes.get("task", "mri")
        own: dict[str, Any] = {"network": network, "whiten": False, "mask": "random-lines", "acceleration": 4.0}
        own["spread"] = 3.0 if task == "deblur" else 1.0
        own["learned_kernel"] = task == "deblur" and network != "luser-dw"
        own["reconstruction"] = Stage(400, batch=4, rate=_RATES[network][task], halve=100, clip=1.0)
        if network == "deq4ip":
            own["denoiser"] = Stage(300, batch=8, halve=100)
        if scale == "full":
            own |= {
                "size": _PUBLISHED_SIZES[task],
                "pool": 4000,
                "validation": 64,
                "angles": 200,
                "validate_every": 500,
            }
            own["reconstruction"] = Stage(50_000, batch=4, rate=_RATES[network][task] / 4, halve=10_000, clip=1.0)
            if network == "deq4ip":
                own["denoiser"] = Stage(20_000, batch=8, halve=5000)
        else:
            own |= {"size": 32 if task == "deblur" else 48, "unrolled": 4, "width": 16, "dncnn_width": 32, "layers": 9}
        return super().of_scale(scale, role, **own | changes)


class Denoiser(Task):
    """``|D(x + n) - x|^2``, n white, by the DnCNN alone."""

    name = "denoiser"

    @property
    def part(self) -> nn.Module:
        part: nn.Module = self.model.denoiser
        return part

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch).scaled()
        return supervised(self._denoised(batch, step), batch.images)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation().scaled()
        return {"quality": _mean(psnr(self.data.config, self._denoised(batch, 2**20), batch.images))}

    def _denoised(self, batch: Batch, step: int) -> Tensor:
        config, images = self.data.config, batch.images
        assert images is not None
        generator = torch.Generator().manual_seed((config.seed << 32) + step)
        noise = torch.randn(images.shape, dtype=images.dtype, generator=generator).to(images.device)
        denoised: Tensor = self.model.denoiser(images + config.denoiser_noise * noise)
        return denoised


class Reconstruction(Task):
    """``|x_K - x|^2``, and ``auxiliary`` times the mean over earlier stages."""

    name = "reconstruction"

    def loss(self, step: int) -> Tensor:
        batch = self.data.batch(step, self.stage.batch).scaled()
        *earlier, last = self.model(batch.y, physics_of(self.model, batch), return_stages=True)
        loss = supervised(last, batch.images)
        weight = self.data.config.auxiliary
        if weight and earlier:
            loss = loss + weight * sum(supervised(image, batch.images) for image in earlier) / len(earlier)
        return loss

    def quality(self) -> dict[str, float]:
        batch = self.data.validation().scaled()
        found = reconstructed(self.model, batch)
        values = {"quality": _mean(psnr(self.data.config, found.value, batch.images))}
        return values | {"residual": float(found.residual.max()), "converged": _mean(found.converged.double())}

    def watched(self) -> dict[str, Tensor]:
        """Of the last step: the share of samples and stages whose solve ended at its limit, forward and backward."""
        solves: list[Solution[None]] = self.model.solves
        if not solves:
            return {}
        values = {"unsolved": 1 - torch.cat([solve.converged for solve in solves]).double().mean()}
        back = getattr(self.model.gradient, "last", None)
        return values if back is None else values | {"unsolved_backward": 1 - back.converged.double().mean()}


def physics_of(model: Reconstructor, batch: Batch) -> LinearOperator | None:
    """None where the model has learned it."""
    return batch.physics if model.kernel is None else None


def reconstructed(model: Reconstructor, batch: Batch) -> Solution[Tensor]:
    """The images of a batch that is scaled."""
    return model.reconstruct(batch.y, physics_of(model, batch))


def psnr(config: ProblemConfig, images: Tensor, truth: Tensor) -> Tensor:
    """Of magnitudes, in dB; the peak is 1 for photographs in [0, 1] and each image's own elsewhere."""
    magnitudes = [image.abs() if image.is_complex() else image for image in (images, truth)]
    return metrics.psnr(magnitudes[0], magnitudes[1], peak=1.0 if config.task == "deblur" else None)


def ssim(config: ProblemConfig, images: Tensor, truth: Tensor) -> Tensor:
    """Of magnitudes, with the same peak."""
    magnitudes = [image.abs() if image.is_complex() else image for image in (images, truth)]
    return metrics.ssim(magnitudes[0], magnitudes[1], data_range=1.0 if config.task == "deblur" else None)


def _mean(values: Tensor) -> float:
    return float(values.mean())


def new_model(config: Config) -> Reconstructor:
    """With random weights of the seed."""
    channels = _CHANNELS[config.task]
    options: dict[str, Any] = {"start": "data" if config.task == "deblur" else "adjoint"}
    if config.learned_kernel:
        if config.task != "deblur":
            raise DataError(f"learned_kernel: true, but the task is {config.task}; only deblur has a kernel")
        kernel = gaussian_kernel(config.blur_size, config.blur_variance).float()
        options["kernel"] = kernel.expand(channels, -1, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.network == "lu-dncnn":
            return UnrolledDnCNN(
                channels, stages=config.unrolled, layers=config.layers, width=config.dncnn_width, **options
            )
        limit = config.deq4ip_limit if config.network == "deq4ip" else config.limit
        options["gradient"] = ImplicitGradient(tol=config.backward_tolerance, max_iter=limit)
        if config.network == "deq4ip":
            return DEQ4IP(
                channels, layers=config.layers, width=config.dncnn_width, tol=config.deq4ip_tolerance, max_iter=limit,
                **options,
            )  # fmt: skip
        if config.width % config.groups:
            raise DataError(f"groups: {config.groups} does not divide the width, {config.width}")
        return LUSER(
            channels, stages=config.unrolled, shared=config.network == "luser-sw", width=config.width,
            groups=config.groups, spread=config.spread, tol=config.tolerance, max_iter=limit, **options,
        )  # fmt: skip


class LUSERTraining(ProblemTraining):
    """LUSER, LU-DnCNN or DEQ4IP on a problem of CT, MRI or deblurring."""

    config: Config

    name = "luser"
    settings = Config
    tasks = (Denoiser, Reconstruction)
    models: ClassVar[Mapping[str, Any]] = {name: name for name in ("luser-dw", "luser-sw", "lu-dncnn", "deq4ip")}

    @classmethod
    def advice(cls, model: Reconstructor, path: Path) -> str:
        assert model.card is not None
        scan = {"mri": "SCAN.h5", "ct": "SCAN.mat"}.get(model.card.data["task"])
        return f"pyrecon reconstruct {scan} -m luser --weights {path}" if scan else ""

    @classmethod
    def pretrained(cls, name: str | Path) -> Reconstructor:
        return load(find_weights(name))

    def data(self, drawn: Drawn) -> Problem:
        if self.config.denoiser.steps and self.config.network != "deq4ip":
            raise DataError(f"denoiser: {self.config.network} is not trained as a denoiser first; say denoiser.steps=0")
        return self.problem(drawn)

    def model(self, initial: Path | None) -> Reconstructor:
        model = new_model(self.config)
        if initial is not None:
            known = load(initial)
            try:
                model.load_state_dict(known.state_dict())
            except RuntimeError:
                raise DataError(
                    f"{initial}: its {known.network} has other layers than the configuration says"
                ) from None
            model.card = known.card
        return model

    def finish(self, model: Reconstructor, data: Problem, outcomes: dict[str, Outcome]) -> None:
        config = self.config
        facts: dict[str, Any] = {"config": asdict(config)}
        facts["quality_db"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {name: [list(point) for point in outcome.history] for name, outcome in outcomes.items()}
        about = data.about() | {"network": config.network}
        if model.card is not None:
            facts["initial"] = model.card.training  # how the weights that the run began with were made
        model.card = Card(model.system, ROLE, config.shape, about, plain(facts))
