"""Random vascular trees: an endless supply of training images that are nobody's angiogram.

A tree grows in three dimensions and is seen as an angiogram is: cut to a slab, projected by maximum intensity, averaged
to the image's voxels. Only that projection is ever rendered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]

_STEP = 0.5  # fine voxels between the points of a centre line
_SOFT = 1.0  # width of a vessel's edge in fine voxels: that of a voxel it covers in part


@dataclass(frozen=True)
class VesselStyle:
    """What trees look like. Lengths in fine voxels: 1 mm where images have 2 mm voxels.

    Attributes
    ----------
    radius
        Range of the roots' radii, drawn log-uniformly. Cerebral arteries have 0.5 to 2.5 mm.
    roots
        Range of the number of trees that enter a patch.
    tortuosity
        Standard deviation of the change of direction per unit of length, radians; it forgets itself over ``memory``.
    branching
        Expected branches per unit of length, over the radius: thin vessels branch more often.
    stenosis, aneurysm
        Probability that a vessel has a narrowing (of 40 to 80 %) or a bulge (1.5 to 3 radii wide).
    thinnest
        Vessels end below this radius.
    """

    radius: tuple[float, float] = (0.7, 3.0)
    roots: tuple[int, int] = (1, 4)
    tortuosity: float = 0.25
    memory: float = 6.0
    branching: float = 0.06
    stenosis: float = 0.08
    aneurysm: float = 0.04
    thinnest: float = 0.35


def vascular_images(
    count: int,
    *,
    shape: tuple[int, int] = (26, 13),
    factor: int = 2,
    depth: int = 10,
    peak: tuple[float, float] = (0.5, 1.5),
    style: VesselStyle | None = None,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Maximum-intensity projections of random vascular trees, ``(count, *shape)`` float32.

    Parameters
    ----------
    shape, factor, depth
        A patch has ``(depth, factor * H, factor * W)`` fine voxels; the projection runs along the first axis and is
        averaged over ``factor x factor`` voxels, as for the angiogram patches of DEQ-MPI, section IV-B.
    peak
        Range of the images' largest values, drawn uniformly.
    style
        What the trees look like.
    seed
        Image i depends on ``(seed, i)`` alone: more images of the same seed begin with the same ones.

    Branches follow Murray's law, ``r^3 = r_1^3 + r_2^3``, and its angles (Murray, PNAS 12:207, 1926).
    """
    if count < 0 or min(*shape, factor, depth) < 1:
        raise ValueError(f"count={count}, shape={shape}, factor={factor}, depth={depth}: expected positive numbers")
    images = np.empty((count, *shape), np.float32)
    for i in range(count):
        images[i] = _image(np.random.default_rng((seed, i)), shape, factor, depth, peak, style or VesselStyle())
    return images


def _image(
    rng: np.random.Generator,
    shape: tuple[int, int],
    factor: int,
    depth: int,
    peak: tuple[float, float],
    style: VesselStyle,
) -> Real:
    size = np.array([depth, factor * shape[0], factor * shape[1]], float)
    while True:  # a tree may leave the patch at once
        fine = np.zeros((factor * shape[0], factor * shape[1]))
        for _ in range(int(rng.integers(style.roots[0], style.roots[1] + 1))):
            brightness = rng.uniform(0.5, 1.0)
            for points, radii in _tree(rng, size, style):
                _project(fine, points, radii, brightness, depth)
        image: Real = np.asarray(fine.reshape(shape[0], factor, shape[1], factor).mean(axis=(1, 3)))
        if (image > 0.1).mean() >= 0.03:
            return np.asarray(image * (rng.uniform(*peak) / image.max()))


def _tree(rng: np.random.Generator, size: Real, style: VesselStyle) -> Iterator[tuple[Real, Real]]:
    """Vessels ``(points (K, 3), radii (K,))`` of one tree that enters the patch through a side."""
    start = rng.uniform(0, size)
    side = int(rng.integers(1, 3))
    start[side] = size[side] if rng.random() < 0.5 else 0.0
    target = rng.uniform(0.2, 0.8, 3) * size
    low, high = np.log(style.radius)
    waiting = [(start, _unit(target - start), float(np.exp(rng.uniform(low, high))))]
    while waiting:
        position, direction, radius = waiting.pop()
        points, radii, branches = _vessel(rng, position, direction, radius, size, style)
        yield points, _diseased(rng, radii, style)
        waiting += branches


def _vessel(
    rng: np.random.Generator, position: Real, direction: Real, radius: float, size: Real, style: VesselStyle
) -> tuple[Real, Real, list[tuple[Real, Real, float]]]:
    """A centre line until it leaves the patch or grows too thin; side branches take their share of the radius."""
    points, radii, branches = [position], [radius], []
    bend = np.zeros(3)
    forget = np.exp(-_STEP / style.memory)
    for _ in range(int(2 * size.sum() / _STEP)):
        # The change of direction is itself a random walk that returns to zero: smooth, never a zigzag.
        bend = forget * bend + np.sqrt(1 - forget**2) * rng.normal(0, style.tortuosity, 3)
        direction = _unit(direction + bend * _STEP)
        position = position + _STEP * direction
        if rng.random() < style.branching * _STEP / radius:
            share = rng.uniform(0.15, 0.5)  # of the flow, hence of r^3
            child, radius_after = radius * share ** (1 / 3), radius * (1 - share) ** (1 / 3)
            aside = _unit(np.cross(direction, rng.normal(size=3)))
            turns = [_branch_angle(radius, r, other) for r, other in ((child, radius_after), (radius_after, child))]
            if child > style.thinnest:
                branches.append((position, _turn(direction, aside, turns[0]), child))
            direction, radius = _turn(direction, -aside, turns[1]), radius_after
        points.append(position)
        radii.append(radius)
        if radius < style.thinnest or (position < -2 * radius).any() or (position > size + 2 * radius).any():
            break
    return np.array(points), np.array(radii), branches


def _branch_angle(parent: float, child: float, other: float) -> float:
    """The angle to the parent's direction that Murray's law of least work gives a child."""
    cosine = (parent**4 + child**4 - other**4) / (2 * parent**2 * child**2)
    return float(np.arccos(np.clip(cosine, -1, 1)))


def _diseased(rng: np.random.Generator, radii: Real, style: VesselStyle) -> Real:
    along = np.arange(len(radii)) * _STEP
    middle = rng.uniform(0, along[-1] + _STEP)
    width = rng.uniform(1, 3)
    bump = np.exp(-(((along - middle) / width) ** 2))
    chance = rng.random()
    if chance < style.stenosis:
        return np.asarray(radii * (1 - rng.uniform(0.4, 0.8) * bump))
    if chance < style.stenosis + style.aneurysm:
        return np.asarray(radii * (1 + rng.uniform(0.5, 2.0) * bump))
    return radii


def _project(fine: Real, points: Real, radii: Real, brightness: float, depth: int) -> None:
    """Raise ``fine`` to the maximum-intensity projection of a vessel, in place.

    Along a ray the largest coverage by a ball is where the ray passes its centre, or where the slab ends.
    """
    outside = np.maximum(np.maximum(0.5 - points[:, 0], points[:, 0] - (depth - 0.5)), 0)
    seen = (outside < radii + _SOFT / 2) & (
        (points[:, 1:] > -radii[:, None] - 1) & (points[:, 1:] < np.array(fine.shape) + radii[:, None] + 1)
    ).all(axis=1)
    y, x = (np.arange(n) + 0.5 for n in fine.shape)
    for (_, cy, cx), r, away in zip(points[seen], radii[seen], outside[seen], strict=True):
        reach = r + _SOFT
        rows = slice(max(0, int(cy - reach)), max(0, int(np.ceil(cy + reach))) + 1)
        cols = slice(max(0, int(cx - reach)), max(0, int(np.ceil(cx + reach))) + 1)
        distance = np.sqrt((y[rows, None] - cy) ** 2 + (x[None, cols] - cx) ** 2 + away**2)
        cover = brightness * np.clip((r - distance) / _SOFT + 0.5, 0, 1)
        # A vessel thinner than a voxel fills only a part of it.
        fine[rows, cols] = np.maximum(fine[rows, cols], cover * min(1.0, 2 * r / _SOFT))


def _unit(v: Real) -> Real:
    return np.asarray(v / max(float(np.linalg.norm(v)), 1e-12))


def _turn(direction: Real, aside: Real, angle: float) -> Real:
    return np.asarray(np.cos(angle) * direction + np.sin(angle) * aside)
