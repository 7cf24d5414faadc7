"""Training of the supervised rivals: scans are a function of the step, losses are the published ones, runs resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyrecon import metrics
from pyrecon._errors import DataError
from pyrecon.data.fourier import fft_centered
from pyrecon.data.magnitudes import draw_magnitudes
from pyrecon.models.supervised_mri import ImageUNet, load
from pyrecon.nn.varnet import root_sum_of_squares
from pyrecon.physics.mri import acceleration
from pyrecon.train.magnitude_scans import Data, scanner_of
from pyrecon.train.run import train
from pyrecon.train.supervised_mri import Config, Reconstruction, SupervisedMRITraining, new_model
from pyrecon.train.task import Interrupted

SMALL: dict[str, Any] = {
    "size": 32, "pool": 6, "validation": 2, "width": 4, "pools": 2, "cascades": 2, "sensitivity_width": 2,
    "sensitivity_pools": 2, "validate_every": 4,
}  # fmt: skip


def config(network: str = "varnet", **given: Any) -> Config:
    coils = {} if network == "unet" else {"coils": 3}
    found = Config.of_scale("quick", network, **SMALL | coils | given)
    return found.with_stage("reconstruction", steps=8, batch=2, warm_up=1)


def data(tmp_path: Path, network: str = "varnet", **given: Any) -> Data:
    tmp_path.mkdir(exist_ok=True)
    return SupervisedMRITraining(tmp_path, None, config(network, **given)).data(lambda done, total: None)


def test_scans_are_a_function_of_the_step(tmp_path: Path) -> None:
    known = data(tmp_path, noise_low=0.02, noise_high=0.02)
    one, again, other = known.batch(3, 4), known.batch(3, 4), known.batch(4, 4)
    assert torch.equal(one.y, again.y)
    assert torch.equal(one.mask, again.mask)
    assert not torch.equal(one.mask, other.mask)
    assert not torch.equal(one.mask[0], one.mask[1])  # drawn anew for every sample
    assert one.mask.shape == (4, 1, 32, 1)
    assert acceleration(one.mask) == 4
    start = 16 - known.config.lines // 2
    assert bool(one.mask[:, :, start : start + known.config.lines].all())
    assert known.config.lines == round(0.08 * 32)
    # Data are those of the images in the maps, with noise where lines are taken.
    torch.testing.assert_close(root_sum_of_squares(one.maps), torch.ones(4, 32, 32))
    noise = one.y - one.mask * fft_centered(one.maps * one.images[:, None])
    taken = one.mask.expand(noise.shape)
    assert not noise[~taken].any()
    # The mean power of 768 samples with deviation 1/sqrt(768): 4 of them are 14 %.
    assert float(noise[taken].abs().square().mean()) == pytest.approx(0.02**2, rel=0.15)
    held = known.validation()
    assert torch.equal(held.y, known.validation().y)
    parts = list(one.parts(3))
    assert [len(part.y) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.y for part in parts]), one.y)


def test_one_coil_sees_real_images(tmp_path: Path) -> None:
    known = data(tmp_path, "unet", noise_low=0.0, noise_high=0.0)
    batch = known.batch(0, 2)
    assert bool((batch.maps == 1).all())
    torch.testing.assert_close(batch.y, batch.mask * fft_centered(batch.images.to(torch.complex64))[:, None])


def test_images_held_out_do_not_depend_on_the_pool(tmp_path: Path) -> None:
    few, more = (data(tmp_path / str(n), pool=n) for n in (3, 5))
    assert torch.equal(few.held_out, more.held_out)
    assert torch.equal(few.pool, more.pool[:3])
    assert not torch.equal(few.pool[:2], few.held_out)
    expected = draw_magnitudes(32, 0, 3, 0, kinds=("heads", "knees"))
    assert torch.equal(few.pool, torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("name", "value"),
    [("coils", 2), ("images", "heads"), ("acceleration", 2.0), ("centre", 0.2), ("noise_high", 0.5), ("seed", 1)],
)
def test_every_setting_of_the_scanner_acts(name: str, value: Any, tmp_path: Path) -> None:
    plain, changed = data(tmp_path / "a"), data(tmp_path / "b", **{name: value})
    one, other = plain.validation(), changed.validation()
    assert one.y.shape != other.y.shape or not torch.equal(one.y, other.y)


def test_a_mask_may_be_given(tmp_path: Path) -> None:
    known = data(tmp_path)
    whole = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    batch = known.scanned(known.pool[:2], 5, whole)
    assert bool((batch.y != 0).all())
    assert torch.equal(batch.maps, known.scanned(known.pool[:2], 5).maps)  # all else is that of the step
    again = scanner_of(known.config, known.pool, known.held_out)
    assert torch.equal(again.scanned(known.pool[:2], 5, whole).y, batch.y)


@pytest.mark.parametrize("network", ["unet", "varnet"])
def test_losses_are_the_published_ones(network: str, tmp_path: Path) -> None:
    known = data(tmp_path, network)
    model = new_model(config(network))
    task = Reconstruction(model, known, config(network).reconstruction)
    batch = known.batch(2, 2)
    with torch.no_grad():
        loss, found = float(task.loss(2)), model(batch.y, batch.mask)
    if isinstance(model, ImageUNet):
        start = root_sum_of_squares(torch.fft.fftshift(
            torch.fft.ifft2(torch.fft.ifftshift(batch.y, (-2, -1)), norm="ortho"), (-2, -1)))  # fmt: skip
        spread = start.std(dim=(1, 2), keepdim=True)
        assert loss == pytest.approx(float(((found - batch.images).abs() / spread).mean()), rel=1e-4)
    else:
        assert loss == pytest.approx(1 - float(metrics.ssim(found, batch.images).mean()), rel=1e-5)
    held = known.validation()
    with torch.no_grad():
        values = task.quality()
        again = model(held.y, held.mask)
    assert values["quality"] == pytest.approx(float(metrics.psnr(again, held.images).mean()), rel=1e-5)


@pytest.mark.parametrize("network", ["unet", "varnet"])
def test_a_run_learns_and_its_weights_come_back(network: str, tmp_path: Path) -> None:
    model = train(SupervisedMRITraining, tmp_path / "run", None, config(network))
    assert model.card is not None
    curve = model.card.training["curves"]["reconstruction"]
    assert max(value for _, value in curve) > curve[0][1]
    again = load(tmp_path / "run/weights.safetensors")
    assert again.card == model.card
    assert (again.network, again.card.data["task"], again.card.data["acceleration"]) == (network, "mri", 4.0)
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    more = train(
        SupervisedMRITraining, tmp_path / "more", None, config(network), initial=tmp_path / "run/weights.safetensors"
    )
    assert more.card.training["initial"] == model.card.training
    with pytest.raises(DataError, match="its network is another"):
        train(
            SupervisedMRITraining, tmp_path / "other", None, config(network, width=3),
            initial=tmp_path / "run/weights.safetensors",
        )  # fmt: skip


@pytest.mark.parametrize(("network", "dropout"), [("unet", 0.3), ("varnet", 0.0)])
def test_an_interrupted_run_goes_on_bit_by_bit(network: str, dropout: float, tmp_path: Path) -> None:
    settings = config(network, save_every=1000, dropout=dropout)
    whole = train(SupervisedMRITraining, tmp_path / "whole", None, settings)
    torch.manual_seed(5)  # whatever state the process is in
    seen: list[Any] = []
    with pytest.raises(Interrupted, match="reconstruction"):
        train(SupervisedMRITraining, tmp_path / "cut", None, settings, report=seen.append, stop=lambda: len(seen) >= 5)
    resumed = train(SupervisedMRITraining, tmp_path / "cut", resume=True)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_published_configuration() -> None:
    for network, weights in (("unet", 7_756_097), ("varnet", 29_936_966)):
        full = Config.of_scale("full", network)
        with torch.device("meta"):
            assert sum(value.numel() for value in new_model(full).parameters()) == weights
        assert (full.size, full.acceleration, full.centre) == (320, 4.0, 0.08)
        assert full.reconstruction.batch * full.reconstruction.steps == 50 * 5324


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"pools": 6}, "pools: .* 128 pixels"),
        ({"noise_low": 0.1, "noise_high": 0.0}, "noise_low"),
        ({"centre": 0.5}, "centre: 0.5 of 32 lines are 16, but acceleration 4 leaves 8"),
    ],
)
def test_settings_that_do_not_fit_are_named(given: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        data(tmp_path, **given)
