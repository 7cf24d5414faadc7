"""Random vascular trees: Murray's law, the projection of a tube, what each option of the style does, and whether the
images are like patches of angiograms."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from pyrecon.data.vessels import VesselStyle, _branch_angle, _kept, _project, _tree, vascular_images

SIZE = np.array([10.0, 52.0, 26.0])
PLAIN = VesselStyle.plain()
# Lowest and highest of 1000 patches each of the two halves of a CT angiogram and of a retina's vessels; for the first
# two also of patches, chosen otherwise, of that angiogram (0.51, 0.009) and of an MR angiogram (0.47, 0.006). Plain
# vessels: 0.68, 0.027, 0.12, 0.22, 0.12, 0.053, 0.6, 0.74, 0.42, 0.24.
REAL = {
    "gradient": (0.47, 0.85),
    "fine": (0.006, 0.055),
    "mean": (0.064, 0.098),
    "covered": (0.14, 0.21),
    "bright": (0.050, 0.078),
    "full": (0.018, 0.030),
    "specks": (3.7, 6.4),
    "lag 1": (0.60, 0.81),
    "lag 2": (0.22, 0.56),
    "lag 3": (0.11, 0.39),
}


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
    with pytest.raises(ValueError, match="style: 1000 patches in a row were almost empty"):
        vascular_images(1, shape=(4, 3), style=VesselStyle(threshold=(2.0, 2.0), haze=0.0))


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
    style = replace(PLAIN, stenosis=0.0, aneurysm=0.0, roots=(1, 1), thinnest=0.35, branching=0.15)
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
    style = replace(PLAIN, tortuosity=0.0, branching=0.0)
    found = vessels(style)
    assert len(found) == 25
    for points, radii, _ in found:
        chord = np.linalg.norm(points[-1] - points[0])
        assert chord == pytest.approx(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
        assert len(points) == len(radii)


def test_every_setting_of_the_trees_has_its_effect() -> None:
    plain = replace(PLAIN, stenosis=0.0, aneurysm=0.0)

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
        style = replace(PLAIN, branching=0.0, memory=memory, radius=(1.0, 1.0), stenosis=0.0, aneurysm=0.0)
        cosines = []
        for points, *_ in vessels(style, trees=80):
            if len(points) > 42:
                a, b = points[1] - points[0], points[41] - points[40]
                cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        return float(np.mean(cosines))

    assert turned(1.0) > turned(12.0) + 0.1


# --- how vessels look ---------------------------------------------------------------------------------------------
def test_plain_vessels_are_those_of_the_weights_that_ship() -> None:
    """The images that the weights that ship were trained on: a few of their numbers, written down then."""
    images = vascular_images(4, seed=3, style=PLAIN)
    np.testing.assert_allclose(images.sum(axis=(1, 2)), [53.70406, 47.74661, 45.08936, 9.970825], rtol=1e-5)
    np.testing.assert_allclose(images.max(axis=(1, 2)), [1.350424, 0.8694170, 1.368627, 0.6855571], rtol=1e-5)
    assert ((images > 0).sum(axis=(1, 2)) == [122, 126, 98, 32]).all()


def looks(images: np.ndarray) -> dict[str, float]:
    """Statistics of images that are brought to peak 1."""
    images = images.astype(float) / images.max(axis=(1, 2), keepdims=True)
    steps = [np.abs(np.diff(images, axis=axis)).mean() for axis in (1, 2)]
    frequency = np.hypot(np.fft.fftfreq(images.shape[1])[:, None], np.fft.fftfreq(images.shape[2]))
    power = np.abs(np.fft.fft2(images - images.mean(axis=(1, 2), keepdims=True))) ** 2
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    covered = (images > 0.1).mean(axis=(1, 2))
    peaks = (images == maximum_filter(images, (1, 3, 3))) & (images > 0.02)
    return {
        "gradient": np.mean(steps) / images.mean(),
        "fine": power[:, frequency > 0.25].mean() / power[:, frequency < 0.1].mean(),
        "mean": images.mean(),
        "covered": covered.mean(),
        "bright": (images > 0.5).mean(),
        "full": (images > 0.8).mean(),
        "nonzero": (images > 0.005).mean(),
        "sparse": (covered < 0.08).mean(),
        "specks": (peaks & (images < 0.3)).sum() / len(images),
        **{f"lag {k}": (centred[:, k:] * centred[:, :-k]).mean() / (centred**2).mean() for k in (1, 2, 3)},
    }


@lru_cache
def plain_images() -> np.ndarray:
    return vascular_images(150, style=PLAIN)


@pytest.mark.parametrize(
    ("changes", "statistic", "least", "most"),
    [
        ({"spread": (1.0, 1.0)}, "gradient", 0.5, 0.9),  # soft
        ({"large": 1.0}, "bright", 1.1, 2.0),  # more and wider vessels
        ({"large": 1.0, "large_soft": (2.5, 2.5)}, "fine", 0.1, 0.7),
        ({"blobs": 1.0}, "bright", 1.02, 2.0),
        ({"specks": (10, 10)}, "specks", 4.0, 100.0),
        ({"shading": 0.9}, "full", 0.2, 0.9),  # fewer pixels are as bright as the brightest
        ({"grain": 0.6}, "fine", 1.02, 2.0),
        ({"cutouts": 1.0}, "covered", 0.4, 0.9),
        ({"threshold": (0.4, 0.4)}, "covered", 0.5, 0.95),
        ({"haze": 0.2}, "nonzero", 1.05, 4.0),
        ({"gamma": (2.0, 2.0)}, "mean", 0.5, 0.95),  # darker where it is not brightest
        ({"gamma": (0.5, 0.5)}, "mean", 1.03, 1.5),
        ({"through": 1.0}, "covered", 0.3, 0.95),  # through a slab one sees short pieces
    ],
)
def test_every_setting_of_the_looks_has_its_effect(
    changes: dict[str, object], statistic: str, least: float, most: float
) -> None:
    """As a ratio to the same without it."""
    before = looks(plain_images())[statistic]
    after = looks(vascular_images(150, style=replace(PLAIN, **changes)))[statistic]  # type: ignore[arg-type]
    assert least < after / before < most


def test_large_vessels_are_as_large_as_asked() -> None:
    narrow, wide = (
        looks(vascular_images(100, style=replace(PLAIN, large=1.0, large_radius=(r, r))))["bright"] for r in (2.5, 7.0)
    )
    assert wide > 1.3 * narrow


def test_the_looks_leave_the_trees_as_they_are() -> None:
    """The same vessels, softer, but where an image becomes too empty and is drawn again."""
    sharp = vascular_images(20, style=PLAIN, peak=(1.0, 1.0))
    soft = vascular_images(20, style=replace(PLAIN, spread=(0.4, 0.4)), peak=(1.0, 1.0))
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(sharp, soft, strict=True)]
    assert np.quantile(alike, 0.2) > 0.97


def test_thin_vessels_keep_what_a_point_spread_in_space_leaves_them() -> None:
    """Against a cylinder convolved with a Gaussian ball by numerical integration: the brightness on its axis."""
    for radius, spread in ((0.5, 0.8), (1.0, 0.8), (2.0, 1.2)):
        x = np.arange(-8, 8, 0.02) + 0.01
        weight = np.exp(-(x**2) / (2 * spread**2)) / np.sqrt(2 * np.pi) / spread * 0.02
        in_space = weight @ (np.hypot(x[:, None], x) < radius) @ weight
        projected = weight[np.abs(x) < radius].sum()  # what a blur of the projection leaves
        assert _kept(np.array([radius]), spread)[0] == pytest.approx(in_space / projected, rel=0.01)
    assert _kept(np.array([0.1, 5.0]), 0.0).tolist() == [1.0, 1.0]


def test_images_are_like_patches_of_angiograms() -> None:
    """Between the real ones, give or take a fifth: they differ by more among themselves. Plain vessels are not."""
    found, plain = looks(vascular_images(1000)), looks(vascular_images(1000, style=PLAIN))
    outside = set()
    for name, (low, high) in REAL.items():
        assert 0.8 * low < found[name] < 1.2 * high, name
        if not 0.8 * low < plain[name] < 1.2 * high:
            outside.add(name)
    assert {"mean", "bright", "full", "specks"} <= outside
