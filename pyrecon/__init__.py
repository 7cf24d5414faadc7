"""Compiled-kernel accelerated solvers for imaging inverse problems in PyTorch."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pyrecon._startup  # isort: skip  # noqa: F401  # before torch, whose import a Ctrl-C may fall into
import torch  # first: it brings the one OpenMP runtime that the kernels share  # noqa: F401

from pyrecon._lazy import submodules
from pyrecon._library import backend, registered_ops

if TYPE_CHECKING:
    from pyrecon import (
        data,
        implicit,
        interop,
        io,
        linops,
        losses,
        metrics,
        models,
        nn,
        ops,
        physics,
        plotting,
        report,
        solvers,
        testing,
        train,
        transforms,
    )

try:
    __version__ = version("pyrecon-imaging")
except PackageNotFoundError:  # a source tree on PYTHONPATH
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "backend",
    "data",
    "implicit",
    "interop",
    "io",
    "linops",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "physics",
    "plotting",
    "registered_ops",
    "report",
    "solvers",
    "testing",
    "train",
    "transforms",
]

__getattr__, __dir__ = submodules(__name__, *(name for name in __all__ if name not in globals()))
