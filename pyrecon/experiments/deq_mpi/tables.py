"""Tables I to V of DEQ-MPI, and its ablations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import pyrecon.experiments.deq_mpi.published as published
from pyrecon import metrics, plotting
from pyrecon.data.mpi import GRID
from pyrecon.experiments.deq_mpi.published import Entry
from pyrecon.experiments.deq_mpi.study import SNRS, Study
from pyrecon.experiments.mpi import Run, evaluate_mpi, measured_scenario, measured_system, phantom_images
from pyrecon.experiments.study import Pictures
from pyrecon.experiments.table import Listing, Table
from pyrecon.models.mpi import ART, DEQ, L1ADMM, TVADMM, DeepImagePrior, HybADMM, PnP

# The kinds of models, by the name of their weights without SNR, and what a row of a table calls them.
LABELS = {
    "deq-mpi-learned": "learned consistency",
    "deq-mpi": "l2-ball",
    "deq-mpi-26x52": "l2-ball",
    "unrolled": "5 steps",
    "end-to-end": "network alone",
    "denoiser": "denoiser",
}


def table_1(study: Study) -> tuple[Table, Pictures]:
    """Vessels on 26 x 13 voxels, one system matrix at 0.5 T/m for training and test."""
    kinds = ("deq-mpi-learned", "deq-mpi", "unrolled", "end-to-end")
    return _vessels(study, "Table I: one system matrix at 0.5 T/m", published.TABLE_1, kinds)


def table_2(study: Study) -> tuple[Table, Pictures]:
    """The same models on the system matrix at 0.6 T/m."""
    kinds = ("deq-mpi-learned", "deq-mpi")
    title = "Table II: trained at 0.5 T/m, tested at 0.6 T/m"
    table, pictures = _vessels(study, title, published.TABLE_2, kinds, selection_field=0.6)
    table.notes.append(_wrong_matrix(study))
    return table, pictures


def table_3(study: Study) -> tuple[Table, Pictures]:
    """Vessels on 52 x 26 voxels, system matrices upsampled twofold, trained at 0.5 and tested at 0.6 T/m."""
    title = "Table III: 52 x 26 voxels, trained at 0.5 T/m, tested at 0.6 T/m"
    return _vessels(study, title, published.TABLE_3, ("deq-mpi-26x52",), selection_field=0.6, upsampled=2)


def table_4(study: Study) -> tuple[Table, Pictures]:
    """Rings with holes of 1, 2 and 3 mm on 52 x 26 voxels at 15 dB."""
    parts, pictures = [], Pictures()
    for hole in published.TABLE_4["DEQ-MPI"]:
        images = phantom_images(
            "torus",
            test=study.amounts.repeats,
            validation=study.amounts.on_grid(2).validation,
            upsampled=2,
            hole=1e-3 * hole,
            seed=study.seed,
        )
        part, pictures = _evaluated(study, images, 15.0, ("deq-mpi-26x52",), selection_field=0.6, upsampled=2)
        parts.append((f"hole {hole:g} mm", part, published.TABLE_4, hole))
    title = "Table IV: rings on 52 x 26 voxels at 15 dB, trained at 0.5 T/m, tested at 0.6 T/m"
    return _joined(title, parts), pictures


def table_5(study: Study) -> tuple[Listing, Pictures]:
    """Iterations, and milliseconds for one image of 26 x 13 voxels."""
    problem = measured_scenario(study.system(), study.test_images(), 35.0, study.seed)
    denoiser = study.weights("denoiser")
    methods = [
        *(kind.paper(35.0) for kind in (L1ADMM, TVADMM, HybADMM, ART)),
        DeepImagePrior(),
        PnP(denoiser),
        DEQ(study.weights("deq-mpi-learned-35dB")),
        DEQ(study.weights("deq-mpi-35dB")),
    ]
    labels = ["paper"] * 6 + [LABELS["deq-mpi-learned"], LABELS["deq-mpi"]]
    heads = ["method", "settings", "iterations", "ms, here", "iterations, published", "ms, published (V100)"]
    lines = []
    for done, (method, label) in enumerate(zip(methods, labels, strict=True)):
        study.progress(f"{method.name}: time of one image", done, len(methods))
        run = Run(method, problem)
        steps = getattr(method, "iterations", None) or getattr(method, "sweeps", None) or 25
        theirs = published.TABLE_5[method.name]
        lines.append([method.name, label, f"{steps}", f"{run.milliseconds(1):.3g}", f"{theirs[0]}", f"{theirs[1]}"])
    note = f"Here: {torch.get_num_threads()} threads of a CPU, data and factorised system matrix in memory."
    return Listing("Table V: iterations, and milliseconds for one image of 26 x 13 voxels", heads, lines, [note]), {}


TABLES: dict[str, Callable[[Study], tuple[Table | Listing, Pictures]]] = {
    "I": table_1,
    "II": table_2,
    "III": table_3,
    "IV": table_4,
    "V": table_5,
}


def picture(pictures: Pictures, count: int = 3) -> Any:
    """Images of the last column with their errors below: a row of panels for each, methods side by side."""
    truth = pictures["truth"][:count]
    names = [name for name in pictures if name.endswith((", tuned", " iterations")) or name.startswith("DEQ-MPI, ")]
    rows = []
    for i, image in enumerate(truth):
        peak = float(image.max())
        shown, errors = [plotting.Panel(image.numpy(), "truth", window=(0, peak))], [plotting.Panel(0 * image.numpy())]
        for name in names:
            found = pictures[name][i]
            quality = float(metrics.psnr(found[None], image[None]))
            method, _, kind = name.partition(", ")
            title = f"{method}\n{kind}" if method == DEQ.name else method
            shown.append(plotting.Panel(found.numpy(), title, f"{quality:.1f} dB", (0, peak)))
            errors.append(plotting.Panel((found - image).abs().numpy(), "", "", (0, 0.3 * peak), "magma"))
        rows += [shown, errors]
    pixel = GRID.spacing[0] * GRID.shape[0] / truth.shape[1]
    return plotting.figure(rows, spacing=[(pixel, pixel)] * len(rows), panel_size=0.9)


# --- parts ---------------------------------------------------------------------------------------------------------
def _vessels(
    study: Study,
    title: str,
    table: Mapping[str, Mapping[float, Entry]],
    kinds: Sequence[str],
    *,
    selection_field: float = 0.5,
    upsampled: int = 1,
) -> tuple[Table, Pictures]:
    parts, pictures = [], Pictures()
    images = study.test_images(upsampled)
    for snr in SNRS:
        part, pictures = _evaluated(study, images, snr, kinds, selection_field=selection_field, upsampled=upsampled)
        parts.append((f"{snr:g} dB", part, table, snr))
    return _joined(f"{title}, {images.source}", parts), pictures


def _evaluated(
    study: Study, images: Any, snr: float, kinds: Sequence[str], *, selection_field: float, upsampled: int
) -> tuple[Table, Pictures]:
    """One noise level: every method with the models for it."""
    names = [study.nearest(kind, snr) for kind in kinds]
    weights = [study.weights("denoiser"), *(study.weights(name) for name in names)]
    labels = dict(zip(weights, ["denoiser", *(LABELS[kind] for kind in kinds)], strict=True))
    table, pictures = evaluate_mpi(
        images,
        calibration=study.calibration(selection_field),
        upsampled=upsampled,
        snr_db=(snr,),
        tune=True,
        weights=labels,
        dip=study.amounts.dip,
        budget=study.amounts.budget,
        seed=study.seed,
        progress=study.progress,
    )
    wanted = [f"{kind}-{snr:g}dB" for kind in kinds]
    table.notes += [
        f"{table.columns[0]}: the weights are {name}, there are no {other}."
        for name, other in zip(names, wanted, strict=True)
        if name != other
    ]
    return table, pictures


def _joined(title: str, parts: Sequence[tuple[str, Table, Mapping[str, Mapping[float, Entry]], float]]) -> Table:
    """Tables of one column each side by side, with the published figures of each."""
    joined = Table(title, [column for column, *_ in parts])
    for column, part, figures, key in parts:
        (old,) = part.columns
        for row in part.rows:
            new = joined.row(row.method, row.kind)
            for name in ("settings", "psnr", "ssim", "milliseconds"):
                if old in getattr(row, name):
                    getattr(new, name)[column] = getattr(row, name)[old]
            entry = figures.get(row.method, {}).get(key)
            if entry is not None and row.kind not in ("default", "released"):
                new.published[column] = entry
        joined.facts |= {(column if name == old else name): text for name, text in part.facts.items()}
        joined.notes += [note.replace(old, column) for note in part.notes]
    joined.notes = list(dict.fromkeys(joined.notes)) + _margins(joined)
    return joined


def _margins(table: Table) -> list[str]:
    """By how much DEQ-MPI leads, averaged over the columns, as the paper states it."""

    def best(rows: Sequence[Any], column: str) -> float:
        return float(max(row.mean_psnr(column) for row in rows))

    classical = [r for r in table.rows if r.kind == "tuned" and r.method not in ("PP-MPI", "DIP")]
    learned = [r for r in table.rows if r.method == "PP-MPI"]
    notes = []
    for row in (r for r in table.rows if r.method == "DEQ-MPI"):
        leads = [
            np.mean([row.mean_psnr(c) - best(rivals, c) for c in table.columns]) for rivals in (classical, learned)
        ]
        notes.append(
            f"DEQ-MPI ({row.kind}) leads the best tuned classical method of each column by {leads[0]:.1f} dB, "
            f"and PP-MPI at its best by {leads[1]:.1f} dB."
        )
    return notes


def _wrong_matrix(study: Study) -> str:
    """The control: data at 0.5 T/m reconstructed with the matrix at 0.6 T/m."""
    images = study.test_images()
    right = measured_scenario(study.system(0.5), images, 35.0, study.seed)
    method = HybADMM.paper(35.0)
    other = measured_system(study.calibration(0.6), study.system(0.5).rows)
    wrong = measured_scenario(study.system(0.5), images, 35.0, study.seed, read_with=other)
    qualities = [Run(method, problem, given=True).quality() for problem in (right, wrong)]
    return (
        f"Control: Hyb-ADMM of data at 0.5 T/m and 35 dB, {qualities[0]:.1f} dB with its own system matrix, "
        f"{qualities[1]:.1f} dB with that at 0.6 T/m (published: a loss of 15.5 dB)."
    )
