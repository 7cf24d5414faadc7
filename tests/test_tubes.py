"""The nine tubes: their T1 to the digit, areas by area, the same phantom for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import minimum_filter

from pyrecon.data.tubes import TUBES, tubes


@pytest.mark.parametrize("background", [None, 3.0])
def test_tubes_have_the_reference_t1(background: float | None) -> None:
    """Pixels with nothing but one tube about them have its T1 to the digit, and all nine tubes have such pixels."""
    found = tubes((192, 192), 2, background=background, seed=3)
    assert found.reference == TUBES == tuple(sorted(TUBES))
    assert len(TUBES) == 9
    for i in range(2):
        for number, t1 in enumerate(TUBES):
            here = found.labels[i] == number
            whole = minimum_filter(here, 3)
            assert here.sum() > 300
            assert whole.sum() > 0.6 * here.sum()
            np.testing.assert_allclose(found.t1[i][whole], t1, rtol=1e-6)
            size = np.abs(found.m0[i][whole])
            assert np.ptp(size) < 1e-5
            assert 0.8 <= size.min() <= size.max() <= 1.0
    np.testing.assert_array_equal(found.inside, found.labels >= 0)
    centre = np.abs(np.arange(192) - 95.5) < 40
    between = minimum_filter(found.labels < 0, (1, 5, 5)) & centre[:, None] & centre
    assert between.sum() > 1000
    np.testing.assert_allclose(found.t1[between], background or 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.abs(found.m0[between]), 1.0 if background else 0.0, rtol=1e-5)


def test_edges_are_mixed_by_area() -> None:
    """M0 over a tube's M0 sums to the area of a disc, on any grid; 1 / T1 of a mixture is the mean by M0."""
    for shape in ((96, 96), (40, 64), (192, 128)):
        found = tubes(shape, 1, seed=2)
        radius = 0.15 * min(shape) / 2
        near = np.abs(found.m0[0])
        for number, t1 in enumerate(TUBES):
            here = (near > 0) & np.isclose(found.t1[0], t1, rtol=1e-5)  # of nothing but this tube, in part or all
            assert near[here].sum() / near[here].max() == pytest.approx(np.pi * radius**2, rel=0.03), number
    wet, dry = (tubes((64, 64), 1, background=b, seed=2) for b in (2.0, None))
    outside = np.abs(wet.m0[0]) - np.abs(dry.m0[0])  # M0 is added
    assert outside.min() > -1e-6
    mixed = (np.abs(dry.m0[0]) > 0.05) & (outside > 0.05)
    rate = (np.abs(dry.m0[0]) / dry.t1[0] + outside / 2.0)[mixed] / np.abs(wet.m0[0])[mixed]
    assert mixed.sum() > 30
    np.testing.assert_allclose(1 / wet.t1[0][mixed], rate, rtol=1e-4)


def test_phantom_i_depends_on_the_seed_and_its_number_alone() -> None:
    many, one = tubes((48, 40), 3, seed=4), tubes((48, 40), seed=4, first=2)
    for name in ("t1", "m0", "labels", "inside"):
        np.testing.assert_array_equal(getattr(many, name)[2], getattr(one, name)[0])
    assert (many.labels[0] != many.labels[1]).any()
    assert (tubes((48, 40), seed=5, first=2).labels != one.labels).any()
    moved = np.argwhere(many.labels[0] >= 0).mean(0) - np.argwhere(many.labels[1] >= 0).mean(0)
    assert np.abs(moved).max() < 2  # slightly
    assert set(np.unique(many.labels)) == set(range(-1, 9))


def test_arguments_are_checked() -> None:
    assert tubes((32, 32), 0).t1.shape == (0, 32, 32)
    for arguments in (((32, 32), -1), ((32, 0),), ((32,),)):
        with pytest.raises((ValueError, TypeError)):
            tubes(*arguments)  # type: ignore[arg-type]
    for background in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="background"):
            tubes((32, 32), background=background)
