"""Compiled-kernel accelerated solvers for imaging inverse problems in PyTorch."""

from importlib.metadata import PackageNotFoundError, version

import pyrecon._startup  # isort: skip  # noqa: F401  # before torch, whose import a Ctrl-C may fall into
import torch  # first: it brings the one OpenMP runtime that the kernels share  # noqa: F401

from pyrecon._library import backend, registered_ops

try:
    __version__ = version("pyrecon-imaging")
except PackageNotFoundError:  # a source tree on PYTHONPATH
    __version__ = "0+unknown"

__all__ = ["__version__", "backend", "registered_ops"]
