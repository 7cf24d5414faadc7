"""Random vascular trees: an endless supply of training images that are nobody's angiogram.

A tree grows in three dimensions and is seen as an angiogram is: cut to a slab, projected by maximum intensity, averaged
to the image's voxels. Only that projection is ever rendered. Then it gets what a scanner and a segmentation make of
vessels: soft profiles, uneven contrast, grain, a threshold that leaves pieces, and specks of what is no vessel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter
from scipy.special import erf

Real = NDArray[np.float64]

_ATTEMPTS = 1000  # patches drawn for an image; one of three is too empty
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
        Standard deviation of the change of direction per unit of length, radians, from the direction after a branch;
        it forgets itself over ``memory``.
    branching
        Expected branches per unit of length, over the radius: thin vessels branch more often.
    stenosis, aneurysm
        Probability that a vessel has a narrowing (of 40 to 80 %) or a bulge (1.5 to 3 radii wide).
    thinnest
        Vessels end below this radius.
    fading
        Lowest brightness of a branch relative to the vessel it leaves, drawn uniformly up to 1.
    through
        Probability that a tree enters through a face of the slab, and not through a side of the patch: it is then seen
        in pieces.
    large, large_radius, large_soft
        Probability of a tree of large vessels (a sinus, an aorta) beside the others, the range of its root's radius,
        and that of a softness of its own, a standard deviation.
    blobs
        Probability of a bright blob (an aneurysm, a vessel along the projection), 2 to 6 voxels wide.
    specks
        Range of the number of faint specks, which have nothing to do with the vessels.
    spread
        Range of the point spread, standard deviation: profiles become soft, thin vessels faint.
    shading, grain
        Largest share by which brightness changes smoothly along and across vessels, and from voxel to voxel.
    cutouts
        Probability that parts of the image are cut out, with soft borders.
    threshold
        Range of what a segmentation takes off; a large vessel has a brightness of 0.5 to 1.
    haze
        Largest brightness of what is left behind the vessels, which a tenth of the images has.
    gamma
        Range of the exponent that brightness is raised to, drawn log-uniformly.

    Every image draws its own value of each.
    """

    radius: tuple[float, float] = (0.6, 2.2)
    roots: tuple[int, int] = (1, 5)
    tortuosity: float = 0.12
    memory: float = 6.0
    branching: float = 0.06
    stenosis: float = 0.08
    aneurysm: float = 0.04
    thinnest: float = 0.35
    fading: float = 0.6
    through: float = 0.4
    large: float = 0.4
    large_radius: tuple[float, float] = (2.5, 7.0)
    large_soft: tuple[float, float] = (0.5, 2.5)
    blobs: float = 0.06
    specks: tuple[int, int] = (0, 22)
    spread: tuple[float, float] = (0.3, 0.8)
    shading: float = 0.7
    grain: float = 0.35
    cutouts: float = 0.4
    threshold: tuple[float, float] = (0.04, 0.22)
    haze: float = 0.04
    gamma: tuple[float, float] = (0.7, 1.5)

    @classmethod
    def plain(cls) -> VesselStyle:
        """Vessels of even brightness with sharp edges on black and nothing else, as earlier versions drew them."""
        none = (0.0, 0.0)
        absent: dict[str, Any] = dict.fromkeys(
            ("through", "large", "blobs", "shading", "grain", "cutouts", "haze"), 0.0
        )
        return cls(
            radius=(0.7, 3.0), roots=(1, 5), specks=(0, 0), spread=none, threshold=none, gamma=(1.0, 1.0), **absent
        )


def vascular_images(
    count: int,
    *,
    shape: tuple[int, int] = (26, 13),
    factor: int = 2,
    depth: int = 10,
    peak: tuple[float, float] = (0.5, 1.5),
    style: VesselStyle | None = None,
    seed: int = 0,
    first: int = 0,
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
    seed, first
        Image i depends on ``(seed, first + i)`` alone: more images of the same seed begin with the same ones.

    Raises ValueError where a style leaves nothing to see.

    Branches follow Murray's law, ``r^3 = r_1^3 + r_2^3``, and its angles (Murray, PNAS 12:207, 1926).
    """
    if count < 0 or min(*shape, factor, depth) < 1:
        raise ValueError(f"count={count}, shape={shape}, factor={factor}, depth={depth}: expected positive numbers")
    style = style or VesselStyle()
    images = np.empty((count, *shape), np.float32)
    for i in range(count):
        images[i] = _image(np.random.default_rng((seed, first + i)), shape, factor, depth, peak, style)
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
    (looks,) = rng.spawn(1)  # random numbers of their own for looks: the trees are the same whatever these are
    for _ in range(_ATTEMPTS):  # a tree may leave the patch at once
        fine = _vessels(rng, looks, size, style)
        image: Real = fine.reshape(shape[0], factor, shape[1], factor).mean(axis=(1, 3))
        brightest = image.max()
        if brightest > 0.1 and style.gamma != (1.0, 1.0):
            image = (image / brightest) ** _log_uniform(looks, style.gamma, 1)
        if (image > 0.1).mean() >= 0.03:
            return np.asarray(image * (rng.uniform(*peak) / image.max()))
    raise ValueError(f"style: {_ATTEMPTS} patches in a row were almost empty: {style}")


def _vessels(rng: np.random.Generator, looks: np.random.Generator, size: Real, style: VesselStyle) -> Real:
    """The fine projection of all vessels of a patch, as an angiogram shows it."""
    depth, fine = int(size[0]), np.zeros(size[1:].astype(int))
    spread, shade = looks.uniform(*style.spread), _Shade(looks, style.shading)

    def draw(canvas: Real, trees: Iterator[tuple[Real, Real, float]]) -> None:
        for points, radii, brightness in trees:
            _project(canvas, points, radii, brightness, depth, lambda p, r: _kept(r, spread) * shade(p))

    for _ in range(int(rng.integers(style.roots[0], style.roots[1] + 1))):
        draw(fine, _tree(rng, size, style))
    if looks.random() < style.large:
        large = np.zeros_like(fine)
        draw(large, _tree(looks, size, replace(style, radius=style.large_radius)))
        np.maximum(fine, gaussian_filter(large, looks.uniform(*style.large_soft), mode="nearest"), out=fine)
    return _finished(looks, fine, spread, style)


def _tree(rng: np.random.Generator, size: Real, style: VesselStyle) -> Iterator[tuple[Real, Real, float]]:
    """Vessels ``(points (K, 3), radii (K,), brightness)`` of one tree that enters through a side or a face."""
    start = rng.uniform(0, size)
    side = 0 if style.through and rng.random() < style.through else int(rng.integers(1, 3))
    start[side] = size[side] if rng.random() < 0.5 else 0.0
    target = rng.uniform(0.2, 0.8, 3) * size
    low, high = np.log(style.radius)
    waiting = [(start, _unit(target - start), float(np.exp(rng.uniform(low, high))), rng.uniform(0.5, 1.0))]
    while waiting:
        position, direction, radius, brightness = waiting.pop()
        points, radii, branches = _vessel(rng, position, direction, radius, size, style)
        yield points, _diseased(rng, radii, style), brightness
        waiting += [(*branch, brightness * rng.uniform(style.fading, 1.0)) for branch in branches]


def _vessel(
    rng: np.random.Generator, position: Real, direction: Real, radius: float, size: Real, style: VesselStyle
) -> tuple[Real, Real, list[tuple[Real, Real, float]]]:
    """A centre line until it leaves the patch or grows too thin; side branches take their share of the radius."""
    points, radii, branches = [position[None]], [np.array([radius])], []
    bend = np.zeros(3)
    left = int(2 * size.sum() / _STEP)
    while radius >= style.thinnest and left > 0:
        # Where branches are a Poisson process, the way to the next one is exponential.
        way = rng.exponential(radius / style.branching) if style.branching > 0 else np.inf
        steps = int(min(left, max(1, np.ceil(min(way / _STEP, left)))))
        line, directions, bend = _centre_line(rng, position, direction, bend, steps, style)
        gone = ((line < -2 * radius) | (line > size + 2 * radius)).any(axis=1)
        if gone.any():
            line = line[: int(gone.argmax()) + 1]
        points.append(line)
        radii.append(np.full(len(line), radius))
        left -= len(line)
        if gone.any():
            break
        position, direction = line[-1], directions[-1]
        share = rng.uniform(0.15, 0.5)  # of the flow, hence of r^3
        child, after = radius * share ** (1 / 3), radius * (1 - share) ** (1 / 3)
        aside = _unit(_across(direction, rng.normal(size=3)))
        if child > style.thinnest:
            branches.append((position, _turn(direction, aside, _branch_angle(radius, child, after)), child))
        direction, radius = _turn(direction, -aside, _branch_angle(radius, after, child)), after
    return np.concatenate(points), np.concatenate(radii), branches


def _centre_line(
    rng: np.random.Generator, position: Real, direction: Real, bend: Real, steps: int, style: VesselStyle
) -> tuple[Real, Real, Real]:
    """``steps`` further points, the directions in them, and the last change of direction.

    The change of direction is itself a random walk that returns to zero: smooth, never a zigzag.
    """
    forget = np.exp(-_STEP / style.memory)
    kicks = rng.normal(0, style.tortuosity * np.sqrt(1 - forget**2), (steps, 3))
    bends, _ = lfilter([1.0], [1.0, -forget], kicks, axis=0, zi=forget * bend[None])
    directions = direction + _STEP * bends.cumsum(axis=0)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return position + _STEP * directions.cumsum(axis=0), directions, bends[-1]


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
        radii = radii * (1 - rng.uniform(0.4, 0.8) * bump)
    elif chance < style.stenosis + style.aneurysm:
        radii = radii * (1 + rng.uniform(0.5, 2.0) * bump)
    return radii


def _project(
    fine: Real,
    points: Real,
    radii: Real,
    brightness: float,
    depth: int,
    shading: Callable[[Real, Real], Real] | None = None,
) -> None:
    """Raise ``fine`` to the maximum-intensity projection of a vessel, in place; ``shading(points, radii)`` as bright.

    Along a ray the largest coverage by a ball is where the ray passes its centre, or where the slab ends.
    """
    outside = np.maximum(np.maximum(0.5 - points[:, 0], points[:, 0] - (depth - 0.5)), 0)
    reach = radii + _SOFT / 2
    near = (points[:, 1:] > -reach[:, None]) & (points[:, 1:] < fine.shape + reach[:, None])
    seen = (outside < reach) & near.all(axis=1)
    if not seen.any():
        return
    bright = brightness if shading is None else brightness * shading(points[seen], radii[seen])
    (_, cy, cx), radii, outside = points[seen].T, radii[seen], outside[seen]
    # The pixels within reach of any ball, around each of them: one pass for all balls.
    around = np.arange(-int(reach[seen].max()) - 1, int(reach[seen].max()) + 2)
    rows = np.floor(cy).astype(np.int64)[:, None] + around
    cols = np.floor(cx).astype(np.int64)[:, None] + around
    dy, dx = (rows + 0.5 - cy[:, None]) ** 2, (cols + 0.5 - cx[:, None]) ** 2
    squared = dy[:, :, None] + dx[:, None, :] + (outside**2)[:, None, None]
    inside = squared < (reach[seen] ** 2)[:, None, None]
    inside &= ((rows >= 0) & (rows < fine.shape[0]))[:, :, None] & ((cols >= 0) & (cols < fine.shape[1]))[:, None, :]
    ball, y, x = np.nonzero(inside)
    # A vessel thinner than a voxel fills only a part of it.
    most = bright * np.minimum(1.0, 2 * radii / _SOFT)
    cover = most[ball] * np.clip((radii[ball] - np.sqrt(squared[inside])) / _SOFT + 0.5, 0, 1)
    np.maximum.at(fine.reshape(-1), rows[ball, y] * fine.shape[1] + cols[ball, x], cover)


# --- how vessels look ------------------------------------------------------------------------------------------------
class _Shade:
    """Contrast along vessels: the mean of a few waves through the patch."""

    def __init__(self, rng: np.random.Generator, most: float) -> None:
        self.most = rng.uniform(0, most)
        self.waves = rng.normal(size=(3, 3)) / rng.uniform(3, 12, (3, 1))
        self.phases = rng.uniform(0, 2 * np.pi, 3)

    def __call__(self, points: Real) -> Real:
        waves = np.cos(points @ self.waves.T + self.phases).mean(axis=1)
        return np.asarray(1 - self.most * (0.5 + 0.5 * waves))


def _kept(radii: Real, spread: float) -> Real:
    """Brightness on a vessel's axis after the point spread in space, over that after the same blur of its projection:
    ``(1 - exp(-q^2)) / erf(q)``, q = r / (sqrt(2) spread)."""
    if spread <= 0:
        return np.ones(len(radii))
    q = radii / (np.sqrt(2) * spread)
    return np.asarray(-np.expm1(-(q**2)) / erf(q))


def _finished(rng: np.random.Generator, fine: Real, spread: float, style: VesselStyle) -> Real:
    """A projection with all that the style adds to its vessels and takes from them."""
    if rng.random() < style.blobs:
        fine = np.maximum(fine, _spots(rng, fine.shape, 1, (2.0, 6.0), (0.5, 1.0), 4))
    if rng.random() < style.cutouts:
        level, soft = rng.uniform(-1.0, 0.5), rng.uniform(0.1, 0.6)
        fine = fine / (1 + np.exp((level - _field(rng, fine.shape, rng.uniform(3, 9))) / soft))
    if style.grain:
        fine = fine * np.maximum(1 + rng.uniform(0, style.grain) * _field(rng, fine.shape, 0.8), 0)
    if spread > 0:
        fine = gaussian_filter(fine, spread, mode="nearest")
    if style.specks[1]:
        count = int(rng.integers(style.specks[0], style.specks[1] + 1))
        fine = np.maximum(fine, _spots(rng, fine.shape, count, (0.5, 1.0), (0.05, 0.6), 2))
    if style.threshold[1]:
        fine = np.maximum(fine - rng.uniform(*style.threshold), 0)
    if style.haze and rng.random() < 0.1:
        haze = np.maximum(_field(rng, fine.shape, rng.uniform(1, 6)), 0)
        fine = np.maximum(fine, rng.uniform(0, style.haze) * haze)
    return fine


def _spots(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    count: int,
    width: tuple[float, float],
    brightness: tuple[float, float],
    power: int,
) -> Real:
    """The maximum of ``count`` round spots, ``b exp(-(d/w)^power)``: brightness and width log-uniform."""
    if count == 0:
        return np.zeros(shape)
    middle = rng.uniform(0, 1, (2, count, 1)) * np.array(shape).reshape(2, 1, 1)
    wide, bright = _log_uniform(rng, width, count)[:, None], _log_uniform(rng, brightness, count)
    dy, dx = (np.arange(n) + 0.5 - m for n, m in zip(shape, middle, strict=True))
    distance = (dy / wide)[:, :, None] ** 2 + (dx / wide)[:, None, :] ** 2
    return np.asarray((bright[:, None, None] * np.exp(-(distance ** (power / 2)))).max(axis=0))


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float], count: int) -> Real:
    low, high = np.log(bounds)
    return np.asarray(np.exp(rng.uniform(low, high, count)))


def _field(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> Real:
    """Smooth noise about 0 of a standard deviation of about 1."""
    noise = gaussian_filter(rng.normal(size=shape), length, mode="wrap")
    return np.asarray(noise * (2 * np.sqrt(np.pi) * length))


def _unit(v: Real) -> Real:
    return np.asarray(v / max(float(np.sqrt(v @ v)), 1e-12))


def _across(a: Real, b: Real) -> Real:
    """The cross product: numpy's takes ten times as long for two vectors."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _turn(direction: Real, aside: Real, angle: float) -> Real:
    return np.asarray(np.cos(angle) * direction + np.sin(angle) * aside)
