from __future__ import annotations

import pyrecon

project = "pyrecon"
author = "The pyrecon developers"
copyright = "the pyrecon developers, Apache-2.0"
release = pyrecon.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_title = "pyrecon"
exclude_patterns = ["_build", "examples", "gallery/*.md5", "benchmark_notes.md"]  # notes: part of benchmarks.md
nitpicky = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1,
}
suppress_warnings = ["config.cache"]


def _norms_are_not_substitutions(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Docstrings write |x| for a norm and x * y for a product; reStructuredText reads markup into both."""
    text = "\n".join(lines)
    parts = text.split("``")
    parts[::2] = [part.replace("|", r"\|").replace(" * ", r" \* ") for part in parts[::2]]
    lines[:] = "``".join(parts).split("\n")


def setup(app):  # type: ignore[no-untyped-def]
    # After napoleon (500), which looks for | in type lists.
    app.connect("autodoc-process-docstring", _norms_are_not_substitutions, priority=900)
