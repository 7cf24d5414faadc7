"""Training of DEQ-MPI: its data, its stages and schedules, and its command. The mechanics are in test_train_run.py."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deq_mpi_runs import NONE, SHAPE, config, source, trained
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.models import DEQMPI
from pyrecon.models.deq_mpi import new_card
from pyrecon.nn import RDN, LearnedConsistency, RowLayout
from pyrecon.ops import project_l2_ball
from pyrecon.train import Config, Stage, train_deq_mpi


# --- runs ------------------------------------------------------------------------------------------------------------
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Bit by bit, stopped in every stage and twice in one."""
    settings = config(consistency="learned")
    whole = trained(tmp_path / "whole", settings)
    assert trained(tmp_path / "parts", settings, (1, 4, 8, 11, 14)) == whole
    assert trained(tmp_path / "other", replace(settings, seed=1)) != whole


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", config())

    def die(progress: Any) -> None:
        if (progress.stage, progress.step) == ("equilibrium", 4):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_deq_mpi(tmp_path / "killed", source(), config(), report=die)
    assert not (tmp_path / "killed/weights.safetensors").exists()
    train_deq_mpi(tmp_path / "killed", resume=True)
    assert (tmp_path / "killed/weights.safetensors").read_bytes() == whole


def test_training_improves_what_each_stage_is_for(tmp_path: Path) -> None:
    settings = config(
        consistency="learned",
        denoiser=Stage(80, batch=16),
        projection=Stage(80, batch=8, rate=1e-2),
        equilibrium=Stage(20, batch=8, rate=3e-4),
        validate_every=10,
        limit=15,
    )
    seen: dict[str, list[Any]] = {}
    model = train_deq_mpi(tmp_path / "run", source(), settings, report=lambda p: seen.setdefault(p.stage, []).append(p))
    first, last = ({n: ps[k].quality for n, ps in seen.items()} for k in (0, -1))
    assert last["denoiser"] > first["denoiser"] + 2
    assert last["projection"] > first["projection"] + 4
    assert model.card is not None
    best = model.card.training["quality_db"]
    assert best["equilibrium"] > first["equilibrium"]
    assert all(best[name] >= max(p.quality for p in seen[name]) - 1e-9 for name in seen)
    for name, steps in (("denoiser", 80), ("equilibrium", 20)):
        (log,) = (tmp_path / "run" / name).rglob("metrics.csv")
        rows = list(csv.DictReader(log.open()))
        assert max(int(row["step"]) for row in rows) >= steps - 1
        assert any(row["quality"] for row in rows)
        assert any(row["loss"] for row in rows)
        assert list((tmp_path / "run" / name).rglob("events.out.tfevents*"))


def test_initial_weights_are_where_a_run_begins(tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = DEQMPI(RDN(layers=2))
    given.card = new_card(25.0, SHAPE, (0.1, 1.0), {"images": "others"})
    given.save(tmp_path / "given.safetensors")
    none = config(denoiser=Stage(0), equilibrium=Stage(0))
    model = train_deq_mpi(tmp_path / "run", source(), none, initial=tmp_path / "given.safetensors")
    for name, value in given.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert model.card is not None
    assert model.card.training["initial"] == {"images": "others"}
    learned = DEQMPI(RDN(layers=1), LearnedConsistency(RowLayout((12, 30), torch.arange(9), 30)))
    learned.save(tmp_path / "learned.safetensors")
    with pytest.raises(DataError, match="other rows"):
        train_deq_mpi(
            tmp_path / "lc", source(), replace(none, consistency="learned"), initial=tmp_path / "learned.safetensors"
        )


def test_settings_of_the_equilibrium_have_their_effects(tmp_path: Path) -> None:
    def weights(name: str, **changes: Any) -> Tensor:
        train_deq_mpi(tmp_path / name, source(), config(denoiser=Stage(0), equilibrium=Stage(2, batch=3), **changes))
        # The last ones: the best may be those of the start.
        return load_file(tmp_path / name / "equilibrium/last.safetensors")["/state_dict/model.rdn.last.weight"]

    plain = weights("plain")
    for name, change in {
        "gradient": {"gradient": "jacobian-free"},
        "penalty": {"penalty": 4.0},
        "kappa": {"kappa": 0.5},
        "limit": {"limit": 3},
        "backward_limit": {"backward_limit": 2},
        "tolerance": {"tolerance": 0.5},
        "memory": {"memory": 1},
        "snr": {"snr_db": 5.0},
        "measure": {"measure": "finer"},
        "learned": {"consistency": "learned"},
    }.items():
        assert not torch.equal(weights(name, **change), plain), name
    two = train_deq_mpi(
        tmp_path / "two",
        source(),
        config(consistency="learned", dims=2, denoiser=Stage(0), projection=Stage(1, batch=2), equilibrium=Stage(0)),
    )
    assert two.consistency.convs[0].weight.dim() == 4  # type: ignore[union-attr,operator,index]


# --- what DEQ-MPI is compared with -----------------------------------------------------------------------------------
ROLES: list[tuple[str, dict[str, Any]]] = [
    ("equilibrium", {}),
    ("denoiser", {"equilibrium": Stage(0)}),
    ("unrolled", {"gradient": "unrolled", "unrolled_steps": 3}),
    ("end-to-end", NONE | {"end_to_end": Stage(7, batch=3)}),
]


@pytest.mark.parametrize(("role", "changes"), ROLES, ids=[role for role, _ in ROLES])
def test_weights_say_what_they_were_trained_for(tmp_path: Path, role: str, changes: dict[str, Any]) -> None:
    settings = config(**changes, kappa=0.7)
    assert settings.role == role
    model = train_deq_mpi(tmp_path / "run", source(), settings)
    loaded = DEQMPI.load(tmp_path / "run/weights.safetensors")
    for found in (model, loaded):
        assert found.card is not None
        assert found.card.role == role
        assert found.iterations == (3 if role == "unrolled" else 25)
        assert found.kappa == 0.7


def test_training_on_makes_what_the_stages_make(tmp_path: Path) -> None:
    train_deq_mpi(tmp_path / "run", source(), config(**NONE | {"denoiser": Stage(1, batch=2)}))
    for stages, role in ((NONE, "denoiser"), (NONE | {"equilibrium": Stage(1, batch=2)}, "equilibrium")):
        again = train_deq_mpi(tmp_path / role, source(), config(**stages), initial=tmp_path / "run/weights.safetensors")
        assert again.card is not None
        assert again.card.role == role


@pytest.mark.parametrize("role", ["unrolled", "end-to-end"])
def test_their_stages_resume_bit_by_bit(tmp_path: Path, role: str) -> None:
    settings = config(**dict(ROLES)[role])
    whole = trained(tmp_path / "whole", settings)
    assert trained(tmp_path / "parts", settings, (2, 5)) == whole


def test_end_to_end_training_improves_its_images(tmp_path: Path) -> None:
    seen: list[Any] = []
    settings = config(**NONE | {"end_to_end": Stage(40, batch=16, rate=3e-3), "validate_every": 20})
    model = train_deq_mpi(tmp_path / "run", source(), settings, report=seen.append)
    assert {progress.stage for progress in seen} == {"end_to_end"}
    assert model.card is not None
    assert model.card.training["quality_db"]["end_to_end"] > seen[0].quality + 1
    (log,) = (tmp_path / "run/end_to_end").rglob("metrics.csv")
    assert any(row["least_squares"] for row in csv.DictReader(log.open()))


def test_settings_of_the_rivals_have_their_effects(tmp_path: Path) -> None:
    def weights(name: str, part: str, **changes: Any) -> Tensor:
        settings = config(**NONE | {"equilibrium": Stage(2, batch=3)} | changes)
        train_deq_mpi(tmp_path / name, source(), settings)
        stage = next(s for s in ("end_to_end", "equilibrium", "projection") if (tmp_path / name / s).exists())
        return load_file(tmp_path / name / stage / "last.safetensors")[f"/state_dict/{part}"]

    last = "model.rdn.last.weight"
    plain, unrolled = weights("plain", last), weights("unrolled", last, gradient="unrolled")
    assert not torch.equal(plain, unrolled)
    assert not torch.equal(unrolled, weights("fewer", last, gradient="unrolled", unrolled_steps=2))
    assert not torch.equal(plain, weights("exact", last, consistency="none"))
    assert not torch.equal(plain, weights("direct", last, equilibrium=Stage(0), end_to_end=Stage(2, batch=3)))
    learned, only = "model.consistency.convs.0.weight", {"projection": Stage(3, batch=2), "equilibrium": Stage(0)}
    noisy = weights("noisy", learned, consistency="learned", **only)
    assert not torch.equal(noisy, weights("clean", learned, consistency="learned", projection_noise=(0.0, 0.0), **only))


def test_initialisations_of_the_publication(tmp_path: Path) -> None:
    """A stage left out leaves its network at the random weights of the seed."""

    def networks(name: str, **changes: Any) -> DEQMPI:
        return train_deq_mpi(tmp_path / name, source(), config(**NONE | {"consistency": "learned"} | changes))

    random = networks("random")
    denoiser, projection = networks("rdn", denoiser=Stage(3, batch=2)), networks("lc", projection=Stage(3, batch=2))
    for name, value in random.state_dict().items():
        pretrained, other = (denoiser, projection) if name.startswith("rdn") else (projection, denoiser)
        assert torch.equal(value, other.state_dict()[name]), name
        if name.endswith("last.bias") or name.endswith("2.bias"):
            assert not torch.equal(value, pretrained.state_dict()[name]), name


def test_learned_consistency_starts_as_the_projection(tmp_path: Path) -> None:
    """Then its own stage has nothing to do."""
    settings = config(**NONE | {"consistency": "learned", "projection": Stage(3), "consistency_start": "projection"})
    assert settings.stages == ()
    part = source()
    assert part.layout is not None
    whole = replace(part, layout=RowLayout(part.layout.grid, part.layout.rows, part.layout.grid[1]))
    model = train_deq_mpi(tmp_path / "run", whole, settings)
    y, v = torch.randn(2, 4, len(source().matrix))
    radius = torch.tensor([0.0, 1.0, 5.0, 100.0])
    torch.testing.assert_close(model.consistency(v, y, radius), project_l2_ball(v, y, radius))


def test_schedules_of_the_models() -> None:
    for scale in ("quick", "full"):
        usual = Config.of_scale(scale)  # type: ignore[arg-type]
        for role, _ in ROLES:
            settings = Config.of_scale(scale, role)  # type: ignore[arg-type]
            assert settings.role == role
            steps = [getattr(settings, name).steps for name in ("denoiser", "equilibrium", "end_to_end")]
            if role == "end-to-end":
                assert steps == [0, 0, usual.denoiser.steps + usual.equilibrium.steps]
            else:
                assert steps == [usual.denoiser.steps, 0 if role == "denoiser" else usual.equilibrium.steps, 0]
    with pytest.raises(DataError, match="end_to_end, equilibrium"):
        config(end_to_end=Stage(1))
    assert config(**NONE).role is None


def test_runs_from_before_there_were_rivals_resume(tmp_path: Path) -> None:
    value = json.loads(config().to_json())
    del value["end_to_end"], value["unrolled_steps"]
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert Config.from_json(tmp_path / "config.json") == config()
    del value["seed"]
    (tmp_path / "config.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="other entries"):
        Config.from_json(tmp_path / "config.json")


# --- misuse ----------------------------------------------------------------------------------------------------------
def test_a_config_survives_its_file_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for settings in (config(), Config.of_scale("full", consistency="learned")):
        path.write_text(settings.to_json())
        assert Config.from_json(path) == settings
    value = json.loads(config().to_json())
    for broken in ({}, {**value, "more": 1}, {**value, "snr_db": "x"}, {**value, "denoiser": {"steps": -1}}, [1]):
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"config\.json"):
            Config.from_json(path)
    with pytest.raises(DataError, match="no such file"):
        Config.from_json(tmp_path / "absent.json")
    for wrong in ({"pool": 0}, {"measure": "twice"}, {"seed": -1}, {"snr_db": float("nan")}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            config(**wrong)


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    none = config(denoiser=Stage(2, batch=2), equilibrium=Stage(0))
    with pytest.raises(DataError, match="no such file"):
        train_deq_mpi(tmp_path / "absent", resume=True)
    train_deq_mpi(tmp_path / "run", source(), none)
    with pytest.raises(DataError, match="holds a training run already"):
        train_deq_mpi(tmp_path / "run", source(), none)
    with pytest.raises(DataError, match="several angles or channels"):
        train_deq_mpi(tmp_path / "lc", replace(source(), layout=None), replace(none, consistency="learned"))
    for name in ("pool.npy", "source.safetensors", "denoiser/weights.safetensors"):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=path.name):
            train_deq_mpi(tmp_path / "run", resume=True)
        path.write_bytes(whole)
    train_deq_mpi(tmp_path / "run", resume=True)


# --- the command -----------------------------------------------------------------------------------------------------
def test_command_trains_resumes_and_its_weights_reconstruct(tmp_path: Path) -> None:
    from pyrecon.cli import app

    run, scan = tmp_path / "run", tmp_path / "scan"
    short = ["--pool=8", "--validation=4", "--denoiser-steps=2", "--steps=1", "--batch=2", "--limit=3", "--snr=30"]
    result = CliRunner().invoke(app, ["train", "deq-mpi", "-o", str(run), *short])
    assert result.exit_code == 0, result.output
    assert "equilibrium" in result.output
    assert Config.from_json(run / "config.json").snr_db == 30
    again = CliRunner().invoke(app, ["train", "deq-mpi", "--resume", str(run)])
    assert again.exit_code == 0, again.output
    for wrong in ([], ["-o", str(run), "--resume", str(run)], ["-o", str(run)], ["--resume", str(run), "--snr=25"]):
        with pytest.raises(DataError):
            CliRunner().invoke(app, ["train", "deq-mpi", *wrong], catch_exceptions=False)

    made = CliRunner().invoke(app, ["simulate", "mpi", "-o", str(scan), "--frames", "2", "--phantom", "y"])
    assert made.exit_code == 0, made.output
    files = [str(scan / "measurement.mdf"), "-s", str(scan / "system_matrix.mdf"), "-o", str(tmp_path / "image.npz")]
    weights = ["--weights", str(run / "weights.safetensors")]
    result = CliRunner().invoke(app, ["reconstruct", *files, "-m", "deq-mpi", *weights, "--json"])
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "image.npz")["image"].shape == (2, 26, 13)
    with pytest.raises(DataError, match="--weights"):
        CliRunner().invoke(app, ["reconstruct", *files, "-m", "hyb", *weights], catch_exceptions=False)


def test_command_trains_what_deq_mpi_is_compared_with(tmp_path: Path) -> None:
    from pyrecon.cli import app
    from pyrecon.data.raw import Grid
    from pyrecon.io import mdf
    from pyrecon.physics.mpi import Scanner

    calibration = replace(Scanner(), angles=4, harmonics=(2, 3, 4)).calibrate(Grid((6, 4), (2e-3, 2e-3), (0.0, 0.0)))
    mdf.write_system_matrix(tmp_path / "sm.mdf", calibration)
    short = ["-s", str(tmp_path / "sm.mdf"), "--pool=4", "--validation=2", "--batch=2", "--steps=1", "--limit=2"]

    def command(name: str, *options: str) -> Config:
        folder = tmp_path / name
        result = CliRunner().invoke(
            app, ["train", "deq-mpi", "-o", str(folder), *short, *options], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        assert f"-m {method} " in result.output
        return Config.from_json(folder / "config.json")

    method = "deq-mpi"
    command("fine", "--upsample=2", "--denoiser-steps=0")
    assert DEQMPI.load(tmp_path / "fine/weights.safetensors").card.shape == (12, 8)  # type: ignore[union-attr]
    command("again", "--from-pretrained=denoiser", "--denoiser-steps=0")
    after, before = DEQMPI.load(tmp_path / "again/weights.safetensors"), DEQMPI.from_pretrained("denoiser")
    assert float((after.rdn.packed() - before.rdn.packed()).abs().max()) < 2e-3  # a step of Adam, at a rate of 1e-3
    with pytest.raises(DataError, match="denoiser"):
        command("unknown", "--from-pretrained=no-such-weights")
    method = "end-to-end"
    assert command("e", "--model=end-to-end").end_to_end.steps == 1
    method = "pp-mpi"
    denoiser = command("d", "--model=denoiser")
    assert (denoiser.denoiser.steps, denoiser.equilibrium.steps) == (1, 0)
    method = "unrolled"
    fewer = command("u", "--model=unrolled", "--unrolled-steps=2", "--denoiser-steps=0", "--consistency=none")
    assert (fewer.gradient, fewer.unrolled_steps, fewer.consistency, fewer.denoiser.steps) == ("unrolled", 2, "none", 0)
    method = "deq-mpi"
    learned = [
        "--consistency=learned",
        "--consistency-start=random",
        "--denoiser-steps=0",
        "--projection-steps=1",
        "--projection-noise",
        "0",
        "0",
    ]
    assert command("l", *learned).projection_noise == (0.0, 0.0)
    for wrong, said in (
        (["--model=unrolled", "--gradient=implicit"], "no"),
        (["--model=denoiser", "--gradient=implicit"], "does not train"),
        (["--unrolled-steps=3"], "--unrolled-steps"),
        (["--projection-noise", "0", "0"], "--consistency-start random"),
        ([*learned[:-2], "-1", "0"], "projection_noise"),
    ):
        with pytest.raises(DataError, match=said):
            command("wrong", *wrong)
