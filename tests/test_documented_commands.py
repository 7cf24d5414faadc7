"""Every command of ``pyrecon`` in README and docs has options that the command line knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from pyrecon.cli import app

ROOT = Path(__file__).parents[1]


def _commands() -> list[str]:
    found: list[str] = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text().replace("\\\n", " ")
        found += [re.sub(r"\s#.*", "", line) for line in re.findall(r"^\$ (pyrecon .*)$", text, re.M)]
    return list(dict.fromkeys(found))


def test_there_are_some() -> None:
    assert len(_commands()) > 20


@pytest.mark.parametrize("line", _commands())
def test_a_documented_command_is_known(line: str) -> None:
    rest = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "get_command"):
        context = command.make_context("pyrecon", [], resilient_parsing=True)
        inner = command.get_command(context, rest[0])
        assert inner is not None, rest
        command, rest = inner, rest[1:]
    if rest:
        command.make_context("pyrecon", rest)  # an error of usage where an option is not known
