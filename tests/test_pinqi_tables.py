"""Tables of PINQI: numbers of trained models beside the paper's, the same from the ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyrecon.experiments.pinqi import PAPER, PINQIStudy, published
from pyrecon.experiments.pinqi.study import ABLATIONS, METHODS, mapped, name_of, sense_fit
from pyrecon.experiments.study import Sizes, reproduce
from pyrecon.metrics import t1_errors
from pyrecon.train.map_data import ScanConfig, held_back
from pyrecon.train.pinqi import new_model

SMALL: dict[str, Any] = {
    "size": 24, "coils": 3, "acceleration": 2.0, "centre": 6, "pool": 8, "validation": 2, "iterations": 2, "width": 4,
    "image_width": 4, "rival_width": 4, "validate_every": 2,
}  # fmt: skip


class Small(PINQIStudy):
    def config(self, recipe: Any) -> Any:
        config = super().config(recipe).changed(SMALL)
        for name in config.stages:
            config = config.with_stage(name, steps=2, batch=2, warm_up=0)
        return config


def test_tables_are_made_from_trained_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("study", "tables", "figures"):
        for name, known in (("METHODS", METHODS), ("ABLATIONS", ABLATIONS)):
            few = dict(
                list(known.items())[:2] + ([list(known.items())[-2], list(known.items())[-1]] * (known is ABLATIONS))
            )
            monkeypatch.setattr(f"pyrecon.experiments.pinqi.{module}.{name}", few)
    study = Small(tmp_path, seeds=2, sizes=Sizes(3, 2, 0, 0))
    parts = {"table": ["1", "5", "6"], "experiment": ["pairs"], "figure": ["samples", "curves"]}
    written = [path.name for path, _ in reproduce(PAPER, study, parts)]
    assert written == ["table-1.md", "table-5.md", "table-6.md", "pairs.md", "figure-samples.png", "figure-curves.png"]
    text = {name: (tmp_path / name).read_text() for name in written if name.endswith(".md")}
    assert text["table-1.md"].count("±") >= 36
    for value in ("< 0.10", "0.13", "DeepT1", "CG-SENSE", "±"):
        assert value in text["table-5.md"]
    assert "separate fit" in text["table-6.md"]
    assert (tmp_path / "table-5.png").exists()
    # What stands there is what the model does.
    numbers = study.numbers("pinqi", 1)
    model = study.model(name_of("pinqi", 1))
    assert model is not None
    batch, _ = study.test_set("five")
    found = t1_errors(mapped(model, batch), 1 / batch.parameters[:, 0], batch.inside[:, 0])
    assert numbers["nrmse"] == pytest.approx(found["nrmse"].tolist(), rel=1e-4)
    assert numbers["nrmse"] != study.numbers("pinqi", 0)["nrmse"]
    assert model.card is not None
    known = model.card.training["curves"]["mapping"]  # the last stage, not the last name
    assert study.curve("pinqi", 1) == [(step, pytest.approx(value, rel=1e-5)) for step, value in known]
    # Another folder with the numbers needs no models.
    (tmp_path / "again").mkdir()
    (tmp_path / "results.json").rename(tmp_path / "again" / "results.json")
    again = Small(tmp_path / "again", seeds=2, sizes=Sizes(3, 2, 0, 0))
    for path, _ in reproduce(PAPER, again, {"table": ["5", "6"], "experiment": ["pairs"]}):
        assert path.read_text() == text[path.name]
    assert not (tmp_path / "again" / "models").exists()


def test_every_kind_is_another_model_with_the_same_data() -> None:
    study = PINQIStudy(Path("unused"))
    assert len(study.recipes) == 12 * 3
    assert set(published.METHODS) == set(METHODS)
    scans, models = set(), set()
    for kind in (*METHODS, *ABLATIONS):
        config = study.config_of(kind)
        steps = sum(getattr(config, name).steps * getattr(config, name).batch for name in config.stages)
        scans.add((config.size, config.coils, config.pool, config.seed, config.acceleration, config.iterations, steps))
        assert config.times == ("five" if kind in METHODS else "eight")
        shapes = tuple(name for name, _ in new_model(config).state_dict().items())
        models.add((config.times, config.network, config.regression, config.fit, config.repeat, shapes))
    assert len(scans) == 1
    assert len(models) == 12
    assert study.config(study.recipes[name_of("mantis", 2)]).seed == 2


def test_a_fit_of_all_the_data_is_the_truth() -> None:
    config = ScanConfig(size=24, coils=3, acceleration=1.0, centre=6, noise_low=0.0, noise_high=0.0)
    batch, labels = held_back(config, 3)
    truth, inside = 1 / batch.parameters[:, 0], batch.inside[:, 0]
    errors = t1_errors(sense_fit(batch, 30), truth, inside)
    assert float(errors["nrmse"].max()) < 1e-3
    assert bool((labels[inside] >= 0).all())
