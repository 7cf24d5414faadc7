"""Random brains for quantitative MRI: maps of T1 and complex M0, which are known, of heads that are nobody's.

Eleven classes of tissue in the shapes of :mod:`pyrecon.data.heads`, T1 and M0 of each drawn from ranges at 3 T, both
changed by smooth polynomials, M0 by a smooth phase too. Brain i depends on ``(seed, first + i)`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrecon._check import check_count, check_size
from pyrecon.data._drawing import Canvas, Real
from pyrecon.data.heads import DEEP, GREY, WATER, WHITE, Tissue, draw_brain, smooth_phase

__all__ = ["CLASSES", "Brains", "Class", "brains"]

_STREAM = 8
_LEAST = 1e-6  # M0 of a pixel with anything in it


class Class(NamedTuple):
    """A tissue: ranges of T1 in seconds and of M0, and whether it is looked at when maps are compared."""

    name: str
    t1: tuple[float, float]
    m0: tuple[float, float]
    brain: bool = False


# T1 of grey and white matter, fluid and fat as in PINQI's training; the others after what is measured at 3 T.
CLASSES = (
    Class("fluid", (2.0, 4.0), (0.9, 1.0), True),
    Class("grey matter", (1.2, 2.0), (0.7, 0.9), True),
    Class("white matter", (0.8, 1.5), (0.6, 0.8), True),
    Class("deep grey matter", (1.0, 1.6), (0.65, 0.85), True),
    Class("fat", (0.3, 0.5), (0.8, 1.0)),
    Class("muscle", (1.0, 1.6), (0.6, 0.8)),
    Class("skin", (0.7, 1.2), (0.5, 0.7)),
    Class("bone", (0.3, 0.6), (0.02, 0.1)),
    Class("marrow", (0.3, 0.6), (0.5, 0.8)),
    Class("dura", (0.8, 1.4), (0.4, 0.6)),
    Class("vessels", (1.5, 2.1), (0.7, 0.9)),
)
_FLUID, _GREY, _WHITE, _DEEP, _FAT, _MUSCLE, _SKIN, _BONE, _MARROW, _DURA, _VESSELS = range(len(CLASSES))
_DRAWN_AS: dict[Tissue, int] = {WATER: _FLUID, GREY: _GREY, WHITE: _WHITE, DEEP: _DEEP}


@dataclass(frozen=True)
class Brains:
    """``(N, H, W)`` each.

    Attributes
    ----------
    t1, m0
        float32 in seconds, 1 where there is nothing; complex64, at most about 1, 0 where there is nothing. Of a pixel
        with several tissues their M0 is added, and 1 / T1 is their mean by M0.
    labels
        int8: the class of most of the pixel, its place in ``CLASSES``; -1 where most of it is nothing.
    inside
        bool: fluid and matter, more than half of the pixel.
    """

    t1: NDArray[np.float32]
    m0: NDArray[np.complex64]
    labels: NDArray[np.int8]
    inside: NDArray[np.bool_]


def brains(count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0) -> Brains:
    """Random brains; T1 varies by up to a tenth within a class, M0 by up to a third across the head."""
    for name, value in (("count", count), ("seed", seed), ("first", first)):
        check_count(name, value, 0)
    check_size("shape", shape, 2)
    found = nothing(count, shape)
    for i in range(count):
        rng = np.random.default_rng((seed, _STREAM, first + i))
        fill(found, i, _shares(Canvas(rng, shape)), rng, seed=seed, number=first + i)
    return found


# --- from shares of classes to maps: for every source of them --------------------------------------------------------
def nothing(count: int, shape: tuple[int, int]) -> Brains:
    """``count`` empty images, for :func:`fill`."""
    return Brains(
        np.ones((count, *shape), np.float32), np.zeros((count, *shape), np.complex64),
        np.full((count, *shape), -1, np.int8), np.zeros((count, *shape), bool),
    )  # fmt: skip


def fill(found: Brains, i: int, shares: Real, rng: np.random.Generator, *, seed: int, number: int) -> None:
    """Image i from the shares of the classes ``(11, H, W)``: random T1 and M0 of each, polynomials, and the smooth
    phase of ``(seed, number)``."""
    shape = shares.shape[1:]
    t1, m0 = (np.array([rng.uniform(*getattr(c, name)) for c in CLASSES]) for name in ("t1", "m0"))
    density, rate = mixture(shares, t1, m0)
    found.t1[i] = np.where(density > _LEAST, (1 + 0.1 * _polynomial(rng, shape)) / rate, 1.0)
    bias = 1 + 0.3 * _polynomial(rng, shape)
    found.m0[i] = density * bias * smooth_phase(shape, seed=seed, number=number)
    found.labels[i] = np.where(shares.sum(0) > 0.5, shares.argmax(0), -1)
    found.inside[i] = shares[[c.brain for c in CLASSES]].sum(0) > 0.5


def mixture(shares: Real, t1: Real, m0: Real) -> tuple[Real, Real]:
    """M0 and 1 / T1 ``(H, W)`` of pixels with ``shares`` ``(K, H, W)`` of K tissues, 1 / T1 in 1/s, 1 of nothing: M0
    are added, and 1 / T1 is their mean by M0."""
    density = np.tensordot(m0, shares, axes=1)
    rate = np.tensordot(m0 / t1, shares, axes=1) / np.maximum(density, 1e-12)
    return density, np.where(density > _LEAST, rate, 1.0)


# --- the shares of a generated head ----------------------------------------------------------------------------------
class _Shares:
    """Paints the share of each class."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.shares = np.zeros((len(CLASSES), *canvas.image.shape))

    def of(self, tissue: Tissue) -> int:
        return _DRAWN_AS[tissue]

    def cover(self, share: Real, value: int, texture: Real | float = 1.0) -> None:
        self.shares *= 1 - share
        self.shares[value] += share

    def lesion(self, level: float, grey: int, white: int) -> int:
        """As bright ones are drawn: fluid, or matter where it should not be."""
        return _FLUID if level > 0.9 else grey


def _shares(canvas: Canvas) -> Real:
    """``(11, H, W)`` of the pixels."""
    rng, paint = canvas.rng, _Shares(canvas)
    a, b = rng.uniform(0.82, 0.97), rng.uniform(0.64, 0.8)
    turn, y0, x0 = rng.normal(0, 0.1), rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    power = rng.uniform(2.0, 2.3)

    def shell(depth: float, wobble: float = 0.01) -> Real:
        return canvas.ellipse(y0, x0, a - depth, b - depth, turn, wobble=wobble, power=power)

    skin, scalp, skull = rng.uniform(0.012, 0.02), rng.uniform(0.04, 0.08), rng.uniform(0.05, 0.08)
    paint.cover(shell(0.0), _SKIN)
    paint.cover(shell(skin), _FAT)
    for side in (-1, 1):
        muscle = canvas.ellipse(y0 - rng.uniform(0.1, 0.3), x0 + side * (b - 0.05), 0.25, 0.04, turn)
        paint.cover(muscle * shell(skin), _MUSCLE)
    paint.cover(shell(scalp), _BONE)
    paint.cover((shell(scalp + 0.3 * skull) - shell(scalp + 0.75 * skull)).clip(min=0), _MARROW)
    rim = scalp + skull
    paint.cover(shell(rim), _DURA)
    paint.cover(shell(rim + rng.uniform(0.008, 0.015)), _FLUID)
    rim += rng.uniform(0.02, 0.04)
    draw_brain(canvas, paint, (y0, x0), (a - rim, b - rim), turn, shell(rim, 0.025))
    for _ in range(rng.integers(2, 7)):
        angle, depth, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.9), rng.uniform(0.01, 0.025)
        y, x = y0 + depth * (a - rim) * np.sin(angle), x0 + depth * (b - rim) * np.cos(angle)
        paint.cover(canvas.ellipse(y, x, size, size * rng.uniform(0.7, 1.4), angle), _VESSELS)
    end = -1 if rng.random() < 0.5 else 1  # the sinus at the back
    paint.cover(canvas.ellipse(y0 + end * (a - rim), x0, 0.035, 0.03, turn), _VESSELS)
    return np.stack([canvas.pixels(share) for share in paint.shares])


def _polynomial(rng: np.random.Generator, shape: tuple[int, int]) -> Real:
    """Random, of second degree, between -1 and 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    terms: list[Callable[[], Real]] = [lambda: y, lambda: x, lambda: x * y, lambda: x**2, lambda: y**2]
    value = sum((rng.normal() * term() for term in terms), np.zeros(shape))
    value = value - 0.5 * (value.max() + value.min())
    return np.asarray(value / max(float(np.abs(value).max()), 1e-12) * rng.uniform(0.3, 1.0))
