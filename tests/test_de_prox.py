"""DE-Prox and DE-Grad by the general road: training with and without ground truth, raw scans, commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.heads import heads
from pyrecon.data.mri import prewhiten
from pyrecon.implicit import ImplicitGradient, JacobianFree
from pyrecon.io.ismrmrd import write_ismrmrd
from pyrecon.linops import Fourier
from pyrecon.models import DEGrad, DEProx, UNetRefinement
from pyrecon.models.deq import load
from pyrecon.models.mri import CGSense, DEProxMRI, evaluate_mri, reconstruct_mri, scan_of_images
from pyrecon.models.weights import Card
from pyrecon.nn import ResidualUNet
from pyrecon.physics.mri import coil_maps, gaussian_lines, head_phantom, simulate
from pyrecon.train import Diverged
from pyrecon.train.de_grad import Config as GradConfig
from pyrecon.train.de_grad import DEGradTraining
from pyrecon.train.de_prox import Config, DEProxTraining
from pyrecon.train.equilibrium import Data, Denoiser, Equilibrium, build, noise_std
from pyrecon.train.problem import Batch, Problem, operator_of
from pyrecon.train.run import train

SMALL: dict[str, Any] = {
    "size": 16, "pool": 8, "validation": 3, "width": 4, "acceleration": 4.0, "angles": 6, "validate_every": 2,
    "denoiser.steps": 2, "equilibrium.steps": 4, "equilibrium.batch": 3, "limit": 12, "photographs": 8,
}  # fmt: skip


def small(kind: type[Config] = Config, **given: Any) -> Config:
    return kind().changed(SMALL | given)


# --- as a method of raw scans --------------------------------------------------------------------------------------
def saved(folder: Path, **data: Any) -> Path:
    torch.manual_seed(0)
    model = DEProx(ResidualUNet(2, 4, 2), tol=1e-4, max_iter=30, step=0.9)
    model.card = Card("de-prox", "equilibrium", (16, 16), {"task": "mri", "noise_std": 0.01} | data, {"images": "none"})
    model.save(folder / "w.safetensors")
    return folder / "w.safetensors"


def scan(coils: int = 1, size: int = 16, noise_std: float = 0.01) -> Any:
    shape = (size, size)
    maps = coil_maps(shape, coils) if coils > 1 else torch.ones(1, 1, *shape, dtype=torch.complex64)
    return simulate(head_phantom(shape), maps, gaussian_lines(shape, 2.0, acl=8), noise_std=noise_std, seed=0)


def test_a_scan_comes_out_in_its_own_scale(tmp_path: Path) -> None:
    """Twice the data are twice the image; the same as the model by hand."""
    path, one = saved(tmp_path), scan()
    image, report = reconstruct_mri(one, DEProxMRI(str(path)))
    white = prewhiten(one)
    kspace, mask = torch.from_numpy(white.kspace), torch.from_numpy(white.mask)
    A = Fourier(mask, (16, 16))
    peak = A.adjoint(kspace[:, 0]).abs().max()
    model = DEProx.load(path)
    model.max_iter = 100  # of training: 30
    by_hand = model.reconstruct(kspace[:, 0] / peak, A).value * peak
    torch.testing.assert_close(image, by_hand, rtol=1e-4, atol=1e-3 * float(peak))
    assert report.method == "DE-Prox"
    several, _ = reconstruct_mri(scan(4), DEProxMRI(str(path)))
    assert torch.isfinite(several.abs()).all()


def test_weights_that_ship_do_better_than_least_squares() -> None:
    """On heads that were not trained on, twice their size, with eight coils."""
    images = heads(4, (96, 96), seed=77)
    scan, truth = scan_of_images(images, coils=8, noise=0.05, slices=2)
    methods = (CGSense(), DEProxMRI(weights="de-prox-mri"))
    (least, ours), _ = evaluate_mri(scan, (4.0,), methods, reference=truth)
    assert ours.psnr > least.psnr + 1
    assert ours.ssim > least.ssim + 0.1


def test_data_unlike_those_of_training_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.warns(UserWarning, match="their noise is .* trained at 0.01"):
        reconstruct_mri(scan(noise_std=0.3), DEProxMRI(str(path)))
    with pytest.warns(UserWarning, match="trained on images of 16 x 16, the scan has 20 x 20"):
        reconstruct_mri(scan(size=20), DEProxMRI(str(path)))
    with pytest.warns(UserWarning, match="their noise is .* trained at 0.5"):
        reconstruct_mri(scan(), DEProxMRI(str(saved(tmp_path, noise_over_brightest=0.5))))
    with pytest.raises(DataError, match="pyrecon train de-prox"):
        reconstruct_mri(scan(), DEProxMRI())
    with pytest.raises(DataError, match="trained for 'ct', DE-Prox takes 'mri' here"):
        reconstruct_mri(scan(), DEProxMRI(str(saved(tmp_path, task="ct"))))


# --- training ------------------------------------------------------------------------------------------------------
def test_training_gains_over_the_denoiser_it_begins_with(tmp_path: Path) -> None:
    """Forty steps; the curve's first entry is the equilibrium of the denoiser alone (measured: 2.7 dB more, and 0.8 to
    1.2 at a lower rate: what processors round differently does not hide that)."""
    settings = small(GradConfig, **{"pool": 24, "width": 8, "denoiser.steps": 60, "limit": 15, "validate_every": 20})
    settings = settings.changed({"equilibrium.steps": 40, "equilibrium.batch": 4, "equilibrium.rate": 5e-3})
    model = train(DEGradTraining, tmp_path / "run", None, settings)
    (_, first), *_, (_, last) = model.card.training["curves"]["equilibrium"]
    assert last > first + 0.5
    assert (model.card.data["angles"], model.card.data["task"]) == (6, "ct")


def test_the_card_says_how_much_noise_there_was_against_the_brightest_pixel(tmp_path: Path) -> None:
    """At high accelerations that pixel is far below the image's peak, in which noise_std is."""
    config = small(noise_std=0.02, **{"denoiser.steps": 1, "equilibrium.steps": 1})
    model = train(DEProxTraining, tmp_path, None, config)
    problem = DEProxTraining(tmp_path, None, config).data(lambda done, total: None).problem
    scale = problem.self_validation().scale.mean()
    assert model.card.data["noise_over_brightest"] == pytest.approx(0.02 / float(scale), rel=1e-6)


@pytest.mark.parametrize("loss", ["ei", "robust-ei"])
def test_training_without_ground_truth_never_sees_it(tmp_path: Path, loss: Any, monkeypatch: Any) -> None:
    """All images are NaN once they are measured: training images, held-out ones, those that choose the weights. The
    whole run gives the same weights, and its curve is the same."""
    config = small(task="mri", loss=loss)
    made = DEProxTraining.problem

    def poisoned(training: DEProxTraining, drawn: Any) -> Problem:
        problem = made(training, drawn)
        problem.measurements(0, 1)  # makes the store
        problem.self_validation()
        problem.pool.fill_(torch.nan)
        problem.held_out.fill_(torch.nan)
        return problem

    first = train(DEProxTraining, tmp_path / "a", None, config)
    monkeypatch.setattr(DEProxTraining, "problem", poisoned)
    second = train(DEProxTraining, tmp_path / "b", None, config)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert first.card == second.card
    values = [value for _, value in first.card.training["curves"]["equilibrium"]]
    assert len(set(values)) == 3
    # With ground truth it would have been seen: the same poison ends a supervised run.
    with pytest.raises(Diverged, match="the loss became nan"):
        train(DEProxTraining, tmp_path / "c", None, small(task="mri"))


def test_what_is_kept_is_best_by_the_loss_of_held_out_measurements(tmp_path: Path) -> None:
    model = train(DEGradTraining, tmp_path, None, small(GradConfig, task="ct", loss="ei"))
    curve = [value for _, value in model.card.training["curves"]["equilibrium"]]
    assert model.card.training["quality"]["equilibrium"] == min(curve)


@pytest.mark.parametrize(
    ("given", "kind", "layers"),
    [
        ({"model": "deq"}, DEGrad, None),
        ({"model": "unrolled", "layers": 3, "loss": "ei"}, DEGrad, 3),
        ({"model": "unet", "loss": "ei"}, UNetRefinement, None),
        ({"model": "denoiser", "equilibrium.steps": 0}, DEGrad, None),
        ({"form": "prox", "norm": "spectral"}, DEProx, None),
        ({"task": "deblur", "form": "prox"}, DEProx, None),
        ({"task": "deblur", "model": "unrolled", "layers": 2}, DEGrad, 2),
    ],
)
def test_every_model_trains_and_comes_back(
    tmp_path: Path, given: dict[str, Any], kind: type[Any], layers: int | None
) -> None:
    model = train(DEGradTraining, tmp_path, None, small(GradConfig, **given))
    again = load(tmp_path / "weights.safetensors")
    assert type(again) is kind
    assert getattr(again, "layers", None) == layers
    assert again.card is not None
    assert again.card.role == ("denoiser" if given.get("model") == "denoiser" else "equilibrium")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def step_of(config: Config, folder: Path) -> tuple[Tensor, ...]:
    """The loss of a step of each stage, and the gradient of the last one."""
    folder.mkdir()
    training = DEProxTraining(folder, None, config)
    data, model = training.data(lambda done, total: None), training.model(None)
    first = Denoiser(model, data, config.denoiser).loss(1)
    loss = Equilibrium(model, data, config.equilibrium).loss(1)
    loss.backward()
    return first.detach(), loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, ...]:
    """A step of the settings that the next test changes; taken twice, it is the same."""
    folder = tmp_path_factory.mktemp("usual")
    one, again = (step_of(small(loss="ei"), folder / name) for name in ("a", "b"))
    assert all(map(torch.equal, one, again))
    return one


@pytest.mark.parametrize(
    "given",
    [
        {"weight": 3.0}, {"group": "quarter-turns"}, {"group": "rotations-and-flips"}, {"group": "flips"},
        {"loss": "robust-ei"}, {"loss": "supervised"}, {"gradient": "jacobian-free"}, {"step": 0.7}, {"tolerance": 0.1},
        {"limit": 3}, {"backward_tolerance": 0.5}, {"norm": "weight"}, {"norm": "spectral"}, {"group_norm": True},
        {"levels": 1}, {"width": 5}, {"form": "grad"}, {"denoiser_noise": 0.2}, {"photographs": 4}, {"noise_std": 0.1},
        {"seed": 1}, {"model": "unet"}, {"model": "unrolled", "layers": 2}, {"task": "ct"}, {"fixed_mask": False},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_settings_have_their_effects(tmp_path: Path, usual: tuple[Tensor, ...], given: dict[str, Any]) -> None:
    """On a step: its losses or its gradients."""
    other = step_of(small(**({"loss": "ei"} | given)), tmp_path / "other")
    same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(usual, other, strict=False)]
    assert len(usual) != len(other) or not all(same)


def test_a_denoiser_is_shared_by_runs_that_begin_with_it(tmp_path: Path) -> None:
    denoiser = small(model="denoiser", **{"equilibrium.steps": 0})
    first = train(DEProxTraining, tmp_path / "denoiser", None, denoiser)
    path = tmp_path / "denoiser" / "weights.safetensors"
    for model in ("deq", "unet"):
        config = small(model=model, **{"denoiser.steps": 0, "equilibrium.steps": 0})
        begun = train(DEProxTraining, tmp_path / model, None, config, initial=path)
        for name, value in first.denoiser.state_dict().items():
            assert torch.equal(begun.denoiser.state_dict()[name], value)
    with pytest.raises(DataError, match="a denoiser of 2 channels, ct has 1"):
        train(DEGradTraining, tmp_path / "ct", None, small(GradConfig), initial=path)


@pytest.mark.parametrize(("task", "level", "scale"), [("mri", 0.05, 2.0), ("ct", 0.02, 1.0)])
def test_virtual_measurements_have_the_noise_of_the_real_ones(task: Any, level: float, scale: float) -> None:
    """Where and as much as in the data, in the scale of the model: nothing outside the mask; whitened CT has more in
    weak directions. Over 400 draws of the data's own noise, to 6 deviations of 1 / sqrt(2 x 400)."""
    config = small(task=task, noise_std=level, size=8)
    physics, none = operator_of(config), torch.zeros(1, 8, 8)
    assert physics is not None
    y = physics(torch.zeros(400, 8, 8, dtype=torch.complex64 if task == "mri" else torch.float32))
    drawn = Problem(config, none, none, physics).noise(y, 0) / scale
    said = noise_std(config, Batch(None, y, physics, torch.full((400, 1, 1), scale)))
    found = drawn.abs().square().mean(0).sqrt()
    said = said.expand_as(y.real)[0]
    assert torch.equal(found == 0, said == 0)
    assert float((found[said > 0] / said[said > 0] - 1).abs().max()) < 6 / 800**0.5


def test_a_group_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    """Shifts of an image behind one mask: the virtual operators are the operator itself."""
    with pytest.raises(DataError, match=r"group: the physics commutes with shifts.*take another group"):
        train(DEProxTraining, tmp_path, None, small(loss="ei", group="shifts"))
    train(DEProxTraining, tmp_path / "b", None, small(group="shifts", **{"equilibrium.steps": 1}))  # not asked for


def test_a_round_blur_teaches_nothing_by_rotations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"group: the physics commutes with rotations"):
        train(DEProxTraining, tmp_path, None, small(loss="ei", task="deblur", size=24))


def test_sure_needs_noise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="loss: robust-ei is for noisy measurements"):
        train(DEGradTraining, tmp_path, None, small(GradConfig, loss="robust-ei"))


def test_a_run_that_diverges_saves_no_nan(tmp_path: Path) -> None:
    config = small(**{"equilibrium.rate": 1e6, "equilibrium.steps": 20, "equilibrium.clip": 0.0, "save_every": 1})
    with pytest.raises(Diverged, match="lower rate"):
        train(DEProxTraining, tmp_path, None, config)
    assert not (tmp_path / "weights.safetensors").exists()


def test_an_equilibrium_that_is_not_found_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="equilibrium of 100% of the held-out images was not found within 2"):
        model = train(DEProxTraining, tmp_path, None, small(limit=2))
    assert model.card.training["converged"] == 0


def test_gradients_are_those_that_the_settings_say() -> None:
    denoiser = nn.Identity()
    assert isinstance(build(small(), denoiser).gradient, ImplicitGradient)  # type: ignore[union-attr]
    assert isinstance(build(small(gradient="jacobian-free"), denoiser).gradient, JacobianFree)  # type: ignore[union-attr]


# --- by command ----------------------------------------------------------------------------------------------------
def test_from_generated_data_to_an_image_by_command(tmp_path: Path) -> None:
    run, raw, image = tmp_path / "run", tmp_path / "scan.h5", tmp_path / "image.npz"
    write_ismrmrd(raw, scan())
    tiny = [
        "--denoiser-steps",
        "4",
        "--steps",
        "2",
        "-p",
        "pool=4",
        "-p",
        "width=4",
        "-p",
        "limit=8",
        "-p",
        "photographs=8",
        "--validation",
        "2",
    ]
    commands = [
        ["train", "de-prox", "-o", str(run), "--size", "16", *tiny],
        ["reconstruct", str(raw), "-m", "de-prox", "--weights", str(run / "weights.safetensors"), "-o", str(image)],
        ["train", "de-grad", "-o", str(tmp_path / "ct"), "--size", "16", *tiny, "--loss", "ei", "--model", "unrolled"],
    ]
    for command in commands:
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 0, found.output
    with np.load(image) as archive:
        by_command = archive["image"]
    expected, _ = reconstruct_mri(scan(), DEProxMRI(str(run / "weights.safetensors")))
    np.testing.assert_allclose(by_command.squeeze(), expected.squeeze().numpy(), rtol=1e-4, atol=1e-3)
    assert load(tmp_path / "ct" / "weights.safetensors").layers == 5  # type: ignore[union-attr]


def test_photographs_are_not_the_problems_images(tmp_path: Path) -> None:
    """Two channels for complex images with a phase, of other photographs for validation."""
    config = small()
    (tmp_path / "a").mkdir()
    data: Data = DEProxTraining(tmp_path / "a", None, config).data(lambda done, total: None)
    photos: Tensor = data.photographs
    assert photos.shape == (8, 2, 16, 16)
    assert data.held_out_photographs.shape == (32, 2, 16, 16)
    magnitude = photos.square().sum(1).sqrt()
    assert float(magnitude.min()) >= 0
    assert float(magnitude.max()) <= 1 + 1e-5
    assert float(photos[:, 1].std()) > 0.02
