"""Tables of LUSER: memory that is measured is held, calls are counted, figures stand beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrecon.experiments.luser import PAPER, LUSERStudy, published, tables
from pyrecon.experiments.luser.memory import Line, line, memory_line, peak_bytes
from pyrecon.experiments.luser.study import ROWS, TASKS, name_of, problem_of
from pyrecon.experiments.luser.tables import Counted
from pyrecon.experiments.study import Sizes, reproduce
from pyrecon.linops import Blur, Identity
from pyrecon.linops.blur import gaussian_kernel
from pyrecon.models import LUSER
from pyrecon.models.luser import load
from pyrecon.models.weights import find_weights, shipped_weights
from pyrecon.train.luser import Config, psnr

SMALL: dict[str, Any] = {
    "size": 16, "pool": 4, "validation": 2, "unrolled": 2, "width": 4, "groups": 1, "dncnn_width": 4, "layers": 3,
    "angles": 6, "limit": 4, "deq4ip_limit": 4, "reconstruction.steps": 2, "reconstruction.batch": 2,
}  # fmt: skip


class Small(LUSERStudy):
    def config(self, recipe: Any) -> Any:
        config = super().config(recipe).changed(SMALL)
        return config.with_stage("denoiser", steps=2 if recipe.role == "deq4ip" else 0)


# --- memory ----------------------------------------------------------------------------------------------------------
def test_the_peak_is_what_was_held_at_once() -> None:
    def run() -> None:
        first = torch.empty(10_000_000, dtype=torch.uint8)
        second = torch.empty(20_000_000, dtype=torch.uint8)
        del first
        third = torch.empty(5_000_000, dtype=torch.uint8)
        del second, third

    assert peak_bytes(run) == 30_000_000
    assert peak_bytes(lambda: None) == 0


def test_the_peak_of_a_recorded_graph_is_its_activations() -> None:
    """Ten tanh in a row keep their ten results, and the gradient needs two more at a time."""
    x = torch.rand(1_000_000, requires_grad=True)

    def run() -> None:
        y = x
        for _ in range(10):
            y = torch.tanh(y)
        y.backward(torch.ones_like(y))
        x.grad = None

    assert 11 * x.nbytes <= peak_bytes(run) <= 13 * x.nbytes


def test_a_line_gives_the_largest_batch() -> None:
    found = line([(n, 1000 + 8 * n) for n in (100, 200, 400)])
    assert (found.fixed, found.per_pixel) == pytest.approx((1000, 8))
    assert found.error < 1e-12
    assert [found.batch(1000 + 8 * 100 * n, 100) for n in (0.5, 1.1, 2.1, 3.9, 5.5)] == [0, 1, 2, 2, 4]
    assert found.batch(1000 + 8 * 390, 100, even=False) == 3
    with pytest.raises(ValueError, match="two sizes"):
        line([(100, 1), (100, 2)])


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_memory_is_linear_and_recomputing_saves_what_is_claimed(tmp_path: Path) -> None:
    """Small networks: an image more costs K stages recorded, and one stage recomputed; checkpoints likewise."""
    found: dict[tuple[str, bool], Line] = {}
    for network, options in (
        ("luser-dw", {"recompute": True}), ("luser-dw", {"recompute": False}),
        ("lu-dncnn", {"checkpointing": True}), ("lu-dncnn", {"checkpointing": False}),
    ):  # fmt: skip
        config = Config.of_scale("quick", network, task="deblur", **{k: v for k, v in SMALL.items() if "." not in k})
        config = config.changed({"unrolled": 4, "width": 8, "dncnn_width": 16, "layers": 6})
        key = network, next(iter(options.values()))
        found[key] = memory_line(config, lambda c: problem_of(c, tmp_path), ((16, 2), (16, 3), (16, 4)), **options)
    # What the blur's way of computing keeps changes with the batch; the rest is exact from two images on.
    assert all(value.error < 0.03 for value in found.values())
    assert found["luser-dw", False].per_pixel > 1.8 * found["luser-dw", True].per_pixel
    assert found["lu-dncnn", False].per_pixel > 1.8 * found["lu-dncnn", True].per_pixel


def test_calls_of_the_operator_are_counted() -> None:
    """K stages take K products with A and with its adjoint, and one more for A^H y."""
    counted = Counted(Identity((8, 8)))
    LUSER(stages=3, width=4, groups=1).reconstruct(torch.rand(2, 8, 8), counted)
    assert dict(counted.calls) == {"forward": 3, "adjoint": 4}
    y = torch.rand(2, 8, 8)
    assert torch.equal(counted.gram(y), y)
    assert torch.equal(counted(y), y)
    assert counted.calls["forward"] == 5


# --- the tables ------------------------------------------------------------------------------------------------------
def limited(monkeypatch: pytest.MonkeyPatch, tasks: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    """The tables of some tasks and networks only, memory at tiny sizes."""
    few = {task: TASKS[task] for task in tasks}
    for module in ("study", "tables", "figures"):
        monkeypatch.setattr(f"pyrecon.experiments.luser.{module}.TASKS", few)
    for module in ("study", "tables"):
        monkeypatch.setattr(f"pyrecon.experiments.luser.{module}.ROWS", rows)
    pairs = [pair for pair in tables._PAIRS if set(pair) <= set(rows)]
    monkeypatch.setattr(tables, "_PAIRS", pairs)
    monkeypatch.setattr(tables, "_SHOWN", [network for network, _ in rows])
    monkeypatch.setitem(tables._MEASURED, "quick", ((8, 1), (8, 2)))
    monkeypatch.setattr(tables, "_KINDS", {key: tables._KINDS[key] for key in ("LU-DnCNN", "LUSER-SW")})


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_tables_are_made_from_trained_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, ("deblur",), [("lu-dncnn", "final"), ("luser-sw", "final")])
    study = Small(tmp_path, seeds=2, sizes=Sizes(3, 0, 0, 0))
    written = [path.name for path, _ in reproduce(PAPER, study, {"table": ["2-deblur", "3"], "experiment": ["pairs"]})]
    assert written == ["table-2-deblur.md", "table-3.md", "pairs.md"]
    text = {name: (tmp_path / name).read_text() for name in written}
    assert (tmp_path / "table-2-deblur.png").exists()
    for value in ("30.30", "0.862", "LUSER-SW", "±"):
        assert value in text["table-2-deblur.md"]
    for value in ("96,503", "558,580", "10 / 14 / 34", "8.5"):
        assert value in text["table-3.md"]
    assert "| +0.37 |" in text["pairs.md"]
    one, other = (study.result("deblur", "luser-sw", "final", seed) for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert not np.array_equal(one.psnr, other.psnr)
    # Another folder with the numbers needs no models.
    (tmp_path / "again").mkdir()
    (tmp_path / "results.json").rename(tmp_path / "again" / "results.json")
    again = Small(tmp_path / "again", seeds=2, sizes=Sizes(3, 0, 0, 0))
    for path, _ in reproduce(PAPER, again, {"table": ["2-deblur"], "experiment": ["pairs"]}):
        assert path.read_text() == text[path.name]
    assert not (tmp_path / "again" / "models").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_every_part_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, ("deblur", "ct"), list(ROWS))
    study = Small(tmp_path, seeds=2, sizes=Sizes(3, 0, 0, 0))
    parts = {"table": ["2", "3", "4"], "experiment": ["pairs"], "figure": [3]}
    written = [path.name for path, _ in reproduce(PAPER, study, parts)]
    assert written == ["table-2.md", "table-3.md", "table-4.md", "pairs.md", "figure-3.png"]
    assert "runs diverged" in (tmp_path / "table-4.md").read_text()
    assert (tmp_path / "pairs.md").read_text().count("+") > 10


def test_what_the_paper_prints_is_complete() -> None:
    assert set(published.QUALITY) == set(TASKS)
    assert all(set(rows) == set(ROWS) for rows in published.QUALITY.values())
    study = LUSERStudy(Path("unused"))
    assert len(study.recipes) == 4 * 7 * 3
    config = study.config(study.recipes[name_of("mri-8x", "luser-sw", "aux", 2)])
    assert (config.acceleration, config.auxiliary, config.seed, config.network) == (8.0, 1.0, 2, "luser-sw")


@pytest.mark.skipif("luser-sw-deblur" not in shipped_weights(), reason="no weights come with this package")
def test_the_weights_that_ship_deblur_photographs(tmp_path: Path) -> None:
    """As the page of weights says, on a part of the study's test images; and another size than that of training."""
    study = LUSERStudy(tmp_path, sizes=Sizes(test=16, validation=0, budget=0, repeats=0))
    batch = study.test_set("deblur")
    model = load(find_weights("luser-sw-deblur"))
    assert batch.images is not None
    found = model.reconstruct(batch.y, batch.physics)
    gain = psnr(study.config_of("deblur"), found.value, batch.images) - psnr(
        study.config_of("deblur"), batch.y, batch.images
    )
    assert bool(found.converged.all())
    assert float(gain.mean()) > 3
    camera = Blur(gaussian_kernel(9, 5.0).float(), (48, 40), channels=3)
    assert model.reconstruct(torch.rand(1, 3, 48, 40), camera).value.shape == (1, 3, 48, 40)
