"""Equivariant deep equilibrium models: of the paper's Table 1 the supervised DE-Prox for MRI, so far.

Mehta, Kitichotkul, Goyal and Tachella, Equivariant deep equilibrium models for imaging inverse problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrecon import metrics, plotting
from pyrecon.experiments.ei_deq import published
from pyrecon.experiments.study import Paper, Pictures, Recipe, Scale, Sizes, Study
from pyrecon.experiments.table import Listing
from pyrecon.linops import Fourier
from pyrecon.models import DEProx
from pyrecon.train.de_prox import Config, DEProxTraining, Scans, brightest, heads

_LABELS = {"implicit": "implicit", "jacobian-free": "Jacobian-free"}
_TEST = 2**21  # a stream of random numbers that neither training nor validation takes


class EIDEQStudy(Study):
    """Models of the paper, trained in the study's folder: none ship."""

    training = DEProxTraining
    recipes: ClassVar[Mapping[str, Recipe]] = {
        name: Recipe("equilibrium", {"gradient": name}) for name in published.MRI_SUPERVISED
    }

    def sizes_of(self, scale: Scale) -> Sizes:
        """Test images; nothing is searched."""
        return Sizes(test=64 if scale == "quick" else 512, validation=0, budget=0, repeats=0)

    def source(self, recipe: Recipe) -> None:
        """The data are made of nothing but the seed."""


def table_1(study: EIDEQStudy) -> tuple[Listing, Pictures]:
    """PSNR of DE-Prox with implicit and Jacobian-free gradients, beside the zero-filled image."""
    config = study.config(study.recipes["implicit"])
    truth, y, physics, scale = _test_set(study, config)
    images = {"zero-filled": physics.adjoint(y)}
    lines = [["zero-filled", f"{_psnr(images['zero-filled'], truth):.2f}", ""]]
    for name, theirs in published.MRI_SUPERVISED.items():
        model = DEProx.load(study.weights(name))
        found = model.reconstruct(y / scale, physics)
        images[f"DE-Prox, {_LABELS[name]}"] = found.value * scale
        quality = _psnr(images[f"DE-Prox, {_LABELS[name]}"], truth)
        lines.append([f"DE-Prox, {_LABELS[name]} gradient", f"{quality:.2f}", f"{theirs:g}"])
    notes = [
        f"Here: {len(truth)} random heads of {config.size} x {config.size} pixels, single coil, supervised, "
        f"{config.acceleration:g}x lines, noise {config.noise_std:g}.",
        "Published: knee images of 320 x 320 pixels, 8x, noise 0.05.",
        f"Trained for {config.denoiser.steps} steps as a denoiser and {config.equilibrium.steps} at the equilibrium.",
    ]
    title = "Table 1: PSNR in dB, MRI, supervised"
    pictures = {"truth": truth} | images
    return Listing(title, ["method", "PSNR, dB", "published"], lines, notes), pictures


def _test_set(study: EIDEQStudy, config: Config) -> tuple[Tensor, Tensor, Fourier, Tensor]:
    shape, count = (config.size, config.size), study.amounts.test
    truth = torch.view_as_complex(torch.from_numpy(heads(study.seed + _TEST, 0, count, shape)))
    y, physics = Scans(config, truth, truth).measured(truth, _TEST)
    return truth, y, physics, brightest(y, physics)


def _psnr(images: Tensor, truth: Tensor) -> float:
    return float(metrics.psnr(images.abs(), truth.abs()).mean())


def picture(pictures: Pictures, count: int = 3) -> Any:
    """Images and, below, their errors."""
    rows = []
    for i, truth in enumerate(pictures["truth"][:count].abs()):
        shown, errors = [], []
        for name, images in pictures.items():
            image = images[i].abs()
            note = "" if name == "truth" else f"{_psnr(image[None], truth[None]):.1f} dB"
            shown.append(plotting.Panel(image.numpy(), name.replace(", ", "\n"), note, (0.0, 1.0)))
            errors.append(plotting.Panel((image - truth).abs().numpy(), "", "", (0.0, 0.2), "magma"))
        rows += [shown, errors]
    return plotting.figure(rows, spacing=[(1e-3, 1e-3)] * len(rows), panel_size=1.2)


PAPER = Paper("ei-deq", EIDEQStudy, {"1": table_1}, {}, {}, picture, about="Models are trained first, in minutes.")
