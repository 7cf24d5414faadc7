"""The stages of DEQ-MPI's training as Lightning modules, and what watches them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pyrecon import metrics
from pyrecon.implicit import ImplicitGradient
from pyrecon.io import written_whole
from pyrecon.models import DEQMPI
from pyrecon.ops import project_l2_ball
from pyrecon.train.config import Stage
from pyrecon.train.mpi_data import VALIDATION, TrainingData


@dataclass(frozen=True)
class Progress:
    """Where a run is: after ``step`` of ``steps`` of a stage. ``quality`` is the last validation's, dB; NaN before."""

    stage: str
    step: int
    steps: int
    loss: float
    quality: float


class StageModule(L.LightningModule):
    """One stage: which part trains, its loss at a step, and its quality on the validation set in dB."""

    name = ""

    def __init__(self, model: DEQMPI, data: TrainingData, stage: Stage) -> None:
        super().__init__()
        self.model, self.stage, self._data = model, stage, data

    @property
    def part(self) -> nn.Module:
        """What is trained."""
        return self.model

    def loss(self, step: int) -> Tensor:
        raise NotImplementedError

    def quality(self) -> dict[str, float]:
        """Values to log; ``"quality"`` in dB is what the best weights have most of."""
        raise NotImplementedError

    @property
    def data(self) -> TrainingData:
        self._data = self._data.to(self.device)
        return self._data

    def training_step(self, batch: Any, index: int) -> Tensor:
        # The step, not the loader, says what the batch is: see pyrecon.train.mpi_data.
        loss = self.loss(self.trainer.global_step)
        self.log("loss", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.part.parameters(), lr=self.stage.rate, betas=(0.9, 0.999))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.stage.rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Denoiser(StageModule):
    """``|RDN(x + n) - x|_1``, n white of standard deviation sigma_1 (DEQ-MPI Eq. 26). Quality: pSNR."""

    name = "denoiser"

    @property
    def part(self) -> nn.Module:
        return self.model.rdn

    def loss(self, step: int) -> Tensor:
        images = self.data.coarse(self.data.images(step, self.stage.batch))
        noise = self.data.config.denoiser_noise * self.data.noise(tuple(images.shape), step)
        return F.l1_loss(self.model.rdn(images + noise), images)

    def quality(self) -> dict[str, float]:
        images = self.data.coarse(self.data.validation)
        noise = self.data.config.denoiser_noise * self.data.noise(tuple(images.shape), 2, VALIDATION)
        return {"quality": _mean_psnr(self.model.rdn(images + noise), images)}


class Projection(StageModule):
    """``|LC(v, y) - proj(v, y)|_1`` for noisy y and v of the same image (Eq. 27). Quality: ``-20 log10`` of the
    relative distance between the two."""

    name = "projection"

    @property
    def part(self) -> nn.Module:
        return self.model.consistency

    def loss(self, step: int) -> Tensor:
        learned, projected = self._both(self.data.images(step, self.stage.batch), step, None)
        return F.l1_loss(learned, projected)

    def quality(self) -> dict[str, float]:
        learned, projected = self._both(self.data.validation, 3, VALIDATION)
        distance = torch.linalg.vector_norm(learned - projected, dim=1) / torch.linalg.vector_norm(projected, dim=1)
        return {"quality": float(-20 * torch.log10(distance).mean())}

    def _both(self, images: Tensor, step: int, stream: int | None) -> tuple[Tensor, Tensor]:
        clean, config = self.data.clean(images), self.data.config
        noise = self.data.noise((2, *clean.shape), step, **({} if stream is None else {"stream": stream}))
        y, v = (clean + sigma * n for sigma, n in zip(config.projection_noise, noise, strict=True))
        radius = y.new_full((len(y),), self.data.system.radius(config.snr_db))
        return self.model.consistency(v, y, radius), project_l2_ball(v, y, radius)


class Equilibrium(StageModule):
    """``|x* - x|_1`` at the fixed point (Eq. 13). Quality: pSNR after the steps of inference."""

    name = "equilibrium"

    def loss(self, step: int) -> Tensor:
        batch = self.data.measured(step, self.stage.batch)
        return F.l1_loss(self.model(self.data.problem, batch.y, batch.radius), batch.images)

    def on_after_backward(self) -> None:
        gradient = self.model.gradient
        if isinstance(gradient, ImplicitGradient) and gradient.last is not None:
            self.log("gradient_residual", gradient.last.residual.mean(), on_step=True, on_epoch=False)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation_set()
        found = self.model.reconstruct(self.data.problem, batch.y, batch.radius)
        start = self.data.problem.start(batch.y)[0].view_as(batch.images)
        return {
            "quality": _mean_psnr(found.value.clamp(min=0), batch.images),
            "least_squares": _mean_psnr(start, batch.images),
            "residual": float(found.residual.mean()),  # relative change in the last step
        }


class EndToEnd(StageModule):
    """``|RDN(x_ls) - x|_1`` for least-squares images x_ls of noisy data (section V-A). Quality: pSNR."""

    name = "end_to_end"

    @property
    def part(self) -> nn.Module:
        return self.model.rdn

    def loss(self, step: int) -> Tensor:
        batch = self.data.measured(step, self.stage.batch)
        return F.l1_loss(self.model.direct(self.data.problem, batch.y), batch.images)

    def quality(self) -> dict[str, float]:
        batch = self.data.validation_set()
        start = self.data.problem.start(batch.y)[0].view_as(batch.images)
        return {
            "quality": _mean_psnr(self.model.direct(self.data.problem, batch.y), batch.images),
            "least_squares": _mean_psnr(start, batch.images),
        }


MODULES: dict[str, type[StageModule]] = {kind.name: kind for kind in (Denoiser, Projection, Equilibrium, EndToEnd)}


class Watch(L.Callback):
    """Validates, keeps the best weights, writes checkpoints and says how it goes, in this order after every step.

    Checkpoints lie between steps, so a run resumed from one repeats the interrupted run bit by bit. Validation is done
    here and not by Lightning's loop, whose position within an epoch a resumed run would have to be told.
    """

    def __init__(
        self, path: Path, every: int, save_every: int, report: Callable[[Progress], None], stop: Callable[[], bool]
    ) -> None:
        self.path, self.every, self.save_every, self.report, self.stop = path, every, save_every, report, stop
        self.best, self.quality, self.weights = -math.inf, math.nan, dict[str, Tensor]()
        self.history: list[tuple[int, float]] = []
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "quality": self.quality, "weights": self.weights, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.quality = state_dict["best"], state_dict["quality"]
        self.weights, self.history = state_dict["weights"], [tuple(entry) for entry in state_dict["history"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.history:
            self._validate(trainer, pl_module)  # what the stage starts from; it may be the best there will be

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StageModule)
        step, steps = trainer.global_step, pl_module.stage.steps
        last, stop = step == steps, self.stop()
        if step % self.every == 0 or last:
            self._validate(trainer, pl_module)
        if step % self.save_every == 0 or last or stop:
            with written_whole(self.path) as temporary:
                trainer.save_checkpoint(temporary)
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        self.report(Progress(pl_module.name, step, steps, loss, self.quality))
        if stop and not last:
            self.stopped = trainer.should_stop = True

    def _validate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StageModule)
        module.eval()
        with torch.no_grad():
            values = module.quality()
        module.train()
        self.quality = values["quality"]
        self.history.append((trainer.global_step, self.quality))
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if self.quality > self.best or not self.weights:
            self.best, self.weights = self.quality, deepcopy(module.model.state_dict())


class Steps(IterableDataset[int]):
    """Endless: the modules make their own batches."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


def loader() -> DataLoader[int]:
    return DataLoader(Steps(), batch_size=None)


def _mean_psnr(images: Tensor, truth: Tensor) -> float:
    return float(metrics.psnr(images, truth).mean())
