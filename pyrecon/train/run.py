"""A training run in a folder: begun, interrupted, resumed bit by bit, finished. It knows no model.

A system writes one subclass of :class:`Training` (its configuration, data, model and card) and one of :class:`Task` for
each of its stages (what trains, the loss of a step, the quality on validation data). :func:`train` does the rest.

The folder holds ``config.json``, ``source.safetensors`` (what data are made of, if anything), for each stage its logs,
``last.safetensors`` (the checkpoint) and, once it is done, ``weights.safetensors``; in the end ``weights.safetensors``.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrecon._errors import DataError, MissingDependency
from pyrecon.io import written_whole
from pyrecon.io._files import one_line
from pyrecon.train._files import check_state, make_folder, read_tensors, read_torch, sweep, write_tensors
from pyrecon.train.config import RunConfig
from pyrecon.train.task import Context, Interrupted, Outcome, Report, Task

Drawn = Callable[[int, int], None]
_INITIAL = "initial.safetensors"


@dataclass(frozen=True)
class Option:
    """An option of ``pyrecon train`` that is no setting: what the data of a new run are made of.

    ``name`` as in ``"--system-matrix"``, ``kind`` its type (Path, float, int, str), ``also`` other spellings.
    """

    name: str
    kind: type[Any]
    default: Any
    help: str
    also: tuple[str, ...] = ()
    least: float | None = None

    @property
    def key(self) -> str:
        return self.name.lstrip("-").replace("-", "_")


class Training(ABC):
    """What a system brings to a run.

    Attributes
    ----------
    name
        As in ``pyrecon train NAME``.
    settings
        Its configuration, a subclass of :class:`~pyrecon.train.config.RunConfig`.
    tasks
        Its stages in order, by the names of the configuration's fields.
    models
        What it trains: names of ``--model``, the first by default, and what ``settings.of_scale`` calls them.
    options
        What the command line asks for beside settings: :meth:`source` gets them by name.
    """

    name: ClassVar[str]
    settings: ClassVar[type[RunConfig]]
    tasks: ClassVar[tuple[type[Task], ...]]
    models: ClassVar[Mapping[str, Any]] = {}
    options: ClassVar[tuple[Option, ...]] = ()

    def __init__(self, folder: Path, source: Any, config: Any) -> None:
        self.folder, self.source, self.config = folder, source, config

    # What a run begins with.
    @classmethod
    def configured(cls, scale: Any, model: str, given: Mapping[str, Any]) -> RunConfig:
        """The schedule of a scale for a model, with values that were given by (dotted) name."""
        whole = {key: value for key, value in given.items() if "." not in key}
        return cls.settings.of_scale(scale, cls.models.get(model), **whole).changed(
            {key: value for key, value in given.items() if "." in key}
        )

    @classmethod
    def new_source(cls, seed: int, options: Mapping[str, Any]) -> Any:
        """What data are made of, from the command line's options by key; None where that is nothing but the seed."""
        return None

    @classmethod
    def kept(cls, source: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The source as tensors and JSON."""
        return None

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Any:
        """The source again; ValueError, KeyError or TypeError where it is none. Empty where nothing was kept."""
        return None

    @classmethod
    def pretrained(cls, name: str | Path) -> Any:
        """A model to begin with, that has ``save(path)``."""
        raise DataError(f"initial: {cls.name} begins with no other weights")

    # The parts of a run.
    @abstractmethod
    def data(self, drawn: Drawn) -> Any:
        """Training and validation data, that have ``to(device)``; see :func:`~pyrecon.train.kept_pool`."""

    @abstractmethod
    def model(self, initial: Path | None) -> Any:
        """A module with random weights of the seed, or those of ``initial``."""

    @abstractmethod
    def finish(self, model: Any, data: Any, outcomes: dict[str, Outcome]) -> None:
        """Give the trained model its card and whatever else it is saved with."""

    @classmethod
    def advice(cls, model: Any, path: Path) -> str:
        """A command to try the weights with."""
        return ""


def train(
    system: type[Training],
    folder: str | Path,
    source: Any = None,
    config: RunConfig | None = None,
    *,
    initial: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    report: Report = lambda progress: None,
    drawn: Drawn = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
    done: Callable[[str, Outcome], None] = lambda stage, outcome: None,
) -> Any:
    """Train a system, or finish a run that was interrupted.

    Parameters
    ----------
    system
        What is trained.
    folder
        Of the run; a new run needs one that does not hold a run yet.
    source, config
        What the data of a new run are made of, and its schedule.
    initial
        Weights to begin with, in place of random ones.
    resume
        Go on where the run in ``folder`` stood; source and config are its own. On one machine and number of threads the
        weights are, bit by bit, those of a run that was never interrupted.
    device
        Where to compute: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    report, drawn
        Called after every step, and while images are drawn with how many there are.
    done
        Called with every stage and what it came to.
    stop
        Asked after every step, before every stage and between images that are drawn; True writes a checkpoint and
        raises :class:`Interrupted`. So do Ctrl-C and SIGTERM; the second of either does what it would without a run.

    Returns
    -------
    The model, with the weights of the best validation, also in ``folder/weights.safetensors``.

    Raises
    ------
    DataError
        Where the folder, or what a new run begins with, is unusable.
    Interrupted, Diverged
        :class:`~pyrecon._errors.Stopped` with what to do next.
    """
    _require_lightning()
    folder = Path(folder)
    if resume:
        config = system.settings.from_json(folder / "config.json")
        sweep(folder)
        source = _source(system, folder)
    else:
        config = config or system.settings()
        _begin(system, folder, source, config, initial)
    with interrupts() as asked:
        context = Context(device, report, lambda: asked() or stop(), asked.hold)

        def heard(done: int, total: int) -> None:
            drawn(done, total)
            if context.stop():
                raise Interrupted(f"{folder}: stopped after {done} of {total} images were drawn")

        training = system(folder, source, config)
        data = training.data(heard)
        model = training.model(folder / _INITIAL if (folder / _INITIAL).exists() else None)
        kinds = {kind.name: kind for kind in training.tasks}
        outcomes = {}
        for name in config.stages:
            task = kinds[name](model, data, getattr(config, name))
            outcomes[name] = _run_stage(folder / name, task, config, context)
            done(name, outcomes[name])
    model = model.to("cpu").eval()
    training.finish(model, data, outcomes)
    model.save(folder / "weights.safetensors")
    return model


# --- a stage ---------------------------------------------------------------------------------------------------------
def _run_stage(folder: Path, task: Task, config: RunConfig, context: Context) -> Outcome:
    """Train one stage, or load what it came to; leaves its best weights in the model."""
    for done in (folder / "weights.safetensors", folder / "weights.pt"):
        if done.exists():
            return _finished(done, task)
    if context.stop():
        raise Interrupted(f"{folder.parent}: stopped before {task.name}")
    from pyrecon.train._loop import fit

    make_folder(folder)
    watch = fit(folder, task, config, context)
    task.model.load_state_dict(watch.weights)
    facts = {"quality": watch.best, "history": watch.history}
    write_tensors(folder / "weights.safetensors", watch.weights, facts)
    return Outcome(watch.best, watch.history, task.measure)


def _finished(path: Path, task: Task) -> Outcome:
    expected, what = task.model.state_dict(), "the result of a stage"
    if path.suffix == ".pt":
        size = sum(value.nbytes for value in expected.values())
        facts = read_torch(path, what, most_bytes=4 * size)
        weights = facts.get("weights") if isinstance(facts, dict) else None
    else:
        weights, facts = read_tensors(path, what, most=len(expected))
    check_state(path, weights, expected)
    try:
        quality, history = float(facts["quality"]), [(int(step), float(value)) for step, value in facts["history"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: is not {what} of a training run ({error})") from None
    task.model.load_state_dict(weights)
    return Outcome(quality, history, task.measure)


# --- the folder ------------------------------------------------------------------------------------------------------
def _begin(system: type[Training], folder: Path, source: Any, config: RunConfig, initial: str | Path | None) -> None:
    if (folder / "config.json").exists():
        raise DataError(f"{folder}: holds a training run already; resume it, or choose another folder")
    make_folder(folder)
    sweep(folder)
    kept = system.kept(source)
    if kept is not None:
        write_tensors(folder / "source.safetensors", *kept)
    if initial is not None:
        system.pretrained(initial).save(folder / _INITIAL)
    # Last, so that a folder with a configuration has all that a run needs.
    with written_whole(folder / "config.json") as temporary:
        temporary.write_text(config.to_json())


def _source(system: type[Training], folder: Path) -> Any:
    path, what = folder / "source.safetensors", "the source"
    tensors, facts = read_tensors(path, what, most=16) if path.exists() else ({}, {})
    try:
        for name, value in tensors.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinite values")
        return system.restored(tensors, facts)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, OverflowError) as error:
        said = one_line(error) if path.exists() else "no such file"
        raise DataError(f"{path}: is not {what} of a training run ({said})") from None


# --- interrupts ------------------------------------------------------------------------------------------------------
class Asked:
    """Whether Ctrl-C or SIGTERM came. The first of them is a question; the next does what it would without it."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return bool(self._came)

    def hold(self) -> None:
        """Take the signals, also from whoever took them since: Lightning ends with code 0 at SIGTERM."""
        if threading.current_thread() is threading.main_thread() and not self._came:
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def release(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                signal.signal(number, before)

    def _note(self, number: int, frame: Any) -> None:
        again = bool(self._came)
        self._came.append(number)
        self.release()
        if again:  # whoever took the signals handed them back to this
            signal.raise_signal(number)


@contextmanager
def interrupts() -> Iterator[Asked]:
    """A question whether Ctrl-C or SIGTERM came; in another thread than the main one it is never True."""
    asked = Asked()
    asked.hold()
    try:
        yield asked
    finally:
        asked.release()


def _require_lightning() -> None:
    for package in ("lightning", "tensorboard"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependency(package, "train", "training") from error
