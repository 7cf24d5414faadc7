"""``pyrecon train luser``: every task and network from settings to weights, resumable; losses and settings at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.losses import supervised
from pyrecon.models import LUSER
from pyrecon.models import weights as stored
from pyrecon.models.ct.learned import peak_of
from pyrecon.models.luser import load
from pyrecon.train.luser import Config, LUSERTraining, Reconstruction, new_model, physics_of, psnr, reconstructed
from pyrecon.train.problem import make_problem
from pyrecon.train.run import Interrupted, train

SMALL: dict[str, Any] = {
    "size": 16, "pool": 8, "validation": 3, "unrolled": 2, "width": 8, "groups": 1, "dncnn_width": 8, "layers": 4,
    "angles": 8, "acceleration": 2.0, "limit": 8, "deq4ip_limit": 8,
}  # fmt: skip


def settings(network: str, task: str = "deblur", **changes: Any) -> Config:
    config = Config.of_scale("quick", network, task=task, **SMALL | changes)
    config = config.with_stage("reconstruction", steps=4, batch=2)
    return config.with_stage("denoiser", steps=4 if network == "deq4ip" else 0)


@pytest.mark.parametrize(
    ("network", "task"), [("luser-dw", "ct"), ("luser-sw", "deblur"), ("lu-dncnn", "mri"), ("deq4ip", "deblur")]
)
def test_every_network_trains_by_command(tmp_path: Path, network: str, task: str) -> None:
    """The weights say what they are, and reconstruct validation images as the run said."""
    run = tmp_path / "run"
    small = [f"{name}={value}" for name, value in SMALL.items()] + ["reconstruction.steps=3", "reconstruction.batch=2"]
    small += ["denoiser.steps=2"] if network == "deq4ip" else []
    command = ["train", "luser", "-o", str(run), "--model", network, "-p", f"task={task}"]
    found = CliRunner().invoke(app, command + [word for value in small for word in ("-p", value)])
    assert found.exit_code == 0, found.output
    model = load(run / "weights.safetensors")
    assert model.card is not None
    assert (model.card.data["network"], model.card.data["task"], model.card.shape) == (network, task, (16, 16))
    assert (model.kernel is not None) == (task == "deblur" and network != "luser-dw")
    config = Config.of_scale("quick", network, task=task, **SMALL)
    batch = make_problem(config, run).validation().scaled()
    quality = float(psnr(config, reconstructed(model, batch).value, batch.images).mean())  # type: ignore[arg-type]
    assert quality == pytest.approx(model.card.training["quality_db"]["reconstruction"], abs=1e-3)


def test_training_gains_over_what_it_begins_with(tmp_path: Path) -> None:
    config = settings("luser-dw", validate_every=20).with_stage("reconstruction", steps=40, batch=4)
    model = train(LUSERTraining, tmp_path / "run", None, config)
    (_, first), *_, (_, last) = model.card.training["curves"]["reconstruction"]
    assert last > first + 1.0


def test_cards_say_how_weights_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak that images have by least squares, what the run began with, and a line each in ``pyrecon info``."""
    config = settings("luser-sw", "ct", images="discs", beam="fan", arc=60.0, noise_std=0.01)
    (tmp_path / "shipped").mkdir()
    first = train(LUSERTraining, tmp_path / "first", None, config)
    again = train(LUSERTraining, tmp_path / "again", None, config, initial=tmp_path / "first/weights.safetensors")
    batch = make_problem(config, tmp_path / "first").self_validation()
    assert first.card.data["peak"] == pytest.approx(float(peak_of(batch.physics, batch.y).mean()))
    assert "initial" not in first.card.training
    assert again.card.training["initial"] == first.card.training
    monkeypatch.setattr(stored, "SHIPPED", tmp_path / "shipped")
    for name, model in (("one", first), ("two", again)):
        model.save(tmp_path / "shipped" / f"{name}.safetensors")
    found = CliRunner().invoke(app, ["info", "--weights"])
    assert found.exit_code == 0, found.output
    numbers, best = sum(p.numel() for p in first.parameters()), again.card.training["quality_db"]["reconstruction"]
    assert (
        f"| `two` | luser-sw | {numbers:,} | ct: discs of 8 fan-beam views over 60 degrees, noise 0.01 | 16 x 16 | "
        f"reconstruction 4 x 2 | {best:.2f} | reconstruction 4 x 2 |"
    ) in found.output


def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    config = settings("luser-sw", save_every=2)
    whole = train(LUSERTraining, tmp_path / "whole", None, config)
    seen: list[Any] = []
    with pytest.raises(Interrupted, match="after step 3"):
        train(LUSERTraining, tmp_path / "cut", None, config, report=seen.append, stop=lambda: len(seen) >= 2)
    again = train(LUSERTraining, tmp_path / "cut", resume=True)
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(DataError, match="luser has other layers"):
        train(
            LUSERTraining, tmp_path / "third", None, settings("luser-dw"), initial=tmp_path / "cut/weights.safetensors"
        )


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_the_auxiliary_loss_is_of_earlier_stages(tmp_path: Path) -> None:
    losses = {}
    for weight in (0.0, 0.5):
        config = settings("luser-dw", auxiliary=weight, unrolled=3)
        data, model = make_problem(config, tmp_path), new_model(config)
        losses[weight] = float(Reconstruction(model, data, config.reconstruction).loss(0).detach())
    model = new_model(config)
    batch = data.batch(0, 2).scaled()
    stages = model(batch.y, physics_of(model, batch), return_stages=True)
    parts = [float(supervised(image.detach(), batch.images)) for image in stages]  # type: ignore[arg-type]
    assert losses[0.0] == pytest.approx(parts[2], rel=1e-6)
    assert losses[0.5] == pytest.approx(parts[2] + 0.25 * (parts[0] + parts[1]), rel=1e-6)


def test_settings_reach_the_model() -> None:
    base = new_model(settings("luser-dw"))
    assert isinstance(base, LUSER)
    for change, of in (
        ({"unrolled": 3}, lambda m: m.stages), ({"width": 16}, lambda m: m.config["width"]),
        ({"groups": 2}, lambda m: m.config["groups"]), ({"tolerance": 0.5}, lambda m: m.tol),
        ({"limit": 3}, lambda m: m.max_iter), ({"backward_tolerance": 0.5}, lambda m: m.gradient.tol),
        ({"spread": 9.0}, lambda m: m.blocks[0].data[0].bias.detach().abs().max() > 3),
        ({"seed": 1}, lambda m: m.blocks[0].mix[0].bias[0].item()),
    ):  # fmt: skip
        assert of(new_model(settings("luser-dw", **change))) != of(base), change  # type: ignore[no-untyped-call]
    deq = [new_model(settings("deq4ip", **change)) for change in ({}, {"deq4ip_tolerance": 0.1}, {"layers": 3})]
    assert deq[0].tol != deq[1].tol  # type: ignore[attr-defined]
    assert len(deq[0].denoiser.convs) != len(deq[2].denoiser.convs)  # type: ignore[attr-defined]
    full = Config.of_scale("full", "deq4ip", task="ct")
    assert sum(p.numel() for p in new_model(full).parameters()) == 556_033
    assert (full.size, full.angles) == (362, 200)
    assert sum(p.numel() for p in new_model(Config.of_scale("full", "luser-sw", task="deblur")).parameters()) == 96_503


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="learned_kernel: true, but the task is ct"):
        new_model(settings("luser-dw", "ct", learned_kernel=True))
    with pytest.raises(DataError, match="groups: 3 does not divide"):
        new_model(settings("luser-dw", groups=3))
    with pytest.raises(DataError, match="luser-dw is not trained as a denoiser first"):
        train(LUSERTraining, tmp_path / "run", None, settings("luser-dw").with_stage("denoiser", steps=2))


def test_a_diverging_run_saves_no_weights_that_are_not_finite(tmp_path: Path) -> None:
    """A rate that throws the weights out of range: the run says so, and what it kept is finite."""
    from pyrecon.train import Diverged

    config = settings("lu-dncnn", validate_every=1, save_every=1).with_stage(
        "reconstruction", rate=1e30, steps=30, clip=0.0
    )
    with pytest.raises(Diverged, match="lower rate"):
        train(LUSERTraining, tmp_path / "run", None, config)
    assert not (tmp_path / "run/weights.safetensors").exists()
