"""The house as it stands: floors, imports between rooms, and a picture of both.

tests/test_architecture.py holds the code to it, docs/conf.py draws it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "pyrecon"
# Floors of docs/architecture.md, from the top; a module imports from its own floor and those below.
FLOORS = (
    ("cli", "__main__"),
    ("systems",),
    ("experiments",),
    ("train",),
    ("models", "interop"),
    ("implicit", "losses", "nn", "report", "transforms"),
    ("physics", "plotting"),
    ("data", "io", "metrics"),
    ("linops",),
    ("solvers", "testing"),
    ("ops",),
    (
        "kernels", "_core", "_cuda", "_library", "_check", "_errors", "_plain", "_solution", "_lazy", "_startup",
        "_threads", "_fft",
    ),
)  # fmt: skip
COMPILED = ("pyrecon._core", "pyrecon._cuda")
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
    edges: dict[str, set[str]] = {name: set() for name in (*known, *COMPILED)}
    for name, path in known.items():
        for node in imported(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{path}: a relative import"
                # "from pyrecon.models import weights" is an import of the module, "... import DEQMPI" of the package.
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [f if f in edges else str(node.module) for f in full]
            edges[name] |= {t for t in targets if t in edges and t != name}
    return edges


def floor(name: str) -> int | None:
    """None for the package itself, which holds nothing but the version and the road to the others."""
    parts = name.split(".")
    return None if len(parts) == 1 else FLOOR[parts[1]]


# --- the picture ---------------------------------------------------------------------------------------------------
_WHAT = {
    "cli": "the command",
    "systems": "name to model, training, paper",
    "experiments": "papers: tables, figures",
    "train": "runs, stages, data of systems",
    "models": "methods, systems, weights",
    "interop": "deepinv, mrpro, arrays",
    "implicit": "fixed points as layers",
    "losses": "functions of images and data",
    "nn": "networks",
    "report": "the account of a run",
    "physics": "scanners, coils, masks",
    "plotting": "figures",
    "data": "containers, preprocessing",
    "io": "raw files, results",
    "metrics": "image quality",
    "transforms": "groups of images",
    "linops": "linear operators",
    "solvers": "callables in, Solution out",
    "testing": "case tables, laws",
    "ops": "laws, references, registration",
    "kernels": "Triton",
    "_core": "C++ (csrc)",
}
_WIDTH, _HEIGHT, _GAP, _LEFT = 1100, 62, 30, 20


def draw() -> str:
    """An SVG: a row for each floor, a room for each package with its files and lines, a line where one imports from
    another (thicker for more imports)."""
    sizes = Counter[str]()
    files = Counter[str]()
    for name, path in modules().items():
        room = name.split(".")[1] if "." in name else ""
        sizes[room] += len(path.read_text().splitlines())
        files[room] += 1
    drawn = [[room for room in row if room in _WHAT] for row in FLOORS]
    place, parts = dict[str, tuple[float, float, float]](), list[str]()
    for i, row in enumerate(drawn):
        width = (_WIDTH - 2 * _LEFT - _GAP * (len(row) - 1)) / len(row)
        width = min(width, 340)
        left = (_WIDTH - len(row) * width - _GAP * (len(row) - 1)) / 2
        for j, room in enumerate(row):
            place[room] = (left + j * (width + _GAP), 20 + i * (_HEIGHT + 34), width)
    between = Counter[tuple[str, str]]()
    for name, others in graph().items():
        for other in others:
            pair = name.split(".")[1:2] + other.split(".")[1:2]
            if len(pair) == 2 and pair[0] != pair[1] and all(room in place for room in pair):
                between[pair[0], pair[1]] += 1
    for (upper, lower), count in sorted(between.items()):
        x0, y0, w0 = place[upper]
        x1, y1, w1 = place[lower]
        parts.append(
            f'<path d="M{x0 + w0 / 2:.0f},{y0 + _HEIGHT:.0f} C{x0 + w0 / 2:.0f},{y0 + _HEIGHT + 40:.0f} '
            f'{x1 + w1 / 2:.0f},{y1 - 40:.0f} {x1 + w1 / 2:.0f},{y1:.0f}" fill="none" stroke="#7a8ca3" '
            f'stroke-opacity="0.55" stroke-width="{min(1 + count / 6, 5):.1f}"/>'
        )
    for room, (x, y, width) in place.items():
        count = f"{files[room]} file{'s' * (files[room] > 1)}, {sizes[room]:,} lines" if files[room] else "compiled"
        parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{_HEIGHT}" rx="6" '
                     'fill="#f4f7fb" stroke="#2f5d8a"/>')  # fmt: skip
        for dy, text, style in (
            (20, room, 'font-weight="bold" font-size="15"'),
            (37, _WHAT[room], 'font-size="12"'),
            (54, count, 'font-size="11" fill="#5b6b7d"'),
        ):
            parts.append(f'<text x="{x + width / 2:.0f}" y="{y + dy:.0f}" text-anchor="middle" {style}>{text}</text>')
    height = 20 + len(drawn) * (_HEIGHT + 34)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>'
    )
