"""Brains of the average of 152: from nilearn's maps where it is installed, and from a stand-in everywhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyrecon._errors import MissingDependency
from pyrecon.data import mni
from pyrecon.data.brains import CLASSES
from pyrecon.data.mni import mni_brains

_NAMES = [c.name for c in CLASSES]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    mni._tissues.cache_clear()
    yield
    mni._tissues.cache_clear()


@pytest.fixture
def ball(monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """A ball of white matter in grey matter in fluid, and a front (+y) that is all fluid; axes x, y, z."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 36)), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    white, mask = (radius < 0.5).astype(np.float32), (radius < 0.9).astype(np.float32)
    grey = (0.6 * (radius < 0.8) * (1 - white) * (y < 0.5)).astype(np.float32)
    grey[0, 0, 0] = 1  # outside the mask
    package, datasets = ModuleType("nilearn"), ModuleType("nilearn.datasets")
    for name, value in (("gm_template", grey), ("wm_template", white), ("brain_mask", mask)):

        def load(resolution: int, value: Any = value) -> Any:
            assert resolution == 1
            return SimpleNamespace(get_fdata=lambda dtype: value.astype(dtype))

        setattr(datasets, f"load_mni152_{name}", load)
    package.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nilearn", package)
    monkeypatch.setitem(sys.modules, "nilearn.datasets", datasets)
    return mask


def test_shares_are_those_of_the_maps(ball: np.ndarray[Any, Any]) -> None:
    tissues = mni._tissues()
    np.testing.assert_allclose(tissues.sum(0), ball.transpose(2, 1, 0)[:, ::-1], atol=1e-6)
    assert tissues.shape == (3, 36, 48, 40)
    assert tissues[0].max() == pytest.approx(0.6)
    assert tissues[2, 18, :12].sum() > tissues[2, 18, -12:].sum()  # the front is at the top
    found = mni_brains((32, 28), 6)
    seen = {_NAMES[k] for k in np.unique(found.labels) if k >= 0}
    assert seen == {"grey matter", "white matter", "fluid"}
    assert (found.m0[:, 0] == 0).all()
    assert (found.t1[found.m0 == 0] == 1).all()
    np.testing.assert_array_equal(found.inside, found.labels >= 0)


def test_brain_i_depends_on_the_seed_and_its_number_alone(ball: np.ndarray[Any, Any]) -> None:
    many, one = mni_brains((24, 24), 5, seed=2), mni_brains((24, 24), 1, seed=2, first=3)
    for name in ("t1", "m0", "labels", "inside"):
        np.testing.assert_array_equal(getattr(many, name)[3], getattr(one, name)[0])
    other = mni_brains((24, 24), 1, seed=3, first=3)
    np.testing.assert_array_equal(other.inside, one.inside)  # the slice is of the number alone
    assert np.abs(other.t1 - one.t1).max() > 0.01
    areas = mni_brains((24, 24), 16).inside.sum((1, 2))
    assert areas.min() > 0
    assert len(np.unique(areas)) > 4  # slices of the whole ball
    assert mni_brains((24, 24), 0).t1.shape == (0, 24, 24)
    with pytest.raises((ValueError, TypeError)):
        mni_brains((24,), 1)  # type: ignore[arg-type]


def test_without_nilearn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MissingDependency, match=r"needs nilearn: pip install 'pyrecon-imaging\[atlas\]'"):
        mni_brains((32, 32), 1)


@pytest.mark.skipif(importlib.util.find_spec("nilearn") is None, reason="needs nilearn: pip install '.[atlas]'")
def test_the_real_maps() -> None:
    found = mni_brains((96, 96), 8)
    share = found.inside.mean((1, 2))
    assert 0.02 < share.min() < share.max() < 0.8
    matter = [float((found.labels == _NAMES.index(name)).mean()) for name in ("grey matter", "white matter", "fluid")]
    assert matter[0] > matter[2] > 0.005
    assert matter[1] > matter[2]
    for place in (1, 2):
        assert CLASSES[place].t1[0] < np.median(found.t1[found.labels == place]) < CLASSES[place].t1[1]
