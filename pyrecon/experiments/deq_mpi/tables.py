"""Tables I to V of DEQ-MPI, and its ablations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrecon.experiments import published
from pyrecon.experiments.deq_mpi.study import SNRS, Study
from pyrecon.experiments.mpi import evaluate_mpi, phantom_images, timed_alone
from pyrecon.experiments.table import Table

Pictures = dict[str, Tensor]


def table_1(study: Study) -> tuple[Table, Pictures]:
    """Vessels on 26 x 13 voxels, one system matrix at 0.5 T/m for training and test."""
    return _vessels(study, "Table I: one system matrix at 0.5 T/m", published.TABLE_1, learned=True)


def table_2(study: Study) -> tuple[Table, Pictures]:
    """The same models on the system matrix at 0.6 T/m."""
    return _vessels(study, "Table II: trained at 0.5 T/m, tested at 0.6 T/m", published.TABLE_2, 0.6, learned=True)


def table_3(study: Study) -> tuple[Table, Pictures]:
    """Vessels on 52 x 26 voxels, system matrices upsampled twofold, trained at 0.5 and tested at 0.6 T/m."""
    title = "Table III: 52 x 26 voxels, trained at 0.5 T/m, tested at 0.6 T/m"
    return _vessels(study, title, published.TABLE_3, 0.6, upsampled=2)


def table_4(study: Study) -> tuple[Table, Pictures]:
    """Rings with holes of 1, 2 and 3 mm on 52 x 26 voxels at 15 dB."""
    parts = []
    for hole in published.TABLE_4["DEQ-MPI"]:
        images = phantom_images("torus", test=study.amounts.repeats, validation=study.amounts.validation, hole=hole)
        part, pictures = evaluate_mpi(
            images,
            calibration=study.calibration(0.6),
            upsampled=2,
            snr_db=(15.0,),
            tune=True,
            weights=_models(study, 15.0, upsampled=2),
            budget=study.amounts.budget,
            seed=study.seed,
            progress=study.progress,
        )
        parts.append((f"hole {hole:g} mm", hole, part))
    title = "Table IV: rings on 52 x 26 voxels at 15 dB, trained at 0.5 T/m, tested at 0.6 T/m"
    return merged(title, parts, published.TABLE_4), pictures
