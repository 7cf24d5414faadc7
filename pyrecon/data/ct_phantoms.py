"""Random bodies for computed tomography: an endless supply of training images that are nobody's scan.

Values are attenuation in units of a peak near 1. In :func:`organs` that is twice the attenuation of water, so that soft
tissue is near 0.5, as Hounsfield numbers h become ``(1 + h / 1000) / 2``. Image i depends on ``(seed, first + i)``
alone, and an image is the mean over points finer than its pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrecon.data._drawing import Canvas, Images, Real, drawn

_AIR, _FAT, _MUSCLE, _BLOOD, _BONE = 0.0, 0.45, 0.525, 0.54, 0.85


def ellipses(count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0) -> Images:
    """Random soft ellipses in a larger one, each shaded and textured, ``(count, H, W)`` float32, peak 1."""
    return _stacked(drawn(_ellipses, count, shape, seed, first, 1), shape)


def organs(count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0) -> Images:
    """Slices of random bodies, half of them chests and half abdomens, ``(count, H, W)`` float32, from 0 to about 1."""
    return _stacked(drawn(_body, count, shape, seed, first, 2), shape)


def discs(count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0) -> Images:
    """Discs of one material with holes of several shapes, ``(count, H, W)`` float32, 1 where there is material.

    Like the phantoms of the Helsinki Tomography Challenge 2022.
    """
    return _stacked(drawn(_disc, count, shape, seed, first, 3), shape)


def _stacked(images: list[Real], shape: tuple[int, int]) -> Images:
    return np.stack(images).astype(np.float32) if images else np.empty((0, *shape), np.float32)


# --- ellipses --------------------------------------------------------------------------------------------------------
def _ellipses(canvas: Canvas) -> Real:
    rng = canvas.rng
    a, b = rng.uniform(0.6, 0.9, 2)
    outer = canvas.ellipse(*rng.uniform(-0.05, 0.05, 2), a, b, rng.uniform(0, np.pi), wobble=0.04)
    canvas.cover(outer, rng.uniform(0.3, 0.6))
    for _ in range(int(rng.integers(4, 14))):
        radius, angle = 0.75 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        size = np.exp(rng.uniform(np.log(0.04), np.log(0.35)))
        part = canvas.ellipse(
            radius * a * np.cos(angle),
            radius * b * np.sin(angle),
            size,
            size * rng.uniform(0.4, 1.0),
            rng.uniform(0, np.pi),
            wobble=rng.choice([0.0, 0.08]),
        )
        canvas.cover(part * outer, canvas.image * rng.uniform(0.5, 1.0) + rng.uniform(-0.1, 0.5))
    shade = 1 + 0.06 * canvas.field(0.5)
    texture = rng.uniform(0.0, 0.04) * canvas.field(0.05, slope=1.5)
    image = canvas.pixels((canvas.image * shade + texture * outer).clip(min=0))
    return np.asarray(image / max(float(image.max()), 1e-6))


# --- bodies ----------------------------------------------------------------------------------------------------------
def _body(canvas: Canvas) -> Real:
    raise NotImplementedError


def _disc(canvas: Canvas) -> Real:
    raise NotImplementedError
