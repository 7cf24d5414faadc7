"""Equilibrium models: their equations, gradients, unrolled twins, networks and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrecon._errors import DataError
from pyrecon.implicit import ImplicitGradient, JacobianFree
from pyrecon.linops import Fourier, Identity, LinearOperator
from pyrecon.losses import supervised
from pyrecon.models import DEGrad, DEProx, UNetRefinement
from pyrecon.models.deq import load
from pyrecon.models.weights import Card
from pyrecon.nn import ResidualUNet
from pyrecon.nn._channels import from_channels, to_channels
from pyrecon.nn.unet import steady_weights
from pyrecon.physics.mri import gaussian_lines
from pyrecon.solvers import Picard, Status

SHAPE = (12, 10)


def physics(batch: int = 3, dtype: torch.dtype = torch.float64) -> Fourier:
    return Fourier(gaussian_lines(SHAPE, 2.0, acl=4, batch=batch).to(dtype), SHAPE)


def data(A: Fourier, batch: int = 3, dtype: torch.dtype = torch.complex128) -> Tensor:
    x = torch.randn(batch, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return A(x)


class Shrinking(nn.Module):
    """A network that contracts, so that there is an equilibrium: an untrained one leaves unsampled k-space as it is."""

    def __init__(self, channels: int = 2, **options: Any) -> None:
        super().__init__()
        self.inner = ResidualUNet(channels, 4, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        return 0.8 * self.inner(x)  # type: ignore[no-any-return]


def net(kind: Any = DEProx, tol: float = 1e-10, max_iter: int = 200, **options: Any) -> Any:
    torch.manual_seed(0)
    if "layers" in options:
        return kind(Shrinking(), **options).double()
    return kind(Shrinking(), tol=tol, max_iter=max_iter, **options).double()


class Scaled(LinearOperator):
    """``A x = w x`` with a weight for each pixel, of any kind of image; it has no null space."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.domain_shape = self.range_shape = shape
        generator = torch.Generator().manual_seed(2)
        self.register_buffer("w", 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x  # type: ignore[operator]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.w * y  # type: ignore[operator]


# --- equations -----------------------------------------------------------------------------------------------------
def test_the_image_is_where_the_step_leaves_it() -> None:
    """The docstrings' equations, each sample with a mask of its own."""
    A = physics()
    y = data(A)

    def D(model: Any, x: Tensor) -> Tensor:
        denoised = model.denoiser(torch.view_as_real(x).movedim(-1, 1))
        return torch.view_as_complex(denoised.movedim(1, -1).contiguous())

    for kind, strength in ((DEProx, 1.0), (DEProx, 0.6), (DEGrad, 1.0), (DEGrad, 0.6)):
        model = net(kind, step=0.7, strength=strength)
        found = model.reconstruct(y, A)
        assert (found.status == Status.CONVERGED).all()
        x = found.value
        with torch.no_grad():
            gradient = A.adjoint(A(x) - y)
            if kind is DEProx:
                z = x - 0.7 * gradient
                again = z + strength * (D(model, z) - z)
            else:
                again = x - 0.7 * gradient - 0.7 * strength * (x - D(model, x))
        torch.testing.assert_close(again, x, rtol=0, atol=1e-8)
        torch.testing.assert_close(model(y, A), x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [DEProx, DEGrad])
def test_a_denoiser_that_does_nothing_leaves_least_squares(kind: Any) -> None:
    A, y = physics(), data(physics())
    image = kind(nn.Identity(), tol=1e-12).reconstruct(y, A).value
    torch.testing.assert_close(A(image), y, rtol=0, atol=1e-10)


def test_a_network_alone_sees_the_pseudo_inverse() -> None:
    """D(A^+ y), not D(A^H y): a diagonal operator of other weights than 1."""
    A = Scaled(SHAPE)
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = UNetRefinement(Shrinking(1)).double()
    found = model.reconstruct(A(x), A)
    with torch.no_grad():
        torch.testing.assert_close(found.value, model.denoiser(x[:, None])[:, 0], rtol=0, atol=1e-3)
        assert (found.value - model.denoiser(A.adjoint(A(x))[:, None])[:, 0]).abs().max() > 0.05
    assert torch.equal(model(A(x), A), found.value)
    y = A(x)
    y[1] = torch.nan
    assert model.reconstruct(y, A).status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]


@pytest.mark.parametrize("kind", [DEProx, DEGrad])
@pytest.mark.parametrize("layers", [1, 4])
def test_unrolled_models_are_so_many_steps(kind: Any, layers: int) -> None:
    A = physics()
    y, model = data(A), net(kind, layers=layers, start="pinv", step=0.5)
    x = A.pinv(y)
    for _ in range(layers):
        x = model.step(x, A.adjoint(y), A)
    found = model.reconstruct(y, A)
    torch.testing.assert_close(found.value, x.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(model(y, A), x, rtol=0, atol=1e-12)
    assert found.iterations.tolist() == [layers] * 3
    more = model.reconstruct(y, A, max_iter=layers + 1).value
    torch.testing.assert_close(more, model.step(x, A.adjoint(y), A).detach(), rtol=0, atol=1e-12)


def test_many_layers_come_to_the_equilibrium() -> None:
    A = physics()
    y = data(A)
    fixed = net(solver=Picard(), tol=1e-12, max_iter=400).reconstruct(y, A)
    torch.testing.assert_close(net(layers=400).reconstruct(y, A).value, fixed.value, rtol=0, atol=1e-9)


def test_samples_do_not_see_each_other() -> None:
    """One leaves early, one is no number: the others are what they are alone."""
    A, model = physics(1), net()
    y = data(A)
    y[1] = torch.nan
    y[2] *= 1e-3
    found = model.reconstruct(y, A)
    assert found.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert found.value[1].isnan().all()
    for b in (0, 2):
        torch.testing.assert_close(found.value[b : b + 1], model.reconstruct(y[b : b + 1], A).value, rtol=0, atol=1e-8)


def test_an_equilibrium_that_does_not_exist_has_a_status() -> None:
    """A denoiser that doubles what it sees: no NaN, no hang, DIVERGED or NONFINITE."""

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x + x.square()

    A = physics()
    with pytest.warns(Warning, match="did not converge"):
        found = DEProx(Doubling(), solver=Picard(), max_iter=60).double().reconstruct(data(A), A)
    assert set(found.status.tolist()) <= {Status.DIVERGED, Status.NONFINITE}


@pytest.mark.parametrize("kind", ["real", "complex", "colour"])
def test_every_kind_of_image(kind: str) -> None:
    """Real and complex images, and channels: the result is of the same kind and satisfies the model's equation."""
    shape, channels = ((3, *SHAPE), 3) if kind == "colour" else (SHAPE, 2 if kind == "complex" else 1)
    dtype = torch.complex128 if kind == "complex" else torch.float64
    A = Identity(shape)
    y = torch.randn(2, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for model in (DEProx(Shrinking(channels), tol=1e-11, max_iter=100), UNetRefinement(Shrinking(channels))):
        image = model.double().reconstruct(y, A).value
        assert image.shape == y.shape
        assert image.dtype == dtype
        planes = from_channels(model.denoiser(to_channels(y)), y)
        torch.testing.assert_close(image, planes.detach(), rtol=0, atol=1e-4)


# --- gradients -----------------------------------------------------------------------------------------------------
def differences(model: Any, weight: Tensor, direction: Tensor, y: Tensor, A: LinearOperator, x: Tensor) -> float:
    """The loss's difference quotient along a direction of one tensor of weights."""
    h, values = 1e-6, []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * h * direction
            values.append(float(supervised(model(y, A), x)))
            weight -= sign * h * direction
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [DEProx, DEGrad])
def test_gradients_are_those_of_finite_differences(kind: Any, first: bool) -> None:
    A = physics()
    y, model = data(A), net(kind, 1e-13, gradient=ImplicitGradient(tol=1e-12, max_iter=200), strength=0.8)
    inner = model.denoiser.inner
    weight = inner.down[0].layers[0].weight if first else inner.last.weight
    truth = torch.randn(3, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(4))
    supervised(model(y, A), truth).backward()
    steepest = weight.grad.norm()
    expected = differences(model, weight, weight.grad / steepest, y, A, truth)
    assert float(steepest) == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_the_data() -> None:
    """As virtual measurements need it."""
    A = Identity((4, 4))
    model = DEProx(Shrinking(1), tol=1e-13, max_iter=200, gradient=ImplicitGradient(tol=1e-13, max_iter=200)).double()
    y = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: model(y, A), (y,), atol=1e-6)


@pytest.mark.parametrize("norm", ["spectral", "weight"])
def test_norms_of_weights_hold_still_during_a_solve(norm: Any) -> None:
    """Power iteration goes one step a pass, not one for each of its iterations, and gradients pass the norm."""
    A = physics()
    y = data(A)
    torch.manual_seed(0)
    model = DEProx(Shrinking(2, norm=norm), tol=1e-13, max_iter=200,
                   gradient=ImplicitGradient(tol=1e-12, max_iter=200)).double()  # fmt: skip
    conv: Any = model.denoiser.inner.last
    model.train()
    before = {name: value.clone() for name, value in conv.named_buffers()}
    image = model(y, A)
    if norm == "spectral":
        once = conv.parametrizations.weight[0]
        u, v = before["parametrizations.weight.0._u"], before["parametrizations.weight.0._v"]
        matrix = conv.parametrizations.weight.original.detach().flatten(1)
        u = nn.functional.normalize(matrix @ v, dim=0)
        torch.testing.assert_close(once._u, u, rtol=0, atol=1e-12)
    model.eval()
    with steady_weights(model):
        torch.testing.assert_close(model.step(image, A.adjoint(y), A), image, rtol=0, atol=1e-7)
    truth = torch.randn(3, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(4))
    supervised(model(y, A), truth).backward()
    weight = conv.parametrizations.weight.original if norm == "spectral" else conv.parametrizations.weight.original1
    steepest = weight.grad.norm()
    expected = differences(model, weight, weight.grad / steepest, y, A, truth)
    assert float(steepest) == pytest.approx(expected, rel=1e-5)


def test_options_have_their_effects() -> None:
    A = physics()
    y, base = data(A), net(max_iter=8)
    expected = base.reconstruct(y, A)
    others = [net(max_iter=8, step=0.5), net(max_iter=3), net(max_iter=8, tol=0.3), net(max_iter=8, strength=0.9)]
    others += [net(max_iter=8, solver=Picard()), net(layers=8)]
    for other in others:
        assert not torch.equal(other.reconstruct(y, A).value, expected.value)
    assert torch.equal(base.reconstruct(y, A, max_iter=3).value, net(max_iter=3).reconstruct(y, A).value)
    scaled, x = Scaled(SHAPE), torch.ones(1, *SHAPE, dtype=torch.float64)
    starts = [
        DEProx(Shrinking(1), start=start, max_iter=1, tol=0).double()
        for start in ("adjoint", "pinv")  # type: ignore[arg-type]
    ]
    starts[1].load_state_dict(starts[0].state_dict())
    assert not torch.allclose(*[model.reconstruct(x, scaled).value for model in starts], atol=1e-3)
    grads = []
    for gradient in (ImplicitGradient(tol=1e-10, max_iter=100), JacobianFree()):
        model = net(gradient=gradient)
        model(y, A).abs().square().sum().backward()
        grads.append(model.denoiser.inner.last.weight.grad)
    assert not torch.allclose(*grads, rtol=1e-3)


# --- the network ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (9, 16)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_unets_take_any_size_and_start_near_the_identity(size: tuple[int, int], levels: int) -> None:
    x = torch.randn(2, 3, *size)
    for norm in ("none", "spectral", "weight"):
        for group_norm in (False, True):
            torch.manual_seed(0)
            D = ResidualUNet(3, 8, levels, norm=norm, group_norm=group_norm)  # type: ignore[arg-type]
            y = D(x)
            assert y.shape == x.shape
            assert 0 < float((y - x).norm() / x.norm()) < 0.5


def test_norms_change_the_network() -> None:
    """Spectral norm: every convolution is of norm 1 as a matrix. Group norm: a factor of the input is lost on the
    way. Weight norm: the same function at first, with lengths of its own to learn."""
    torch.manual_seed(0)
    D = ResidualUNet(1, 8, 2, norm="spectral")
    for _ in range(200):
        D(torch.zeros(1, 1, 4, 4))
    D.eval()
    norms = [float(torch.linalg.matrix_norm(m.weight.flatten(1), 2)) for m in D.modules() if isinstance(m, nn.Conv2d)]
    assert norms == pytest.approx([1.0] * len(norms), rel=1e-3)
    nets = {}
    for norm in ("none", "weight"):
        torch.manual_seed(0)
        nets[norm] = ResidualUNet(1, 8, 2, norm=norm)  # type: ignore[arg-type]
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(nets["weight"](x), nets["none"](x))
    count = {norm: sum(p.numel() for p in D.parameters()) for norm, D in nets.items()}
    lengths = sum(m.out_channels for m in nets["none"].modules() if isinstance(m, nn.Conv2d))
    assert count["weight"] - count["none"] == lengths
    grouped = ResidualUNet(1, 8, 1, group_norm=True)
    torch.testing.assert_close(grouped(50 * x) - 50 * x, grouped(100 * x) - 100 * x, rtol=1e-2, atol=1e-3)


def test_its_size_is_the_one_that_is_documented() -> None:
    D = ResidualUNet()
    assert sum(p.numel() for p in D.parameters()) == 28_081
    assert D.config == {"width": 16, "levels": 2, "norm": "none", "group_norm": False}


def test_images_of_all_kinds_become_channels_and_come_back() -> None:
    for shape, dtype, channels in (
        ((2, 4, 5), torch.complex128, 2), ((2, 4, 5), torch.float32, 1), ((2, 3, 4, 5), torch.float64, 3),
    ):  # fmt: skip
        x = torch.randn(shape, dtype=dtype)
        planes = to_channels(x)
        assert planes.shape == (2, channels, 4, 5)
        assert not planes.is_complex()
        assert torch.equal(from_channels(planes, x), x)
    conj = torch.randn(2, 4, 5, dtype=torch.complex64).conj()
    assert torch.equal(from_channels(to_channels(conj), conj), conj)
    for bad in (torch.zeros(2, 3, 4, 5, dtype=torch.complex64), torch.zeros(4, 5)):
        with pytest.raises(ValueError, match=r"image: .*shape"):
            to_channels(bad)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: DEProx("unet"), "denoiser: expected a module, got str"),
        (lambda: UNetRefinement(ResidualUNet), "denoiser: expected a module, got ResidualUNet"),
        (lambda: DEProx(nn.Identity(), step=0.0), "step: 0.0"),
        (lambda: DEGrad(nn.Identity(), strength=0.0), "strength: 0.0"),
        (lambda: DEProx(nn.Identity(), start="zero"), "start: 'zero', expected one of adjoint, pinv"),
        (lambda: DEProx(nn.Identity(), layers=0), "layers: 0"),
        (lambda: DEProx(nn.Identity(), layers=2, gradient=JacobianFree()), "gradient: plays no part"),
        (lambda: DEProx(nn.Identity(), tol=-1.0), "tol: -1"),
        (lambda: DEProx(nn.Identity(), max_iter=0), "max_iter: 0"),
        (lambda: net()(torch.zeros(1, *SHAPE), lambda x: x), "physics: expected a LinearOperator, got function"),
        (lambda: DEProx(nn.Conv2d(1, 2, 1))(torch.zeros(1, 4, 4), Identity((4, 4))), "denoiser: returned shape"),
        (lambda: ResidualUNet(0), "channels: 0"),
        (lambda: ResidualUNet(1, 0), "width: 0"),
        (lambda: ResidualUNet(1, 4, 0), "levels: 0"),
        (lambda: ResidualUNet(1, 4, 17), "levels: 17"),
        (lambda: ResidualUNet(norm="batch"), "norm: 'batch', expected one of none, spectral, weight"),
        (lambda: ResidualUNet(group_norm=1), "group_norm: 1"),
        (lambda: supervised(torch.zeros(2, 3), torch.zeros(3, 2)), "images: shape"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()


# --- weights -------------------------------------------------------------------------------------------------------
def saved(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    model = DEProx(ResidualUNet(2, 4, 2), **({"tol": 1e-4, "max_iter": 30, "step": 0.9} | options))
    model.card = Card("de-prox", "equilibrium", (16, 16), {"noise_std": 0.01}, {"images": "none"})
    model.save(folder / "w.safetensors")
    return folder / "w.safetensors"


def test_weights_come_back_whole(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = DEProx.from_pretrained(path)
    assert (model.step_size, model.tol, model.max_iter, model.layers) == (0.9, 1e-4, 30, None)
    assert model.card is not None
    assert (model.card.model, model.card.shape, model.card.data) == ("de-prox", (16, 16), {"noise_std": 0.01})
    before = path.read_bytes()
    model.save(path)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="holds weights of 'deq-mpi', expected 'de-prox'"):
        DEProx.from_pretrained("deq-mpi-25dB")
    with pytest.raises(DataError, match="holds weights of 'deq-mpi', expected one of de-prox, de-grad, unet"):
        load("deq-mpi-25dB")
    with pytest.raises(DataError, match="class Identity is not ours"):
        DEProx(nn.Identity()).save(path)


@pytest.mark.parametrize("norm", ["none", "spectral", "weight"])
def test_every_model_comes_back_as_itself(tmp_path: Path, norm: Any) -> None:
    A = physics(dtype=torch.float32)
    y, path = data(A, dtype=torch.complex64), tmp_path / "w.safetensors"
    network = ResidualUNet(2, 4, 2, norm=norm, group_norm=True)
    models: list[Any] = [DEProx(network, layers=3), DEProx(network, max_iter=1), UNetRefinement(network)]
    models.append(DEGrad(network, step=0.7, strength=0.5, start="pinv", layers=2))
    for model in models:
        model.eval().save(path)
        again = load(path)
        assert type(again) is type(model)
        assert again._settings() == model._settings()
        found = [m.reconstruct(y, A).value for m in (model, again)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


NETWORK: dict[str, Any] = {"channels": 2, "width": 4, "levels": 2, "norm": "none", "group_norm": False}
LIES: list[dict[str, Any]] = [
    {"max_iter": 0}, {"tol": -1}, {"step": 0}, {"step": "nan"}, {"strength": -1}, {"start": "zero"}, {"layers": 0},
    {"network": "vgg"}, {"more": 1}, {"denoiser": 3}, {"denoiser": {"width": 4}},
    *({"denoiser": NETWORK | other} for other in ({"width": 900}, {"levels": 900}, {"group_norm": 1}, {"norm": "no"})),
]  # fmt: skip


@pytest.mark.parametrize("change", LIES)
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
    with pytest.raises(DataError, match=r"w\.safetensors: (the header is unusable|.* is .*, expected)"):
        DEProx.load(path)
