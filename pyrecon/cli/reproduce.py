"""``pyrecon reproduce``: a paper's tables and figures, ours beside the paper's."""

from __future__ import annotations

import enum
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console

if TYPE_CHECKING:
    from pyrecon.experiments.table import Listing, Table

app = typer.Typer(help="The tables and figures of a paper, ours beside the paper's.", no_args_is_help=True)


class Scale(enum.StrEnum):
    """How much is computed."""

    quick = "quick"
    full = "full"


@app.callback()
def _papers() -> None:
    """The tables and figures of a paper, ours beside the paper's."""


@app.command("deq-mpi")
def deq_mpi(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of results and trained models.")] = Path(
        "reproduce-deq-mpi"
    ),
    table: Annotated[list[str] | None, typer.Option(help="I to V; repeat for more.")] = None,
    figure: Annotated[list[int] | None, typer.Option(help="3, 4, 9, 10 or 13; repeat for more.")] = None,
    experiment: Annotated[
        list[str] | None,
        typer.Option(help="gradients, consistency, initialisation, sessions or starts; repeat for more."),
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="quick: few images, shipped models. full: as published, trains for days on a GPU.")
    ] = Scale.quick,
    images: Annotated[str, typer.Option(help="Vessels: generated, retina, or a NIfTI angiogram.")] = "generated",
    seed: Annotated[int, typer.Option(min=0, help="Seed of images, noise and searches.")] = 0,
) -> None:
    """DEQ-MPI: a deep equilibrium reconstruction with learned consistency for magnetic particle imaging.

    Without --table, --figure and --experiment all of them. Each is written when it is done, and left as it is when it
    is there: an interrupted run goes on. Models that do not ship with the package are trained first; for the ablations,
    with three seeds each, that takes some hours on two cores.
    """
    from pyrecon import plotting
    from pyrecon.experiments import deq_mpi as paper
    from pyrecon.io import written_whole

    chosen: dict[str, list[Any]] = {"table": table or [], "figure": figure or [], "experiment": experiment or []}
    all_known: dict[str, dict[Any, Any]] = {
        "table": paper.TABLES,
        "figure": paper.FIGURES,
        "experiment": paper.EXPERIMENTS,
    }
    for name, known in all_known.items():
        for value in chosen[name]:
            if value not in known:
                raise DataError(f"--{name}: {value!r}, expected one of {', '.join(map(str, known))}")
    if not any(chosen.values()):
        chosen = {name: list(known) for name, known in all_known.items()}
    if images not in ("generated", "retina") and not Path(images).exists():
        raise DataError(f"--images: {images}: no such file; expected generated, retina, or a NIfTI volume")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: {output} cannot be made ({error.strerror})") from None
    with _console.progress() as bar, warnings.catch_warnings():
        # Of frames that no weights were trained for: the tables are about such data.
        warnings.filterwarnings("ignore", message="data: ")
        task = bar.add_task("")
        study = paper.Study(
            output,
            scale.value,
            images,
            seed,
            lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )
        for name in chosen["table"]:
            path = output / f"table-{name}.md"
            if not _there(path):
                start = time.perf_counter()
                result, pictures = paper.TABLES[name](study)
                if pictures:
                    plotting.save(paper.picture(pictures), path.with_suffix(".png"))
                _write(result, path)
                _done(path, start)
        for name in chosen["experiment"]:
            path = output / f"{name}.md"
            if not _there(path):
                start = time.perf_counter()
                _write(paper.EXPERIMENTS[name](study), path)
                _done(path, start)
        for number in chosen["figure"]:
            path = output / f"figure-{number}.png"
            if not _there(path):
                start = time.perf_counter()
                drawing = paper.FIGURES[number](study)
                with written_whole(path.with_suffix(".csv")) as temporary:
                    temporary.write_text(drawing.to_csv())
                plotting.save(drawing.figure, path)
                _done(path, start)


def _write(result: Table | Listing, path: Path) -> None:
    from pyrecon.io import written_whole

    with written_whole(path.with_suffix(".csv")) as temporary:
        temporary.write_text(result.to_csv())
    with written_whole(path) as temporary:  # last: it says that the others are there
        temporary.write_text(result.to_markdown())


def _there(path: Path) -> bool:
    if path.exists():
        _console.out.print(f"{path} is there", soft_wrap=True)
        return True
    return False


def _done(path: Path, start: float) -> None:
    _console.out.print(f"written {path} after {time.perf_counter() - start:.0f} s", soft_wrap=True)
