"""Losses without ground truth: their expectations, their gradients through several passes, their options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrecon.implicit import ImplicitGradient, JacobianFree
from pyrecon.linops import Fourier, Identity, LinearOperator
from pyrecon.losses import equivariance, equivariant_imaging, measurement_consistency, supervised, sure
from pyrecon.models import DEGrad, DEProx
from pyrecon.nn import ResidualUNet
from pyrecon.physics.mri import gaussian_lines
from pyrecon.transforms import QuarterTurns, Rotations, Shifts

SIZE = 10


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mri() -> Fourier:
    return Fourier(gaussian_lines((SIZE, SIZE), 2.0, acl=4).double(), (SIZE, SIZE))


def images(batch: int = 2, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(batch, SIZE, SIZE, dtype=dtype, generator=seeded(1))


class Wiener(nn.Module):
    """``f(y) = g A^H y``, whose divergence is known: g per sample that A sees."""

    def __init__(self, gain: float = 0.6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, y: Tensor, physics: LinearOperator) -> Tensor:
        return self.gain * physics.adjoint(y)


class Rows(LinearOperator):
    """Real data: every other row."""

    domain_shape, range_shape = (SIZE, SIZE), (SIZE // 2, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), SIZE, SIZE)
        x[:, ::2] = y
        return x


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_sure_is_the_error_that_is_not_seen(kind: str) -> None:
    """Its mean over the noise is ``mean |A f(y) - A x|^2``, in which y does not appear; without the divergence it is
    not. 4,000 draws: the mean of both is known to 3 %, the term is 12 times that."""
    A: Any = mri() if kind == "complex" else Rows()
    batch, std = 4000, 0.3
    x = images(1, torch.complex128 if kind == "complex" else torch.float64).expand(batch, SIZE, SIZE)
    where = A.mask[:, 0].expand(1, SIZE, SIZE) if kind == "complex" else torch.ones(1, SIZE // 2, SIZE)
    y = A(x) + std * where * torch.randn(A(x).shape, dtype=x.dtype, generator=seeded(2))
    model = Wiener()
    with torch.no_grad():
        found = sure(model, model(y, A), y, A, std * where, probe=0.1, generator=seeded(3))
        truth = (A(model(y, A)) - A(x)).abs().square().mean()
        naive = measurement_consistency(model(y, A), y, A) - (std * where).square().mean()
    assert float(found) == pytest.approx(float(truth), rel=0.03)
    assert abs(float(naive) - float(truth)) > 0.3 * float(truth)


def test_sure_does_not_depend_on_the_probe_where_f_is_linear() -> None:
    A, model = mri(), Wiener()
    y = A(images())
    values = [float(sure(model, model(y, A), y, A, 0.1, probe=p, generator=seeded()).detach()) for p in (1e-3, 1.0)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    curved = lambda y, A: (Wiener()(y, A)).abs().square() + 0j  # noqa: E731
    values = [float(sure(curved, curved(y, A), y, A, 0.1, probe=p, generator=seeded()).detach()) for p in (1e-3, 1.0)]
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_a_model_that_is_equivariant_has_no_loss() -> None:
    """The identity is; a model that sees the top half only is not."""
    A, x = Identity((SIZE, SIZE)), images(dtype=torch.float64)
    assert float(equivariance(lambda y, A: y, x, A, Rotations(), generator=seeded())) == 0
    half = torch.ones(SIZE, SIZE, dtype=torch.float64)
    half[SIZE // 2 :] = 0
    assert float(equivariance(lambda y, A: half * y, x, A, QuarterTurns(), generator=seeded())) > 0.1


def test_noise_on_virtual_measurements_has_the_level_that_is_asked_for() -> None:
    """f = id: what is left is the noise, ``E|n|^2 = std^2`` of a complex sample (20,000 samples: 4 deviations)."""
    A = Identity((SIZE, SIZE))
    for dtype in (torch.complex128, torch.float64):
        found = equivariance(lambda y, A: y, images(200, dtype), A, Shifts(), noise_std=0.3, generator=seeded())
        assert float(found) == pytest.approx(0.09, rel=4 * 2**0.5 / 20_000**0.5)
    level = torch.zeros(SIZE, SIZE)
    level[0, 0] = 1.0
    found = equivariance(lambda y, A: y, images(200), A, Shifts(), noise_std=level, generator=seeded())
    assert float(found) == pytest.approx(0.01, rel=0.3)


def test_more_transforms_are_a_mean() -> None:
    A, x, model = mri(), images(), Wiener()
    one = equivariance(model, x, A, QuarterTurns(), transforms=1, generator=seeded())
    three = equivariance(model, x, A, QuarterTurns(), transforms=3, generator=seeded())
    generator = seeded()
    each = [equivariance(model, x, A, QuarterTurns(), generator=generator) for _ in range(3)]
    assert float(three) == pytest.approx(float(sum(each)) / 3, rel=1e-12)
    assert float(one) != float(three)


@pytest.mark.parametrize("kind", [DEProx, DEGrad])
@pytest.mark.parametrize("robust", [False, True])
def test_gradients_of_several_passes_are_those_of_finite_differences(kind: Any, robust: bool) -> None:
    """Two or three passes through the equilibrium in one loss; the Jacobian-free gradient is another."""
    A = mri()
    y = A(images())
    grads, values = [], []
    for gradient in (ImplicitGradient(tol=1e-12, max_iter=300), JacobianFree()):
        torch.manual_seed(0)
        net = ResidualUNet(2, 4, 2).double()
        model = kind(_Shrunk(net), step=0.9, tol=1e-13, max_iter=300, gradient=gradient)

        def loss(model: Any = model) -> Tensor:
            return equivariant_imaging(
                model, y, A, QuarterTurns(), weight=0.7, noise_std=0.1, robust=robust, generator=seeded()
            )

        loss().backward()
        weight = net.last.weight
        assert weight.grad is not None
        grads.append(float(weight.grad[1, 2, 0, 1]))
        h = 1e-5
        with torch.no_grad():
            for sign in (1, -1):
                weight[1, 2, 0, 1] += sign * h
                values.append(float(loss()))
                weight[1, 2, 0, 1] -= sign * h
    quotient = (values[0] - values[1]) / (2 * h)
    assert grads[0] == pytest.approx(quotient, rel=1e-5)
    assert grads[1] != pytest.approx(quotient, rel=1e-2)


class _Shrunk(nn.Module):
    """A denoiser that contracts, so that there is an equilibrium."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 0.7 * self.inner(x)  # type: ignore[no-any-return]


def test_equivariant_imaging_adds_its_parts_up() -> None:
    A, model = mri(), Wiener()
    y = A(images())
    x = model(y, A)
    data = measurement_consistency(x, y, A)
    part = equivariance(model, x, A, QuarterTurns(), noise_std=0.1, generator=seeded())
    whole = equivariant_imaging(model, y, A, QuarterTurns(), weight=2.0, noise_std=0.1, generator=seeded())
    assert float(whole) == pytest.approx(float(data + 2 * part), rel=1e-12)
    assert float(equivariant_imaging(model, y, A, QuarterTurns(), weight=0)) == pytest.approx(float(data))
    robust = equivariant_imaging(model, y, A, QuarterTurns(), weight=0, noise_std=0.1, robust=True, generator=seeded())
    assert float(robust) == pytest.approx(float(sure(model, x, y, A, 0.1, generator=seeded())), rel=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda A, y: supervised(y, y[:1]), "images: shape"),
        (lambda A, y: measurement_consistency(y[:, :3], y, A), "x: shape"),
        (lambda A, y: measurement_consistency(y, y, 3), "physics: expected a function"),
        (lambda A, y: measurement_consistency(y, y, lambda x: x[:1]), "physics: returned shape"),
        (lambda A, y: equivariance(Wiener(), y, A, "turns"), "group: expected a group"),
        (lambda A, y: equivariance(Wiener(), y, A, Shifts(), noise_std=-1.0), "noise_std: -1"),
        (lambda A, y: equivariance(Wiener(), y, A, Shifts(), noise_std=torch.ones(3)), r"noise_std: shape \(3,\)"),
        (lambda A, y: equivariance(Wiener(), y, A, Shifts(), transforms=0), "transforms: 0"),
        (lambda A, y: equivariance(lambda y, A: y[:1], y, A, Shifts()), "model: returned shape"),
        (lambda A, y: sure(Wiener(), y, y, A, 0.1, probe=0.0), "probe: 0"),
        (lambda A, y: equivariant_imaging(Wiener(), y, A, Shifts(), robust=True), "noise_std: 0, robust"),
        (lambda A, y: equivariant_imaging(Wiener(), y, A, Shifts(), weight=-1.0), "weight: -1"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    A = mri()
    with pytest.raises((ValueError, TypeError), match=said):
        call(A, A(images()))
