"""The learned data step as one op, against the same network in modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrecon.nn import LearnedConsistency, RowLayout
from pyrecon.ops import learned_consistency
from pyrecon.testing import record_calls

GRID, USED = (5, 9), 7


def layout() -> RowLayout:
    mask = torch.rand(GRID[0] * GRID[1], generator=torch.Generator().manual_seed(0)) > 0.4
    return RowLayout.from_mask(mask, GRID, USED)


def draw(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = 2 * len(layout().rows)
    v, y = (torch.randn(batch, rows, generator=generator, dtype=torch.float64) for _ in range(2))
    return v, y, torch.linspace(0.3, 2.0, batch, dtype=torch.float64) * rows**0.5


@pytest.mark.parametrize("options", [{}, {"width": 3, "layers": 2, "kernel": 5}], ids=["released", "other"])
@pytest.mark.parametrize("ball", ["paper", "released"])
def test_inference_is_the_network_in_modules(ball: Any, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    net = LearnedConsistency(layout(), ball=ball, **options).double()
    inputs = draw()
    with record_calls() as calls:
        expected = net(*inputs)
    assert not calls
    with torch.no_grad(), record_calls() as calls:
        result = net(*inputs)
    assert [(call.op, call.backend) for call in calls] == [("learned_consistency", "cpp")]
    torch.testing.assert_close(result, expected)


def test_two_dimensional_kernels_stay_modules() -> None:
    net = LearnedConsistency(layout(), dims=2).double()
    with torch.no_grad(), record_calls() as calls:
        net(*draw())
    assert not calls


def test_rows_lie_where_the_grid_has_them() -> None:
    rows, data = layout(), torch.randn(2, 2 * len(layout().rows))
    grid = rows.spread(data).flatten(2)
    inside = rows.places >= 0
    assert not inside.all()
    assert torch.equal(grid[:, :, rows.places[inside]], data.unflatten(1, (2, -1))[:, :, inside])


def test_a_nan_fills_its_sample_and_reaches_no_other() -> None:
    net = LearnedConsistency(layout()).double().requires_grad_(False)
    v, y, radius = draw()
    expected = net(v, y, radius)
    v[1, 3] = torch.nan
    result = net(v, y, radius)
    assert result[1].isnan().all()
    assert torch.equal(result[[0, 2, 3]], expected[[0, 2, 3]])


def test_misuse_is_named() -> None:
    v, y, radius = draw()
    weights, places = torch.zeros(354, dtype=v.dtype), layout().places
    with pytest.raises(ValueError, match="y: shape"):
        learned_consistency(v, y[:2], radius, weights, places, 35)
    with pytest.raises(ValueError, match="the kernel odd"):
        learned_consistency(v, y, radius, weights, places, 35, kernel=2)
    with pytest.raises(ValueError, match=r"weights: shape \(353,\)"):
        learned_consistency(v, y, radius, weights[1:], places, 35)
    with pytest.raises(ValueError, match="places: shape"):
        learned_consistency(v, y, radius, weights, places[1:], 35)
    with pytest.raises(TypeError, match="places: dtype"):
        learned_consistency(v, y, radius, weights, places.int(), 35)
