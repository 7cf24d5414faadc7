"""``pyrecon train``: models from generated data, resumable at any time."""

from __future__ import annotations

import dataclasses
import enum
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console
from pyrecon.cli.reconstruct import check_device

if TYPE_CHECKING:
    from pyrecon.data.mpi import MPISystem
    from pyrecon.models.deq_mpi import Role
    from pyrecon.train import Config
    from pyrecon.train.stages import Progress

app = typer.Typer(help="Train models on generated data.", no_args_is_help=True)


class Scale(enum.StrEnum):
    """How long to train."""

    quick = "quick"
    full = "full"


class Consistency(enum.StrEnum):
    """The data step."""

    ball = "ball"
    learned = "learned"
    none = "none"


class Measure(enum.StrEnum):
    """How data are made."""

    blurred = "blurred"
    finer = "finer"


class Gradient(enum.StrEnum):
    """How gradients pass the equilibrium."""

    implicit = "implicit"
    jacobian_free = "jacobian-free"
    unrolled = "unrolled"


class Start(enum.StrEnum):
    """What learned consistency begins as."""

    projection = "projection"
    random = "random"


class Model(enum.StrEnum):
    """What to train: DEQ-MPI or what it is compared with."""

    deq = "deq"
    unrolled = "unrolled"
    end_to_end = "end-to-end"
    denoiser = "denoiser"


_ROLES: dict[Model, Role] = {
    Model.deq: "equilibrium",
    Model.unrolled: "unrolled",
    Model.end_to_end: "end-to-end",
    Model.denoiser: "denoiser",
}


@app.command("deq-mpi")
def deq_mpi(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of a new run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to finish; its settings are kept.")] = None,
    model: Annotated[
        Model, typer.Option(help="deq; unrolled: a few steps; end-to-end: the network alone; denoiser: for pp-mpi.")
    ] = Model.deq,
    system_matrix: Annotated[
        Path | None, typer.Option("--system-matrix", "-s", help="MDF system matrix. Default: a simulated calibration.")
    ] = None,
    field: Annotated[float, typer.Option(min=0.05, help="Selection field of the simulated scanner, T/m.")] = 0.5,
    snr_threshold: Annotated[float, typer.Option(min=0, help="Leave out system-matrix rows with less SNR.")] = 5.0,
    upsample: Annotated[int, typer.Option(min=1, help="Refine the system matrix's grid by this factor.")] = 1,
    snr: Annotated[float, typer.Option(help="SNR of the training data in dB.")] = 25.0,
    scale: Annotated[Scale, typer.Option(help="quick: within an hour on two cores. full: as published.")] = Scale.quick,
    consistency: Annotated[
        Consistency, typer.Option(help="ball: fits any system matrix. learned: for this scan's rows. none: z0 = y.")
    ] = Consistency.ball,
    consistency_start: Annotated[
        Start, typer.Option(help="Of learned consistency. random: as published, then a stage that learns to project.")
    ] = Start.projection,
    dims: Annotated[
        int, typer.Option(min=1, max=2, help="Of learned consistency: 1 for a field-free line, 2 for several channels.")
    ] = 1,
    measure: Annotated[
        Measure, typer.Option(help="blurred: A x + noise, read with A U D. finer: objects on a finer grid.")
    ] = Measure.blurred,
    gradient: Annotated[
        Gradient | None, typer.Option(help="Through the equilibrium; jacobian-free is faster. Default: implicit.")
    ] = None,
    unrolled_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the unrolled model. Default: 5.")] = None,
    projection_noise: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Noise on y and v in learned consistency's stage; 0 0: none.", show_default=False),
    ] = None,
    pool: Annotated[int | None, typer.Option(min=1, help="Training images.")] = None,
    validation: Annotated[int | None, typer.Option(min=1, help="Validation images.")] = None,
    denoiser_steps: Annotated[int | None, typer.Option(min=0, help="Steps of the denoiser's stage.")] = None,
    projection_steps: Annotated[int | None, typer.Option(min=0, help="Steps of learned consistency's stage.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of the model's last stage, for deq the equilibrium's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step, all stages.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate, all stages.")] = None,
    penalty: Annotated[
        float | None, typer.Option(help="Of the data's split in ADMM; 1 as published, more for high SNR.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most iterations to the equilibrium.")] = None,
    backward_limit: Annotated[int | None, typer.Option(min=1, help="Most iterations to its gradient.")] = None,
    tolerance: Annotated[float | None, typer.Option(min=0, help="Relative change at which they end.")] = None,
    initial: Annotated[
        Path | None,
        typer.Option("--from-pretrained", help="Weights to begin with: a file, or the name of some that ship."),
    ] = None,
    validate_every: Annotated[int | None, typer.Option(min=1, help="Steps between validations.")] = None,
    save_every: Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of images, noise, weights and calibration.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
) -> None:
    """Train DEQ-MPI, or what it is compared with, on random vascular trees.

    DEQ-MPI has three stages: denoiser, learned consistency, equilibrium.

    Ctrl-C stops after the step that is running; --resume goes on there, with the result of an uninterrupted run.
    """
    from pyrecon.models.mpi import LEARNED
    from pyrecon.train import Config, Interrupted, train_deq_mpi

    if (output is None) == (resume is None):
        raise DataError("give --output FOLDER for a new run or --resume FOLDER to finish one")
    check_device(device)
    folder, config, system = resume, None, None
    if output is not None:
        if (projection_steps or projection_noise) and (consistency, consistency_start) != ("learned", "random"):
            raise DataError(
                "--projection-steps, --projection-noise: are for --consistency learned --consistency-start random"
            )
        given: dict[str, Any] = {"pool": pool, "validation": validation, "limit": limit, "tolerance": tolerance}
        given |= {
            "penalty": penalty,
            "backward_limit": backward_limit,
            "validate_every": validate_every,
            "save_every": save_every,
            "unrolled_steps": unrolled_steps,
            "projection_noise": projection_noise,
        }
        kind: Literal["quick", "full"] = "full" if scale is Scale.full else "quick"
        given["gradient"] = _gradient(gradient, model, unrolled_steps)
        config = Config.of_scale(
            kind,
            _ROLES[model],
            snr_db=snr,
            consistency=consistency.value,
            consistency_start=consistency_start.value,
            dims=dims,
            measure=measure.value,
            seed=seed,
            **{name: value for name, value in given.items() if value is not None},
        )
        lengths = {"denoiser": denoiser_steps, "projection": projection_steps}
        last = {Model.end_to_end: "end_to_end", Model.denoiser: "denoiser"}.get(model, "equilibrium")
        lengths[last] = lengths.get(last) if steps is None else steps
        config = _shortened(config, lengths, batch, rate)
        folder, system = output, _system(system_matrix, field, snr_threshold, upsample, seed)
    assert folder is not None
    with _console.progress() as bar, _interruptible() as stop:
        watcher = _Watcher(bar)
        try:
            trained = train_deq_mpi(
                folder,
                system,
                config,
                initial=initial,
                resume=resume is not None,
                device=device,
                report=watcher.report,
                drawn=watcher.drawn,
                stop=stop,
            )
        except Interrupted as interrupted:
            bar.stop()
            _console.err.print(f"{interrupted}; go on with: pyrecon train deq-mpi --resume {folder}", soft_wrap=True)
            raise typer.Exit(1) from None
    assert trained.card is not None
    for name, quality in trained.card.training["quality_db"].items():
        _console.out.print(f"{name:<12} {quality:.2f} dB on the validation images", soft_wrap=True)
    _console.out.print(f"written      {folder / 'weights.safetensors'}", soft_wrap=True)
    method = next(name for name, kind in LEARNED.items() if kind.role == trained.card.role)
    _console.out.print(
        f"try          pyrecon reconstruct SCAN.mdf -s SM.mdf -m {method} --weights {folder / 'weights.safetensors'}",
        soft_wrap=True,
    )


def _gradient(
    gradient: Gradient | None, model: Model, steps: int | None
) -> Literal["implicit", "jacobian-free", "unrolled"] | None:
    """The gradient's name, None for the default; ``--model unrolled`` is another word for ``--gradient unrolled``."""
    if model is Model.unrolled:
        if gradient not in (None, Gradient.unrolled):
            raise DataError(f"--gradient: {gradient.value} leads through an equilibrium, --model unrolled has none")
        return "unrolled"
    if gradient is not None and model is not Model.deq:
        raise DataError(f"--gradient: is of the equilibrium, which --model {model.value} does not train")
    if steps is not None and gradient is not Gradient.unrolled:
        raise DataError("--unrolled-steps: is for --model unrolled")
    return None if gradient is None else gradient.value


def _shortened(config: Config, lengths: dict[str, int | None], batch: int | None, rate: float | None) -> Config:
    """Stages of other lengths keep the number of times that their rate is halved."""
    for name, length in lengths.items():
        stage = getattr(config, name)
        halve = stage.halve
        if length is not None and stage.steps:
            halve = max(1, round(stage.halve * length / stage.steps))
        stage = dataclasses.replace(
            stage,
            steps=stage.steps if length is None else length,
            batch=stage.batch if batch is None else batch,
            rate=stage.rate if rate is None else rate,
            halve=halve,
        )
        config = dataclasses.replace(config, **{name: stage})
    return config


def _system(path: Path | None, field: float, snr_threshold: float, upsample: int, seed: int) -> MPISystem:
    from pyrecon import io
    from pyrecon.data.mpi import prepare_system
    from pyrecon.experiments.mpi import GRID
    from pyrecon.io import mdf
    from pyrecon.physics.mpi import Scanner

    if path is None:
        with _console.err.status("calibrating the simulated scanner"):
            calibration = Scanner(gradient=field).calibrate(GRID, seed=seed)
    else:
        if io.detect(path) != "mdf-system-matrix":
            raise DataError(f"{path}: is {io.detect(path)}, expected an MDF system matrix")
        calibration = mdf.read_system_matrix(path)
    system = prepare_system(calibration, snr_threshold=snr_threshold)
    return system if upsample == 1 else system.upsampled(upsample)


class _Watcher:
    """Turns what training reports into a bar on a terminal, and into a line per validation elsewhere."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.tasks, self.said = bar, dict[str, Any](), dict[str, float]()

    def drawn(self, done: int, total: int) -> None:
        self._update("drawing images", "drawing images", done, total)

    def report(self, progress: Progress) -> None:
        text = f"{progress.stage}: loss {progress.loss:.5f}, validation {progress.quality:.2f} dB"
        self._update(progress.stage, text, progress.step, progress.steps)
        if self.bar.disable and self.said.get(progress.stage) != progress.quality:
            self.said[progress.stage] = progress.quality
            _console.err.print(f"step {progress.step} of {progress.steps}, {text}", markup=False, soft_wrap=True)

    def _update(self, name: str, text: str, done: int, total: int) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(text)
        self.bar.update(self.tasks[name], description=text, completed=done, total=total)


@contextmanager
def _interruptible() -> Iterator[Any]:
    """A question whether Ctrl-C was pressed; pressed twice it does what it always does."""
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
