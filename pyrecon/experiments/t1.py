"""Methods from k-space to maps of T1 side by side, on scans of brains whose T1 is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon.data.brains import Brains
from pyrecon.experiments.maps import TISSUES, tissue_errors
from pyrecon.metrics import t1_errors
from pyrecon.models.mri import MapMethod, reconstruct_maps
from pyrecon.physics.t1 import scan_brains

__all__ = ["Evaluation", "evaluate_t1", "evaluation_table"]


@dataclass(frozen=True)
class Evaluation:
    """How one method did at one acceleration.

    ``errors`` are those of :func:`~pyrecon.metrics.t1_errors` inside the brains by name, ``tissues`` the
    nRMSE of T1 by tissue, ``(B,)`` each, a number for every brain. ``seconds`` is the reconstruction of all of them.
    """

    method: str
    acceleration: float
    errors: dict[str, Tensor]
    tissues: dict[str, Tensor]
    seconds: float


def evaluate_t1(
    methods: Sequence[tuple[str, MapMethod]],
    known: Brains,
    *,
    times: Sequence[float],
    accelerations: Sequence[float] = (4.0,),
    coils: int = 6,
    centre: int = 10,
    noise: float = 0.01,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> tuple[list[Evaluation], dict[tuple[str, float], NDArray[np.float32]]]:
    """Scan brains at every acceleration, and compare every method with the truth.

    Coil maps are estimated from each scan, as of any other file. All methods get the same scans.

    Parameters
    ----------
    methods
        With the names that tables call them.
    known
        The brains: :func:`pyrecon.physics.t1.unseen_brains`, or others.
    times, accelerations, coils, centre, noise, seed
        Of the scans: :func:`pyrecon.physics.t1.scan_brains`.

    Returns
    -------
    rows, maps
        One :class:`Evaluation` each, and T1 ``(B, H, W)`` by (name, acceleration).
    """
    truth, inside, labels = (torch.from_numpy(v) for v in (known.t1, known.inside, known.labels))
    rows, maps = list[Evaluation](), dict[tuple[str, float], NDArray[np.float32]]()
    total = len(accelerations) * len(methods)
    for rate in accelerations:
        scan = scan_brains(known, times, coils=coils, acceleration=rate, centre=centre, noise=noise, seed=seed)
        for name, method in methods:
            progress(f"{name}, {rate:g}-fold", len(rows), total)
            found, report = reconstruct_maps(scan, method, device=device)
            maps[name, rate] = found.values["T1"]
            t1 = torch.from_numpy(found.values["T1"])
            tissues = tissue_errors(t1, truth, inside, labels)
            rows.append(
                Evaluation(
                    name,
                    rate,
                    t1_errors(t1, truth, inside),
                    {k: v["nrmse"] for k, v in tissues.items()},
                    report.seconds,
                )
            )
    return rows, maps


def evaluation_table(rows: Sequence[Evaluation]) -> str:
    """Markdown: means over the brains and their standard deviation."""
    heads = ["method", "acceleration", "T1 nRMSE", "MAE, s", "R1 nRMSE", "median relative error"]
    heads += [f"nRMSE, {name}" for name in TISSUES] + ["s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        values = [row.errors[name] for name in ("nrmse", "mae", "r1_nrmse", "median")] + list(row.tissues.values())
        cells = [row.method, f"{row.acceleration:g}", *map(_spread, values), f"{row.seconds:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Tensor) -> str:
    known = values[torch.isfinite(values)]
    if not len(known):
        return ""
    return f"{float(known.mean()):.3f}" + (f" +- {float(known.std()):.3f}" if len(known) > 1 else "")
