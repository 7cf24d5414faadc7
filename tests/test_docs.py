"""Code in the documentation runs as it stands."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrecon import linops, ops, solvers
from pyrecon.interop import on_arrays

PAGE = Path(__file__).parents[1] / "docs/migration.md"
THEIRS = ("get_deq", "A_dagger", "EspiritCalib")
OURS = [
    code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if not any(t in code for t in THEIRS)
]


def names() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    maps, kspace = (torch.randn(1, 3, 8, 6, dtype=torch.complex64, generator=generator) for _ in range(2))
    mask = torch.ones(1, 1, 1, 6)
    operator = linops.SystemMatrix(torch.randn(7, 4, generator=generator))
    return {
        **{name: getattr(module, name) for module in (linops, ops, solvers) for name in module.__all__},
        "on_arrays": on_arrays,
        "f": lambda z: 0.5 * torch.cos(z),
        "z0": torch.zeros(2, 5),
        "A": operator,
        "y": torch.randn(2, 7, generator=generator),
        "maps": maps,
        "mask": mask,
        "kspace": kspace,
        "A_numpy": np.eye(4, dtype=np.float32),
        "y_numpy": np.ones((1, 4), dtype=np.float32),
    }


def test_page_has_snippets() -> None:
    assert len(OURS) == 4


@pytest.mark.parametrize("code", OURS)
def test_migration_snippet_runs(code: str) -> None:
    namespace = names()
    exec(compile(code, str(PAGE), "exec"), namespace)
    assert set(namespace) > set(names())
    if "image" in namespace:
        assert np.isfinite(np.asarray(namespace["image"])).all()


EXAMPLES = sorted((PAGE.parent / "examples").glob("plot_*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_gallery_code_fits_its_column_and_blocks_end_in_their_figures(example: Path) -> None:
    """A notebook and the gallery show the value of a block's last expression, and 80 characters of a line."""
    text = example.read_text()
    assert max(map(len, text.splitlines())) < 80
    blocks = [ast.parse(block) for block in text.split("# %%")]
    for block in blocks:
        drawn = [node for node in ast.walk(block) if isinstance(node, ast.Call) and _draws(node)]
        shown = [node.value for node in block.body[-1:] if isinstance(node, ast.Expr)]
        assert all(node in shown for node in drawn)
    assert any(_draws(node) for block in blocks for node in ast.walk(block) if isinstance(node, ast.Call))


def _draws(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("plotting.figure", "plotting.curves")
