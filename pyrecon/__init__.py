"""Compiled-kernel accelerated solvers for imaging inverse problems in PyTorch."""

from importlib.metadata import PackageNotFoundError, version

import torch  # first: it brings the one OpenMP runtime that the kernels share  # noqa: F401

import pyrecon._startup  # before torch, whose import takes seconds that a Ctrl-C may fall into  # noqa: F401
from pyrecon._library import backend, registered_ops

try:
    __version__ = version("pyrecon-imaging")
except PackageNotFoundError:  # a source tree on PYTHONPATH
    __version__ = "0+unknown"

__all__ = ["__version__", "backend", "registered_ops"]
