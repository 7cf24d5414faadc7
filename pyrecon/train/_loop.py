"""One stage of a run by Lightning, and what watches it. Imports Lightning, so only :mod:`pyrecon.train.run` does."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pyrecon._errors import DataError
from pyrecon.io import written_whole
from pyrecon.io._files import one_line
from pyrecon.solvers import ConvergenceWarning
from pyrecon.train._files import check_state, read_torch, read_tree, write_tree
from pyrecon.train.config import RunConfig
from pyrecon.train.task import Context, Diverged, Interrupted, Progress, Task

_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def fit(folder: Path, task: Task, config: RunConfig, context: Context) -> Watch:
    """Train a stage to its end, from its checkpoint if there is one; Interrupted or Diverged where it ends before."""
    checkpoint = folder / "last.safetensors"
    old = folder / "last.ckpt"
    start = checkpoint if checkpoint.exists() else old if old.exists() else None
    watch = Watch(checkpoint, config, context, task)
    module = Module(task)
    accelerator, devices = _devices(context.device)
    with warnings.catch_warnings(), _quiet(logging.getLogger("lightning.pytorch")):
        # About loaders, loggers and tuning that a run of this kind has no use for.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.simplefilter("ignore", ConvergenceWarning)  # logged as residuals
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=devices,
            max_steps=task.stage.steps,
            max_epochs=-1,
            callbacks=[watch],
            plugins=[Checkpoints(task)],
            logger=[CSVLogger(folder, name="log"), TensorBoardLogger(folder, name="tensorboard", version=0)],
            log_every_n_steps=min(10, config.validate_every),
            gradient_clip_val=task.stage.clip or None,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module, DataLoader(Steps(), batch_size=None), ckpt_path=start)
        except SystemExit:  # Lightning's end at a second Ctrl-C, and at a SIGTERM before the first step
            if not context.stop():
                raise
            watch.stopped = True
        except (DataError, Diverged, Interrupted):
            raise
        except _MALFORMED as error:
            if start is None or watch.begun:
                raise
            raise DataError(f"{start}: is not a checkpoint of this training run ({one_line(error)})") from None
    if watch.stopped:
        raise Interrupted(f"{folder.parent}: stopped after step {trainer.global_step} of {task.name}")
    if not watch.weights:
        raise Diverged(f"{folder.parent}: no validation of {task.name} gave a finite {task.measure.name}")
    return watch


class Module(L.LightningModule):
    """A task as Lightning sees it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self.task = task.model, task

    def moved(self) -> Task:
        """The task with its data where the model is."""
        self.task.data = self.task.data.to(self.device)
        return self.task

    def training_step(self, batch: Any, index: int) -> Tensor:
        # The step, not the loader, says what the batch is.
        loss = self.moved().loss(self.trainer.global_step)
        self.log("loss", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def on_after_backward(self) -> None:
        for name, value in self.task.watched().items():
            self.log(name, value, on_step=True, on_epoch=False)

    def configure_optimizers(self) -> Any:
        stage = self.task.stage
        optimizer = stage.optimizer(self.task.groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, stage.rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watch(L.Callback):
    """Validates, keeps the best weights, writes checkpoints and says how it goes, in this order after every step.

    Checkpoints lie between steps, so a run resumed from one repeats the interrupted run bit by bit. Validation is done
    here and not by Lightning's loop, whose position within an epoch a resumed run would have to be told.
    """

    def __init__(self, path: Path, config: RunConfig, context: Context, task: Task) -> None:
        self.path, self.config, self.context, self.task = path, config, context, task
        self.best, self.quality, self.weights = math.nan, math.nan, dict[str, Tensor]()
        self.history: list[tuple[int, float]] = []
        self.stopped = self.begun = False
        self.saved = 0  # the step of the checkpoint; 0: there is none

    def state_dict(self) -> dict[str, Any]:
        known = {"best": self.best, "quality": self.quality, "weights": self.weights, "history": self.history}
        return known | {"task": self.task.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.quality = float(state_dict["best"]), float(state_dict["quality"])
        self.weights = state_dict["weights"]
        self.history = [(int(step), float(value)) for step, value in state_dict["history"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.context.hold()
        self.begun, self.saved = True, trainer.global_step
        if not self.history:
            self._validate(trainer, pl_module)  # what the stage starts from; it may be the best there will be

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Module)
        task = pl_module.task
        step, steps = trainer.global_step, task.stage.steps
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        if not math.isfinite(loss):
            raise self._diverged(task, step, f"the loss became {loss}")
        last, stop = step == steps, self.context.stop()
        validates, saves = step % self.config.validate_every == 0 or last, step % self.config.save_every == 0
        if (validates or saves or stop) and not all(torch.isfinite(p).all() for p in task.part.parameters()):
            raise self._diverged(task, step, "weights became NaN or infinite")
        if validates:
            self._validate(trainer, pl_module)
        if saves or last or stop:
            with written_whole(self.path) as temporary:
                trainer.save_checkpoint(temporary)
            self.saved = step
            task.saved()
        self.context.report(Progress(task.name, step, steps, loss, self.quality, task.measure))
        if stop and not last:
            self.stopped = trainer.should_stop = True

    def _validate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Module)
        task, model = module.moved(), module.model
        module.eval()
        with torch.no_grad():
            values = task.quality()
        module.train()
        self.quality = values["quality"]
        self.history.append((trainer.global_step, self.quality))
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        # NaN is never better; before there are weights to keep, anything that is a number is.
        best = self.best if self.weights else task.measure.worst
        if task.measure.better(self.quality, best) and math.isfinite(self.quality):
            self.best, self.weights = self.quality, deepcopy(model.state_dict())

    def _diverged(self, task: Task, step: int, what: str) -> Diverged:
        kept = f"its last checkpoint is of step {self.saved}" if self.saved else "it has no checkpoint yet"
        return Diverged(
            f"{self.path.parents[1]}: {what} at step {step} of {task.name}; {kept}. Begin anew with a lower rate (now "
            f"{task.stage.rate:g}) or a bound on the gradient, clip (now {task.stage.clip:g})"
        )


class Checkpoints(CheckpointIO):
    """Checkpoints as safetensors with JSON, compared with the model before Lightning sees them."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_tree(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        path, what = Path(path), "a checkpoint"
        model = self.task.model.state_dict()
        parameters = [p for group in self.task.groups for p in group["params"]]
        if path.suffix == ".ckpt":
            size = sum(value.nbytes for value in model.values())
            found = read_torch(path, what, most_bytes=8 * size)
        else:
            most = 2 * len(model) + 3 * len(parameters) + len(self.task.state())
            found = read_tree(path, what, most=most)
        try:
            state, best = found["state_dict"], found["callbacks"]["Watch"]["weights"]
            (optimizer,) = found["optimizer_states"]
            moments = [
                (entry[name], parameters[index])
                for index, entry in optimizer["state"].items()
                for name in self.task.stage.moments
            ]
            if any(moment.shape != parameter.shape for moment, parameter in moments):
                raise ValueError("the optimizer's state has other shapes than the parameters")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is not {what} of this training run ({one_line(error)})") from None
        check_state(path, state, {f"model.{name}": value for name, value in model.items()})
        if best:
            check_state(path, best, model)
        self._load_task(path, found["callbacks"]["Watch"].get("task", {}))
        checkpoint: dict[str, Any] = found
        return checkpoint

    def _load_task(self, path: Path, state: Any) -> None:
        try:
            if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
                raise TypeError("the state of a task is no dict of tensors")
            for name, value in state.items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise ValueError(f"{name} holds NaN or infinite values")
            self.task.load_state(state)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: is not a checkpoint of this training run ({one_line(error)})") from None

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Steps(IterableDataset[int]):
    """Endless: the tasks make their own batches."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


def _devices(device: str) -> tuple[str, Any]:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return "cpu", 1
    return ("gpu" if kind == "cuda" else kind), [int(index)] if index else 1


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without the notices of hardware and of each stage's end."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
