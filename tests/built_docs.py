"""The built documentation: ``make docs`` runs this on docs/_build/html."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import sphinx_gallery
from sphinx_gallery.utils import scale_image

DOCS = Path(__file__).parents[1] / "docs"
HTML = DOCS / "_build/html"
EXAMPLES = sorted((DOCS / "examples").glob("plot_*.py"))
PLACEHOLDER = Path(sphinx_gallery.__file__).parent / "_static/no_image.png"


def figures_drawn(example: Path) -> int:
    calls = [node.func for node in ast.walk(ast.parse(example.read_text())) if isinstance(node, ast.Call)]
    return sum(ast.unparse(call) in ("plotting.figure", "plotting.curves") for call in calls)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_figure_of_an_example_is_on_its_page(example: Path) -> None:
    drawn = figures_drawn(example)
    assert drawn, "an example without a figure has the placeholder as its thumbnail"
    page = (HTML / f"gallery/{example.stem}.html").read_text()
    shown = re.findall(rf'<img src="\.\./(_images/sphx_glr_{example.stem}_\d+\.png)"', page)
    assert len(shown) == drawn
    assert all((HTML / image).stat().st_size > 5000 for image in shown)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_thumbnails_are_results(example: Path, tmp_path: Path) -> None:
    (thumbnail,) = (HTML / "_images").glob(f"sphx_glr_{example.stem}_thumb.*")
    scale_image(PLACEHOLDER, tmp_path / "none.png", 400, 280)  # thumbnail_size, by default
    assert thumbnail.read_bytes() != (tmp_path / "none.png").read_bytes()


def test_no_page_shows_the_text_of_an_object() -> None:
    pages = list(HTML.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        assert not re.search(r"&lt;Figure size|&lt;[\w.]+ object at 0x", page.read_text()), page
