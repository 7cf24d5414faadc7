"""Pictures of Table 2 with their errors, and curves of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrecon import plotting
from pyrecon.experiments.luser.study import LABELS, TASKS, LUSERStudy, name_of
from pyrecon.experiments.study import Drawing, Pictures
from pyrecon.train.luser import Config, psnr


def picture(pictures: Pictures) -> Any:
    """The first test image of every task, as the paper's Figure 2, and below each its error."""
    rows = []
    for task, images in pictures.items():
        truth = images["truth"][:1]
        config = Config(task=TASKS[task]["task"])
        peak = float(truth.abs().max())
        shown, errors = [], []
        for name, image in images.items():
            note = "" if name == "truth" else f"{float(psnr(config, image[:1], truth)[0]):.1f} dB"
            shown.append(plotting.Panel(_grey(image[0]).numpy(), f"{task}\n{name}", note, (0.0, peak)))
            error = (_grey(image[0]) - _grey(truth[0])).abs()
            errors.append(plotting.Panel(error.numpy(), "", "", (0.0, 0.2 * peak), "magma"))
        rows += [shown, errors]
    return plotting.figure(rows, panel_size=1.3)


def _grey(image: Tensor) -> Tensor:
    """Magnitudes; of colours their mean."""
    values = image.abs() if image.is_complex() else image
    return values.mean(0) if values.dim() == 3 else values


def curves(study: LUSERStudy) -> Drawing:
    """Validation PSNR against steps, mean over seeds: whether training came to its plateau."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(TASKS), 3.0), layout="constrained")
    numbers: list[list[Any]] = [["task", "network", "step", "PSNR, dB"]]
    for i, task in enumerate(TASKS):
        axes = figure.add_subplot(1, len(TASKS), i + 1)
        for network, label in LABELS.items():
            runs = [study.curve(name_of(task, network, "final", seed)) for seed in range(study.seeds)]
            runs = [run for run in runs if run]
            if not runs:
                continue
            steps = [step for step, _ in runs[0]]
            mean = torch.tensor([[value for _, value in run] for run in runs]).mean(0).tolist()
            axes.plot(steps, mean, label=label)
            numbers += [[task, label, step, f"{value:.3f}"] for step, value in zip(steps, mean, strict=True)]
        axes.set_title(task)
        axes.set_xlabel("step")
        axes.set_ylabel("PSNR, dB" if not i else "")
        axes.legend(fontsize=7)
    return Drawing(figure, numbers, "Validation PSNR in training, final loss, mean over the seeds.")
