"""A paper of the smallest system through ``pyrecon reproduce``: what is written, when, and with which models."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import toy_system
from toy_system import PAPER, Config, ToyStudy
from typer.testing import CliRunner, Result

from pyrecon._errors import DataError
from pyrecon.experiments.study import reproduce
from pyrecon.experiments.table import Listing
from pyrecon.systems import SYSTEMS
from pyrecon.train import Stage


def command(folder: Path, *options: str) -> Result:
    from pyrecon.cli import app

    return CliRunner().invoke(app, ["reproduce", "toy", "-o", str(folder), *options], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "toy", toy_system.TOY)


def test_every_part_is_made_once_with_models_trained_as_their_recipes_say(tmp_path: Path) -> None:
    first = command(tmp_path)
    assert first.exit_code == 0, first.output
    names = ["table-I.csv", "table-I.md", "none.csv", "none.md", "figure-2.csv", "figure-2.png"]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == set(names)
    assert first.output.count("written") == 3
    assert command(tmp_path).output.count("is there") == 3
    short, long = (Config.from_json(tmp_path / "models" / name / "config.json") for name in ("short", "long"))
    assert (short.first.steps, short.second, long.first.steps) == (0, Stage(3, batch=2, rate=1e-2, clip=1.0), 4)
    assert command(tmp_path / "one", "--figure=2").output.count("written") == 1
    for wrong in (["--figure=3"], ["--table=II"], ["--experiment=some"]):
        with pytest.raises(DataError, match=f"{wrong[0].partition('=')[0]}: .*, expected one of"):
            command(tmp_path, *wrong)


def test_what_is_done_is_written_before_what_fails(tmp_path: Path) -> None:
    def fails(study: ToyStudy) -> Listing:
        raise RuntimeError("no table")

    paper = toy_system.Paper("toy", ToyStudy, PAPER.tables, {}, {"fails": fails, "none": PAPER.experiments["none"]})
    made = reproduce(paper, ToyStudy(tmp_path), {part: list(known) for part, known in paper.parts().items()})
    assert next(made)[0] == tmp_path / "table-I.md"
    with pytest.raises(RuntimeError, match="no table"):
        next(made)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"table-I.md", "table-I.csv"}


def test_an_interrupt_in_a_training_is_one_line_and_the_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sent = toy_system.First.loss, list[int]()

    def loss(task: Any, step: int) -> Any:
        if not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(task, step)

    monkeypatch.setattr(toy_system.First, "loss", loss)
    stopped = command(tmp_path, "--table=I")
    assert stopped.exit_code == 1
    assert "stopped after step 1 of second; the same command goes on" in stopped.output
    assert command(tmp_path, "--table=I").exit_code == 0


def test_a_model_without_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="model: 'absent', expected one of short, long"):
        ToyStudy(tmp_path).weights("absent")
