"""Groups of transforms: exact elements, inverses, gradients, draws; whether an operator commutes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon.linops import Fourier, Identity, LinearOperator
from pyrecon.physics.mri import gaussian_lines
from pyrecon.transforms import Flips, Group, Product, QuarterTurns, Rotations, Shifts, commutes

GROUPS = [Rotations(), QuarterTurns(), Shifts(), Shifts(2), Flips(), Product(QuarterTurns(), Shifts(), Flips())]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(kind: str = "complex", size: int = 12, batch: int = 5) -> Tensor:
    shape = (batch, 2, size, size) if kind == "channels" else (batch, size, size)
    dtype = torch.complex128 if kind == "complex" else torch.float64
    return torch.randn(shape, dtype=dtype, generator=seeded(1))


def smooth(size: int = 64) -> Tensor:
    """A few blobs off the centre, well inside the inscribed circle."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size, dtype=torch.float64)] * 2, indexing="ij")
    blobs = [(0.3, 0.2, 1.0), (-0.2, 0.35, 0.5), (0.1, -0.4, 0.8)]
    total: Tensor = sum(h * torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.02) for a, b, h in blobs)  # type: ignore[assignment]
    return total[None]


@pytest.mark.parametrize("kind", ["real", "complex", "channels"])
@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_one_element_per_sample_of_every_kind_of_image(group: Group, kind: str) -> None:
    """The element of a sample does not depend on the others; inverses undo; the same seed draws the same."""
    x = images(kind)
    element = group.draw(x, seeded())
    moved = element(x)
    assert moved.shape == x.shape
    assert moved.dtype == x.dtype
    assert torch.equal(group.draw(x, seeded())(x), moved)
    assert not torch.equal(group.draw(x, seeded(5))(x), moved)
    other = x.clone()
    other[0] = 0
    assert torch.equal(element(other)[1:], moved[1:])
    assert len({tuple(row.flatten().tolist()) for row in element(x[:1].real.expand_as(x).to(x.dtype))}) > 1
    if element.inverse is None:
        assert isinstance(group, Rotations)
    else:
        assert torch.equal(element.inverse(moved), x)
        torch.testing.assert_close(
            torch.linalg.vector_norm(moved), torch.linalg.vector_norm(x), rtol=1e-14, atol=0
        )  # unitary


@pytest.mark.parametrize("group", [Rotations(), Rotations(interpolation="bilinear"), *GROUPS[1:]], ids=repr)
def test_gradients_are_those_of_finite_differences(group: Group) -> None:
    x = images("channels", 4, 2).requires_grad_()
    element = group.draw(x, seeded())
    assert torch.autograd.gradcheck(element, (x,))


def test_quarter_turns_are_counterclockwise_and_equal_rotations_by_90_degrees() -> None:
    x = images()
    turned = QuarterTurns().by(torch.tensor([0, 1, 2, 3, 4]))(x)
    for b, k in enumerate((0, 1, 2, 3, 0)):
        np.testing.assert_array_equal(turned[b].numpy(), np.rot90(x[b].numpy(), k))
    assert torch.equal(Rotations().by(torch.tensor([0.0, 90.0, 180.0, 270.0, 360.0]))(x), turned)
    # By interpolation, beside an angle that is not exact, the same up to rounding of the grid.
    angles = torch.tensor([0.0, 90.0, 180.0, 270.0, 45.0])
    for interpolation in ("bilinear", "bicubic"):
        found = Rotations(interpolation=interpolation).by(angles)(x)  # type: ignore[arg-type]
        torch.testing.assert_close(found[:4], turned[:4], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("interpolation", "least"), [("bilinear", 33.0), ("bicubic", 46.0)])
def test_rotations_of_smooth_images_add_up(interpolation: Any, least: float) -> None:
    """Three times 30 degrees are a quarter turn, to what interpolation leaves (measured 35.4 and 48.6 dB)."""
    x = smooth()
    turn = Rotations(interpolation=interpolation).by(30.0)
    error = (turn(turn(turn(x))) - x.rot90(1, (-2, -1))).square().mean()
    assert -10 * float(torch.log10(error / x.max().square())) > least


def test_angles_are_drawn_alike() -> None:
    """All multiples of the step, none more often than chance allows (6 deviations)."""
    x = torch.zeros(9000, 2, 2, dtype=torch.float64)
    drawn: list[Tensor] = []
    group = Rotations(step=40)
    original = Rotations.by
    try:
        Rotations.by = lambda self, degrees: drawn.append(degrees) or original(self, degrees)  # type: ignore[method-assign,assignment,func-returns-value]
        group.draw(x, seeded())
    finally:
        Rotations.by = original  # type: ignore[method-assign]
    values, counts = torch.unique(drawn[0], return_counts=True)
    assert values.tolist() == list(range(0, 360, 40))
    assert int((counts - 1000).abs().max()) < 6 * 1000**0.5


def test_shifts_and_flips_are_what_they_say() -> None:
    x = images(batch=2)
    moved = Shifts().by(torch.tensor([[1, 0], [0, -2]]))(x)
    assert torch.equal(moved[0], x[0].roll(1, 0))
    assert torch.equal(moved[1], x[1].roll(-2, 1))
    flipped = Flips().by(torch.tensor([[True, False], [False, True]]))(x)
    assert torch.equal(flipped[0], x[0].flip(0))
    assert torch.equal(flipped[1], x[1].flip(1))
    small = Shifts(1).draw(images(batch=200))
    spot = torch.zeros(200, 12, 12, dtype=torch.float64)
    spot[:, 6, 6] = 1
    reached = small(spot).sum(0).nonzero().tolist()
    assert reached == [[a, b] for a in (5, 6, 7) for b in (5, 6, 7)]


# --- operators that commute ------------------------------------------------------------------------------------------
class Convolution(LinearOperator):
    """By a periodic kernel that a quarter turn leaves alone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.domain_shape = self.range_shape = (size, size)
        f = torch.fft.fftfreq(size, dtype=torch.float64)
        self.transfer = torch.exp(-8 * (f[:, None] ** 2 + f[None] ** 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft2(self.transfer * torch.fft.fft2(x)).real

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)


def test_operators_that_commute_are_found() -> None:
    """Sampled Fourier transforms are convolutions, so shifts teach nothing of them, and rotations do."""
    like = torch.zeros(2, 32, 32, dtype=torch.complex128)
    mri = Fourier(gaussian_lines((32, 32), 4.0, acl=4).double(), (32, 32))
    assert commutes(mri, Shifts(), like)
    assert not commutes(mri, Rotations(), like)
    assert not commutes(mri, QuarterTurns(), like)
    assert not commutes(mri, Product(Shifts(), QuarterTurns()), like)
    assert commutes(Convolution(32), Product(QuarterTurns(), Flips(), Shifts()), like.real)
    for group in (Rotations(), Rotations(interpolation="bilinear"), *GROUPS):
        assert commutes(Identity((32, 32)), group, like)
    # Judged by the tolerance: rotations of a round blur commute but for what interpolation does to the images.
    assert commutes(Convolution(32), Rotations(), like.real)
    assert not commutes(Convolution(32), Rotations(interpolation="bilinear"), like.real, tol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Rotations().draw(torch.zeros(1, 4, 6)), "images: of 4 x 6 pixels, rotations take square ones"),
        (lambda: QuarterTurns().by(1)(torch.zeros(1, 4, 6)), "images: of 4 x 6 pixels"),
        (lambda: QuarterTurns().draw(torch.zeros(1, 4, 6)), "images: of 4 x 6 pixels"),
        (lambda: Shifts().draw(torch.zeros(4, 6)), r"images: shape \(4, 6\)"),
        (lambda: Flips().draw(torch.zeros(2, 4, 6))(torch.zeros(3, 4, 6)), "images: 3 samples, .* drawn for 2"),
        (lambda: Rotations(0), "Rotations: step: 0"),
        (lambda: Rotations(1.5), "Rotations: step: 1.5"),  # type: ignore[arg-type]
        (lambda: Rotations(interpolation="cubic"), "interpolation='cubic'"),  # type: ignore[arg-type]
        (lambda: Shifts(0), "Shifts: most: 0"),
        (lambda: Product(), "groups: expected one or more"),
        (lambda: Product(Rotations), "groups: expected one or more"),  # type: ignore[arg-type]
        (lambda: Rotations().draw(torch.zeros(1, 4, 4, dtype=torch.int64)), "images: dtype int64"),
        (lambda: commutes(torch.relu, Shifts(), torch.zeros(1, 4, 4)), "physics: expected a LinearOperator"),  # type: ignore[arg-type]
        (lambda: commutes(Identity((4, 4)), "shifts", torch.zeros(1, 4, 4)), "group: expected a group"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()
