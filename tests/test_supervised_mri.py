"""The fastMRI baseline and the variational network: published sizes, padding, data consistency, units, batches,
files."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.fourier import fft_centered, ifft_centered
from pyrecon.data.raw import MRIScan
from pyrecon.models import ImageUNet, VarNet
from pyrecon.models.mri import VarNetMRI, reconstruct_mri
from pyrecon.models.supervised_mri import SupervisedMRI, load
from pyrecon.models.weights import Card
from pyrecon.nn import BaselineUNet, NormalisedUNet, VariationalNetwork
from pyrecon.nn.varnet import Cascade, SensitivityNet
from pyrecon.physics.masks import named_mask
from pyrecon.solvers import Status

ABOUT = {"task": "mri", "acceleration": 4.0, "noise_low": 0.005, "noise_std": 0.02}
CARD = Card("supervised-mri", "reconstruction", (33, 40), ABOUT)


def weights(model: torch.nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def small(kind: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> SupervisedMRI:
    torch.manual_seed(seed)
    model: SupervisedMRI = ImageUNet(4, 2) if kind == "unet" else VarNet(2, 4, 2, 3, 2)
    return model.to(dtype).eval()


def scan(batch: int = 3, coils: int = 2, shape: tuple[int, int] = (33, 40), seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    mask = named_mask("cartesian-4x", shape, batch=batch, seed=seed)
    return torch.randn(batch, coils, *shape, dtype=torch.complex128) * mask, mask


def test_published_numbers_of_weights() -> None:
    with torch.device("meta"):
        assert weights(BaselineUNet()) == 7_756_097  # Zbontar et al., Table 5: 7.76 M
        assert weights(ImageUNet()) == 7_756_097
        assert weights(NormalisedUNet()) == 2_454_338
        assert weights(SensitivityNet()) == 484_898
        assert weights(VariationalNetwork()) == 12 * (2_454_338 + 1) + 484_898  # Sriram et al.: 29.9 M
        assert weights(VarNet()) == 29_936_966


def test_a_unet_is_what_its_paper_says() -> None:
    """Pools halve, widths double; norms without weights; the only bias is the last one's."""
    net = BaselineUNet(2, 3, 8, 3)
    named = dict(net.named_parameters())
    assert [name for name in named if name.endswith("bias")] == ["last.bias"]
    shapes = sorted(tuple(v.shape) for v in named.values() if v.dim() == 4)
    assert (64, 32, 3, 3) in shapes
    assert (64, 32, 2, 2) in shapes
    assert (8, 2, 3, 3) in shapes
    assert (8, 16, 3, 3) in shapes  # after the features of the way down are beside those of the way up
    x = torch.randn(2, 2, 16, 16)
    # Without weights a norm takes no unit and no offset of its input: the first convolution alone sees them.
    torch.testing.assert_close(net(5 * x), net(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (31, 29), (24, 8), (8, 24)])
def test_a_unet_takes_odd_sizes(size: tuple[int, int]) -> None:
    net = BaselineUNet(1, 2, 4, 3)
    x = torch.randn(2, 1, *size)
    assert net(x).shape == (2, 2, *size)
    wrapped = NormalisedUNet(4, 3)
    image = torch.randn(2, *size, dtype=torch.complex64)
    assert wrapped(image).shape == (2, *size)


def test_a_unet_refuses_what_its_pools_leave_nothing_of() -> None:
    for size in ((7, 64), (8, 8)):
        with pytest.raises(ValueError, match=f"x: {size[0]} x {size[1]} pixels"):
            BaselineUNet(1, 1, 4, 3)(torch.randn(1, 1, *size))
    with pytest.raises(ValueError, match="x: shape"):
        BaselineUNet(1, 1, 4, 3)(torch.randn(1, 2, 16, 16))
    with pytest.raises(ValueError, match="dropout"):
        BaselineUNet(dropout=1.0)
    # Small images of a wrapped one are padded to what it takes.
    assert NormalisedUNet(4, 3)(torch.randn(1, 5, 3, dtype=torch.complex64)).shape == (1, 5, 3)


def test_padding_is_around_the_image() -> None:
    """A size that needs none is not padded, and one that does comes back in its place: shifted padding would shift
    it."""
    net = NormalisedUNet(2, 1).double()
    seen: list[Tensor] = []
    net.unet.forward = lambda x: seen.append(x) or x  # type: ignore[func-returns-value, method-assign, return-value]
    for size, padded in (((8, 6), (8, 6)), ((7, 5), (8, 6)), ((3, 9), (4, 10))):
        image = torch.randn(1, *size, dtype=torch.complex128)
        torch.testing.assert_close(net(image), image)  # with the identity for a network normalisation is undone
        assert seen[-1].shape[2:] == padded


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    net = BaselineUNet(1, 1, 8, 2, dropout=0.5)
    x = torch.randn(1, 1, 16, 16)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    without = BaselineUNet(1, 1, 8, 2)
    assert torch.equal(without(x), without(x))


def test_a_network_on_complex_images_has_no_unit() -> None:
    torch.manual_seed(0)
    net = NormalisedUNet(4, 2).double()
    x = torch.randn(2, 16, 20, dtype=torch.complex128)
    torch.testing.assert_close(net(7.5 * x), 7.5 * net(x))
    # Both parts have their own mean: what is added to one comes back on it.
    torch.testing.assert_close(net(x + 3 - 2j), net(x) + 3 - 2j)
    flat = torch.full((1, 16, 16), 2.0 + 1j, dtype=torch.complex128)
    assert bool(torch.isfinite(torch.view_as_real(net(flat))).all())


def test_maps_have_a_root_sum_of_squares_of_one() -> None:
    torch.manual_seed(0)
    net = SensitivityNet(4, 2).double()
    y, _ = scan()
    maps = net(y)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(3, 33, 40, dtype=torch.float64))
    torch.testing.assert_close(net(4.0 * y), maps)
    # Coils are refined one by one: in another order they are the same.
    torch.testing.assert_close(net(y.flip(1)), maps.flip(1))
    silent = SensitivityNet(4, 2).double()
    for value in silent.parameters():
        value.data.zero_()
    zero = torch.zeros_like(y).requires_grad_()
    found = silent(zero)
    assert not found.detach().abs().any()
    found.abs().sum().backward()
    assert zero.grad is not None
    assert bool(torch.isfinite(torch.view_as_real(zero.grad)).all())


def test_the_law_of_a_cascade() -> None:
    """With N = 0 data that are taken are left alone by the law of the weight: k - eta M (k - y)."""
    torch.manual_seed(0)
    cascade = Cascade(4, 2).double()
    y, mask = scan()
    maps = SensitivityNet(4, 2).double()(y).detach()
    m = mask.double()
    k = torch.randn_like(y)
    cascade.net.forward = torch.zeros_like  # type: ignore[method-assign]
    for eta in (0.0, 0.3, 1.0):
        cascade.step.data.fill_(eta)
        found = cascade(k, y, maps, m)
        taken = mask.expand_as(k)
        torch.testing.assert_close(found[taken], ((1 - eta) * k + eta * y)[taken])
        torch.testing.assert_close(found[~taken], k[~taken])
        torch.testing.assert_close(cascade(y, y, maps, m), y)  # all that was measured, fully sampled or not
    # With any N the step takes F(S N(S^H F^-1 k)) away.
    cascade.net.forward = lambda x: 2 * x  # type: ignore[method-assign]
    cascade.step.data.fill_(0.0)
    image = (maps.conj() * ifft_centered(k)).sum(1)
    torch.testing.assert_close(cascade(k, y, maps, m), k - fft_centered(2 * maps * image[:, None]))


def test_fully_sampled_data_without_refinement_are_their_image() -> None:
    model = small("varnet")
    assert isinstance(model, VarNet)
    for cascade in model.unrolled.cascades:
        cascade.net.forward = torch.zeros_like  # type: ignore[method-assign, assignment]
    y = torch.randn(2, 3, 24, 24, dtype=torch.complex128)
    everything = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    torch.testing.assert_close(model(y, everything), ifft_centered(y).abs().square().sum(1).sqrt())


@pytest.mark.parametrize("kind", ["unet", "varnet"])
def test_models_take_any_unit_and_each_image_by_itself(kind: str) -> None:
    model = small(kind)
    y, mask = scan()
    with torch.no_grad():
        whole = model(y, mask)
        assert whole.shape == (3, 33, 40)
        torch.testing.assert_close(model(1e3 * y, mask), 1e3 * whole)
        for i in range(3):
            torch.testing.assert_close(model(y[i : i + 1], mask[i : i + 1])[0], whole[i])
        # What the mask leaves out is not looked at, NaN included.
        other = torch.where(mask, y, torch.full_like(y, torch.nan))
        torch.testing.assert_close(model(other, mask.double()), whole)
        # A mask of every image or of all, on a full grid or on lines.
        same = model(y, mask[:1])
        torch.testing.assert_close(model(y, mask[:1].expand(3, 1, 33, 40)), same)


@pytest.mark.parametrize("kind", ["unet", "varnet"])
def test_an_image_that_is_not_finite_stays_alone(kind: str) -> None:
    model = small(kind)
    y, mask = scan()
    well = model.reconstruct(y, mask)
    assert well.status.tolist() == [Status.CONVERGED] * 3
    hurt = y.clone()
    hurt[1, 0][mask[1, 0].expand(33, 40)] = torch.nan
    found = model.reconstruct(hurt, mask)
    assert found.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert bool(found.value[1].isnan().all())
    torch.testing.assert_close(found.value[[0, 2]], well.value[[0, 2]])


@pytest.mark.parametrize("kind", ["unet", "varnet"])
def test_a_silent_image_is_no_accident(kind: str) -> None:
    model = small(kind)
    y, mask = scan()
    y[1] = 0
    assert bool(torch.isfinite(model.reconstruct(y, mask).value).all())


@pytest.mark.parametrize("kind", ["unet", "varnet"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    model = small(kind)
    y, mask = scan(1, shape=(17, 16))
    direction = torch.randn_like(y) * mask
    point = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(point, mask).square().sum(), point)
    slope = float((gradient.conj() * direction).real.sum())
    h = 1e-6
    with torch.no_grad():
        high, low = (float(model(y + s * h * direction, mask).square().sum()) for s in (1, -1))
    assert slope == pytest.approx((high - low) / (2 * h), rel=1e-5)


def test_a_mask_without_centre_is_told() -> None:
    model = small("varnet")
    y = torch.randn(1, 2, 33, 40, dtype=torch.complex128)
    mask = torch.ones(1, 1, 33, 1, dtype=torch.bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(y, mask)
    mask[0, 0, 16] = False
    with pytest.warns(UserWarning, match="centre of k-space in 1 of 1"):
        found = model(y, mask)
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("kind", ["unet", "varnet"])
def test_the_file_gives_the_model_back(kind: str, tmp_path: Path) -> None:
    model = small(kind, torch.float32)
    model.card = CARD
    model.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert type(again) is type(model)
    assert again.card == CARD
    assert not again.training
    y, mask = scan()
    with torch.no_grad():
        assert torch.equal(again(y.to(torch.complex64), mask), model(y.to(torch.complex64), mask))
    other = VarNet if kind == "unet" else ImageUNet
    with pytest.raises(DataError, match="network"):
        other.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "change", [{"cascades": 1000}, {"cascades": 10**9}, {"pools": 40}, {"width": "4"}, {"more": 1}, {"network": "x"}]
)
def test_hostile_headers_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """Before anything of their size is built."""
    path = tmp_path / "m.safetensors"
    small("varnet", torch.float32).save(path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    story = json.loads(header["__metadata__"]["pyrecon"])
    story["config"] |= change
    header["__metadata__"]["pyrecon"] = json.dumps(story)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    with pytest.raises(DataError, match=r"m\.safetensors"):
        load(path)


@pytest.mark.parametrize(
    ("y", "mask", "error", "text"),
    [
        (torch.zeros(1, 2, 16, 16), torch.ones(1, 1, 1, 1), TypeError, "y: dtype"),
        (torch.zeros(2, 16, 16, dtype=torch.complex128), torch.ones(1, 1, 1, 1), ValueError, "y: shape"),
        (torch.zeros(1, 2, 16, 16, dtype=torch.complex64), torch.ones(1, 1, 1, 1), TypeError, "y: dtype"),
        (torch.zeros(1, 2, 16, 16, dtype=torch.complex128), torch.ones(1, 1, 2, 1), ValueError, "mask: shape"),
        (torch.zeros(1, 2, 16, 16, dtype=torch.complex128), torch.ones(1, 1, 1, 1).int(), TypeError, "mask: dtype"),
    ],
)
def test_bad_arguments_are_named(y: Tensor, mask: Tensor, error: type[Exception], text: str) -> None:
    for kind in ("unet", "varnet"):
        with pytest.raises(error, match=text):
            small(kind)(y, mask)


# --- raw data --------------------------------------------------------------------------------------------------------
def raw(seed: int = 3) -> MRIScan:
    y, mask = scan(2, 3, seed=seed)
    whole = mask.expand(-1, -1, 33, 1).numpy().copy()
    # The noise of whitened data is 1: that of these is a hundredth of their brightest pixel.
    y = 100 * y / ifft_centered(y).abs().square().sum(1).sqrt().max()
    return MRIScan(y.numpy().astype(np.complex64), whole, metadata={"whitened": "test"})


def test_raw_data_are_reconstructed_without_maps(tmp_path: Path) -> None:
    model = small("varnet", torch.float32)
    model.card = CARD
    model.save(tmp_path / "m.safetensors")
    known = raw()
    method = VarNetMRI(str(tmp_path / "m.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, report = reconstruct_mri(known, method)
    assert report.status == {"CONVERGED": 2}
    with torch.no_grad():
        expected = model(torch.from_numpy(known.kspace), torch.from_numpy(known.mask))
    torch.testing.assert_close(images.real, expected)
    assert not images.imag.any()
    loud = MRIScan(known.kspace / 10, known.mask, metadata={"whitened": "test"})
    with pytest.warns(UserWarning, match=r"noise is 0\.1 of the brightest pixel, .* at 0\.005 to 0\.02"):
        reconstruct_mri(loud, method)
    columns = MRIScan(known.kspace, named_mask("cartesian-4x-swapped", (33, 40)).expand(-1, -1, 33, -1).numpy().copy(),
                      metadata={"whitened": "test"})  # fmt: skip
    with pytest.warns(UserWarning, match="not in whole rows"):
        reconstruct_mri(columns, method)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pyrecon train supervised-mri --model varnet"):
        reconstruct_mri(raw(), VarNetMRI())
    path = tmp_path / "m.safetensors"
    small("varnet", torch.float32).save(path)
    with pytest.raises(DataError, match="does not say what it was trained for"):
        reconstruct_mri(raw(), VarNetMRI(str(path)))
    small("unet", torch.float32).save(path)
    with pytest.raises(DataError, match="network"):
        reconstruct_mri(raw(), VarNetMRI(str(path)))
