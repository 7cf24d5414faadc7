"""What DEQ-MPI's training images are worth: the same training on three kinds, tested on four, with two scanners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon import metrics
from pyrecon.data.mpi import GRID, MPISystem
from pyrecon.data.vessels import VesselStyle
from pyrecon.experiments.deq_mpi.study import SNRS, Recipe, Study, penalty
from pyrecon.experiments.mpi import Run, measured_scenario, measured_system
from pyrecon.experiments.mpi_data import Images, generated_images, vessel_images
from pyrecon.experiments.table import Listing
from pyrecon.models.mpi import DEQ
from pyrecon.physics.mpi import Particles, Scanner

KINDS = {"plain": "plain vessels", "natural": "generated vessels", "angiogram": "an angiogram"}
UNSEEN = Scanner(
    gradient=0.65, particles=Particles(core_diameter=22e-9, size_spread=0.1, relaxation_time=3e-6)
)  # no weights were trained on its matrix
_SEED = 7  # of its calibration


def recipe(kind: str, snr_db: float) -> Recipe:
    """From the weights that ship for an SNR, 400 steps of 16 images at quick scale: two to five minutes on one core."""
    changes: dict[str, Any] = {"snr_db": snr_db, "penalty": penalty(snr_db)}
    schedule = {"pool": 3000, "validation": 64, "equilibrium": {"steps": 400, "batch": 16, "rate": 1e-3, "halve": 150}}
    if kind == "plain":
        changes["vessels"] = "plain"
    return Recipe(
        "equilibrium", changes, initial=f"deq-mpi-{snr_db:g}dB", quick=schedule, angiogram=kind == "angiogram"
    )


def images(study: Study) -> Listing:
    """pSNR by training images and test images. Without an angiogram the rows and columns that need one are left out."""
    systems = {"of training": study.system(), "unseen": measured_system(UNSEEN.calibrate(GRID, seed=_SEED))}
    sets = dict(_test_sets(study))
    lines = []
    for snr in SNRS:
        weights = {"weights that ship": study.weights(f"deq-mpi-{snr:g}dB")}
        for kind, label in KINDS.items():
            if kind != "angiogram" or study.angiogram is not None:
                weights[label] = study.trained(f"images-{kind}-{snr:g}dB", recipe(kind, snr))
        for scanner, system in systems.items():
            study.progress(f"images at {snr:g} dB", 0, 1)
            found = {label: _qualities(study, path, system, sets, snr) for label, path in weights.items()}
            for label, values in found.items():
                lines.append([f"{snr:g} dB", scanner, label, *map(_mean, values)])
            if KINDS["angiogram"] in found:
                apart = found[KINDS["natural"]] - found[KINDS["angiogram"]]
                lines.append([f"{snr:g} dB", scanner, "generated less angiogram", *(_mean(d, "+") for d in apart)])
    notes = [
        f"pSNR in dB, mean ± standard error over {study.amounts.test} test images, the same images and noise in every "
        "row of an SNR and a scanner; differences image by image. DEQ-MPI with the l2-ball, 25 iterations.",
        "Trained from the weights that ship: 400 steps of 16 images at quick scale, "
        "patches from the first 45 % of the angiogram. Its test patches are from the last 45 %.",
        "The unseen scanner has 0.65 T/m and a tracer of 22 nm cores that vary by 10 % and relax in 3 µs.",
    ]
    return Listing("What training images are worth", ["SNR", "scanner", "trained on", *sets], lines, notes)


def _test_sets(study: Study) -> Iterator[tuple[str, Images]]:
    counts = {"test": study.amounts.test, "validation": study.amounts.validation, "seed": study.seed}
    if study.angiogram is not None:
        yield "angiogram", vessel_images(study.angiogram, **counts)
    yield "retina", vessel_images(**counts)
    yield "generated", generated_images(style=VesselStyle(), **counts)
    yield "plain", generated_images(**counts)


def _qualities(
    study: Study, weights: str, system: MPISystem, sets: dict[str, Images], snr_db: float
) -> NDArray[np.float64]:
    """pSNR in dB, ``(sets, images)``."""
    values = []
    for pictures in sets.values():
        problem = measured_scenario(system, pictures, snr_db, study.seed)
        values.append(metrics.psnr(Run(DEQ(weights), problem)(), problem.test.images).double().numpy())
    return np.array(values)


def _mean(values: NDArray[np.float64], sign: str = "") -> str:
    return f"{values.mean():{sign}.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"
