"""``pyrecon reproduce``: a paper's tables and figures, ours beside the paper's."""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import Annotated

import typer

from pyrecon._errors import DataError
from pyrecon.cli import _console

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
    scale: Annotated[
        Scale, typer.Option(help="quick: few images, shipped models. full: as published, trains for days on a GPU.")
    ] = Scale.quick,
    images: Annotated[str, typer.Option(help="Vessels: generated, retina, or a NIfTI angiogram.")] = "generated",
    seed: Annotated[int, typer.Option(min=0, help="Seed of images, noise and searches.")] = 0,
) -> None:
    """DEQ-MPI: a deep equilibrium reconstruction with learned consistency for magnetic particle imaging.

    Without --table and --figure all of them. Each is written when it is done, and left as it is when it is there: an
    interrupted run goes on. Models that do not ship with the package are trained first.
    """
    from pyrecon import plotting
    from pyrecon.experiments import deq_mpi as paper
    from pyrecon.io import written_whole

    chosen_tables, chosen_figures = table or [], figure or []
    for name, known in (("table", paper.TABLES), ("figure", paper.FIGURES)):
        for value in chosen_tables if name == "table" else chosen_figures:
            if value not in known:
                raise DataError(f"--{name}: {value!r}, expected one of {', '.join(map(str, known))}")
    if not chosen_tables and not chosen_figures:
        chosen_tables, chosen_figures = list(paper.TABLES), list(paper.FIGURES)
    if images not in ("generated", "retina") and not Path(images).exists():
        raise DataError(f"--images: {images}: no such file; expected generated, retina, or a NIfTI volume")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: {output} cannot be made ({error.strerror})") from None
    with _console.progress() as bar:
        task = bar.add_task("")
        study = paper.Study(
            output,
            scale.value,
            images,
            seed,
            lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )
        for name in chosen_tables:
            path = output / f"table-{name}.md"
            if not _there(path):
                start = time.perf_counter()
                result, pictures = paper.TABLES[name](study)
                if pictures:
                    plotting.save(paper.picture(pictures), path.with_suffix(".png"))
                with written_whole(path.with_suffix(".csv")) as temporary:
                    temporary.write_text(result.to_csv())
                with written_whole(path) as temporary:  # last: it says that the others are there
                    temporary.write_text(result.to_markdown())
                _done(path, start)
        for number in chosen_figures:
            path = output / f"figure-{number}.png"
            if not _there(path):
                start = time.perf_counter()
                drawing = paper.FIGURES[number](study)
                with written_whole(path.with_suffix(".csv")) as temporary:
                    temporary.write_text(drawing.to_csv())
                plotting.save(drawing.figure, path)
                _done(path, start)


def _there(path: Path) -> bool:
    if path.exists():
        _console.out.print(f"{path} is there", soft_wrap=True)
        return True
    return False


def _done(path: Path, start: float) -> None:
    _console.out.print(f"written {path} after {time.perf_counter() - start:.0f} s", soft_wrap=True)
