from __future__ import annotations

from importlib.metadata import version as distribution_version

project = "pyrecon"
author = "The pyrecon developers"
copyright = "the pyrecon developers, Apache-2.0"
release = distribution_version("pyrecon-imaging")

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
exclude_patterns = ["_build", "examples", "gallery/*.md5"]
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
