"""Tables 1, 2 and 3, and the differences that Table 1 claims, seed by seed."""

from __future__ import annotations

import statistics
from typing import Any

from pyrecon.experiments.ei_deq import published
from pyrecon.experiments.ei_deq.study import LOSSES, SELF, TASKS, EIDEQStudy, quality
from pyrecon.experiments.ledger import Numbers
from pyrecon.experiments.paired import paired
from pyrecon.experiments.study import Pictures
from pyrecon.experiments.table import Listing
from pyrecon.models.deq import LIMIT

_TASKS = {"mri": "MRI", "ct": "CT"}
_HEADS = {
    "id": "DEQ, ID", "jfb": "DEQ, JFB", "unet": "U-Net", "unrolled-1": "unrolled 1", "unrolled-3": "unrolled 3",
    "unrolled-5": "unrolled 5", "unrolled-7": "unrolled 7", "denoiser": "PnP / RED",
}  # fmt: skip
_LOSSES = {"supervised": "supervised", "self": "self-supervised"}


# --- Table 1 ---------------------------------------------------------------------------------------------------------
def table_1(study: EIDEQStudy) -> tuple[Listing, Pictures]:
    """Test PSNR of every model, with and without ground truth."""
    lines, notes, pictures = [], [], dict[str, Any]()
    for task in TASKS:
        batch = study.test(task)
        assert batch.images is not None
        plain = study.plug_and_play(task)
        for loss in LOSSES:
            theirs = published.TABLE_1[task, loss]
            names = [[f"{task}-{loss}-{kind}-{seed}" for seed in study.seeds_of(kind)] for kind in study.kinds]
            cells = [_means([_psnr(study, name) for name in runs]) for runs in names]
            if loss == "supervised":
                cells.append(f"{_mean(plain['psnr']):.2f}")
            heads = [*study.kinds, "denoiser"][: len(cells)]
            line = [f"{cell} ({theirs[kind]:.2f})" for cell, kind in zip(cells, heads, strict=True)]
            lines.append([_TASKS[task], _LOSSES[loss], *line, *[""] * (len(study.kinds) + 1 - len(line))])
        start = batch.physics.adjoint(batch.y)
        ours = [f"{task}-{loss}-id-{seed}" for loss in LOSSES for seed in range(study.seeds)]
        missed = _mean([study.numbers(name)["missed"][0] for name in ours])
        notes.append(_about(study, task, _mean(quality(start, batch)), plain, missed))
        shown = {"truth": batch.images, "A^H y": start}
        if study.is_here(f"{task}-dncnn"):
            shown["PnP / RED"] = study.found_by_denoiser(task)
        for name in ("supervised-unet", "supervised-unrolled-5", "supervised-jfb", "supervised-id", "self-id"):
            loss, kind = name.split("-", 1)
            here = [m for m in (f"{task}-{name}-{seed}" for seed in study.seeds_of(kind)) if study.is_here(m)]
            if kind in study.kinds and here:
                shown[f"{_HEADS[kind]}\n{_LOSSES[loss]}"] = study.found(here[0])
        pictures[task] = shown
    notes.append(
        f"Ours, mean and standard deviation over {study.seeds} seeds (training images, noise, order), of a single one "
        "without it, and in brackets the paper's. All models of a task begin with one denoiser and have the same "
        "images, steps and rates."
    )
    heads = ["task", "training", *(_HEADS[kind] for kind in (*study.kinds, "denoiser"))]
    return Listing("Table 1: test PSNR, dB", heads, lines, notes), pictures


def _about(study: EIDEQStudy, task: str, start: float, plain: Numbers, missed: float) -> str:
    config = study.config(study.recipes[f"{task}-self-id-0"])
    whose = "our own" if plain["own"][0] else "deepinv's"
    physics = (
        f"single coil, {config.acceleration:g}x Gaussian points, noise {config.noise_level:g}"
        if task == "mri"
        else f"{config.angles} parallel views, noise {config.noise_level:g}, whitened"
    )
    return (
        f"{_TASKS[task]}: {study.amounts.test} generated images ({config.kind}) of {config.size} x {config.size} "
        f"pixels, {physics}; A^H y {start:.2f} dB. {config.pool} training images, {config.equilibrium.steps} steps of "
        f"{config.equilibrium.batch}; without ground truth by {SELF[task]}. {'PnP' if task == 'mri' else 'RED'}: "
        f"{whose} DnCNN, strength {plain['strength'][0]:.3g}, step {plain['step'][0]:.3g}, searched on other images. "
        f"Equilibria (ID) that {LIMIT} iterations did not bring to {config.tolerance:g}: {missed:.0%}."
    )


def differences(study: EIDEQStudy) -> Listing:
    """What Table 1 claims, as differences on the same images: their mean with its 95 % interval, and each seed's."""
    lines = []
    for task in TASKS:
        for loss in LOSSES:
            for kind in study.kinds[1:]:
                lines.append(
                    _difference(study, f"{task}-{loss}-id", f"{task}-{loss}-{kind}", published.TABLE_1[task, loss])
                )
        lines.append(_difference(study, f"{task}-supervised-id", f"{task}-self-id", None))
    heads = ["", "mean (95 % interval), dB", "each seed, dB", "published, dB"]
    return Listing(
        "Differences in PSNR on the same images",
        heads,
        lines,
        ["Student's interval of the seeds' means; of a single seed, of its images, which says nothing of other seeds."],
    )


def _difference(study: EIDEQStudy, one: str, other: str, theirs: dict[str, float] | None) -> list[str]:
    runs = []
    for seed in study.seeds_of(other.split("-", 2)[2]):
        pairs = zip(_psnr(study, f"{one}-{seed}"), _psnr(study, f"{other}-{seed}"), strict=True)
        runs.append([a - b for a, b in pairs])
    task, loss, kind = other.split("-", 2)
    if theirs is None:
        known = published.TABLE_1[task, "supervised"]["id"] - published.TABLE_1[task, "self"]["id"]
        name = f"{_TASKS[task]}, DEQ, ID: supervised - self-supervised"
    else:
        known = theirs["id"] - theirs[kind]
        name = f"{_TASKS[task]}, {_LOSSES[loss]}: DEQ, ID - {_HEADS[kind]}"
    return [name, str(paired(runs)), ", ".join(f"{_mean(run):+.2f}" for run in runs), f"{known:+.2f}"]


# --- Tables 2 and 3 --------------------------------------------------------------------------------------------------
def table_2(study: EIDEQStudy) -> tuple[Listing, Pictures]:
    """How far the pipeline is from equivariant: PSNR of ``f(A T x) - T f(A x)``, T a quarter turn."""
    lines = []
    for task in TASKS:
        for kind in ("id", "unet"):
            theirs = published.TABLE_2[task, kind]
            cells = []
            for loss in ("self", "supervised"):
                runs = [study.numbers(f"{task}-{loss}-{kind}-{seed}")["pipeline"] for seed in range(study.seeds)]
                cells.append(f"{_spread(runs)} ({theirs[loss][0]:.2f} ± {theirs[loss][1]:.2f})")
            lines.append([_TASKS[task], _HEADS[kind], *cells])
    notes = ["Higher is more equivariant. Mean and standard deviation over images (and seeds), and the paper's."]
    title = "Table 2: equivariance of the pipeline f∘A, PSNR in dB"
    return Listing(title, ["task", "model", "self-supervised", "supervised"], lines, notes), {}


def table_3(study: EIDEQStudy) -> tuple[Listing, Pictures]:
    """The same of one step of the equilibrium: ``T F(x, A x) - F(T x, A T x)``, and of the initial denoiser's step."""
    lines = []
    for task in TASKS:
        theirs = published.TABLE_3[task]
        cells = []
        for loss in ("self", "supervised"):
            runs = [study.numbers(f"{task}-{loss}-id-{seed}")["step"] for seed in range(study.seeds)]
            cells.append(f"{_spread(runs)} ({theirs[loss][0]:.2f} ± {theirs[loss][1]:.2f})")
        initial = [study.numbers(f"{task}-denoiser")["step"]]
        cells.append(f"{_spread(initial)} ({theirs['initial'][0]:.2f} ± {theirs['initial'][1]:.2f})")
        lines.append([_TASKS[task], *cells])
    notes = ["Higher is more equivariant. Mean and standard deviation over images (and seeds), and the paper's."]
    title = "Table 3: equivariance of the operator F, PSNR in dB"
    return Listing(title, ["task", "self-supervised", "supervised", "initial denoiser"], lines, notes), {}


def _psnr(study: EIDEQStudy, name: str) -> list[float]:
    return study.numbers(name)["psnr"]


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _means(runs: list[list[float]]) -> str:
    means = [_mean(run) for run in runs]
    return f"{_mean(means):.2f}" + (f" ± {statistics.pstdev(means):.2f}" if len(means) > 1 else "")


def _spread(runs: list[list[float]]) -> str:
    values = [value for run in runs for value in run]
    return f"{_mean(values):.2f} ± {statistics.pstdev(values):.2f}"
