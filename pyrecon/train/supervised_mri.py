"""``pyrecon train supervised-mri``: the fastMRI baseline U-Net and the end-to-end variational network, with ground
truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.models.supervised_mri import ROLE, ImageUNet, SupervisedMRI, VarNet, load
from pyrecon.models.weights import Card, find_weights
from pyrecon.train.config import Cosine, setting
from pyrecon.train.magnitude_scans import Batch, Data, ScanConfig, make_data
from pyrecon.train.problem import generator_of
from pyrecon.train.run import Drawn, Training
from pyrecon.train.task import Outcome, Quality, Task

Network = Literal["unet", "varnet"]
_DROPOUT = 722  # stream of random numbers
_TOGETHER = 8  # images of a validation at a time
# Of both papers: Adam at 3e-4 for the variational network; RMSprop at 1e-3 for the U-Net, for which Adam stands in
# here.
_PUBLISHED_RATES = {"unet": 1e-3, "varnet": 3e-4}
_QUICK_RATES = {"unet": 1e-3, "varnet": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Config(ScanConfig):
    """A training run; the scanner's settings are those of :class:`~pyrecon.train.magnitude_scans.ScanConfig`.

    Attributes
    ----------
    network
        What is trained; ``--model`` of the command line sets it.
    width, pools, dropout
        Of the U-Nets; published 32 and 4 (U-Net), 18 and 4 (variational network).
    cascades, sensitivity_width, sensitivity_pools
        Of the variational network; published 12, 8 and 4.
    """

    network: Network = setting("unet", "", "What is trained; --model sets it.")
    width: int = setting(16, "--width", "First width of the U-Nets.", least=1, most=256)
    pools: int = setting(3, "", "How often U-Nets halve the resolution.", least=1, most=8)
    dropout: float = setting(0.0, "", "Share of channels that training leaves out.", least=0, most=0.99)
    cascades: int = setting(4, "--cascades", "varnet: steps.", least=1, most=64)
    sensitivity_width: int = setting(4, "", "varnet: first width of the maps' U-Net.", least=1, most=256)
    sensitivity_pools: int = setting(3, "", "varnet: how often the maps' U-Net halves the resolution.", least=1, most=8)
    reconstruction: Cosine = setting(Cosine(4000, batch=4, clip=1.0, decay=0.0), "--steps", "Steps.")

    @classmethod
    def of_scale(cls, scale: Literal["quick", "full"], role: Any = None, **changes: Any) -> Self:
        """``"quick"``: 64 x 64 pixels and narrower networks, within an hour on a core; ``"full"``: as published."""
        network: Network = role or changes.get("network", "unet")
        single = network == "unet"
        own: dict[str, Any] = {"network": network, "coils": 1 if single else 8, "width": 16 if single else 8}
        # A step of the U-Net takes a quarter of the other's time.
        rate, steps, batch, rise = _QUICK_RATES[network], 8000 if single else 4000, 4, 100
        if scale == "full":
            own = {
                "network": network, "coils": 1 if single else 15, "size": 320, "width": 32 if single else 18,
                "pools": 4, "cascades": 12, "sensitivity_width": 8, "sensitivity_pools": 4, "pool": 5324,
                "validation": 330, "validate_every": 2000, "save_every": 500,
            }  # fmt: skip
            # 50 epochs of 5,324 slices; batches of 1 image are the published ones of both (of one GPU).
            rate, steps, batch, rise = _PUBLISHED_RATES[network], 50 * 5324, 1, 0
        own["reconstruction"] = Cosine(steps, batch=batch, rate=rate, clip=1.0, warm_up=rise, decay=0.0)
        return super().of_scale(scale, role, **own | changes)


class Reconstruction(Task):
    """The U-Net: mean absolute error in standard deviations of the zero-filled image; the variational network: 1 -
    SSIM, 7 x 7 windows, the range of each image its maximum. Quality: PSNR, of each image's own peak."""

    name = "reconstruction"
    measure = Quality("PSNR")
    model: SupervisedMRI
    data: Data

    def loss(self, step: int) -> Tensor:
        with torch.random.fork_rng():  # of dropout
            torch.manual_seed(generator_of(self.data.config.seed, _DROPOUT, step).initial_seed())
            return self._loss(self.data.batch(step, self.stage.batch))

    def _loss(self, batch: Batch) -> Tensor:
        if isinstance(self.model, ImageUNet):
            return self.model.error(batch.y, batch.mask, batch.images)
        return (1 - metrics.ssim(self.model(batch.y, batch.mask), batch.images)).mean().to(batch.images.dtype)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation()
        found = torch.cat([self.model(part.y, part.mask) for part in batch.parts(_TOGETHER)])
        psnr, ssim, nmse = (f(found, batch.images) for f in (metrics.psnr, metrics.ssim, metrics.nmse))
        return {name: float(v.mean()) for name, v in (("quality", psnr), ("ssim", ssim), ("nmse", nmse))}


class SupervisedMRITraining(Training):
    """The fastMRI baseline U-Net or the end-to-end variational network on generated images."""

    config: Config

    name = "supervised-mri"
    settings = Config
    tasks = (Reconstruction,)
    models: ClassVar[Mapping[str, Any]] = {"unet": "unet", "varnet": "varnet"}

    @classmethod
    def advice(cls, model: SupervisedMRI, path: Path) -> str:
        return f"pyrecon reconstruct SCAN.h5 -m varnet --weights {path}" if isinstance(model, VarNet) else ""

    @classmethod
    def pretrained(cls, name: str | Path) -> SupervisedMRI:
        return load(find_weights(name))

    def data(self, drawn: Drawn) -> Data:
        config = self.config
        least = 2 ** (max(config.pools, config.sensitivity_pools if config.network == "varnet" else 1) + 1)
        if config.size < least:
            raise DataError(f"pools: U-Nets that halve so often need images of {least} pixels, size is {config.size}")
        return make_data(config, self.folder, drawn)

    def model(self, initial: Path | None) -> SupervisedMRI:
        model = new_model(self.config)
        if initial is not None:
            known = load(initial)
            try:
                model.load_state_dict(known.state_dict())
            except RuntimeError:
                raise DataError(f"{initial}: its network is another than the configuration says") from None
            model.card = known.card
        return model

    def finish(self, model: SupervisedMRI, data: Data, outcomes: dict[str, Outcome]) -> None:
        config = self.config
        facts: dict[str, Any] = {"config": asdict(config)}
        facts["quality_db"] = {name: outcome.quality for name, outcome in outcomes.items()}
        facts["curves"] = {name: [list(point) for point in outcome.history] for name, outcome in outcomes.items()}
        about = {
            "task": "mri", "network": config.network, "images": config.images, "coils": config.coils,
            "acceleration": config.acceleration, "centre": config.centre, "noise_low": config.noise_low,
            "noise_std": config.noise_high,
        }  # fmt: skip
        if model.card is not None:
            facts["initial"] = model.card.training  # how the weights that the run began with were made
        model.card = Card(model.system, ROLE, config.shape, about, plain(facts))


def new_model(config: Config) -> SupervisedMRI:
    """With random weights of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.network == "unet":
            return ImageUNet(config.width, config.pools, dropout=config.dropout)
        return VarNet(
            config.cascades, config.width, config.pools, config.sensitivity_width, config.sensitivity_pools,
            dropout=config.dropout,
        )  # fmt: skip
