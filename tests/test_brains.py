"""Random brains for quantitative MRI: reproducible, in the ranges of their tissues, with honest mixed pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import minimum_filter

from pyrecon.data.brains import CLASSES, brains, mixture


def test_brain_i_depends_on_the_seed_and_its_number_alone() -> None:
    many, one = brains(3, (40, 36), seed=4), brains(1, (40, 36), seed=4, first=2)
    for name in ("t1", "m0", "labels", "inside"):
        np.testing.assert_array_equal(getattr(many, name)[2], getattr(one, name)[0])
    assert np.abs(many.m0[0] - many.m0[1]).max() > 0.1
    assert np.abs(brains(1, (40, 36), seed=5, first=2).m0 - one.m0).max() > 0.1


def test_tissues_have_the_values_of_their_class() -> None:
    """Where all neighbours within two pixels are of one class most pixels have it alone; some have a thin sulcus."""
    found = brains(8, (192, 192), seed=1)
    seen = set()
    for i in range(8):
        labels = found.labels[i].astype(int)
        alike = minimum_filter(labels, 5) == -minimum_filter(-labels, 5)
        for k, tissue in enumerate(CLASSES):
            here = (labels == k) & alike
            if not here.any():
                continue
            seen.add(tissue.name)
            low, high = np.quantile(found.t1[i][here], (0.1, 0.9))
            assert low > 0.88 * tissue.t1[0], tissue  # a polynomial of a tenth, and a little of a neighbour
            assert high < 1.12 * tissue.t1[1], tissue
            low, high = np.quantile(np.abs(found.m0[i][here]), (0.1, 0.9))
            assert low > 0.68 * tissue.m0[0], tissue  # and one of three tenths
            assert high < 1.32 * tissue.m0[1] + 0.02, tissue
    assert {"fluid", "grey matter", "white matter"} <= seen
    assert set(range(len(CLASSES))) <= set(np.unique(found.labels).tolist())
    share = found.inside.mean((1, 2))
    assert share.min() > 0.15
    assert share.max() < 0.6


def test_nothing_is_outside_and_numbers_are_finite() -> None:
    found = brains(2, (33, 47), seed=9)
    assert found.t1.shape == found.m0.shape == found.labels.shape == found.inside.shape == (2, 33, 47)
    outside = found.m0 == 0
    assert outside[:, 0, 0].all()
    assert (found.t1[outside] == 1).all()
    assert np.isfinite(found.t1).all()
    assert np.isfinite(found.m0).all()
    assert (found.t1 > 0).all()
    assert (found.labels[found.inside] >= 0).all()
    assert brains(0, (32, 32)).t1.shape == (0, 32, 32)
    for arguments in ((-1, (32, 32)), (1, (32, 0)), (1, (32,))):
        with pytest.raises((ValueError, TypeError)):
            brains(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("i", "t1", "m0", "labels", "inside"),
    [
        (0, 1718.7112143, 16.8484994 + 575.9730775j, 1981, 687),
        (1, 1505.0628682, -144.4871237 + 479.6725367j, 1660, 473),
    ],
)
def test_brains_stay_the_same_numbers(i: int, t1: float, m0: complex, labels: int, inside: int) -> None:
    """Sums as they were when weights were trained on them: before maps were made for other sources too."""
    found = brains(1, (40, 36), seed=4, first=3 + i)
    assert float(found.t1.astype(float).sum()) == pytest.approx(t1, rel=1e-7)
    assert complex(found.m0.astype(complex).sum()) == pytest.approx(m0, rel=1e-6)
    assert int(found.labels.astype(int).sum()) == labels
    assert int(found.inside.sum()) == inside


def test_a_mixture_adds_m0_and_means_rates_by_it() -> None:
    shares = np.array([[[1.0, 0.25, 0.0]], [[0.0, 0.5, 0.0]]])
    density, rate = mixture(shares, np.array([0.5, 2.0]), np.array([1.0, 0.8]))
    np.testing.assert_allclose(density, [[1.0, 0.65, 0.0]])
    np.testing.assert_allclose(rate, [[2.0, (0.25 / 0.5 + 0.4 / 2.0) / 0.65, 1.0]])
