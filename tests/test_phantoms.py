"""Phantoms: sizes against geometry, seeds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data import phantoms
from pyrecon.data.raw import Grid

FINE = Grid((520, 260), (0.1e-3, 0.1e-3), (0.0, 0.0))
MEDIUM = Grid((52, 26), (1e-3, 1e-3), (0.0, 0.0))
COARSE = Grid((26, 13), (2e-3, 2e-3), (0.0, 0.0))


def area(image: NDArray[np.float32], grid: Grid) -> float:
    return float(image.sum(dtype=np.float64)) * grid.spacing[0] * grid.spacing[1]


# --- shapes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grid", [MEDIUM, COARSE, FINE])
@pytest.mark.parametrize("hole", [1e-3, 2e-3, 3e-3])
def test_torus_has_its_area_and_place(grid: Grid, hole: float) -> None:
    image = phantoms.torus(grid, hole=hole, center=(7e-3, -3e-3))
    assert image.shape == grid.shape
    assert image.dtype == np.float32
    assert image.min() == 0
    assert image.max() <= 1
    # points 0.1 mm apart: the edge, 2 pi r long, is uncertain by a fraction of that
    np.testing.assert_allclose(area(image, grid), np.pi / 4 * ((hole + 4e-3) ** 2 - hole**2), rtol=0.01)
    centroid = image.ravel() @ grid.coordinates() / image.sum()
    np.testing.assert_allclose(centroid, [7e-3, -3e-3], atol=0.02e-3)


def test_torus_has_a_hole() -> None:
    image = phantoms.torus(FINE, hole=2e-3, outer=5e-3, center=(0.0, 0.0))
    radius = np.hypot(*FINE.coordinates().T).reshape(FINE.shape)
    np.testing.assert_array_equal(image, (radius >= 1e-3) & (radius <= 2.5e-3))


def test_a_coarse_phantom_is_the_mean_of_a_fine_one() -> None:
    for draw in (phantoms.torus, phantoms.two_tubes, phantoms.y_shape):
        fine = draw(FINE)  # type: ignore[operator]
        np.testing.assert_allclose(draw(COARSE), fine.reshape(26, 20, 13, 20).mean((1, 3)), atol=1e-6)  # type: ignore[operator]


def test_two_tubes() -> None:
    image = phantoms.two_tubes(MEDIUM)
    assert np.isclose(area(image, MEDIUM), 2 * 20e-3 * 4e-3)
    across = image[26]  # two bars of 4 mm, 8 mm apart from axis to axis: x from -6 to -2 mm and from 2 to 6 mm
    np.testing.assert_array_equal(np.flatnonzero(across), [7, 8, 9, 10, 15, 16, 17, 18])
    assert np.flatnonzero(image[:, 8]).size == 20
    square = Grid((40, 40), (1e-3, 1e-3), (0.0, 0.0))
    turned = phantoms.two_tubes(square, angle=np.pi / 2)
    np.testing.assert_allclose(turned, phantoms.two_tubes(square).T, atol=0.1)  # points on an edge may change sides


def test_y_shape_has_its_bubble_and_gap() -> None:
    full = phantoms.y_shape(FINE, bubble=0.0)
    image = phantoms.y_shape(FINE)
    np.testing.assert_allclose(area(full, FINE) - area(image, FINE), np.pi * (1.1e-3) ** 2, rtol=0.02)
    np.testing.assert_array_equal(image, image[:, ::-1])
    y = FINE.coordinates()[:, 0].reshape(FINE.shape)[:, 0]
    occupied = y[image.any(axis=1)]
    np.testing.assert_allclose(occupied.max(), 8.8e-3, atol=0.1e-3)  # the stem's end
    # The uppermost row shows the inner corners of the arms, where they end: 3.5 mm apart.
    first = np.flatnonzero(image.any(axis=1))[0]
    columns = np.flatnonzero(image[first])
    inner = np.diff(columns).max() * 0.1e-3
    np.testing.assert_allclose(inner, 3.5e-3, atol=0.3e-3)
    upside_down = phantoms.y_shape(FINE, angle=np.pi)
    assert np.abs(upside_down - image[::-1]).mean() < 1e-3


def test_a_grid_off_centre_moves_the_window_and_not_the_phantom() -> None:
    moved = Grid((52, 26), (1e-3, 1e-3), (3e-3, -2e-3))
    image = phantoms.two_tubes(moved)
    np.testing.assert_array_equal(image[:-3, 2:], phantoms.two_tubes(MEDIUM)[3:, :-2])


# --- vessels ------------------------------------------------------------------------------------------------------
def volume_with_a_vessel() -> NDArray[np.float32]:
    """A helix of radius 2.5 voxels in 40 x 80 x 60: the generated stand-in for an angiogram."""
    z, y, x = np.mgrid[:40, :80, :60].astype(np.float32)
    distance = np.full(z.shape, np.inf, np.float32)
    for t in np.linspace(0, 4 * np.pi, 300):
        centre = (5 + 2.4 * t, 40 + 25 * np.cos(t), 30 + 20 * np.sin(t))
        distance = np.minimum(distance, np.sqrt(sum((a - b) ** 2 for a, b in zip((z, y, x), centre, strict=True))))
    return np.clip(3.0 - distance, 0, 1) * 200


def test_patches_are_projections_of_blocks() -> None:
    block = volume_with_a_vessel()[15:25, 10:62, 5:31] - 1.0  # one patch fits, so the draw has no choice
    (image,) = phantoms.vessel_patches(block, 1)
    projection = block.max(axis=0).clip(min=0).reshape(26, 2, 13, 2).mean((1, 3))
    np.testing.assert_allclose(image / image.max(), projection / projection.max(), rtol=1e-6, atol=1e-7)


def test_patches_are_filled_scaled_and_repeatable() -> None:
    volume = volume_with_a_vessel()
    images = phantoms.vessel_patches(volume, 60, seed=1)
    assert images.shape == (60, 26, 13)
    assert images.dtype == np.float32
    peaks = images.max(axis=(1, 2))
    assert peaks.min() >= 0.5
    assert peaks.max() <= 1.5
    assert abs(peaks.mean() - 1) < 4.5 * (1 / np.sqrt(12)) / np.sqrt(60)
    assert images.min() >= 0
    np.testing.assert_array_equal(images, phantoms.vessel_patches(volume, 60, seed=1))
    assert not np.array_equal(images, phantoms.vessel_patches(volume, 60, seed=2))
    assert phantoms.vessel_patches(volume, 2, shape=(20, 11), factor=1, depth=3).shape == (2, 20, 11)
    # the share of bright pixels that was asked for, at the volume's scale
    sparse = phantoms.vessel_patches(volume, 60, filled=0.0, seed=1)
    assert (images > 0).mean() > (sparse > 0).mean()


def test_impossible_patches_are_refused() -> None:
    with pytest.raises(DataError, match="lower level or filled"):
        phantoms.vessel_patches(np.zeros((12, 60, 40)), 2)
    with pytest.raises(ValueError, match="volume"):
        phantoms.vessel_patches(np.ones((12, 60)), 1)
    with pytest.raises(ValueError, match="count"):
        phantoms.vessel_patches(np.ones((12, 60, 40)), 0)
    with pytest.raises(ValueError, match="patch"):
        phantoms.vessel_patches(np.ones((12, 60, 20)), 1)


def test_retina_tree_marks_the_dark_vessels() -> None:
    skimage_data = pytest.importorskip("skimage.data")
    tree = phantoms.retina_tree()
    assert tree.shape == (1411, 1411)
    assert tree.min() == 0
    assert tree.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        tree[0, 0] = 1
    green = skimage_data.retina()[..., 1].astype(float)
    inner = np.s_[300:1100, 400:1200]  # away from the rim and the bright disc
    assert green[inner][tree[inner] > 0.3].mean() < green[inner][tree[inner] < 0.02].mean() - 10
    assert 0.02 < (tree > 0.3).mean() < 0.1


def test_retina_crops() -> None:
    pytest.importorskip("skimage")
    images = phantoms.retina_vessels((104, 52), 12, seed=4)
    assert images.shape == (12, 104, 52)
    assert images.dtype == np.float32
    peaks = images.max(axis=(1, 2))
    assert peaks.min() >= 0.5
    assert peaks.max() <= 1.5
    assert len(np.unique(peaks)) == 12
    np.testing.assert_array_equal(images, phantoms.retina_vessels((104, 52), 12, seed=4))
    assert not np.array_equal(images, phantoms.retina_vessels((104, 52), 12, seed=5))
    # fewer pixels of the photograph in one of the crop: wider vessels
    wide = phantoms.retina_vessels((104, 52), 12, pixels=1, seed=4)

    def roughness(stack: NDArray[np.float32]) -> float:
        return float(np.mean([np.abs(np.diff(i, axis=0)).mean() / i.mean() for i in stack]))

    assert roughness(wide) < roughness(images)
    with pytest.raises(ValueError, match="shape"):
        phantoms.retina_vessels((800, 400), 1)


def test_retina_crops_come_in_every_orientation() -> None:
    pytest.importorskip("skimage")
    tree = phantoms.retina_tree()[::10, ::10]
    whole = phantoms.retina_vessels((1411, 1411), 12, pixels=1, filled=0.0)[:, ::10, ::10]
    eight = [np.rot90(t, k) for t in (tree, tree[:, ::-1]) for k in range(4)]
    found = [int(np.argmin([np.abs(image / image.max() - t).sum() for t in eight])) for image in whole]
    assert len(set(found)) > 4  # turns alone give four, mirror images alone two


# --- a head -------------------------------------------------------------------------------------------------------
def test_shepp_logan_contrasts() -> None:
    pytest.importorskip("skimage")
    t2 = phantoms.shepp_logan((200, 200))
    t1 = phantoms.shepp_logan((200, 200), repetition_time=0.5, echo_time=0.01)
    density = phantoms.shepp_logan((200, 200), repetition_time=1e3, echo_time=0.0)
    brain, ventricle, outside = (140, 60), (100, 80), (5, 5)
    for image in (t1, t2, density):
        assert image.shape == (200, 200)
        assert image[outside] == 0
    assert t2[ventricle] > 1.5 * t2[brain]
    assert t1[ventricle] < 0.5 * t1[brain]
    np.testing.assert_allclose(density[ventricle], 1.0, rtol=1e-5)
    np.testing.assert_allclose(t2[ventricle], (1 - np.exp(-3.0 / 4.0)) * np.exp(-0.09 / 2.0), rtol=1e-5)
    across = t1[100]  # scalp, brain, ventricle, brain, ventricle, brain, scalp
    head = np.flatnonzero(across > 0.01)
    assert min(abs(int(across.argmax()) - edge) for edge in (head[0], head[-1])) < 6
    assert phantoms.shepp_logan((64, 48)).shape == (64, 48)
