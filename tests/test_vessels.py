"""Random vascular trees: Murray's law, the projection of a tube, and what each option of the style does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pyrecon.data.vessels import VesselStyle, _branch_angle, _project, _tree, vascular_images

SIZE = np.array([10.0, 52.0, 26.0])


def vessels(style: VesselStyle, trees: int = 25) -> list[tuple[np.ndarray, np.ndarray, float]]:
    return [vessel for seed in range(trees) for vessel in _tree(np.random.default_rng(seed), SIZE, style)]


def tube(radius: float, depth: float = 5.0, brightness: float = 1.0) -> np.ndarray:
    """The projection of a straight tube along the rows, in the middle of 20 x 21 pixels."""
    fine = np.zeros((20, 21))
    along = np.arange(-5, 25, 0.25)
    points = np.stack([np.full_like(along, depth), along, np.full_like(along, 10.5)], axis=1)
    _project(fine, points, np.full(len(along), radius), brightness, 10)
    return fine


def test_an_image_depends_on_its_seed_and_number_alone() -> None:
    images = vascular_images(6, seed=3)
    assert images.shape == (6, 26, 13)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(vascular_images(2, seed=3), images[:2])
    np.testing.assert_array_equal(vascular_images(2, seed=3, first=4), images[4:])
    assert not np.array_equal(vascular_images(2, seed=4), images[:2])
    assert len({image.tobytes() for image in images}) == 6


def test_images_are_what_was_asked_for() -> None:
    images = vascular_images(40, shape=(7, 9), factor=3, peak=(0.5, 1.5))
    assert images.shape == (40, 7, 9)
    assert np.isfinite(images).all()
    assert (images >= 0).all()
    peaks = images.max(axis=(1, 2))
    assert 0.5 <= peaks.min() < 0.7
    assert 1.3 < peaks.max() <= 1.5
    assert ((images > 0).mean(axis=(1, 2)) >= 0.03).all()
    assert vascular_images(0).shape == (0, 26, 13)
    with pytest.raises(ValueError, match="positive"):
        vascular_images(1, factor=0)


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
def test_branches_balance_the_forces_of_murray(share: float) -> None:
    """Least work: the pulls r^2 of both branches add up to the parent's, along it and across it."""
    parent = 2.0
    radii = parent * share ** (1 / 3), parent * (1 - share) ** (1 / 3)
    angles = _branch_angle(parent, *radii), _branch_angle(parent, *radii[::-1])
    along = sum(r**2 * np.cos(a) for r, a in zip(radii, angles, strict=True))
    assert along == pytest.approx(parent**2)
    assert radii[0] ** 2 * np.sin(angles[0]) == pytest.approx(radii[1] ** 2 * np.sin(angles[1]))
    if share == 0.5:
        assert np.rad2deg(sum(angles)) == pytest.approx(74.9, abs=0.1)  # the known angle of an even fork


def test_flow_is_conserved_where_vessels_branch() -> None:
    """The cubes of the radii: a branch has what its parent lost."""
    style = replace(VesselStyle(), stenosis=0.0, aneurysm=0.0, roots=(1, 1), thinnest=0.35, branching=0.15)
    checked = 0
    for seed in range(8):
        tree = list(_tree(np.random.default_rng(seed), SIZE, style))
        for points, radii, _ in tree:
            lost = -np.diff(radii**3)
            for k in np.flatnonzero(lost > 0):
                children = [r[0] ** 3 for p, r, _ in tree if np.array_equal(p[0], points[k])]
                if np.cbrt(lost[k]) > style.thinnest:
                    assert any(abs(c - lost[k]) < 1e-9 for c in children)
                    checked += 1
    assert checked > 20


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.3])
def test_a_tube_is_as_wide_and_bright_as_it_is(radius: float) -> None:
    image = tube(radius, brightness=0.7)
    np.testing.assert_allclose(image.sum(axis=1), 0.7 * 2 * radius, rtol=0.05)
    assert image[:, 10] == pytest.approx(0.7)
    np.testing.assert_allclose(image, image[:, ::-1], atol=1e-12)


def test_a_tube_leaves_the_slab_gradually() -> None:
    inside, edge, beyond = tube(2.0, depth=5.0), tube(2.0, depth=11.0), tube(2.0, depth=13.0)
    assert inside.sum() > edge.sum() > 0
    assert beyond.sum() == 0
    assert (edge <= inside).all()
    assert 0 < tube(0.25).max() < 0.6  # thinner than a voxel: it fills a part of it


def test_projection_is_a_maximum() -> None:
    fine = np.full((20, 21), 0.5)
    along = np.arange(0, 20, 0.25)
    points = np.stack([np.full_like(along, 5.0), along, np.full_like(along, 10.5)], axis=1)
    _project(fine, points, np.full(len(along), 2.0), 0.4, 10)
    assert (fine == 0.5).all()
    _project(fine, points, np.full(len(along), 2.0), 1.0, 10)
    assert fine.max() == 1.0
    assert fine.min() == 0.5


def test_straight_vessels_are_straight_and_unbranched_ones_single() -> None:
    style = replace(VesselStyle(), tortuosity=0.0, branching=0.0)
    found = vessels(style)
    assert len(found) == 25
    for points, radii, _ in found:
        chord = np.linalg.norm(points[-1] - points[0])
        assert chord == pytest.approx(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
        assert len(points) == len(radii)


def test_every_setting_of_the_style_has_its_effect() -> None:
    plain = VesselStyle(stenosis=0.0, aneurysm=0.0)

    def width(**changes: object) -> float:
        return float(np.mean([r.mean() for _, r, _ in vessels(replace(plain, **changes))]))  # type: ignore[arg-type]

    def bending(**changes: object) -> float:
        turns = [np.diff(p, n=2, axis=0) for p, *_ in vessels(replace(plain, branching=0.0, **changes))]  # type: ignore[arg-type]
        return float(np.mean([np.linalg.norm(t, axis=1).mean() for t in turns if len(t)]))

    assert width(radius=(2.0, 3.0)) > 1.3 * width()
    assert width(stenosis=1.0) < width() < width(aneurysm=1.0)
    assert width(thinnest=0.6) > width()
    assert bending(tortuosity=0.3) > 1.5 * bending()
    assert len(vessels(replace(plain, branching=0.2))) > 1.5 * len(vessels(plain))
    dim = [b for *_, b in vessels(replace(plain, fading=0.05))]
    assert np.mean(dim) < np.mean([b for *_, b in vessels(plain)])
    one, many = (vascular_images(30, style=replace(plain, roots=(n, n))) for n in (1, 5))
    assert (many > 0.1).mean() > 1.5 * (one > 0.1).mean()


def test_memory_makes_bends_longer() -> None:
    """A direction that forgets later turns further: over 20 voxels it ends further from where it began."""

    def turned(memory: float) -> float:
        style = VesselStyle(branching=0.0, memory=memory, radius=(1.0, 1.0), stenosis=0.0, aneurysm=0.0)
        cosines = []
        for points, *_ in vessels(style, trees=80):
            if len(points) > 42:
                a, b = points[1] - points[0], points[41] - points[40]
                cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        return float(np.mean(cosines))

    assert turned(1.0) > turned(12.0) + 0.1
