"""The generative prior: the energy network, its crop, gradients, samples, weights, and the landscape of its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyrecon import plotting
from pyrecon._errors import DataError
from pyrecon.experiments.stable_mri.figures import landscape, landscape_figure, trajectory
from pyrecon.models import GenerativePrior
from pyrecon.models.generative import IntensityWarning
from pyrecon.models.weights import Card
from pyrecon.nn import EnergyNet
from pyrecon.solvers import ConvergenceWarning, Status


def small(seed: int = 0, size: int = 12, **options: Any) -> GenerativePrior:
    torch.manual_seed(seed)
    return GenerativePrior(size, 3, **{"growth": 2.0, "absolute": False} | options).double()


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the network -----------------------------------------------------------------------------------------------------
def test_the_published_network_has_its_weights() -> None:
    with torch.device("meta"):
        prior = GenerativePrior()
    assert (prior.size, prior.network.width) == (320, 48)
    assert sum(p.numel() for p in prior.parameters()) == 21_350_640
    assert prior.network.sizes == [320, 160, 80, 40, 20, 10, 5]
    channels = [conv.weight.shape[0] for conv in prior.network.convs]
    assert channels == [48, 48, 48, 144, 144, 240, 240, 432, 432, 768, 768, 1344]
    assert all(p.dim() == 4 for p in prior.parameters())  # no biases


@pytest.mark.parametrize(("size", "stages"), [(5, 0), (6, 1), (31, 3), (64, 4), (320, 6)])
def test_any_size_halves_down_to_five_pixels_or_fewer(size: int, stages: int) -> None:
    network = EnergyNet(size, 2)
    assert network.stages == stages
    assert network.sizes[-1] <= 5
    assert network(torch.rand(2, size, size)).shape == (2,)
    assert network(torch.rand(0, size, size)).shape == (0,)


def test_every_option_of_the_network_changes_it() -> None:
    u = images(2, 12, 12)
    usual = {name: value.shape for name, value in small().state_dict().items()}
    for other in ({"size": 14}, {"growth": 3.0}, {"stages": 3}):
        assert {n: v.shape for n, v in small(**other).state_dict().items()} != usual  # type: ignore[arg-type]
    assert small().network.width * 2 == GenerativePrior(12, 6, growth=2.0).network.width
    signed = small(3).energy(u)
    assert bool((signed < 0).any())
    torch.testing.assert_close(small(3, absolute=True).energy(u), signed.abs())


def test_without_biases_energies_are_positively_homogeneous() -> None:
    prior, u = small(), images(3, 12, 12)
    torch.testing.assert_close(prior.energy(2.5 * u), 2.5 * prior.energy(u))


def test_options_out_of_range_are_named() -> None:
    for options, name in (
        ({"size": 1}, "size"), ({"width": 0}, "width"), ({"growth": 0.5}, "growth"), ({"stages": 9}, "stages"),
        ({"absolute": 1}, "absolute"), ({"step": 0.0}, "step"), ({"noise_std": -1.0}, "noise_std"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=f"^{name}:"):
            GenerativePrior(**{"size": 12, "width": 3} | options)  # type: ignore[arg-type]


# --- energy and gradient ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(12, 12), (13, 17), (20, 12)])
@pytest.mark.parametrize("absolute", [False, True])
def test_the_gradient_is_that_of_finite_differences(shape: tuple[int, int], absolute: bool) -> None:
    prior, u, v = small(absolute=absolute), images(3, *shape), images(3, *shape, seed=2) - 0.5
    energy, gradient = prior.energy_and_gradient(u)
    torch.testing.assert_close(energy, prior.energy(u).detach())
    torch.testing.assert_close(gradient, prior.gradient(u))
    h = 1e-6  # the energy is piecewise linear: no error of the second order but at kinks
    slope = (prior.energy(u + h * v) - prior.energy(u - h * v)) / (2 * h)
    torch.testing.assert_close(slope, (gradient * v).sum((1, 2)), rtol=1e-6, atol=1e-9)
    assert not energy.requires_grad
    assert not gradient.requires_grad


def test_the_crop_is_about_the_centre_and_its_adjoint_pads_with_zeros() -> None:
    prior, u = small(), images(2, 19, 16)
    top, left = 19 // 2 - 6, 16 // 2 - 6
    inner = u[:, top : top + 12, left : left + 12]
    energy, gradient = prior.energy_and_gradient(u)
    torch.testing.assert_close(energy, prior.energy(inner).detach())
    torch.testing.assert_close(gradient[:, top : top + 12, left : left + 12], prior.gradient(inner))
    outside = gradient.clone()
    outside[:, top : top + 12, left : left + 12] = 0
    assert not bool(outside.any())
    assert bool(gradient.any())


def test_energies_train_the_weights_and_slopes_of_slopes_are_right() -> None:
    prior, u = small(), images(2, 12, 12).requires_grad_()
    assert torch.autograd.gradcheck(prior.energy, (u,))
    (slope,) = torch.autograd.grad(prior.energy(u).sum(), u, create_graph=True)
    slope.square().sum().backward()
    weight = prior.network.convs[1].weight
    found, h = weight.grad[0, 1, 1, 2].item(), 1e-6  # type: ignore[index]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 1, 1, 2] += sign * h
            values.append(float(prior.gradient(u).square().sum()))
            weight[0, 1, 1, 2] -= sign * h
    assert found == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_a_sample_that_is_not_finite_stays_alone() -> None:
    prior, u = small(), images(3, 14, 14)
    clean = prior.energy_and_gradient(u)
    u[1, 7, 7] = torch.nan
    energy, gradient = prior.energy_and_gradient(u)
    keep = torch.tensor([0, 2])
    torch.testing.assert_close(energy[keep], clean[0][keep], rtol=0, atol=0)
    torch.testing.assert_close(gradient[keep], clean[1][keep], rtol=0, atol=0)
    assert bool(energy[1].isnan())


def test_images_that_do_not_fit_are_named() -> None:
    prior = small()
    with pytest.raises(ValueError, match=r"^u: 11 x 30 pixels, expected at least 12 x 12"):
        prior.energy(images(1, 11, 30))
    with pytest.raises(ValueError, match=r"^u: shape"):
        prior.energy_and_gradient(images(12, 12))
    with pytest.raises(TypeError, match=r"^u: torch.float32 .* prior's torch.float64"):
        prior.energy(images(1, 12, 12).float())
    with pytest.raises(TypeError, match=r"^u:"):
        prior.energy(images(1, 12, 12).to(torch.complex128))


def test_another_intensity_range_is_warned_about() -> None:
    prior = small()
    u = torch.stack([scale * images(14, 14) / images(14, 14).max() for scale in (1.0, 0.6, 1.9, 0.4, 300.0)])
    u[4, 0, 0] = 1e9  # outside of what it looks at
    with pytest.warns(IntensityWarning, match=r"2 of 5 images .* 0\.4, expected 1 within a factor"):
        assert prior.check_intensity(u).tolist() == [True, True, True, False, False]
    assert prior.check_intensity(u, warn=False).tolist() == [True, True, True, False, False]
    assert not bool(prior.check_intensity(torch.zeros_like(u), warn=False).any())
    prior.card = Card("generative", "prior", (12, 12), {"peak": 300.0})
    assert prior.check_intensity(u, warn=False).tolist() == [False, False, False, False, True]


# --- samples ---------------------------------------------------------------------------------------------------------
def test_noise_has_the_training_images_intensities_and_no_order() -> None:
    prior = small().float()
    prior.levels.copy_(torch.linspace(0, 1, 256).square())
    prior.levels[0] = 0.0
    assert float((prior.noise(800) == 0).flatten(1).all(1).float().mean()) == pytest.approx(1 / 16, abs=0.03)
    prior.levels[0] = prior.levels[1]
    noise = prior.noise(40, seed=5)
    assert noise.shape == (40, 12, 12)
    torch.testing.assert_close(noise, prior.noise(40, seed=5), rtol=0, atol=0)
    assert not torch.equal(noise, prior.noise(40, seed=6))
    assert set(noise.unique().tolist()) <= set(prior.levels.flatten().tolist())
    # 5,760 pixels: the mean of u^2 is 1/3 with a standard error of 0.3 / 76; a neighbour tells nothing.
    assert float(noise.mean()) == pytest.approx(1 / 3, abs=0.02)
    centred = noise - noise.mean()
    assert abs(float((centred[:, 1:] * centred[:, :-1]).mean() / centred.square().mean())) < 0.06


def test_sampling_is_langevin_steps_of_the_energy() -> None:
    prior = small()
    start = images(2, 12, 12)
    down = prior.sample(start, iterations=3, noise_std=0.0)
    u = start
    for _ in range(3):
        u = u - 0.5 * prior.step * prior.gradient(u)
    torch.testing.assert_close(down.x, u)
    whole = prior.sample(start, iterations=7, seed=3)
    again = prior.sample(prior.sample(start, iterations=4, seed=3), iterations=3)
    torch.testing.assert_close(again.x, whole.x, rtol=0, atol=0)
    assert not torch.equal(prior.sample(start, iterations=7, seed=4).x, whole.x)
    quiet = prior.sample(start, iterations=1, noise_std=1e-9, seed=3)
    noisy = prior.sample(start, iterations=1, seed=3)
    ratio = float((noisy.x - quiet.x).std() / prior.noise_std)
    assert ratio == pytest.approx(1.0, abs=0.2)  # of 288 numbers
    assert bool((prior.sample(start - 0.5, iterations=2, nonneg=True).x >= 0).all())
    assert prior.float().sample(3, iterations=2, burn_in=1).mean.shape == (3, 12, 12)
    assert prior.temperature == pytest.approx(7.5e-3**2 / 2)


def test_a_chain_that_is_not_finite_is_said() -> None:
    prior, start = small(), images(2, 12, 12)
    start[0, 3, 3] = torch.inf
    with pytest.warns(ConvergenceWarning):
        chain = prior.sample(start, iterations=2)
    assert chain.status.tolist() == [Status.NONFINITE, Status.MAX_ITER]


# --- weights ---------------------------------------------------------------------------------------------------------
def saved(path: Path, **options: Any) -> GenerativePrior:
    prior = small(**options).float()
    prior.levels.mul_(0.5)
    prior.card = Card("generative", "prior", (12, 12), {"peak": 1.0, "grid": [12, 12]}, {"note": "none"})
    prior.save(path)
    return prior


def test_weights_come_back_with_their_card(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    prior = saved(path, step=1.0, noise_std=0.01, stages=1)
    found = GenerativePrior.from_pretrained(path)
    assert (found.config, found.card) == (prior.config, prior.card)
    assert not any(p.requires_grad for p in found.parameters())
    u = images(2, 12, 12).float()
    for name, weights in prior.state_dict().items():
        assert torch.equal(found.state_dict()[name], weights), name
    # The same numbers at other places in memory: convolutions may sum in another order there.
    torch.testing.assert_close(found.energy(u), prior.energy(u).detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.levels, prior.levels, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({'"size": 12': '"size": 100000'}, "whole number"),
        ({'"size": 12': '"size": 16'}, "last.weight"),
        ({'"stages": 2': '"stages": 1000'}, "tensors"),
        ({'"stages": 2': '"stages": true'}, "whole number"),
        ({'"growth": 2.0': '"growth": 1e300'}, "growth"),
        ({'"growth": 2.0': '"growth": "2"'}, "unusable"),
        ({'"absolute": false': '"absolute": 3'}, "absolute"),
        ({'"noise_std": 0.0075': '"noise_std": -1'}, "noise_std"),
        ({'"width": 3': '"width": 3, "more": 1'}, "unusable"),
        ({'"peak": 1.0': '"peak": 0'}, "peak"),
        ({'"peak": 1.0': '"peak": "x"'}, "unusable"),
        ({'"model": "generative"': '"model": "luser"'}, "expected 'generative'"),
    ],
)
def test_hostile_weights_are_refused(tmp_path: Path, change: dict[str, str], said: str) -> None:
    path = tmp_path / "w.safetensors"
    saved(path)
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["pyrecon"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    save_file(tensors, path, metadata={"pyrecon": text})
    with pytest.raises(DataError, match=said):
        GenerativePrior.load(path)


# --- the landscape ---------------------------------------------------------------------------------------------------
def test_the_landscape_lies_on_the_plane_of_the_trajectory(tmp_path: Path) -> None:
    prior = small().float()
    states = trajectory(prior, steps=12, every=2, seed=1)
    assert states.shape == (7, 12, 12)
    torch.testing.assert_close(states[0], prior.noise(1, seed=1)[0])
    torch.testing.assert_close(states[-1], prior.sample(1, iterations=12, seed=1).x[0])
    found = landscape(prior, states, points=9)
    flat = found.components.flatten(1)
    torch.testing.assert_close(flat @ flat.mT, torch.eye(2, dtype=torch.float64))
    away = (states[:-1] - states[-1]).double().flatten(1)
    kept = (away @ flat.mT).square().sum()
    values = torch.linalg.svdvals(away).square()
    torch.testing.assert_close(kept, values[:2].sum())  # no other plane keeps more
    path = (states.double() - found.mean).flatten(1) @ flat.mT
    torch.testing.assert_close(found.path, path)
    assert bool((found.rows[0] < path[:, 0].min()) & (found.columns[-1] > path[:, 1].max()))
    place = found.mean + found.rows[2].double() * found.components[0] + found.columns[5].double() * found.components[1]
    lowest = -found.temperature * found.density.log()
    energy = prior.energy(place.float()[None])[0].detach()
    corner = found.mean + found.rows[0].double() * found.components[0] + found.columns[0].double() * found.components[1]
    expected = energy - prior.energy(corner.float()[None])[0].detach()
    assert float(lowest[2, 5] - lowest[0, 0]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    assert float(found.density.max()) == 1.0
    hotter = landscape(prior, states, points=9, temperature=2 * found.temperature)
    torch.testing.assert_close(hotter.density, found.density.sqrt())
    plotting.save(landscape_figure(found, states=3), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"^images: 2 of a trajectory"):
        landscape(prior, states[:2])
