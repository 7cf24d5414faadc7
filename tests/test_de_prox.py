"""DE-Prox, the second system: its equation, its gradients, its weights, and the general commands from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from pyrecon._errors import DataError
from pyrecon.cli import app
from pyrecon.data.mri import prewhiten
from pyrecon.implicit import ImplicitGradient, JacobianFree
from pyrecon.io.ismrmrd import write_ismrmrd
from pyrecon.linops import Fourier
from pyrecon.losses import supervised
from pyrecon.models import DEProx
from pyrecon.models.mri import DEProxMRI, reconstruct_mri
from pyrecon.models.weights import Card
from pyrecon.nn import ResidualDenoiser
from pyrecon.physics.mri import coil_maps, gaussian_lines, head_phantom, simulate
from pyrecon.solvers import Status
from pyrecon.train.de_prox import Config, DEProxTraining, Scans
from pyrecon.train.run import train

SHAPE = (12, 10)


def physics(batch: int = 3, dtype: torch.dtype = torch.float64) -> Fourier:
    return Fourier(gaussian_lines(SHAPE, 2.0, acl=4, batch=batch).to(dtype), SHAPE)


def data(A: Fourier, batch: int = 3, dtype: torch.dtype = torch.complex128) -> Tensor:
    x = torch.randn(batch, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return A(x)


class Shrinking(nn.Module):
    """A network that contracts, so that there is an equilibrium: an untrained one leaves unsampled k-space as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ResidualDenoiser(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return 0.8 * self.inner(image)  # type: ignore[no-any-return]


def net(tol: float = 1e-10, max_iter: int = 200, **options: Any) -> DEProx:
    torch.manual_seed(0)
    return DEProx(Shrinking(), tol=tol, max_iter=max_iter, **options)


def test_the_image_is_where_the_step_leaves_it() -> None:
    """The docstring's equation, each sample with a mask of its own."""
    A = physics()
    y, model = data(A), net(step=0.7).double()
    found = model.reconstruct(y, A)
    assert (found.status == Status.CONVERGED).all()
    x = found.value
    with torch.no_grad():
        again = model.denoiser(x - 0.7 * (A.adjoint(A(x)) - A.adjoint(y)))
    torch.testing.assert_close(again, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(model(y, A), x, rtol=0, atol=1e-8)


def test_a_denoiser_that_does_nothing_leaves_least_squares() -> None:
    A, y = physics(), data(physics())
    image = DEProx(nn.Identity(), tol=1e-12).reconstruct(y, A).value
    torch.testing.assert_close(A(image), y, rtol=0, atol=1e-10)


def test_samples_do_not_see_each_other() -> None:
    """One leaves early, one is no number: the others are what they are alone."""
    A, model = physics(1), net().double()
    y = data(A)
    y[1] = torch.nan
    y[2] *= 1e-3
    found = model.reconstruct(y, A)
    assert found.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert found.value[1].isnan().all()
    for b in (0, 2):
        torch.testing.assert_close(found.value[b : b + 1], model.reconstruct(y[b : b + 1], A).value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("complex_start", [True, False])
def test_gradients_are_those_of_finite_differences(complex_start: bool) -> None:
    A = physics()
    y, model = data(A), net(gradient=ImplicitGradient(tol=1e-12, max_iter=200)).double()
    weight = model.denoiser.inner.convs[1 if complex_start else -1].weight  # type: ignore[index,union-attr]
    truth = torch.randn(3, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(4))
    supervised(model(y, A), truth).backward()
    entry, h = (1, 2, 0, 1), 1e-5
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[entry] += sign * h  # type: ignore[index]
            values.append(float(supervised(model(y, A), truth)))
            weight[entry] -= sign * h  # type: ignore[index]
    assert float(weight.grad[entry]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-9)  # type: ignore[index,union-attr]


def test_options_have_their_effects() -> None:
    A = physics()
    y, base = data(A), net(max_iter=8).double()
    expected = base.reconstruct(y, A)
    for other in (net(max_iter=8, step=0.5), net(max_iter=3), net(max_iter=8, tol=0.3)):
        assert not torch.equal(other.double().reconstruct(y, A).value, expected.value)
    assert torch.equal(base.reconstruct(y, A, max_iter=3).value, net(max_iter=3).double().reconstruct(y, A).value)
    grads = []
    for gradient in (ImplicitGradient(tol=1e-10, max_iter=100), JacobianFree()):
        model = net(gradient=gradient).double()
        model(y, A).abs().square().sum().backward()
        grads.append(model.denoiser.inner.convs[0].weight.grad)  # type: ignore[index,union-attr]
    assert not torch.allclose(*grads, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: DEProx("unet"), "denoiser: expected a module, got str"),
        (lambda: DEProx(ResidualDenoiser), "denoiser: expected a module, got ResidualDenoiser"),
        (lambda: DEProx(nn.Identity(), step=0.0), "step: 0.0"),
        (lambda: net()(torch.zeros(1, *SHAPE), lambda x: x), "physics: expected a LinearOperator, got function"),
        (lambda: ResidualDenoiser(4, 1), "width, layers: 4 and 1"),
        (lambda: supervised(torch.zeros(2, 3), torch.zeros(3, 2)), "images: shape"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()


# --- weights -------------------------------------------------------------------------------------------------------
def saved(folder: Path) -> Path:
    torch.manual_seed(0)
    model = DEProx(ResidualDenoiser(4, 3), tol=1e-4, max_iter=30, step=0.9)
    model.card = Card("de-prox", "equilibrium", (16, 16), {"noise_std": 0.01}, {"images": "none"})
    model.save(folder / "w.safetensors")
    return folder / "w.safetensors"


def test_weights_come_back_whole(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = DEProx.from_pretrained(path)
    assert (model.step_size, model.tol, model.max_iter) == (0.9, 1e-4, 30)
    assert model.card is not None
    assert (model.card.model, model.card.shape, model.card.data) == ("de-prox", (16, 16), {"noise_std": 0.01})
    before = path.read_bytes()
    model.save(path)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="holds weights of 'deq-mpi', expected 'de-prox'"):
        DEProx.from_pretrained("deq-mpi-25dB")
    with pytest.raises(DataError, match="class Identity is not ours"):
        DEProx(nn.Identity()).save(path)


@pytest.mark.parametrize(
    "change", [{"max_iter": 0}, {"tol": -1}, {"step": 0}, {"denoiser": {"width": 4, "layers": 900}}]
)
def test_headers_that_lie_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + size])
    header = json.loads(table["__metadata__"]["pyrecon"])
    header["config"] |= change
    table["__metadata__"]["pyrecon"] = json.dumps(header)
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(DataError, match=r"w\.safetensors: the header is unusable"):
        DEProx.load(path)


# --- as a method of raw scans --------------------------------------------------------------------------------------
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
    by_hand = DEProx.load(path).reconstruct(kspace[:, 0] / peak, A).value * peak
    torch.testing.assert_close(image, by_hand, rtol=1e-4, atol=1e-3 * float(peak))
    assert report.method == "DE-Prox"
    several, _ = reconstruct_mri(scan(4), DEProxMRI(str(path)))
    assert torch.isfinite(several.abs()).all()


def test_data_unlike_those_of_training_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.warns(UserWarning, match="their noise is .* trained at 0.01"):
        reconstruct_mri(scan(noise_std=0.3), DEProxMRI(str(path)))
    with pytest.warns(UserWarning, match="trained on images of 16 x 16, the scan has 20 x 20"):
        reconstruct_mri(scan(size=20), DEProxMRI(str(path)))
    with pytest.raises(DataError, match="pyrecon train de-prox"):
        reconstruct_mri(scan(), DEProxMRI())


# --- the general road ----------------------------------------------------------------------------------------------
def test_training_gains_over_the_denoiser_it_begins_with(tmp_path: Path) -> None:
    """A few steps; the curve's first entry is the equilibrium of the denoiser alone."""
    settings = Config(size=16, pool=24, validation=4, width=6, layers=3, validate_every=10)
    settings = settings.changed({"denoiser.steps": 40, "equilibrium.steps": 20, "equilibrium.batch": 4})
    model = train(DEProxTraining, tmp_path / "run", None, settings)
    (_, first), *_, (_, last) = model.card.training["curves"]["equilibrium"]
    assert last > first + 0.3
    assert model.card.data["acceleration"] == 4.0


def test_data_have_the_noise_and_the_sampling_they_are_said_to_have() -> None:
    """Each image with a mask of its own, the same in a step that is taken again, others in the next."""
    config = Config(size=64, noise_std=0.05, acceleration=4.0)
    images = head_phantom((64, 64), batch=3)
    scans = Scans(config, images, images)
    (y, A), (again, _), (other, B) = (scans.measured(images, step) for step in (5, 5, 6))
    noise = (y - A(images))[A.mask.expand(3, 1, 64, 64)[:, 0].bool()]
    assert float(noise.abs().square().mean().sqrt()) == pytest.approx(
        0.05, rel=0.06
    )  # 3,072 complex samples: 1.3 % is a deviation of 1
    assert float(A.mask.float().mean()) == pytest.approx(0.25)
    assert torch.equal(y, again)
    assert not torch.equal(y, other)
    assert len({tuple(mask.flatten().tolist()) for mask in (*A.mask, *B.mask)}) == 6


def test_from_generated_data_to_an_image_by_command(tmp_path: Path) -> None:
    run, raw, image = tmp_path / "run", tmp_path / "scan.h5", tmp_path / "image.npz"
    write_ismrmrd(raw, scan())
    small = [
        "-p",
        "denoiser.steps=4",
        "-p",
        "equilibrium.steps=2",
        "-p",
        "pool=4",
        "-p",
        "width=4",
        "--validation",
        "2",
    ]
    commands = [
        ["train", "de-prox", "-o", str(run), "--size", "16", *small],
        ["reconstruct", str(raw), "-m", "de-prox", "--weights", str(run / "weights.safetensors"), "-o", str(image)],
    ]
    for command in commands:
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 0, found.output
    with np.load(image) as archive:
        by_command = archive["image"]
    expected, _ = reconstruct_mri(scan(), DEProxMRI(str(run / "weights.safetensors")))
    np.testing.assert_allclose(by_command.squeeze(), expected.squeeze().numpy(), rtol=1e-4, atol=1e-3)


def test_table_1_has_both_gradients_beside_the_published_ones(tmp_path: Path) -> None:
    from pyrecon.experiments.ei_deq import PAPER, EIDEQStudy
    from pyrecon.experiments.study import Sizes, reproduce

    class Small(EIDEQStudy):
        def config(self, recipe: Any) -> Any:
            small = {"size": 16, "pool": 4, "validation": 2, "width": 4, "denoiser.steps": 3, "equilibrium.steps": 2}
            return super().config(recipe).changed(small)

    study = Small(tmp_path, sizes=Sizes(2, 0, 0, 0))
    written = dict(reproduce(PAPER, study, {"table": ["1"]}))
    text = (tmp_path / "table-1.md").read_text()
    assert list(written) == [tmp_path / "table-1.md"]
    assert "32.61" in text
    assert "32.51" in text
    assert (tmp_path / "table-1.png").exists()
