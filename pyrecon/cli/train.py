"""``pyrecon train``: the models of the systems from generated data, resumable at any time."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrecon._errors import DataError, Stopped
from pyrecon.cli import _commands, _console, _settings
from pyrecon.cli._jobs import check_device
from pyrecon.systems import SYSTEMS

if TYPE_CHECKING:
    from pyrecon.train import Outcome, Progress, Training

_PANEL = "Settings, short for -p NAME=VALUE"


def _common(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of a new run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to finish; its settings are kept.")] = None,
    initial: Annotated[
        str | None,
        typer.Option("--from-pretrained", help="Weights to begin with: a file, or the name of some that ship."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Steps of the model's last stage.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step, all stages.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate, all stages.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")] = "cpu",
) -> None:
    """What every system has."""


def _build(name: str) -> tuple[str, _commands.Parameters, Any]:
    training = SYSTEMS[name].training
    takes: dict[str, Any] = _commands.parameters(_common)
    if len(training.models) > 1:
        takes["model"] = _commands.choice(
            "--model", list(training.models), "What to train.", show_default=next(iter(training.models))
        )
    scales = ("quick", "full")
    takes["scale"] = _commands.choice(
        "--scale", scales, "quick: within an hour on two cores. full: as published.", show_default="quick"
    )
    takes |= {option.key: _commands.option(option) for option in training.options}
    others = list(_settings.names(training.settings))
    shown = ", ".join(key for key in others if "." not in key)
    stages = ", ".join(training.settings.stage_names())
    own = ", ".join(dict.fromkeys(key.partition(".")[2] for key in others if "." in key))
    text = f"A setting; repeat for more. Names: {shown}; {own} of a stage as STAGE.steps, with STAGE one of {stages}."
    takes["parameter"] = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help=text)], None
    takes |= _short(training)
    about = inspect.getdoc(training) or ""
    help = (
        f"Train {about}\n\nCtrl-C or SIGTERM stops after the step that is running, with exit code 1; --resume goes on "
    )
    help += "there, with the result of an uninterrupted run."
    return help, takes, lambda **given: _train(name, training, given)


app = _commands.group("Train models on generated data.", "training", _build)


def _short(training: type[Training]) -> dict[str, Any]:
    """An option for every setting that declares one; of a stage it is the steps."""
    kinds, takes = _settings.names(training.settings), {}
    for field in fields(training.settings):
        option = field.metadata.get("option")
        if not option:
            continue
        stage = field.name not in kinds
        kind, default = kinds[f"{field.name}.steps" if stage else field.name]
        about: dict[str, Any] = {"help": field.metadata["help"], "rich_help_panel": _PANEL}
        about["show_default"] = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        if choices := _settings.choices(kind):
            takes[field.name] = _commands.choice(option, choices, about.pop("help"), **about)
        elif isinstance(default, tuple):
            takes[field.name] = (
                Annotated[tuple[str, str] | None, typer.Option(option, metavar="VALUE VALUE", **about)],
                None,
            )
        else:
            metavar = {int: "INTEGER", float: "FLOAT"}.get(kind, "TEXT")
            takes[field.name] = Annotated[str | None, typer.Option(option, metavar=metavar, **about)], None
    return takes


def _train(name: str, training: type[Training], given: dict[str, Any]) -> None:
    from pyrecon.train import train

    output, resume, device = given.pop("output"), given.pop("resume"), given.pop("device")
    if (output is None) == (resume is None):
        raise DataError("give --output FOLDER for a new run or --resume FOLDER to finish one")
    check_device(device)
    folder, initial = (output or resume), given.pop("initial")
    config = source = None
    if resume is None:
        config, source = _new(training, given)
    elif initial is not None or any(value is not None and value != [] for value in given.values()):
        named = ["from_pretrained"] if initial is not None else []
        named += [key for key, value in given.items() if value is not None and value != []]
        raise DataError(f"--resume: a run keeps its settings, leave out {', '.join(named)}")
    with _console.progress() as bar:
        watcher = _Watcher(bar)
        try:
            trained = train(
                training,
                folder,
                source,
                config,
                initial=initial,
                resume=resume is not None,
                device=device,
                report=watcher.report,
                drawn=watcher.drawn,
                done=watcher.done,
            )
        except Stopped as stopped:
            bar.stop()
            advice = f"; go on with: pyrecon train {name} --resume {folder}" if _resumes(stopped) else ""
            _console.err.print(f"{stopped}{advice}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
    for stage, text in watcher.results.items():
        _console.out.print(f"{stage:<12} {text} on the validation images", soft_wrap=True)
    path = folder / "weights.safetensors"
    _console.out.print(f"written      {path}", soft_wrap=True)
    if advice := training.advice(trained, path):
        _console.out.print(f"try          {advice}", soft_wrap=True)


def _resumes(stopped: Stopped) -> bool:
    from pyrecon.train import Interrupted

    return isinstance(stopped, Interrupted)


def _new(training: type[Training], given: dict[str, Any]) -> tuple[Any, Any]:
    """Configuration and source of a new run."""
    scale = given.pop("scale") or "quick"
    model = given.pop("model", None) or next(iter(training.models), "")
    options = _commands.filled(training.options, given)
    kinds = _settings.names(training.settings)
    values = _settings.given(training.settings, training.name, given["parameter"] or [])
    for field in fields(training.settings):
        text = given.get(field.name) if field.metadata.get("option") else None
        if text is None:
            continue
        key = field.name if field.name in kinds else f"{field.name}.steps"
        if key in values:
            raise DataError(f"{field.metadata['option']}: is given twice, as -p {key} too")
        text = ",".join(text) if isinstance(text, tuple) else text
        values[key] = _settings.parse(field.metadata["option"], text, kinds[key][0])
    plain = training.configured(scale, model, {key: value for key, value in values.items() if "." not in key})
    last = {} if given["steps"] is None or not plain.stages else {f"{plain.stages[-1]}.steps": given["steps"]}
    for key in ("batch", "rate"):
        if given[key] is not None:
            last |= {f"{stage}.{key}": given[key] for stage in plain.stages}
    config = training.configured(scale, model, last | values)
    with _console.err.status("preparing what the data are made of"):
        return config, training.new_source(config.seed, options)


class _Watcher:
    """Turns what training reports into a bar on a terminal, and into a line per validation elsewhere."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.tasks, self.said = bar, dict[str, Any](), dict[str, float]()
        self.results: dict[str, str] = {}

    def drawn(self, done: int, total: int) -> None:
        self._update("drawing images", "drawing images", done, total)

    def report(self, progress: Progress) -> None:
        quality = progress.measure.text(progress.quality)
        text = f"{progress.stage}: loss {progress.loss:.5f}, validation {quality}"
        self._update(progress.stage, text, progress.step, progress.steps)
        if self.bar.disable and self.said.get(progress.stage) != progress.quality:
            self.said[progress.stage] = progress.quality
            _console.err.print(f"step {progress.step} of {progress.steps}, {text}", markup=False, soft_wrap=True)

    def done(self, stage: str, outcome: Outcome) -> None:
        self.results[stage] = outcome.measure.text(outcome.quality)

    def _update(self, name: str, text: str, done: int, total: int) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(text)
        self.bar.update(self.tasks[name], description=text, completed=done, total=total)
