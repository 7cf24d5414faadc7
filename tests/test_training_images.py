"""Random images for training: each a function of seed and number, of the values that are said, of exact areas."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyrecon._errors import MissingDependency
from pyrecon.data import photographs as module
from pyrecon.data._drawing import Canvas, means
from pyrecon.data.ct_phantoms import discs, ellipses, organs
from pyrecon.data.heads import heads, smooth_phase
from pyrecon.data.magnitudes import draw_magnitudes
from pyrecon.data.photographs import PHOTOGRAPHS, photographs

Draw = Callable[..., NDArray[Any]]
KINDS: dict[str, Draw] = {f.__name__: f for f in (ellipses, organs, discs, heads, photographs)}


@pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS)
def test_an_image_is_a_function_of_seed_and_number(draw: Draw) -> None:
    images = draw(4, (20, 26), seed=3)
    assert images.shape in ((4, 20, 26), (4, 3, 20, 26))
    assert images.dtype == (np.complex64 if draw is heads else np.float32)
    np.testing.assert_array_equal(draw(2, (20, 26), seed=3, first=2), images[2:])
    assert not np.array_equal(draw(1, (20, 26), seed=4)[0], images[0])
    assert not np.array_equal(images[0], images[1])
    assert draw(0, (20, 26)).shape == (0, *images.shape[1:])
    assert np.isfinite(images).all()


@pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS)
def test_values_are_those_of_images(draw: Draw) -> None:
    images = np.abs(draw(24, (32, 32), seed=1))
    assert images.min() >= 0
    peaks = images.reshape(24, -1).max(axis=1)
    assert 0.1 < peaks.min() <= peaks.max() <= 1.2
    if draw in (ellipses, heads):
        np.testing.assert_allclose(peaks, 1, atol=1e-6)
    assert images.reshape(24, -1).std(axis=1).min() > 0.02  # something to see on each


def test_bodies_have_the_tissues_of_the_docstring() -> None:
    """Soft tissue near one half, air outside, lungs in half of them, bones above."""
    images = organs(40, (64, 64), seed=2)
    soft = ((images > 0.4) & (images < 0.62)).mean(axis=(1, 2))
    assert soft.min() > 0.12
    assert (images[:, 0] < 0.05).all()
    assert (images.max(axis=(1, 2)) > 0.6).all()
    middle = images[:, 16:48, 12:52]
    lungs = ((middle > 0.04) & (middle < 0.2)).mean(axis=(1, 2)) > 0.1
    assert 8 <= lungs.sum() <= 32


def test_discs_are_of_one_material_with_holes() -> None:
    images = discs(40, (64, 64), seed=2)
    assert set(np.round(images.max(axis=(1, 2)), 6)) == {1.0}
    assert ((images > 0.01) & (images < 0.99)).mean() < 0.2  # edges alone
    share = images.mean(axis=(1, 2)) / (np.pi / 4)
    assert share.max() < 0.95
    assert np.ptp(share) > 0.2


def test_heads_have_slow_phases() -> None:
    images = heads(6, (48, 48), seed=5)
    np.testing.assert_allclose(np.abs(heads(6, (48, 48), seed=5, phase=0.0)), np.abs(images), atol=1e-6)
    flat = heads(2, (48, 48), seed=5, phase=0.0)
    for image in flat:
        angles = np.angle(image[np.abs(image) > 0.05])
        assert np.ptp(angles) < 1e-3
    for number in range(4):
        wave = smooth_phase((48, 48), seed=1, number=number)
        np.testing.assert_allclose(np.abs(wave), 1, atol=1e-6)
        steps = np.abs(np.angle(wave[1:] * wave[:-1].conj()))
        assert steps.max() < 0.6
        assert np.ptp(np.unwrap(np.angle(wave[:, 24]))) > 0.05


# --- photographs -----------------------------------------------------------------------------------------------------
def test_parts_come_from_different_photographs() -> None:
    """Every source is stamped with its name's number, its half by sign."""
    known = module._photograph
    stamps = {name: float(i + 1) for i, name in enumerate(PHOTOGRAPHS)}
    drawn: dict[str, set[str]] = {}
    for part in ("train", "validation", "test"):
        seen: set[str] = set()

        def stamped(name: str, seen: set[str] = seen) -> Any:
            seen.add(name)
            return known(name)

        module._photograph = stamped  # type: ignore[assignment]
        try:
            photographs(1, (16, 16), part=part)  # type: ignore[arg-type]
        finally:
            module._photograph = known
        drawn[part] = seen
    assert drawn["train"] | drawn["test"] == set(stamps)
    assert not drawn["train"] & (drawn["validation"] | drawn["test"])
    left, right = (module._half(known("chelsea"), part) for part in ("validation", "test"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.concatenate((left, right), axis=2), known("chelsea"))


def test_photographs_are_those_that_anyone_may_use() -> None:
    """As scikit-image says of each: its docstring must say CC0 or public domain."""
    skimage = pytest.importorskip("skimage.data")
    for name in PHOTOGRAPHS:
        said = getattr(skimage, name).__doc__
        assert "CC0" in said or "Creative Commons CC0" in said or "public domain" in said.lower(), name


def test_luminance_and_large_sizes() -> None:
    color, grey = (photographs(3, (24, 24), color=color, seed=2) for color in (True, False))
    np.testing.assert_allclose(grey, np.einsum("bchw,c->bhw", color, [0.299, 0.587, 0.114]), atol=1e-6)
    large = photographs(2, (320, 320), part="test")
    assert large.shape == (2, 3, 320, 320)
    assert large.std() > 0.02


def test_a_missing_scikit_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module._photograph.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingDependency, match=r"needs scikit-image: pip install 'pyrecon-imaging\[train\]'"):
        photographs(1, (8, 8))


# --- shapes ----------------------------------------------------------------------------------------------------------
def canvas(shape: tuple[int, int] = (64, 96)) -> Canvas:
    return Canvas(np.random.default_rng(0), shape)


def area(share: NDArray[np.float64]) -> float:
    return float(share.sum()) * (2 / max(share.shape)) ** 2


def test_shapes_have_their_areas() -> None:
    c = canvas()
    assert area(c.ellipse(0.1, -0.2, 0.3, 0.2, 0.7)) == pytest.approx(np.pi * 0.06, rel=0.01)
    box = c.ellipse(0.0, 0.0, 0.3, 0.3, power=40.0)
    assert area(box) == pytest.approx(0.36, rel=0.02)
    angles = 0.3 + np.arange(6) * np.pi / 3
    hexagon = c.polygon(0.4 * np.stack([np.sin(angles), np.cos(angles)], 1))
    assert area(hexagon) == pytest.approx(1.5 * np.sqrt(3) * 0.16, rel=0.01)
    line = c.stroke(np.array([[-0.3, -0.3], [0.1, 0.3]]), 0.1)
    assert area(line) == pytest.approx(0.1 * np.hypot(0.4, 0.6) + np.pi * 0.0025, rel=0.02)
    wobbly = [area(canvas().ellipse(0, 0, 0.3, 0.3, wobble=w)) for w in (0.0, 0.1)]
    assert wobbly[0] != wobbly[1]
    rounded = c.rounded(hexagon, 0.08)
    assert 0.85 * area(hexagon) < area(rounded) < area(hexagon)
    c.cover(hexagon, 2.0)
    assert c.pixels().mean() * 96 * 64 * (2 / 96) ** 2 == pytest.approx(2 * area(hexagon), rel=1e-6)


def test_an_ellipse_is_turned_from_y_to_x() -> None:
    c = canvas((64, 64))
    share = c.ellipse(0.0, 0.0, 0.5, 0.1, np.pi / 4)
    y, x = np.broadcast_to(c.y, share.shape), np.broadcast_to(c.x, share.shape)
    assert float((share * y * x).sum()) > 0


def test_fields_have_unit_deviation_and_their_length() -> None:
    c = canvas((96, 96))
    fine, coarse, rough = c.field(0.02), c.field(0.2), c.field(0.2, slope=1.0)
    for field in (fine, coarse, rough):
        assert field.std() == pytest.approx(1)
        assert abs(field.mean()) < 1e-9
    steps = [float(np.diff(field, axis=0).std()) for field in (coarse, rough, fine)]
    assert steps[0] < steps[1]
    assert steps[0] < 0.2 * steps[2]


def test_means_over_shared_pixels() -> None:
    image = np.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(means(image, 2, 1), [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]])
    np.testing.assert_allclose(means(image, 2, 0)[0], (image[0] + image[1] / 2) / 1.5, rtol=1e-6)
    np.testing.assert_allclose(means(image, 8, 1)[:, ::2], image, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: organs(-1, (8, 8)), "count: -1"),
        (lambda: heads(1, (8,)), r"shape: \(8,\)"),  # type: ignore[arg-type]
        (lambda: discs(1, (8, 8), seed=-1), "seed: -1"),
        (lambda: ellipses(1, (8, 8), first=1.5), "first: 1.5"),  # type: ignore[arg-type]
        (lambda: photographs(1, (8, 8), part="all"), "part: 'all'"),  # type: ignore[arg-type]
        (lambda: photographs(1, (8, 0)), "shape: 0"),
        (lambda: photographs(1, (8, 8), color=1), "color: 1"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()


# --- magnitudes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [16, 33])
def test_magnitudes_are_functions_of_seed_and_number_with_a_maximum_of_one(size: int) -> None:
    images = draw_magnitudes(size, 0, 6, 3)
    assert images.shape == (6, size, size)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images.max(axis=(1, 2)), 1)
    assert images.min() >= 0
    np.testing.assert_array_equal(draw_magnitudes(size, 4, 2, 3), images[4:])
    assert not np.array_equal(draw_magnitudes(size, 0, 1, 4), images[:1])
    assert not np.array_equal(draw_magnitudes(size, 0, 6, 3, part="test"), images)
    assert draw_magnitudes(size, 0, 0, 3).shape == (0, size, size)


def test_magnitudes_show_the_kinds_asked_for_and_have_texture() -> None:
    """Knees fill the image from top to bottom, heads end in it; total variation is no truth of either: few differences
    within them are small."""
    knees, heads = (draw_magnitudes(64, 0, 4, 1, kinds=(kind,)) for kind in ("knees", "heads"))
    assert (knees[:, [0, -1], 24:40] > 0.1).mean() > 0.9
    assert (heads[:, :, [0, -1]] < 0.05).all()
    for images in (knees, heads):
        inside = (images[:, 1:] > 0.15) & (images[:, :-1] > 0.15)
        assert (np.abs(np.diff(images, axis=1))[inside] > 0.005).mean() > 0.7
    suppressed = draw_magnitudes(64, 0, 4, 1, kinds=("suppressed-knees",))
    assert not np.array_equal(suppressed, knees)
    # The same shapes: what is air in one is air in the other.
    np.testing.assert_array_equal(suppressed == 0, knees == 0)
    mixed = draw_magnitudes(24, 0, 40, 1, kinds=("heads", "textures"))
    assert 8 < (mixed[:, 0, 0] < 0.02).sum() < 32  # air in a corner: about half are heads


def test_magnitudes_name_what_is_wrong() -> None:
    for options, said in (
        ({"kinds": ()}, "kinds: none"), ({"kinds": ("feet",)}, "kinds: feet"), ({"kinds": "heads"}, "kinds:"),
        ({"part": "all"}, "part: 'all'"), ({"size": 4}, "size: 4"), ({"first": -1}, "first: -1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            draw_magnitudes(**{"size": 16, "first": 0, "count": 1, "seed": 0} | options)  # type: ignore[arg-type]
