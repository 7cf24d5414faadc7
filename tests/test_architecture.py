"""The house: imports go down and never in a circle, files stay short, a system is a line of the registry."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrecon.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "pyrecon"
# Floors of docs/architecture.md, from the top; a module imports from its own floor and those below.
FLOORS = (
    ("cli", "__main__"),
    ("systems",),
    ("experiments",),
    ("train",),
    ("models", "interop"),
    ("losses", "implicit", "report", "nn"),
    ("solvers", "physics", "plotting"),
    ("data", "io", "metrics"),
    ("linops", "testing"),
    ("ops",),
    ("kernels", "_core", "_cuda", "_library", "_check", "_errors", "_plain", "_lazy", "_startup", "_threads"),
)
FLOOR = {name: len(FLOORS) - i for i, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Every module by its name; kernels are those of the folder beside the package."""
    found = {}
    for folder, name in ((SOURCE, "pyrecon"), (ROOT / "kernels", "pyrecon.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if folder == SOURCE and parts[0] in ("kernels", "benchmarks"):
                continue  # links that a development tree may have
            found[".".join((name, *(part for part in parts if part != "__init__")))] = path
    return found


def imported(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports but those for a type checker only; those inside functions count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from imported(node)


def graph() -> dict[str, set[str]]:
    known = modules()
    edges: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in imported(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{path}: a relative import"
                # "from pyrecon.models import weights" is an import of the module, "... import DEQMPI" of the package.
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [f if f in known else str(node.module) for f in full]
            edges[name] |= {t for t in targets if t in known and t != name}
    return edges


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


def floor(name: str) -> int | None:
    """None for the package itself, which holds nothing but the version and the road to the others."""
    parts = name.split(".")
    return None if len(parts) == 1 else FLOOR[parts[1]]


def test_no_module_imports_itself_through_others() -> None:
    assert circles(graph()) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_imports_go_down() -> None:
    edges = graph()
    assert len(edges) > 100  # it has read the package
    climbing = [
        f"{name} imports {other}"
        for name, others in sorted(edges.items())
        for other in sorted(others)
        if (here := floor(name)) is not None and (there := floor(other)) is not None and here < there
    ]
    assert climbing == []


def test_only_the_command_line_reads_the_registry() -> None:
    readers = {name.split(".")[1] for name, others in graph().items() if "pyrecon.systems" in others}
    assert readers == {"cli"}


@pytest.mark.parametrize("pattern", ["pyrecon/**/*.py", "kernels/*.py", "benchmarks/*.py", "tests/*.py"])
def test_files_are_short(pattern: str) -> None:
    lengths = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in ROOT.glob(pattern)}
    assert {str(path): n for path, n in lengths.items() if n > 650} == {}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_has_all_that_its_line_names(name: str) -> None:
    system = SYSTEMS[name]
    assert system.model.system == name
    assert system.training.name == name
    assert {kind.role for kind in system.methods.values()} >= {
        system.training.models[next(iter(system.training.models))]
    }
    assert system.paper.tables
