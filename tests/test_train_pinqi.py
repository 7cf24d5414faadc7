"""PINQI's training: scans that are a function of the step, masks and noise as said, and a run that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyrecon._errors import DataError
from pyrecon.metrics import t1_errors
from pyrecon.models.map_rivals import load
from pyrecon.train.config import Cosine
from pyrecon.train.map_data import Data, held_back, scanned
from pyrecon.train.pinqi import Config, Everything, PINQITraining, new_model, t1_of
from pyrecon.train.run import train
from pyrecon.train.task import Interrupted

SMALL: dict[str, Any] = {
    "size": 24, "coils": 3, "acceleration": 2.0, "centre": 6, "pool": 12, "validation": 3, "iterations": 2, "width": 4,
    "image_width": 4, "rival_width": 4, "validate_every": 5,
}  # fmt: skip


def config(**given: Any) -> Config:
    found = Config.of_scale("quick", **SMALL | given)
    for name in found.stage_names():
        steps = 10 if getattr(found, name).steps else 0
        found = found.with_stage(name, steps=steps, batch=2)
    return found


def data(tmp_path: Path, **given: Any) -> Data:
    return PINQITraining(tmp_path, None, config(**given)).data(lambda done, total: None)


def test_scans_are_a_function_of_the_step(tmp_path: Path) -> None:
    known = data(tmp_path, noise_low=0.02, noise_high=0.02)
    one, again, other = known.batch(3, 4), known.batch(3, 4), known.batch(4, 4)
    assert torch.equal(one.k, again.k)
    assert not torch.equal(one.physics.mask, other.physics.mask)
    torch.testing.assert_close(known.validation().k, known.validation().k, rtol=0, atol=0)
    # Images are those of the parameters, and data those of the images with noise where lines are taken.
    t = known.config.seconds
    rate, factor = one.parameters[:, 0], torch.complex(one.parameters[:, 1], one.parameters[:, 2])
    for i, time in enumerate(t):
        torch.testing.assert_close(one.images[:, i], factor * (1 - torch.exp(-time * rate)))
    noise = one.k - one.physics(one.images)
    taken = one.physics.mask.expand(noise.shape) > 0
    assert not noise[~taken].any()
    assert float(torch.view_as_real(noise[taken]).std()) == pytest.approx(0.02, rel=0.05)
    silent = scanned(config(noise_low=0.0, noise_high=0.0), known.pool[:2], known.maps, 0)
    torch.testing.assert_close(silent.k, silent.physics(silent.images))


def test_the_error_is_that_of_t1_in_the_brain() -> None:
    truth = torch.ones(1, 3, 2, 2)
    truth[0, 0] = torch.tensor([[1.0, 0.5], [0.25, 2.0]])  # T1 of 1, 2, 4 and 0.5 s
    inside = torch.tensor([[[[True, True], [False, True]]]])
    wrong = truth.clone()
    wrong[0, 0, 0, 0], wrong[0, 0, 1, 0] = 0.8, 9.0  # 0.25 s in the brain, and outside
    expected = (0.25**2 / (1 + 4 + 0.25)) ** 0.5
    found = t1_errors(t1_of(wrong), 1 / truth[:, 0], inside[:, 0])
    assert float(found["nrmse"]) == pytest.approx(expected, rel=1e-6)


RUNS: list[dict[str, Any]] = [
    {},
    {"image_net": False, "fit": False},
    {"repeat": False, "times": "eight"},
    {"parameter_net": False},
    {"network": "unrolled"},
    {"network": "unrolled", "regression": "fit"},
    {"network": "unrolled", "regression": "separate"},
    {"network": "deept1"},
    {"network": "mantis"},
    {"network": "dopamine"},
]


@pytest.mark.parametrize("options", RUNS)
def test_a_run_learns_and_its_weights_come_back(tmp_path: Path, options: dict[str, Any]) -> None:
    run = tmp_path / "run"
    model = train(PINQITraining, run, None, config(**options))
    assert model.card is not None
    curves = model.card.training["curves"]
    assert any(min(value for _, value in curve) < curve[0][1] for curve in curves.values())
    again = load(run / "weights.safetensors")
    assert again.card == model.card
    assert again.network == options.get("network", "pinqi")
    assert len(model.card.data["times"]) == again.images
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """In the middle of a stage with two groups of parameters."""
    settings = config(network="unrolled", save_every=1000)
    whole = train(PINQITraining, tmp_path / "whole", None, settings)
    seen = []

    def stop() -> bool:
        return len(seen) >= 14  # after four steps of the last stage

    with pytest.raises(Interrupted, match="mapping"):
        train(PINQITraining, tmp_path / "cut", None, settings, report=seen.append, stop=stop)
    resumed = train(PINQITraining, tmp_path / "cut", resume=True)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_stages_train_what_they_say(tmp_path: Path) -> None:
    """After every stage, of which networks the weights have moved."""
    expected = {
        ("pinqi", "improvement"): {"image_net"},
        ("pinqi", "suggestion"): {"parameter_net"},
        ("pinqi", "mapping"): {"image_net", "parameter_net", "raw_weights"},
        ("deept1", "reconstruction"): {"image_net", "raw_weights"},
        ("deept1", "mapping"): {"parameter_net"},
        ("unrolled", "reconstruction"): {"image_net", "raw_weights"},
        ("dopamine", "suggestion"): {"start_net"},
    }
    for (network, stage), parts in expected.items():
        settings = config(network=network)
        for name in settings.stage_names():
            settings = settings.with_stage(name, steps=2 if name == stage else 0)
        before = new_model(settings).state_dict()
        after = train(PINQITraining, tmp_path / f"{network}-{stage}", None, settings).state_dict()
        moved = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved <= parts, (network, stage)
        # The best weights are kept, which may be the first; others have moved together.
        assert moved in (set(), parts), (network, stage)


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    stage = Cosine(120, rate=0.5, warm_up=20)
    shares = [stage.rate_at(step) for step in range(121)]
    assert shares[0] == pytest.approx(1 / 21)
    assert max(shares) == shares[20] == 1.0
    assert shares[70] == pytest.approx(0.505)  # half way down to a hundredth
    assert shares[120] == pytest.approx(0.01)
    assert sorted(shares[20:], reverse=True) == shares[20:]
    longer = stage.of_length(1200)
    assert (longer.steps, longer.warm_up, longer.rate_at(700)) == (1200, 200, pytest.approx(0.505))
    for wrong in ({"halve": 5}, {"warm_up": -1}, {"decay": -0.1}):
        with pytest.raises(DataError, match="stage: halve"):
            Cosine(10, **wrong)


def test_learned_weights_have_a_rate_of_their_own_and_do_not_decay(tmp_path: Path) -> None:
    known = data(tmp_path, weight_rate=2.0)
    model = new_model(config(weight_rate=2.0))
    task = Everything(model, known, Cosine(5, batch=2, rate=1e-3, decay=0.1))
    optimizer = task.stage.optimizer(task.groups)
    networks, weights = optimizer.param_groups
    assert (networks["lr"], networks["weight_decay"]) == (1e-3, 0.1)
    assert (weights["lr"], weights["weight_decay"]) == (2e-3, 0.0)
    assert weights["params"] == [model.raw_weights]
    assert len(networks["params"]) + 1 == len(list(model.parameters()))


def test_all_models_see_as_many_samples() -> None:
    for scale in ("quick", "full"):
        totals = set()
        for options in ({}, {"image_net": False}, {"parameter_net": False}, {"repeat": False}, *RUNS[4:]):
            settings = Config.of_scale(scale, options.get("network"), **options)
            stages = [getattr(settings, name) for name in settings.stages]
            assert len({stage.batch for stage in stages}) == 1
            totals.add(sum(stage.steps for stage in stages))
        assert len(totals) == 1


def test_test_brains_are_in_no_pool(tmp_path: Path) -> None:
    known = data(tmp_path)
    batch, labels = held_back(config(network="mantis"), 3)
    assert torch.equal(batch.k, held_back(config(), 3)[0].k)
    assert labels.shape == batch.inside[:, 0].shape
    for brain in batch.parameters:
        assert not any(torch.equal(brain, other[:3]) for other in (*known.pool, *known.held_out))
    whole = torch.cat([part.physics(part.images) for part in batch.parts(2)])
    torch.testing.assert_close(whole, batch.physics(batch.images))


def test_magnitudes_are_the_targets_of_networks_without_phase(tmp_path: Path) -> None:
    batch = data(tmp_path).batch(0, 2)
    assert batch.targets(True) is batch.parameters
    rate, size, zero = batch.targets(False).unbind(1)
    torch.testing.assert_close(rate, batch.parameters[:, 0])
    torch.testing.assert_close(size, torch.complex(*batch.parameters[:, 1:].unbind(1)).abs())
    assert not zero.any()


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="noise_low"):
        data(tmp_path, noise_low=0.5)
    with pytest.raises(DataError, match="centre: 30 lines, the images have 24"):
        data(tmp_path, centre=30)
    with pytest.raises(DataError, match="repeat: false, which is an ablation of pinqi; this is mantis"):
        data(tmp_path, network="mantis", repeat=False)
    with pytest.raises(DataError, match="regression: fit, which is for unrolled; this is pinqi"):
        data(tmp_path, regression="fit")
    train(PINQITraining, tmp_path / "a", None, config())
    with pytest.raises(DataError, match="others than the configuration says"):
        train(PINQITraining, tmp_path / "b", None, config(width=6), initial=tmp_path / "a" / "weights.safetensors")


def test_the_published_networks_train_at_full_scale() -> None:
    full = Config.of_scale("full")
    assert (full.size, full.coils, full.iterations, full.width, full.image_width) == (192, 8, 5, 32, 16)
    assert full.stages == ("suggestion", "mapping")
    assert full.mapping.rate == 0.004
    assert full.mapping.rate * full.weight_rate == 0.001
    assert full.mapping.decay == 0.01
