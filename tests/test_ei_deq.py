"""The tables of the paper on equivariant equilibria, from a small study to its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrecon.experiments.ei_deq import PAPER, EIDEQStudy
from pyrecon.experiments.ei_deq.study import TRAINED, equivariance
from pyrecon.experiments.study import Sizes, reproduce

TINY = {
    "size": 16, "pool": 4, "validation": 2, "width": 4, "photographs": 8, "limit": 6, "angles": 6, "acceleration": 4.0,
    "convolutions": 3,
}  # fmt: skip


@dataclass
class Small(EIDEQStudy):
    kinds: tuple[str, ...] = ("id", "unet")
    seeds: int = 2

    def config(self, recipe: Any) -> Any:
        config = super().config(recipe).changed(TINY)
        for stage in config.stages:
            config = config.with_stage(stage, steps=2, batch=2)
        return config


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:.*held-out images was not found")
def test_tables_have_ours_beside_the_published(tmp_path: Path) -> None:
    study = Small(tmp_path, sizes=Sizes(3, 2, 4, 0))
    chosen = {"table": ["1", "2", "3"], "experiment": ["differences"]}
    written = [path.name for path, _ in reproduce(PAPER, study, chosen)]
    assert written == ["table-1.md", "table-2.md", "table-3.md", "differences.md"]
    table, pipeline, operator, differences = ((tmp_path / name).read_text() for name in written)
    for text, values in (
        (table, ("(32.61)", "(30.59)", "(25.07)", "(35.41)", "searched on other images", "by ei")),
        (pipeline, ("47.57", "36.48")),
        (operator, ("33.94", "32.59")),
        (differences, ("+1.38", "+1.36", "CT, DEQ, ID: supervised - self-supervised")),
    ):
        assert all(value in text for value in values), text
    assert (tmp_path / "table-1.png").exists()
    # One denoiser for all models of a task; two seeds are two models.
    models = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert len(models) == 2 * (2 + 2 * 2 * 2)
    assert {"ct-denoiser", "ct-dncnn", "mri-self-unet-1"} <= set(models)


def test_every_cell_has_a_recipe_and_differs_from_the_others() -> None:
    names = [
        f"{t}-{loss}-{k}-{s}"
        for t in ("ct", "mri")
        for loss in ("supervised", "self")
        for k in TRAINED
        for s in range(3)
    ]
    study = EIDEQStudy(Path("/nowhere"))
    assert set(names) <= set(study.recipes)
    configs = [study.config(study.recipes[name]) for name in names]
    assert len(set(configs)) == len(names)
    assert {config.denoiser.steps for config in configs} == {0}
    other = EIDEQStudy(Path("/nowhere"), seed=1)
    assert not {config.seed for config in configs} & {other.config(study.recipes[name]).seed for name in names}
    steps = {(config.task, config.equilibrium, config.pool, config.size) for config in configs}
    assert len(steps) == 2  # the same images, steps and rates for all models of a task


def test_equivariance_is_that_of_the_difference() -> None:
    images = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert equivariance(lambda x: 2 * x, images) == [float("inf")] * 3
    row = torch.zeros(8, 8)
    row[0] = 1
    found = equivariance(lambda x: x * row, images)
    for b, x in enumerate(images):
        difference = x.rot90(1, (-2, -1)) * row - (x * row).rot90(1, (-2, -1))
        assert found[b] == pytest.approx(-10 * float(torch.log10(difference.square().mean())), rel=1e-5)
