"""The rivals of PINQI: published sizes, the iterations that they say, images of any size, files of weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pinqi import SMALL, TIMES, scan, weights_of
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.linops import Sense
from pyrecon.models import DOPAMINE, MANTIS, PINQI, DeepT1, UnrolledMaps
from pyrecon.models._map_network import MapNetwork
from pyrecon.models.map_rivals import NETWORKS, load
from pyrecon.models.weights import write_weights
from pyrecon.nn.mapping import PlainUNet, RecurrentNet, StridedUNet

SIZES: dict[str, dict[str, Any]] = {
    "pinqi": SMALL | {"iterations": 2},
    "unrolled": SMALL | {"iterations": 2},
    "deept1": {"iterations": 2, "width": 4, "widths": (3, 4, 5), "rtol": 1e-12, "max_iter": 500},
    "mantis": {"widths": (3, 4, 5)},
    "dopamine": {"iterations": 3, "width": 4, "layers": 2},
}


def small(network: str, **options: Any) -> MapNetwork:
    torch.manual_seed(1)
    return NETWORKS[network](4, **SIZES[network] | options).double()


def test_the_networks_have_the_published_sizes() -> None:
    """Of eight images."""
    deept1 = DeepT1(8)
    assert weights_of(deept1.image_net) == 297_538
    assert weights_of(deept1.parameter_net) == 20_547_906
    assert weights_of(MANTIS(8)) == 29_248_258
    dopamine = DOPAMINE(8)
    assert weights_of(dopamine) - dopamine.raw_weights.numel() == 317_894
    assert dopamine.weights.shape == (10, 2)
    assert weights_of(UnrolledMaps(8).image_net) == 597_323


@pytest.mark.parametrize("network", list(NETWORKS))
def test_maps_have_the_size_of_the_images(network: str) -> None:
    """Whatever that is: networks that halve it pad it."""
    k, physics, _ = scan(size=11)
    model = small(network).eval()
    with torch.no_grad():
        found = model(k, physics, TIMES)
    assert found.parameters[-1].shape == (2, 3, 11, 11)
    assert bool(torch.isfinite(found.parameters[-1]).all())
    if not model.phase:
        assert not found.parameters[-1][:, 2].any()
    with pytest.raises(ValueError, match=r"times: shape \(3,\)"):
        model(k, physics, TIMES[:3])


@pytest.mark.parametrize("network", ["unrolled", "deept1"])
def test_images_solve_their_systems(network: str) -> None:
    k, physics, _ = scan()
    model = small(network)
    assert isinstance(model, UnrolledMaps | DeepT1)
    with torch.no_grad():
        found = model(k, physics, TIMES)
        for weight, y, (_, improved) in zip(model.weights, found.images, found.suggested, strict=True):
            assert improved is not None
            slope = physics.adjoint(physics(y) - k) + weight * (y - improved)
            assert float(slope.abs().max()) < 1e-8


def test_regression_is_a_fit_of_the_last_images() -> None:
    k, physics, truth = scan(full=True, noise=0.0)
    with torch.no_grad():
        found = small("unrolled", regression="fit", weight=1e-7)(k, physics, TIMES)
    torch.testing.assert_close(found.parameters[-1], truth, rtol=1e-5, atol=1e-5)


def test_dopamine_descends_the_misfit() -> None:
    """One step, with the correction still zero, is minus m times the gradient of |A q(p) - k|^2 / 2."""
    k, physics, _ = scan()
    model = small("dopamine", bound=1e12, bounds=(-20.0, 20.0))
    found = model(k, physics, TIMES).parameters
    p = found[0].detach().requires_grad_()
    misfit = torch.view_as_real(physics(model.signal(p, TIMES)) - k)
    (slope,) = torch.autograd.grad(0.5 * misfit.square().sum(), p)
    assert isinstance(model, DOPAMINE)
    torch.testing.assert_close(found[1], found[0] - model.weights[0, 0] * slope, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        bounded = small("dopamine", bound=0.01)(k, physics, TIMES).parameters
    assert all(float((b - a).abs().max()) <= 0.01 + 1e-14 for a, b in pairwise(bounded))


def test_no_gradient_of_deept1s_maps_reaches_the_images() -> None:
    k, physics, _ = scan()
    model = small("deept1")
    assert isinstance(model, DeepT1)
    model(k, physics, TIMES).parameters[-1].sum().backward()
    assert all(p.grad is None for p in model.image_net.parameters())
    assert all(p.grad is not None for p in model.parameter_net.parameters())


def test_the_recurrent_network_remembers_and_looks_both_ways() -> None:
    torch.manual_seed(0)
    net = RecurrentNet(4, 4).double()
    images = torch.randn(2, 3, 6, 5, dtype=torch.complex128)

    def moved(t: int) -> Tensor:
        other = images.clone()
        other[0, t] += 1
        return other

    change, memory = net(images)
    assert change.shape == images.shape
    assert bool((net(moved(0))[0][0, 2] != change[0, 2]).any())
    assert bool((net(moved(2))[0][0, 0] != change[0, 0]).any())
    assert torch.equal(net(moved(2))[0][1], change[1])
    assert len(memory) == 3
    assert not torch.allclose(net(images, memory)[0], change)
    # Nothing remembered is as good as no memory.
    torch.testing.assert_close(net(images, [torch.zeros_like(m) for m in memory])[0], change)


@pytest.mark.parametrize("kind", [PlainUNet, StridedUNet])
def test_unets_pad_what_they_cannot_halve(kind: Any) -> None:
    """An image of the right size is not padded: what is beyond its border does not matter."""
    torch.manual_seed(0)
    net = kind(2, 2, (3, 4, 5)).double().eval()
    x = torch.randn(1, 2, 16, 8, dtype=torch.float64)
    cut = x[..., :15, :7]
    padded = torch.nn.functional.pad(cut, (0, 1, 0, 1), mode="replicate")
    torch.testing.assert_close(net(cut), net(padded)[..., :15, :7])
    for widths in ((), (4,)):
        with pytest.raises(ValueError, match="two resolutions"):
            kind(2, 2, widths)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_weights_come_back_by_what_the_file_says(network: str, tmp_path: Path) -> None:
    k, physics, _ = scan()
    model = small(network).float().eval()
    model.save(tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    assert type(again) is type(model)
    single = Sense(physics.maps.to(torch.complex64), physics.mask.float())
    with torch.no_grad():
        one, other = (m(k.to(torch.complex64), single, TIMES.float()).parameters[-1] for m in (model, again))
    assert torch.equal(one, other)
    wrong = PINQI if network != "pinqi" else MANTIS
    with pytest.raises(DataError, match="network"):
        wrong.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"images": 10**9}, {"widths": [4] * 100}, {"widths": [10**9, 4]}, {"widths": "abc"}, {"iterations": "many"},
        {"nonsense": 1}, {"start": [1.0]}, {"network": 5}, {"bounds": None},
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model = small("pinqi").float()
    config = model._options | change
    write_weights(tmp_path / "a.safetensors", "pinqi", config, model.state_dict(), None)
    with pytest.raises(DataError, match=r"a\.safetensors"):
        load(tmp_path / "a.safetensors")


def test_bad_arguments_are_named() -> None:
    for build, message in (
        (lambda: UnrolledMaps(4, regression="guess"), "regression: 'guess'"),  # type: ignore[arg-type]
        (lambda: DOPAMINE(4, bound=0.0), "bound"),
        (lambda: DeepT1(4, weight=-1.0), "weight"),
        (lambda: DeepT1(1), "images"),
        (lambda: PINQI(4, parameter_net=False, fit=False), "nothing that says parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
