"""PINQI: the published sizes, both minima of every iteration, gradients through all of them, and the ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.linops import Sense
from pyrecon.models import PINQI, DEProx
from pyrecon.nn import ConditionedUNet
from pyrecon.ops import EchoDecay, InversionRecovery
from pyrecon.solvers import Status

TIMES = torch.tensor([0.5, 1.0, 2.0, 8.0], dtype=torch.float64)
SMALL: dict[str, Any] = {"widths": (6, 4), "image_widths": (4, 6), "rtol": 1e-13, "max_iter": 500}


def weights_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_networks_have_the_published_sizes() -> None:
    model = PINQI()
    assert model.image_net is not None
    assert weights_of(model.image_net) == 597_323
    embedding = model.parameter_net.embedding
    assert embedding is not None
    assert weights_of(model.parameter_net) - weights_of(embedding) == 2_235_308
    torch.testing.assert_close(model.weights, torch.tensor([[0.1, 3.0, 0.1]]).expand(5, 3))


def scan(full: bool = False, noise: float = 0.02, size: int = 10) -> tuple[Tensor, Sense, Tensor]:
    """Data, physics and parameters of two samples; random lines for every image."""
    generator = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.complex128)

    rate, factor = 0.5 + rand(2, size, size), torch.polar(0.8 + 0.4 * rand(2, size, size), rand(2, size, size))
    images = factor[:, None] * -torch.expm1(-TIMES.view(1, -1, 1, 1) * rate[:, None])
    mask = torch.ones(2, 4, 1, size, 1, dtype=torch.float64) if full else (rand(2, 4, 1, size, 1) < 0.6).double()
    physics = Sense(randn(2, 1, 3, size, size), mask)
    k = physics(images)
    k = k + noise * mask * randn(*k.shape)
    return k, physics, torch.stack((rate, factor.real, factor.imag), 1)


def small(**options: Any) -> PINQI:
    torch.manual_seed(1)
    return PINQI(4, iterations=2, **SMALL | options).double()


def test_every_iteration_ends_in_both_minima() -> None:
    k, physics, _ = scan()
    model = small()
    with torch.no_grad():
        found = model(k, physics, TIMES)
        for i, (y, fit) in enumerate(zip(found.images, found.fits, strict=True)):
            data, _, image = model.weights[i]
            parameters, improved = found.suggested[i]
            assert improved is not None
            known = model.signal(found.parameters[i], TIMES)
            slope = physics.adjoint(physics(y) - k) + data * (y - known) + image * (y - improved)
            assert float(slope.abs().max()) < 1e-8
            assert bool((fit.status == Status.CONVERGED).all())
        y, p = found.images[-1], found.parameters[-1]
    p = p.clone().requires_grad_()
    residual = torch.view_as_real(model.signal(p, TIMES) - y)
    objective = residual.square().sum() + model.weights[-1, 1].detach() * (p - parameters).square().sum()
    (slope,) = torch.autograd.grad(objective, p)
    free = (p[:, 0] > model.bounds[0]) & (p[:, 0] < model.bounds[1])
    assert float(slope[:, 1:].abs().max()) < 1e-8
    assert float(slope[:, 0][free].abs().max()) < 1e-8


def test_with_all_the_data_the_parameters_are_the_truth() -> None:
    """Whatever untrained networks say, where their weights are small."""
    k, physics, truth = scan(full=True, noise=0.0)
    with torch.no_grad():
        found = small(weights=(1e-7, 1e-7, 1e-7))(k, physics, TIMES)
    torch.testing.assert_close(found.parameters[-1], truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"fit": False}, {"image_net": False}, {"repeat": False}])
def test_gradients_pass_all_minima(options: dict[str, Any]) -> None:
    """To the weights of the splitting and of both networks, against differences."""
    k, physics, _ = scan(size=6)
    model = small(**options)
    names = ["raw_weights", "parameter_net.last.bias", "parameter_net.down.0.first.bias"]
    names += ["image_net.last.bias", "image_net.down.0.along.weight"] if model.image_net is not None else []
    chosen = {name: dict(model.named_parameters())[name] for name in names}
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        return (model(k, physics, TIMES).parameters[-1] * known).sum()

    grads = torch.autograd.grad(loss(), list(chosen.values()), allow_unused=True)
    for (name, value), grad in zip(chosen.items(), grads, strict=True):
        along = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        ends = []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                value.add_(step * along)
                ends.append(float(loss()))
                value.sub_(step * along)
        expected = 0.0 if grad is None else float((grad * along).sum())
        # The rest of the series is 1e-10 of the third derivative, and rounding 1e-16 / 1e-5 of the sum.
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_ablations_leave_out_what_they_say() -> None:
    k, physics, _ = scan()
    with torch.no_grad():
        usual = small()(k, physics, TIMES)
        without = small(image_net=False)(k, physics, TIMES)
        once = small(repeat=False)(k, physics, TIMES)
        network = small(fit=False)(k, physics, TIMES)
    assert all(image is None for _, image in without.suggested)
    assert once.suggested[0][0] is once.suggested[1][0]
    assert once.suggested[0][1] is once.suggested[1][1]
    assert usual.suggested[0][1] is not usual.suggested[1][1]
    assert network.fits == []
    assert network.parameters[-1] is network.suggested[-1][0]
    with pytest.raises(ValueError, match="image_net: this model has none"):
        small(image_net=False).improve(usual.images[0], 0.5)


def test_the_networks_begin_pixel_by_pixel_and_know_the_iteration() -> None:
    torch.manual_seed(0)
    net = ConditionedUNet(3, 2, (4, 6), groups=2, conditioned=True).double()
    x = torch.randn(1, 3, 9, 11, dtype=torch.float64)
    level = torch.zeros(1, dtype=torch.float64)
    moved = x.clone()
    moved[..., 4, 5] += 1
    with torch.no_grad():
        change = (net(moved, level) - net(x, level)).abs().amax(1)[0]
    # Beyond its own pixel what a residual branch of 1e-3 sees, and what the lower resolution hands on.
    near = torch.zeros_like(change, dtype=torch.bool)
    near[1:9, 1:11] = True
    assert float(change[~near].max()) < 0.05 * float(change[4, 5])
    assert torch.equal(net(x, level), net(x, level + 1))  # FiLM begins as nothing
    with torch.no_grad():
        for block in [*net.down, *net.up]:
            block.film.weight.normal_()
            block.share.fill_(1.0)
    assert not torch.allclose(net(x, level), net(x, level + 1))


def test_series_are_convolved_along_time() -> None:
    torch.manual_seed(0)
    net = ConditionedUNet(3, 2, (4, 6), groups=2, temporal=True).double()
    with torch.no_grad():
        for block in (*net.down, net.lowest, *net.up):
            block.share.fill_(1.0)
    x = torch.randn(2, 3, 5, 8, 6, dtype=torch.float64)
    assert net(x).shape == (2, 2, 5, 8, 6)
    moved = x.clone()
    moved[0, :, 2] += 1
    assert bool((net(moved)[0, :, 3] != net(x)[0, :, 3]).any())
    assert torch.equal(net(moved)[1], net(x)[1])


def test_weights_come_back(tmp_path: Path) -> None:
    k, physics, _ = scan()
    model = PINQI(4, iterations=2, **SMALL, repeat=False).float()
    model.save(tmp_path / "a.safetensors")
    again = PINQI.load(tmp_path / "a.safetensors")
    single = Sense(physics.maps.to(torch.complex64), physics.mask.float())
    with torch.no_grad():
        one, other = (m(k.to(torch.complex64), single, TIMES.float()).parameters[-1] for m in (model, again))
    assert torch.equal(one, other)
    with pytest.raises(DataError, match="holds weights of 'pinqi'"):
        DEProx.load(tmp_path / "a.safetensors")


def test_bad_arguments_are_named() -> None:
    k, physics, _ = scan()
    for options, message in (
        ({"weights": ((0.1, 0.1, 0.1),)}, "1 triples, but 2 iterations"),
        ({"weights": (0.0, 1.0, 1.0)}, "weights"),
        ({"model": InversionRecovery()}, "one factor M0"),
        ({"widths": (4,)}, "two resolutions"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**options)
    with pytest.raises(ValueError, match=r"A\^H k"):
        small()(k[:, :3], Sense(physics.maps, physics.mask[:, :3]), TIMES[:3])
    with pytest.raises(ValueError, match=r"times: shape \(3,\), .* for 4 images"):
        small()(k, physics, TIMES[:3])
    with pytest.raises(ValueError, match="level"):
        small().parameter_net(torch.zeros(1, 9, 8, 8, dtype=torch.float64))
    assert PINQI(4, model=EchoDecay(), **SMALL).model == EchoDecay()
