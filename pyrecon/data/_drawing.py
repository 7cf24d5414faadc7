"""What random images are drawn with: points finer than pixels, soft shapes with wobbling outlines, smooth fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # whose parts load when they are used
from numpy.typing import NDArray

from pyrecon._check import check_count, check_size

Real = NDArray[np.float64]
Images = NDArray[np.float32]

_FINE = 144  # points along the longer axis, at least


class Canvas:
    """Points of an image ``(H, W)``, ``factor x factor`` in a pixel; y and x from -1 to 1 along the longer axis.

    A value drawn covers what was drawn before, in the share that the shape has of the point.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng, self.shape = rng, shape
        self.factor = max(2, -(-_FINE // max(shape)))
        rows, columns = (n * self.factor for n in shape)
        half = max(rows, columns) / 2
        self.y = ((np.arange(rows) + 0.5 - rows / 2) / half)[:, None]
        self.x = ((np.arange(columns) + 0.5 - columns / 2) / half)[None, :]
        self.soft = 1.5 / half  # an edge's width: 1.5 points
        self.image = np.zeros((rows, columns))

    def ellipse(
        self, y: float, x: float, a: float, b: float, turn: float = 0.0, *, wobble: float = 0.0, power: float = 2.0
    ) -> Real:
        """Share of the points in an ellipse of half axes a (along y at ``turn`` 0) and b.

        ``wobble`` is the standard deviation of its radius, relative, in waves of 2 to 7 around it; ``power`` above 2
        makes it a box with round corners.
        """
        # The radius of a box with round corners is at most sqrt(2) of its longer half axis, that of a wobble 1.6.
        reach = max(a, b) * (1.0 if power == 2 else 1.42) * (1.6 if wobble else 1.0) + 2 * self.soft
        rows, columns = self._window(self.y[:, 0], y, reach), self._window(self.x[0], x, reach)
        dy, dx = self.y[rows] - y, self.x[:, columns] - x
        u, v = (dy * np.cos(turn) + dx * np.sin(turn)) / a, (dx * np.cos(turn) - dy * np.sin(turn)) / b
        if power == 2:
            radius = np.hypot(u, v)
        else:
            radius = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
        if wobble:
            direction = (u + 1j * v) / np.maximum(np.hypot(u, v), 1e-12)
            wave, change = direction, 1.0
            for k in range(2, 8):
                wave = wave * direction
                size, phase = self.rng.normal() * wobble / k * 1.8, self.rng.uniform(0, 2 * np.pi)
                change = change + size * (wave * np.exp(1j * phase)).real
            radius = radius * np.maximum(change, 0.63)
        share = np.zeros(self.image.shape)
        share[rows, columns] = self.share((radius - 1) * np.sqrt(a * b))
        return share

    def polygon(self, corners: Real) -> Real:
        """Share of the points in a convex polygon, corners ``(K, 2)`` of y, x, the angle growing from x to y."""
        distance = np.full(self.image.shape, -np.inf)
        for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            length = np.hypot(y1 - y0, x1 - x0)
            distance = np.maximum(distance, ((self.x - x0) * (y1 - y0) - (self.y - y0) * (x1 - x0)) / length)
        return self.share(distance)

    def rounded(self, share: Real, radius: float) -> Real:
        """The same with corners, inner and outer, of about this radius."""
        smooth = scipy.ndimage.gaussian_filter(share, radius / self.soft * 1.5, mode="nearest")
        return np.asarray((0.5 + (smooth - 0.5) * max(2.5 * radius / self.soft, 1.0)).clip(0, 1))

    def stroke(self, points: Real, width: float | Real) -> Real:
        """Share of the points within ``width`` / 2 of a line through ``points`` ``(K, 2)``; a width for each or one."""
        widths = np.broadcast_to(np.asarray(width, float), (len(points),))
        share = np.zeros(self.image.shape)
        for (y0, x0), (y1, x1), w in zip(points[:-1], points[1:], widths[1:], strict=True):
            reach = w / 2 + 2 * self.soft
            rows = self._window(self.y[:, 0], (y0 + y1) / 2, reach + abs(y1 - y0) / 2)
            columns = self._window(self.x[0], (x0 + x1) / 2, reach + abs(x1 - x0) / 2)
            dy, dx = y1 - y0, x1 - x0
            y, x = self.y[rows] - y0, self.x[:, columns] - x0
            t = ((y * dy + x * dx) / max(dy * dy + dx * dx, 1e-12)).clip(0, 1)
            inside = self.share(np.hypot(y - t * dy, x - t * dx) - w / 2)
            share[rows, columns] = np.maximum(share[rows, columns], inside)
        return share

    def field(self, length: float, *, slope: float | None = None) -> Real:
        """A random field of mean 0 and standard deviation 1: Gaussian bumps of width ``length``, or with ``slope``
        a spectrum that falls with that power of the frequency beyond 1 / length."""
        rows, columns = self.image.shape
        fy, fx = np.fft.fftfreq(rows, 2 / max(self.image.shape)), np.fft.rfftfreq(columns, 2 / max(self.image.shape))
        square = (2 * np.pi * length) ** 2 * (fy[:, None] ** 2 + fx[None, :] ** 2)
        weight = np.exp(-0.5 * square) if slope is None else (1 + square) ** (-slope / 2)
        weight[0, 0] = 0
        field = np.fft.irfft2(weight * np.fft.rfft2(self.rng.standard_normal(self.image.shape)), self.image.shape)
        return np.asarray(field / max(float(field.std()), 1e-12))

    def cover(self, share: Real, value: float | Real) -> None:
        self.image += share * (value - self.image)

    def pixels(self, image: Real | None = None) -> Real:
        """Means over the pixels, ``(H, W)``."""
        image = self.image if image is None else image
        (height, width), n = self.shape, self.factor
        return np.asarray(image.reshape(height, n, width, n).mean(axis=(1, 3)))

    def share(self, distance: Real) -> Real:
        """1 inside (negative distances), 0 outside, a ramp as wide as ``soft`` between."""
        return np.asarray((0.5 - distance / self.soft).clip(0, 1))

    @staticmethod
    def _window(axis: NDArray[Any], centre: float, reach: float) -> slice:
        return slice(int(np.searchsorted(axis, centre - reach)), int(np.searchsorted(axis, centre + reach)))


def drawn(
    draw: Callable[[Canvas], Real], count: int, shape: tuple[int, int], seed: int, first: int, stream: int
) -> list[Real]:
    """``count`` images, each a function of ``(seed, first + i)``."""
    for name, value in (("count", count), ("seed", seed), ("first", first)):
        check_count(name, value, 0)
    check_size("shape", shape, 2)
    return [draw(Canvas(np.random.default_rng((seed, stream, first + i)), shape)) for i in range(count)]


def means(image: NDArray[Any], size: int, axis: int) -> NDArray[Any]:
    """Means over ``size`` intervals of equal length along an axis, pixels at their borders shared."""
    n = image.shape[axis]
    edges = np.arange(size + 1) * n / size
    weights = (np.minimum(edges[1:, None], np.arange(1, n + 1)) - np.maximum(edges[:-1, None], np.arange(n))).clip(0)
    moved = np.tensordot(image, (weights * (size / n)).astype(np.float32), axes=([axis], [1]))
    return np.asarray(np.moveaxis(moved, -1, axis))
