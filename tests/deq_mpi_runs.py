"""Small runs of DEQ-MPI for the tests of its training."""

from __future__ import annotations

from typing import Any

import torch

from pyrecon.nn import RowLayout
from pyrecon.train import Config, Stage
from pyrecon.train.mpi_data import Source

SHAPE = (10, 8)
NONE = {"denoiser": Stage(0), "projection": Stage(0), "equilibrium": Stage(0)}


def source(seed: int = 0) -> Source:
    """Smooth rows on a grid of 12 angles x 30 frequencies."""
    generator = torch.Generator().manual_seed(seed)
    layout = RowLayout.from_mask(torch.rand(360, generator=generator) > 0.4, (12, 30), 28)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SHAPE), indexing="ij")
    waves = torch.randn(2 * len(layout.rows), 2, generator=generator) * 0.6
    phases = 6 * torch.rand(len(waves), 1, generator=generator)
    return Source(40 * torch.cos(waves @ torch.stack([y.flatten(), x.flatten()]) + phases), SHAPE, layout)


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
