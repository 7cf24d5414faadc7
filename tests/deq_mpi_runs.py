"""Small runs of DEQ-MPI for the tests of its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyrecon.nn import RowLayout
from pyrecon.train import Config, Interrupted, Stage, train_deq_mpi
from pyrecon.train.mpi_data import Source

SHAPE = (10, 8)
NONE = {"denoiser": Stage(0), "projection": Stage(0), "equilibrium": Stage(0)}


def source(seed: int = 0, shape: tuple[int, int] = SHAPE) -> Source:
    """Smooth rows on a grid of 12 angles x 30 frequencies."""
    generator = torch.Generator().manual_seed(seed)
    layout = RowLayout.from_mask(torch.rand(360, generator=generator) > 0.4, (12, 30), 28)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    waves = torch.randn(2 * len(layout.rows), 2, generator=generator) * 0.6
    phases = 6 * torch.rand(len(waves), 1, generator=generator)
    return Source(40 * torch.cos(waves @ torch.stack([y.flatten(), x.flatten()]) + phases), shape, layout)


def config(**changes: Any) -> Config:
    tiny: dict[str, Any] = {
        "pool": 24,
        "validation": 6,
        "layers": 1,
        "consistency_start": "random",
        "denoiser": Stage(6, batch=4, halve=3),
        "projection": Stage(4, batch=4),
        "equilibrium": Stage(5, batch=3, clip=1.0),
        "limit": 6,
        "backward_limit": 6,
        "validate_every": 2,
        "save_every": 3,
    }
    return Config(**(tiny | changes))


def trained(folder: Path, settings: Config, stops: tuple[int, ...] = (), given: Source | None = None) -> bytes:
    """The weights' bytes after a run that is stopped at the given questions whether to stop, counted over all runs."""
    count = 0

    def stop_at(step: int | None) -> Callable[[], bool]:
        def stop() -> bool:
            nonlocal count
            count += 1
            return count == step

        return stop

    for number, step in enumerate((*stops, None)):
        try:
            train_deq_mpi(folder, given or source(), settings, resume=number > 0, stop=stop_at(step))
        except Interrupted:
            assert step is not None
    return (folder / "weights.safetensors").read_bytes()
