"""Properties of the built extension module."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import pyrecon
import pyrecon.ops
from pyrecon import _core, testing

EXTENSION = Path(_core.__file__)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, away from the checkout, whose source tree has no built module."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=EXTENSION.parent.parent,
        env=os.environ | environment,
        check=False,
    )


def test_no_kernel_code_is_shared_between_instruction_sets() -> None:
    """The linker keeps one of several equal weak symbols: in a kernel that may be AVX-512 code on a machine without."""
    build = Path(__file__).parents[1] / "build"
    if not list(build.glob("*/CMakeCache.txt")):
        pytest.skip("installed from a wheel: no object files to look into")
    objects = sorted(build.glob("*/CMakeFiles/kernels_*.dir/csrc/cpu/*.o"))
    assert objects
    for path in objects:
        table = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        # DW.ref is a pointer of the exception tables, not code.
        weak = [line for line in table.splitlines() if re.match(r"[0-9a-f]+ [WVu] (?!DW\.ref)", line)]
        shared = [line for line in weak if f"pyrecon::{path.parts[-4].split('_')[1].removesuffix('.dir')}" not in line]
        assert not shared, f"{path.name} instantiates code that all levels share:\n" + "\n".join(shared)


def test_one_openmp_runtime_is_loaded() -> None:
    """Two libgomp in one process make alternating small ops a thousand times slower."""
    code = "import pyrecon, pyrecon._core; print(*{l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l})"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, done.stdout


def test_the_suite_has_every_level_of_this_processor() -> None:
    """A build for one machine's level (PYRECON_LEVELS=NATIVE, `make demo`) would leave the others untested."""
    detected = testing.ISA_LEVELS.index(_core.detected_isa())
    assert testing.available_isa_levels() == testing.ISA_LEVELS[: detected + 1]


@pytest.mark.parametrize("level", testing.available_isa_levels())
def test_level_can_be_forced_by_hook_and_environment(level: str) -> None:
    with testing.isa(level):
        assert _core.isa() == level
    done = run_python("from pyrecon import _core; print(_core.isa())", PYRECON_ISA=level)
    assert done.stdout.strip() == level, done.stderr
    assert _core.isa() == _core.detected_isa() or os.environ.get("PYRECON_ISA")


def test_level_above_the_processor_is_refused() -> None:
    assert not _core.force_isa(3)


def test_backend_names_are_checked() -> None:
    with pytest.raises(ValueError, match="'gpu' is not known, expected one of auto"), pyrecon.backend("gpu"):
        pass
    done = run_python("import pyrecon", PYRECON_BACKEND="fast")
    assert done.returncode != 0
    assert "'fast' is not known" in done.stderr


def test_backend_without_a_kernel_says_what_there_is() -> None:
    x = torch.ones(1, 3)
    with pyrecon.backend("cuda"), pytest.raises(RuntimeError, match="project_l2_ball has no such kernel"):
        pyrecon.ops.project_l2_ball(x, x, 1.0)


def test_reference_backend_runs_no_kernel() -> None:
    x = torch.ones(1, 3)
    with pyrecon.backend("reference"), testing.record_calls() as calls:
        pyrecon.ops.project_l2_ball(x, 2 * x, 1.0)
    assert [call.backend for call in calls] == ["reference"]


@pytest.mark.skipif(find_spec("pyrecon._cuda") is None, reason="built without CUDA")
def test_cuda_module_imports_without_a_driver() -> None:
    assert run_python("import torch, pyrecon._cuda").returncode == 0
