"""Equivariant deep equilibrium models: the paper's Tables 1, 2 and 3.

Mehta, Kitichotkul, Goyal and Tachella, Equivariant deep equilibrium models for imaging inverse problems.
"""

from __future__ import annotations

from typing import Any

from pyrecon import plotting
from pyrecon.experiments.ei_deq.study import SEEDS, EIDEQStudy
from pyrecon.experiments.ei_deq.tables import differences, table_1, table_2, table_3
from pyrecon.experiments.study import Paper, Pictures
from pyrecon.metrics import psnr
from pyrecon.train.run import Option

__all__ = ["PAPER", "EIDEQStudy"]


def picture(pictures: Pictures, count: int = 2) -> Any:
    """For each task some images and, below, their errors."""
    rows = []
    for images in pictures.values():
        truth = images["truth"].abs()
        for i in range(min(count, len(truth))):
            shown, errors = [], []
            for name, found in images.items():
                image = found[i].abs() if found.is_complex() else found[i]
                note = "" if name == "truth" else f"{float(psnr(image[None], truth[i : i + 1], peak=1.0)):.1f} dB"
                shown.append(plotting.Panel(image.numpy(), name, note, (0.0, 1.0)))
                errors.append(plotting.Panel((image - truth[i]).abs().numpy(), "", "", (0.0, 0.2), "magma"))
            rows += [shown, errors]
    return plotting.figure(rows, panel_size=1.2)


PAPER = Paper(
    "ei-deq",
    EIDEQStudy,
    {"1": table_1, "2": table_2, "3": table_3},
    {},
    {"differences": differences},
    picture,
    options=(Option("--seeds", int, SEEDS, "Models of every kind.", least=1),),
    about="64 small models are trained first, for hours on two cores; each is kept.",
)
