"""``pyrecon reproduce``: a paper's tables and figures, ours beside the paper's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrecon._errors import DataError
from pyrecon.cli import _commands, _console
from pyrecon.systems import having


def _common(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of results and trained models.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of images, noise and searches.")] = 0,
) -> None:
    """What every paper has."""


def _build(name: str) -> tuple[str, _commands.Parameters, Any]:
    system = having("paper")[name]
    paper = system.paper
    takes: dict[str, Any] = _commands.parameters(_common)
    for part, known in paper.parts().items():
        if known:
            help = f"{', '.join(map(str, known))}; repeat for more."
            takes[part] = Annotated[list[str] | None, typer.Option(f"--{part}", help=help)], None
    help = "quick: few images, shipped models. full: as published, trains for days on a GPU."
    takes["scale"] = _commands.choice("--scale", ("quick", "full"), help, show_default="quick")
    takes |= {option.key: _commands.option(option) for option in paper.options}
    parts = ", ".join(f"--{part}" for part, known in paper.parts().items() if known)
    text = f"{system.title}.\n\nWithout {parts} all of them. Each is written when it is done, and left as it is "
    text += f"when it is there: an interrupted run goes on. {paper.about}"
    return text, takes, lambda **given: _reproduce(name, given)


app = _commands.group("The tables and figures of a paper, ours beside the paper's.", "paper", _build)


def _reproduce(name: str, given: dict[str, Any]) -> None:
    from pyrecon.experiments.study import reproduce
    from pyrecon.train import Interrupted

    paper = having("paper")[name].paper
    chosen = {part: _chosen(part, known, given.get(part) or []) for part, known in paper.parts().items()}
    if not any(chosen.values()):
        chosen = {part: list(known) for part, known in paper.parts().items()}
    output = given["output"] or Path(f"reproduce-{name}")
    with _console.progress() as bar, warnings.catch_warnings():
        # Of frames that no weights were trained for: the tables are about such data.
        warnings.filterwarnings("ignore", message="data: |system matrix: the noise of its calibration")
        task = bar.add_task("")
        study = paper.study(
            folder=output,
            scale=given["scale"] or "quick",
            seed=given["seed"],
            progress=lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
            **_commands.filled(paper.options, given),
        )
        _commands.make_folder(output)
        try:
            for path, seconds in reproduce(paper, study, chosen):
                said = f"{path} is there" if seconds is None else f"written {path} after {seconds:.0f} s"
                _console.out.print(said, soft_wrap=True)
        except Interrupted as interrupted:  # in a training, which left a checkpoint
            bar.stop()
            _console.err.print(f"{interrupted}; the same command goes on", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None


def _chosen(part: str, known: Any, texts: list[str]) -> list[Any]:
    """Keys of a part, that may be numbers, from text."""
    by_text = {str(key): key for key in known}
    for text in texts:
        if text not in by_text:
            raise DataError(f"--{part}: {text!r}, expected one of {', '.join(by_text)}")
    return [by_text[text] for text in texts]
