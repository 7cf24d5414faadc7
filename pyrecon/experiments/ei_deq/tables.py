"""Tables 1, 2 and 3, and the differences that Table 1 claims, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrecon import metrics
from pyrecon.experiments.ei_deq import published
from pyrecon.experiments.ei_deq.study import LOSSES, SELF, TASKS, EIDEQStudy, applied, quality
from pyrecon.experiments.paired import paired
from pyrecon.experiments.study import Pictures
from pyrecon.experiments.table import Listing
from pyrecon.models.deq import Equilibrium, load
from pyrecon.transforms import QuarterTurns

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
        plain, settings = study.with_denoiser(task)
        for loss in LOSSES:
            theirs = published.TABLE_1[task, loss]
            names = [[f"{task}-{loss}-{kind}-{seed}" for seed in study.seeds] for kind in study.kinds]
            cells = [_means([study.quality(name) for name in runs]) for runs in names]
            if loss == "supervised":
                cells.append(f"{_mean(quality(plain, batch)):.2f}")
            heads = [*study.kinds, "denoiser"][: len(cells)]
            line = [f"{cell} ({theirs[kind]:.2f})" for cell, kind in zip(cells, heads, strict=True)]
            lines.append([_TASKS[task], _LOSSES[loss], *line, *[""] * (len(study.kinds) + 1 - len(line))])
        start = batch.physics.adjoint(batch.y)
        ours = [share for name, share in study.missed.items() if name.startswith(task) and "-id-" in name]
        notes.append(_about(study, task, _mean(quality(start, batch)), settings, _mean(ours)))
        shown = {"truth": batch.images, "A^H y": start, "PnP / RED": plain}
        for name in ("supervised-unet", "supervised-unrolled-5", "supervised-jfb", "supervised-id", "self-id"):
            loss, kind = name.split("-", 1)
            if kind in study.kinds:
                shown[f"{_HEADS[kind]}\n{_LOSSES[loss]}"] = study.found(f"{task}-{name}-{study.seeds[0]}")
        pictures[task] = shown
    notes.append(
        f"Ours, mean and standard deviation over seeds {', '.join(map(str, study.seeds))} (training images, noise, "
        "order), and in brackets the paper's. All models of a task begin with one denoiser and have the same images, "
        "steps and rates."
    )
    heads = ["task", "training", *(_HEADS[kind] for kind in (*study.kinds, "denoiser"))]
    return Listing("Table 1: test PSNR, dB", heads, lines, notes), pictures


def _about(study: EIDEQStudy, task: str, start: float, settings: dict[str, Any], missed: float) -> str:
    config = study.config(study.recipes[f"{task}-self-id-0"])
    physics = (
        f"single coil, {config.acceleration:g}x Gaussian points, noise {config.noise_level:g}"
        if task == "mri"
        else f"{config.angles} parallel views, noise {config.noise_level:g}, whitened"
    )
    return (
        f"{_TASKS[task]}: {study.amounts.test} generated images ({config.kind}) of {config.size} x {config.size} "
        f"pixels, {physics}; A^H y {start:.2f} dB. {config.pool} training images, {config.equilibrium.steps} steps of "
        f"{config.equilibrium.batch}; without ground truth by {SELF[task]}. {'PnP' if task == 'mri' else 'RED'}: "
        f"{settings['denoiser']} DnCNN, strength {settings['strength']:.3g}, step {settings['step']:.3g}, searched on "
        "other images. "
        f"Equilibria (ID) that {config.limit} iterations did not bring to {config.tolerance:g}: {missed:.0%}."
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
    return Listing("Differences in PSNR on the same images", heads, lines, ["Student's interval of the seeds' means."])


def _difference(study: EIDEQStudy, one: str, other: str, theirs: dict[str, float] | None) -> list[str]:
    runs = []
    for seed in study.seeds:
        pairs = zip(study.quality(f"{one}-{seed}"), study.quality(f"{other}-{seed}"), strict=True)
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
                runs = [pipeline_error(study, f"{task}-{loss}-{kind}-{seed}") for seed in study.seeds]
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
            runs = [step_error(study, task, f"{task}-{loss}-id-{seed}") for seed in study.seeds]
            cells.append(f"{_spread(runs)} ({theirs[loss][0]:.2f} ± {theirs[loss][1]:.2f})")
        initial = [step_error(study, task, f"{task}-denoiser")]
        cells.append(f"{_spread(initial)} ({theirs['initial'][0]:.2f} ± {theirs['initial'][1]:.2f})")
        lines.append([_TASKS[task], *cells])
    notes = ["Higher is more equivariant. Mean and standard deviation over images (and seeds), and the paper's."]
    title = "Table 3: equivariance of the operator F, PSNR in dB"
    return Listing(title, ["task", "self-supervised", "supervised", "initial denoiser"], lines, notes), {}


def pipeline_error(study: EIDEQStudy, name: str) -> list[float]:
    """Of a model, per test image, dB; measurements without noise."""
    batch, model = study.test(name.partition("-")[0]), load(study.weights(name))

    def pipeline(x: Tensor) -> Tensor:
        return applied(model, replace(batch, images=None, y=batch.physics(x)))[0]

    assert batch.images is not None
    return equivariance(pipeline, batch.images)


def step_error(study: EIDEQStudy, task: str, name: str) -> list[float]:
    """Of one step F from the truth x with the data ``A x``, per test image, dB."""
    batch, model, physics = study.test(task), load(study.weights(name)), study.test(task).physics
    assert isinstance(model, Equilibrium)

    def step(x: Tensor) -> Tensor:
        small = x / batch.scale
        with torch.no_grad():
            return model.step(small, physics.gram(small), physics) * batch.scale

    assert batch.images is not None
    return equivariance(step, batch.images)


def equivariance(f: Callable[[Tensor], Tensor], images: Tensor) -> list[float]:
    """PSNR of ``f(T x)`` against ``T f(x)`` for a quarter turn T, a peak of 1, per image, dB."""
    turn = QuarterTurns().by(1)
    values: list[float] = metrics.psnr(f(turn(images)), turn(f(images)), peak=1.0).tolist()
    return values


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _means(runs: list[list[float]]) -> str:
    means = [_mean(run) for run in runs]
    return f"{_mean(means):.2f} ± {statistics.pstdev(means):.2f}"


def _spread(runs: list[list[float]]) -> str:
    values = [value for run in runs for value in run]
    return f"{_mean(values):.2f} ± {statistics.pstdev(values):.2f}"
