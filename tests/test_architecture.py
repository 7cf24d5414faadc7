"""The house: imports go down and never in a circle, files stay short, a system is a line of the registry."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
house = SourceFileLoader("house", str(ROOT / "docs/house.py")).load_module()


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            cut = stack.index(name)
            if len(stack) - cut > 1:
                found.append(sorted(stack[cut:]))
            del stack[cut:]

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def test_no_module_imports_itself_through_others() -> None:
    assert circles(house.graph()) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_imports_go_down() -> None:
    edges = house.graph()
    assert len(edges) > 100  # it has read the package
    climbing = [
        f"{name} imports {other}"
        for name, others in sorted(edges.items())
        for other in sorted(others)
        if (here := house.floor(name)) is not None and (there := house.floor(other)) is not None and here < there
    ]
    assert climbing == []


def test_only_the_command_line_reads_the_registry() -> None:
    readers = {name.split(".")[1] for name, others in house.graph().items() if "pyrecon.systems" in others}
    assert readers == {"cli"}


@pytest.mark.parametrize(("pattern", "most"), [("pyrecon/**/*.py", 520), ("kernels/*.py", 520), ("tests/*.py", 620)])
def test_files_are_short(pattern: str, most: int) -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in ROOT.glob(pattern)}
    assert lengths
    assert {path: n for path, n in lengths.items() if n > most} == {}


def test_the_picture_has_every_room() -> None:
    picture = house.draw()
    rooms = {name.split(".")[1] for name in house.modules() if "." in name and not name.split(".")[1].startswith("_")}
    assert all(f">{room}</text>" in picture for room in rooms)
