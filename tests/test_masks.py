"""Masks on trajectories and by name: how much they take, what they always take, their symmetry, and the seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyrecon.physics.masks import NAMES, named_mask, radial_points, random_points, spiral_points, spokes
from pyrecon.physics.mri import acceleration

SHAPES = [(64, 64), (65, 48), (128, 96)]


def rate_of(name: str) -> float:
    return float(next(part for part in name.split("-") if part.endswith("x"))[:-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_named_masks_take_what_their_names_say(name: str, shape: tuple[int, int]) -> None:
    mask = named_mask(name, shape, batch=3, seed=5)
    assert mask.dtype == torch.bool
    assert len(mask) == 3
    assert mask.shape[1] == 1
    lines = name.startswith("cartesian")
    expected = [shape[0], 1] if lines else list(shape)
    if name == "cartesian-4x-swapped":
        expected = [1, shape[1]]
    assert list(mask.shape[2:]) == expected
    # Lines and draws are counted exactly; a trajectory by whole spokes, of which the fewest here are 5.
    tolerance = 0.1 if "radial" in name else 0.03
    for one in mask:
        assert acceleration(one[None]) == pytest.approx(rate_of(name), rel=tolerance)
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(mask, named_mask(name, shape, batch=3, seed=5))
    assert not torch.equal(mask, named_mask(name, shape, batch=3, seed=6))


@pytest.mark.parametrize(
    ("name", "share", "axis"),
    [("cartesian-4x", 0.08, 2), ("cartesian-4x-swapped", 0.08, 3), ("cartesian-4x-acl4", 0.04, 2)],
)
def test_lines_of_the_centre_are_there(name: str, share: float, axis: int) -> None:
    shape = (640, 368)
    mask = named_mask(name, shape, batch=2, seed=1)
    n = mask.shape[axis]
    assert n == shape[axis - 2]
    taken = mask.flatten(1)
    size = round(share * n)
    start = n // 2 - size // 2
    assert bool(taken[:, start : start + size].all())
    assert int(taken.sum(1)[0]) == n // 4  # with fewer in the centre as many are taken


def test_the_centre_is_in_all_masks_but_random_points() -> None:
    for name in NAMES:
        mask = named_mask(name, (64, 48), batch=8, seed=0).expand(-1, -1, 64, 48)
        assert bool(mask[:, 0, 32, 24].all()) == (name != "random-3x"), name


def mirrored(mask: Tensor) -> Tensor:
    """k to -k about DC, of even sizes without their first row and column."""
    inner = mask[..., 1 - mask.shape[-2] % 2 :, 1 - mask.shape[-1] % 2 :]
    return inner.flip((-2, -1)) ^ inner


@pytest.mark.parametrize("shape", SHAPES)
def test_spokes_are_diameters(shape: tuple[int, int]) -> None:
    mask = spokes(shape, 9, turn=0.1)
    assert float(mirrored(mask).float().mean()) < 0.01  # points half way between two are rounded to one side
    one = spokes(shape, 1)[0, 0]
    assert bool(one[shape[0] // 2, 1:-1].all())
    assert int(one.sum()) <= shape[1]
    # Half a turn makes the same spokes; on one of nine equal parts of it, too.
    again = spokes(shape, 9, turn=0.1 + math.pi / 9)
    assert float((mask ^ again).float().mean()) < 0.01
    assert float((mask ^ spokes(shape, 9, turn=0.1 + math.pi / 18)).float().mean()) > 0.05


def test_45_spokes_are_the_papers_acceleration() -> None:
    assert acceleration(spokes((320, 320), 45)) == pytest.approx(6.0, abs=0.2)


def test_spirals_are_denser_at_the_centre() -> None:
    def density(mask: Tensor) -> float:
        """Share that the inner square, of a quarter of each axis, takes over that of the whole."""
        n = mask.shape[-1]
        inner = mask[..., 3 * n // 8 : 5 * n // 8, 3 * n // 8 : 5 * n // 8]
        return float(inner.float().mean() / mask.float().mean())

    steep, even = (spiral_points((96, 96), 6.0, power=power) for power in (2.0, 1.0))
    assert density(steep) > 1.3 * density(even) > 1.3 * 0.9
    assert acceleration(steep) == pytest.approx(6.0, rel=0.03)
    four = spiral_points((96, 96), 6.0, arms=4)
    assert not torch.equal(four, spiral_points((96, 96), 6.0))
    assert acceleration(four) == pytest.approx(6.0, rel=0.03)
    # Four arms are alike after a quarter turn: of a square with an odd side exactly, but for what rounding decides.
    odd = spiral_points((95, 95), 6.0, arms=4)[0, 0]
    assert float((odd ^ torch.rot90(odd)).float().mean()) < 0.02


def test_random_points_are_uniform() -> None:
    mask = random_points((32, 32), 3.0, batch=400, seed=2)
    assert bool((mask.flatten(1).sum(1) == round(1024 / 3)).all())
    # Each point is taken in 400/3 masks, deviation sqrt(400 2/9) = 9.4; 5.5 deviations never in 1024 points.
    assert float((mask.float().sum(0) - 400 / 3).abs().max()) < 5.5 * (400 * 2 / 9) ** 0.5


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: named_mask("radial", (8, 8)), ValueError, "name: 'radial'"),
        (lambda: named_mask("radial-6x", (8,)), ValueError, "shape"),  # type: ignore[arg-type]
        (lambda: named_mask("radial-6x", (8, 8), batch=0), ValueError, "batch"),
        (lambda: random_points((8, 8), 65.0), ValueError, "acceleration: 65"),
        (lambda: radial_points((8, 8), 1.0), ValueError, "acceleration: 1"),
        (lambda: spiral_points((8, 8), 4.0, power=0.0), ValueError, "power"),
        (lambda: spiral_points((8, 8), 4.0, arms=0), ValueError, "arms"),
        (lambda: spokes((8, 8), 0), ValueError, "count"),
    ],
)
def test_bad_arguments_are_named(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]
