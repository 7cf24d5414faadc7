"""``pyrecon train deq-mpi``: generated vessels and a system matrix to weights, in a folder that a run can resume from.

The folder holds ``config.json``, ``source.safetensors`` (the whitened system matrix), ``pool.npy`` (the images), for
each stage ``last.ckpt``, its logs and, once it is done, ``weights.pt``, and in the end ``weights.safetensors``.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrecon._errors import DataError, MissingDependency
from pyrecon._plain import plain
from pyrecon.data.mpi import MPISystem
from pyrecon.data.vessels import vascular_images
from pyrecon.implicit import Gradient, ImplicitGradient, JacobianFree, Unrolled
from pyrecon.io import written_whole
from pyrecon.io._files import one_line
from pyrecon.models.deq_mpi import DEQMPI, Consistency, new_card
from pyrecon.models.mpi.system import image_shape, row_layout
from pyrecon.nn import RDN, ExactConsistency, LearnedConsistency, RowLayout
from pyrecon.solvers import Anderson, ConvergenceWarning
from pyrecon.train.config import Config
from pyrecon.train.mpi_data import FINER, Source, TrainingData, fine_shape

if TYPE_CHECKING:
    from pyrecon.train.stages import Progress, Watch

Curve = list[tuple[int, float]]  # step, quality in dB

_CHUNK = 256  # images drawn between two reports
_INITIAL = "initial.safetensors"


class Interrupted(Exception):
    """The run was asked to stop; its folder resumes it."""


def train_deq_mpi(
    folder: str | Path,
    system: MPISystem | Source | None = None,
    config: Config | None = None,
    *,
    initial: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
    drawn: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> DEQMPI:
    """Train DEQ-MPI, or finish a run that was interrupted.

    Parameters
    ----------
    folder
        Of the run; a new run needs one that does not hold a run yet.
    system, config
        The whitened system matrix and the schedule of a new run.
    initial
        Weights of :meth:`DEQMPI.save` to begin with, in place of random ones, whatever their role: the networks of a
        run at another SNR, say, or a denoiser to train on. Stages of no steps are left out.
    resume
        Go on where the run in ``folder`` stood; system and config are its own. On one machine and number of threads the
        weights are, bit by bit, those of a run that was never interrupted.
    device
        Where to compute: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    report, drawn
        Called after every step, and while images are drawn with how many there are.
    stop
        Asked after every step; True writes a checkpoint and raises :class:`Interrupted`.

    Returns
    -------
    DEQMPI
        With the weights of the best validation, also in ``folder/weights.safetensors``.

    Source: DEQ-MPI (Güngör et al.), section III-B.2.
    """
    _require_lightning()
    folder = Path(folder)
    if resume:
        config, source = Config.from_json(folder / "config.json"), _read_source(folder / "source.safetensors")
    else:
        if system is None:
            raise DataError("system: a new run needs a system matrix")
        config = config or Config()
        source = system if isinstance(system, Source) else source_of(system)
        _begin(folder, source, config, initial)
    if config.consistency == "learned" and source.layout is None:
        raise DataError("consistency: 'learned' needs rows of several angles or channels; use 'ball'")
    pool, validation = _images(folder, source, config, drawn)
    data = TrainingData.of(source, config, pool, validation)
    model = _new_model(folder, source, config)
    qualities, curves = {}, {}
    for name in config.stages:
        qualities[name], curves[name] = _run_stage(folder / name, name, model, data, device, report, stop)
    model = model.to("cpu").eval()
    facts: dict[str, Any] = {"config": asdict(config), "quality_db": qualities, "rows": len(source.matrix)}
    facts["curves"] = {name: [[step, round(quality, 2)] for step, quality in curve] for name, curve in curves.items()}
    role = config.role or "equilibrium"
    if model.card is not None:
        facts["initial"] = model.card.training  # how the weights that the run began with were made
        role = config.role or model.card.role
    model.card = new_card(config.snr_db, source.shape, data.signal_range, plain(facts), role)
    model.save(folder / "weights.safetensors")
    return model


def source_of(system: MPISystem) -> Source:
    """What a run keeps of a whitened system."""
    return Source(system.matrix, image_shape(system.grid.shape), row_layout(system))


# --- stages --------------------------------------------------------------------------------------------------------
def _run_stage(
    folder: Path,
    name: str,
    model: DEQMPI,
    data: TrainingData,
    device: str,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> tuple[float, Curve]:
    """Train one stage, or load what it came to; leaves its best weights in ``model``.

    Returns their quality, and the quality at every validation.
    """
    import lightning as L
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from pyrecon.train.stages import MODULES, Watch, loader

    done, checkpoint = folder / "weights.pt", folder / "last.ckpt"
    if done.exists():
        kept = _read_checkpoint(done)
        model.load_state_dict(kept["weights"])
        return float(kept["quality"]), kept["history"]
    folder.mkdir(parents=True, exist_ok=True)
    module = MODULES[name](model, data, getattr(data.config, name))
    watch = Watch(checkpoint, data.config.validate_every, data.config.save_every, report, stop)
    accelerator, devices = _devices(device)
    with warnings.catch_warnings(), _quiet(logging.getLogger("lightning.pytorch")):
        # About loaders, loggers and tuning that a run of this kind has no use for.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.simplefilter("ignore", ConvergenceWarning)  # logged as residuals
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=devices,
            max_steps=module.stage.steps,
            max_epochs=-1,
            callbacks=[watch],
            logger=[CSVLogger(folder, name="log"), TensorBoardLogger(folder, name="tensorboard", version=0)],
            log_every_n_steps=min(10, data.config.validate_every),
            gradient_clip_val=module.stage.clip or None,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        if checkpoint.exists():
            _read_checkpoint(checkpoint)
        trainer.fit(module, loader(), ckpt_path=checkpoint if checkpoint.exists() else None)
    if watch.stopped:
        raise Interrupted(f"{folder.parent}: stopped after step {trainer.global_step} of {name}")
    return _finish(done, model, watch)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without the notices of hardware and of each stage's end."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _finish(done: Path, model: DEQMPI, watch: Watch) -> tuple[float, Curve]:
    model.load_state_dict(watch.weights)
    with written_whole(done) as temporary:
        torch.save({"weights": watch.weights, "quality": watch.best, "history": watch.history}, temporary)
    return watch.best, watch.history


def _devices(device: str) -> tuple[str, Any]:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return "cpu", 1
    return ("gpu" if kind == "cuda" else kind), [int(index)] if index else 1


def _new_model(folder: Path, source: Source, config: Config) -> DEQMPI:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        rdn = RDN(layers=config.layers)
        consistency: Consistency | None = None
        if config.consistency == "learned" and source.layout is not None:
            consistency = LearnedConsistency(source.layout, dims=config.dims)
            if config.consistency_start == "projection":
                consistency.become_projection()
        elif config.consistency == "none":
            consistency = ExactConsistency()
    card = None
    if (folder / _INITIAL).exists():
        known = DEQMPI.load(folder / _INITIAL)
        rdn, card = known.rdn, known.card
        if isinstance(consistency, LearnedConsistency) and isinstance(known.consistency, LearnedConsistency):
            if known.consistency.layout.digest != consistency.layout.digest:
                raise DataError("initial: its learned consistency belongs to other rows than the system matrix has")
            consistency = known.consistency
    solver = Anderson(memory=config.memory)
    gradient: Gradient = JacobianFree()
    inference = {"mixing": config.memory}
    if config.gradient == "implicit":
        gradient = ImplicitGradient(solver=solver, tol=config.tolerance, max_iter=config.backward_limit)
    elif config.gradient == "unrolled":  # inference is what was trained: as many steps, and plain ones
        gradient, inference = Unrolled(config.unrolled_steps), {"iterations": config.unrolled_steps}
    model = DEQMPI(
        rdn,
        consistency,
        penalty=config.penalty,
        solver=solver,
        tol=config.tolerance,
        max_iter=config.limit,
        gradient=gradient,
        **inference,
    )
    model.card = card
    return model


# --- the folder ----------------------------------------------------------------------------------------------------
def _begin(folder: Path, source: Source, config: Config, initial: str | Path | None) -> None:
    from safetensors.torch import save as packed

    if (folder / "config.json").exists():
        raise DataError(f"{folder}: holds a training run already; resume it, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from error
    tensors = {"matrix": source.matrix.cpu().contiguous()}
    facts: dict[str, Any] = {"shape": source.shape}
    if source.layout is not None:
        tensors["rows"] = source.layout.rows
        facts |= {"grid": source.layout.grid, "used": source.layout.used}
    with written_whole(folder / "source.safetensors") as temporary:
        temporary.write_bytes(packed(tensors, metadata={"pyrecon": json.dumps(facts)}))
    if initial is not None:
        DEQMPI.from_pretrained(initial).save(folder / _INITIAL)
    # Last, so that a folder with a configuration has all that a run needs.
    with written_whole(folder / "config.json") as temporary:
        temporary.write_text(config.to_json())


def _read_source(path: Path) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["pyrecon"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        height, width = facts["shape"]
        layout = RowLayout(tuple(facts["grid"]), tensors["rows"], facts["used"]) if "rows" in tensors else None
        return Source(tensors["matrix"], (height, width), layout)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not the system of a training run ({one_line(error)})") from None


def _images(folder: Path, source: Source, config: Config, drawn: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    """Pool and validation images of peak 1, drawn once per run."""
    path, total = folder / "pool.npy", config.pool + config.validation
    shape = fine_shape(source.shape, config)
    if path.exists():
        try:
            images = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: is not the pool of a training run ({one_line(error)})") from None
        if images.shape != (total, *shape) or images.dtype != np.float32:
            raise DataError(f"{path}: holds {images.dtype} {images.shape}, expected float32 {(total, *shape)}")
    else:
        factor = FINER if config.measure == "blurred" else 1
        images = np.empty((total, *shape), np.float32)
        for first in range(0, total, _CHUNK):
            part = images[first : first + _CHUNK]
            part[:] = vascular_images(
                len(part), shape=shape, factor=factor, peak=(1.0, 1.0), seed=config.seed, first=first
            )
            drawn(first + len(part), total)
        with written_whole(path) as temporary:
            np.save(temporary, images)
    tensors = torch.from_numpy(images)
    return tensors[: config.pool], tensors[config.pool :]


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated archive or a hostile pickle has its own ways to fail
        raise DataError(f"{path}: is not a checkpoint of a training run ({type(error).__name__})") from None
    return content


def _require_lightning() -> None:
    for package in ("lightning", "tensorboard"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependency(package, "train", "training") from error
