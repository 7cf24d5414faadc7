from __future__ import annotations

from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pyrecon
import pyrecon.models.deq_mpi
from pyrecon.models.mpi import Problem

pyrecon.models.deq_mpi.Problem = Problem  # known there to a type checker only; autodoc reads the same annotations
project = "pyrecon"
author = "The pyrecon developers"
copyright = "the pyrecon developers, Apache-2.0"
release = pyrecon.__version__

extensions = [
    "myst_parser",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 2
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["pyrecon.css"]
html_title = "pyrecon"
html_sidebars = {page: [] for page in ("index", "reconstruct", "api", "changelog")}  # no pages below them
html_theme_options = {
    # All but gallery/ (no page may match two patterns): 80 characters of code need the width, and examples have no
    # headings to list beside them.
    "secondary_sidebar_items": {"[!g]**": ["page-toc"], "index": []},
    "header_links_before_dropdown": 7,
}
exclude_patterns = ["_build", "examples", "gallery/*.md5", "benchmark_notes.md"]  # notes: part of benchmarks.md
nitpicky = False


def _figure_of_block(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The figure an example's block ends in, as a notebook would show it.

    ``pyrecon.plotting`` makes figures without pyplot, which would keep every one of them alive for its user; the
    gallery's own scraper asks pyplot and finds none. tests/built_docs.py counts the images.
    """
    from matplotlib.figure import Figure
    from sphinx_gallery.scrapers import figure_rst

    figure = block_vars["example_globals"].get("___")  # where the gallery keeps the value of a block's last expression
    if not isinstance(figure, Figure):
        return ""
    block_vars["example_globals"]["___"] = None  # shown: its repr is not, and the next block does not end in it
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path)
    return str(figure_rst([path], gallery_conf["src_dir"]))


sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "image_scrapers": (_figure_of_block,),
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "min_reported_time": 1,
}
suppress_warnings = ["config.cache"]


def _norms_are_not_substitutions(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write |x| for a norm and x * y for a product; reStructuredText reads markup into both."""
    text = "\n".join(lines)
    parts = text.split("``")
    parts[::2] = [part.replace("|", r"\|").replace(" * ", r" \* ") for part in parts[::2]]
    lines[:] = "``".join(parts).split("\n")


def _draw_house(app: Any) -> None:
    """The picture of docs/architecture.md, as the code is now."""
    house = SourceFileLoader("house", str(Path(__file__).with_name("house.py"))).load_module()
    text, path = house.draw(), Path(__file__).with_name("_static") / "house.svg"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app: Any) -> None:
    app.connect("builder-inited", _draw_house)
    # After napoleon (500), which looks for | in type lists.
    app.connect("autodoc-process-docstring", _norms_are_not_substitutions, priority=900)
