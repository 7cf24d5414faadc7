"""Maps with their errors, every sample of Figures 5 and 6, and curves of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyrecon import plotting
from pyrecon.experiments.pinqi.study import ABLATIONS, METHODS, PINQIStudy
from pyrecon.experiments.study import Drawing, Pictures
from pyrecon.metrics import t1_errors

_LONGEST = 3.0  # s, of the maps' colours


def picture(pictures: Pictures) -> Any:
    """T1 of two test brains by every method, as the paper's Figure 4, and below each its error."""
    truth, inside = pictures["truth"], pictures["inside"]
    rows = []
    for i in (0, 1):
        shown, errors = [], []
        for name, maps in pictures.items():
            if name == "inside":
                continue
            last = name == "truth"
            t1 = np.where(inside[i], maps[i], np.nan)
            found = t1_errors(maps[i : i + 1], truth[i : i + 1], inside[i : i + 1])
            note = "" if last else f"nRMSE {float(found['nrmse'][0]):.3f}"
            bar = "s" if last else ""
            shown.append(plotting.Panel(t1, name if not i else "", note, (0.0, _LONGEST), "viridis", bar))
            error = np.where(inside[i], (maps[i] - truth[i]).abs(), np.nan)
            errors.append(plotting.Panel(error, "", "", (0.0, 0.5), "magma", bar))
        rows += [shown, errors]
    return plotting.figure(rows, panel_size=1.7)


def samples(study: PINQIStudy) -> Drawing:
    """nRMSE of every test brain, its mean over the seeds, and the mean of all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    numbers: list[list[Any]] = [["times", "method", "brain", "nRMSE", "MAE, s"]]
    for column, (kinds, times) in enumerate(((METHODS, "five"), (ABLATIONS, "eight"))):
        axes = figure.add_subplot(1, 2, column + 1)
        for place, (kind, (label, _)) in enumerate(kinds.items()):
            results = study.results(kind)
            if not results:
                continue
            nrmse, mae = (np.mean([found[name] for found in results], axis=0) for name in ("nrmse", "mae"))
            shift = np.random.default_rng(0).uniform(-0.25, 0.25, len(nrmse))
            axes.plot(nrmse, place + shift, ".", markersize=3)
            axes.plot([nrmse.mean()] * 2, [place - 0.35, place + 0.35], "k", linewidth=1.5)
            axes.annotate(f"{nrmse.mean():.3f}", (nrmse.mean(), place - 0.4), ha="center", va="bottom", fontsize=7)
            numbers += [
                [times, label, i, f"{a:.4f}", f"{b:.4f}"] for i, (a, b) in enumerate(zip(nrmse, mae, strict=True))
            ]
        axes.set_yticks(range(len(kinds)), [label for label, _ in kinds.values()], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("nRMSE of T1")
        axes.set_title(f"{times} saturation times")
    return Drawing(figure, numbers, "nRMSE of T1 of every test brain, mean over the seeds; the line is their mean.")


def curves(study: PINQIStudy) -> Drawing:
    """Validation nRMSE against steps of the last stage, mean over seeds: whether training came to its plateau."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    numbers: list[list[Any]] = [["times", "method", "step", "nRMSE"]]
    for column, (kinds, times) in enumerate(((METHODS, "five"), (ABLATIONS, "eight"))):
        axes = figure.add_subplot(1, 2, column + 1)
        for kind, (label, _) in kinds.items():
            if kind == "separate-fit":  # its last stage is measured by the images
                continue
            runs = [run for run in (study.curve(kind, seed) for seed in range(study.seeds)) if run]
            if not runs:
                continue
            steps = [step for step, _ in runs[0]]
            mean = np.mean([[value for _, value in run] for run in runs], axis=0)
            axes.plot(steps, mean, label=label)
            numbers += [[times, label, step, f"{value:.4f}"] for step, value in zip(steps, mean, strict=True)]
        axes.set_title(f"{times} saturation times")
        axes.set_xlabel("step of the last stage")
        axes.set_ylabel("nRMSE of T1, validation" if not column else "")
        axes.set_ylim(0, 0.5)
        axes.legend(fontsize=7)
    return Drawing(figure, numbers, "Validation nRMSE of T1 in training, mean over the seeds.")
