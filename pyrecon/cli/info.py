"""``pyrecon info``: what is built, what this machine runs, and what is missing."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import pyrecon
import pyrecon.ops
from pyrecon import _core
from pyrecon.cli import _console
from pyrecon.cli.reconstruct import CT_FORMATS, MRI_FORMATS

# distribution, what it is for, the extra that brings it
OPTIONAL = (
    ("triton", "GPU kernels", "gpu"),
    ("cupy-cuda13x", "CuPy arrays in and out", "gpu"),
    ("nibabel", "NIfTI files", "io"),
    ("pillow", "PNG images", "io"),
    ("twixtools", "Siemens raw data", "io"),
    ("matplotlib", "figures", "viz"),
    ("scikit-image", "the demo's phantoms", "demo"),
)


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Print the cards of the weights that ship.")] = False,
    figure: Annotated[Path | None, typer.Option(help="With --weights: draw how they were trained.")] = None,
) -> None:
    """Show what is built, which instruction set and devices are used, and which optional parts are missing."""
    if weights or figure is not None:
        from pyrecon import plotting
        from pyrecon.cli import _cards

        if figure is not None:
            plotting.save(_cards.curves(), figure)
        print(_cards.markdown())
        return
    facts = collect()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("pyrecon", f"{facts['version']}, torch {facts['torch']}, Python {facts['python']}")
    cpu = facts["cpu"]
    levels = f"this processor runs {cpu['detected_isa']}, this build has {', '.join(_core.isa_levels())}"
    table.add_row("CPU kernels", f"{cpu['isa']} ({levels}), {cpu['threads']} threads")
    missing = "not built (there was no GPU or no nvcc at build time; PYRECON_CUDA=ON asks for them)"
    table.add_row("CUDA kernels", "built" if facts["cuda_module"] else missing)
    devices = facts["gpus"] or ["none found by torch: the CPU kernels do all the work"]
    table.add_row("GPUs", "\n".join(devices))
    table.add_row("reads", "\n".join(f"{modality}: {', '.join(kinds)}" for modality, kinds in facts["formats"].items()))
    table.add_row("ops", "\n".join(f"{op}: {', '.join(['reference', *k])}" for op, k in facts["ops"].items()))
    for name, part in facts["optional"].items():
        have = part["version"] or f"missing; for {part['for']}: pip install 'pyrecon-imaging[{part['extra']}]'"
        table.add_row(name, have)
    _console.out.print(table)


def collect() -> dict[str, Any]:
    """The facts behind ``pyrecon info``; written into every report as well."""
    return {
        "version": pyrecon.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": {
            "isa": _core.isa(),
            "detected_isa": _core.detected_isa(),
            "threads": torch.get_num_threads(),
        },
        "cuda_module": find_spec("pyrecon._cuda") is not None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "formats": {"MPI": ["mdf-measurement", "mdf-system-matrix"], "MRI": [*MRI_FORMATS], "CT": [*CT_FORMATS]},
        "ops": {name: list(kernels) for name, kernels in pyrecon.registered_ops().items()},
        "optional": {
            name: {"version": _version(name), "for": purpose, "extra": extra} for name, purpose, extra in OPTIONAL
        },
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
