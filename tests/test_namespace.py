"""What a user reaches by name: everything from ``import pyrecon``, and no function hides a module."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import pyrecon
import pyrecon.implicit
import pyrecon.linops
import pyrecon.ops
import pyrecon.solvers

LAZY = sorted(set(pyrecon.__all__) - {"__version__", "backend", "registered_ops"})


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_one_import_is_enough() -> None:
    names = "', '".join(LAZY)
    code = f"import pyrecon; print(*(getattr(pyrecon, n).__name__ for n in ('{names}')))"
    assert fresh(code).split() == [f"pyrecon.{name}" for name in LAZY]
    assert fresh("import pyrecon; print(pyrecon.data.mpi.__name__, pyrecon.physics.mri.__name__)")
    assert (
        fresh("import pyrecon; print(pyrecon.models.mpi.DEQ.name, pyrecon.models.DEProx.system)") == "DEQ-MPI de-prox"
    )


def test_the_import_loads_none_of_them() -> None:
    code = "import sys, pyrecon; print(*(n for n in sys.modules if n.startswith('pyrecon.')))"
    assert set(fresh(code).split()) == {"pyrecon._lazy", "pyrecon._library", "pyrecon._startup"}


def test_neither_ops_nor_commands_load_the_compiler() -> None:
    """torch._dynamo takes longer to import than all of torch."""
    code = "import sys, pyrecon.ops, pyrecon.cli; print(*(n for n in sys.modules if n.startswith('torch._dynamo')))"
    assert fresh(code) == ""


def test_listing_and_unknown_names() -> None:
    assert set(LAZY) <= set(dir(pyrecon))
    assert {"ops", "linops", "solvers", "models", "io"} <= set(LAZY)
    with pytest.raises(AttributeError, match="module 'pyrecon' has no attribute 'opps'"):
        pyrecon.opps  # noqa: B018


@pytest.mark.parametrize("package", [pyrecon, pyrecon.ops, pyrecon.solvers, pyrecon.linops], ids=lambda p: p.__name__)
def test_no_function_hides_a_module(package: ModuleType) -> None:
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("__") or found.name in ("kernels", "_cuda"):
            continue
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        assert getattr(package, found.name) is module, f"{package.__name__}.{found.name} is not the module"


def test_kernel_edges_are_not_public() -> None:
    assert not hasattr(pyrecon.ops, "deq_mpi")
