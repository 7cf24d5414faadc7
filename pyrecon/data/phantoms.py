"""Test objects: the phantoms of DEQ-MPI, vessel images from volumes and from a retina, and a head in MR contrast.

Every function returns float32; random ones take a seed and are repeatable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrecon._errors import DataError, MissingDependency
from pyrecon.data.raw import Grid

Image = NDArray[np.float32]
Real = NDArray[np.float64]

_SAMPLING = 0.1e-3  # metres between the points of which a voxel is the mean
_ATTEMPTS = 1000  # random crops tried per crop that is asked for


# --- shapes on a grid ------------------------------------------------------------------------------------------
def torus(
    grid: Grid, *, hole: float = 2e-3, outer: float | None = None, center: tuple[float, float] = (9e-3, -5e-3)
) -> Image:
    """A ring: tracer between the diameters ``hole`` and ``outer``, ``hole`` + 4 mm by default, around ``center``.

    ``grid`` has axes y, x; lengths in metres, ``center`` is (y, x). Returns (H, W), the share of each voxel that the
    ring covers. The published phantoms have holes of 1, 2 and 3 mm and lie off-centre (DEQ-MPI, section IV-B).
    """
    outer = hole + 4e-3 if outer is None else outer
    if not 0 <= hole < outer:
        raise ValueError(f"hole: {hole} m, expected between 0 and the outer diameter ({outer} m)")

    def inside(y: Real, x: Real) -> NDArray[np.bool_]:
        radius = np.hypot(y - center[0], x - center[1])
        return (radius >= hole / 2) & (radius <= outer / 2)

    return _coverage(grid, inside)


def two_tubes(
    grid: Grid,
    *,
    length: float = 20e-3,
    diameter: float = 4e-3,
    spacing: float = 8e-3,
    angle: float = 0.0,
    center: tuple[float, float] = (0.0, 0.0),
) -> Image:
    """Two parallel tubes filled with tracer, ``spacing`` between their axes: see :func:`torus`.

    They lie along y at ``angle`` 0 and turn from y towards x (radians). ``diameter`` is the inner one.
    """

    def inside(y: Real, x: Real) -> NDArray[np.bool_]:
        along, across = _turned(y, x, center, angle)
        return (np.abs(along) <= length / 2) & (np.abs(np.abs(across) - spacing / 2) <= diameter / 2)

    return _coverage(grid, inside)


def y_shape(
    grid: Grid,
    *,
    arms: float = 10.7e-3,
    stem: float = 8.8e-3,
    width: float = 3.5e-3,
    gap: float = 3.5e-3,
    bubble: float = 1.1e-3,
    angle: float = 0.0,
    center: tuple[float, float] = (0.0, 0.0),
) -> Image:
    """A Y of channels, two ``arms`` and a ``stem``, with an air bubble of radius ``bubble`` at the fork.

    The arms end ``gap`` apart. They point to smaller y at ``angle`` 0, the stem to larger y, and all turns from y
    towards x (radians). See :func:`torus`.
    """
    # The inner corners of the arms are 2 arms sin(h) - width cos(h) apart, with the fork's half angle h.
    half = np.arctan2(width, 2 * arms) + np.arcsin(min(1.0, gap / np.hypot(2 * arms, width)))

    def inside(y: Real, x: Real) -> NDArray[np.bool_]:
        covered = np.hypot(y - center[0], x - center[1]) <= width / 2
        for reach, turn in ((stem, angle), (arms, angle + np.pi - half), (arms, angle + np.pi + half)):
            along, across = _turned(y, x, center, turn)
            covered |= (along >= 0) & (along <= reach) & (np.abs(across) <= width / 2)
        return covered & (np.hypot(y - center[0], x - center[1]) > bubble)

    return _coverage(grid, inside)


def _turned(y: Real, x: Real, center: tuple[float, float], angle: float) -> tuple[Real, Real]:
    """Coordinates along and across a direction that is y at ``angle`` 0 and x at pi/2."""
    y, x = y - center[0], x - center[1]
    return y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)


def _coverage(grid: Grid, inside: Callable[[Real, Real], NDArray[np.bool_]]) -> Image:
    """Share of each voxel that is ``inside``, from points at most 0.1 mm apart."""
    if len(grid.shape) != 2:
        raise ValueError(f"grid: has {len(grid.shape)} axes, expected two, y and x")
    rows, columns = (max(1, int(np.ceil(spacing / _SAMPLING - 1e-9))) for spacing in grid.spacing)
    fine = Grid(
        (grid.shape[0] * rows, grid.shape[1] * columns),
        (grid.spacing[0] / rows, grid.spacing[1] / columns),
        grid.center,
    )
    y, x = fine.coordinates().T
    return _box_mean(inside(y, x).reshape(fine.shape), rows, columns).astype(np.float32)


def _box_mean(image: NDArray[np.generic], rows: int, columns: int) -> Real:
    height, width = image.shape[-2] // rows, image.shape[-1] // columns
    return np.asarray(
        image.reshape(*image.shape[:-2], height, rows, width, columns).mean(axis=(-3, -1), dtype=np.float64)
    )


# --- vessels ---------------------------------------------------------------------------------------------------
def vessel_patches(
    volume: ArrayLike,
    count: int,
    *,
    shape: tuple[int, ...] = (26, 13),
    depth: int = 10,
    factor: int = 2,
    level: float = 0.1,
    filled: float = 0.03,
    seed: int = 0,
) -> Image:
    """Vessel images from an angiogram: random patches, maximum-intensity projection, box-downsampling.

    Parameters
    ----------
    volume
        3-D intensities; the projection runs along the first axis. Negative values count as zero.
    count, shape
        Returns ``(count, *shape)``.
    depth, factor
        A patch has ``(depth, factor * shape[0], factor * shape[1])`` voxels.
    level, filled
        A patch is refused unless a share ``filled`` of its pixels exceeds ``level`` times the volume's maximum.
    seed
        Draws the patches and their peak values, uniform in [0.5, 1.5].

    Source: DEQ-MPI, section IV-B.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"volume: has {volume.ndim} axes, expected three")
    if len(shape) != 2:
        raise ValueError(f"shape: {shape}, expected (H, W)")
    size = (depth, factor * shape[0], factor * shape[1])
    if any(n < m for n, m in zip(volume.shape, size, strict=True)):
        raise ValueError(f"volume: shape {volume.shape} holds no patch of {size} voxels")
    threshold = level * float(volume.max())
    rng = np.random.default_rng(seed)

    def patch() -> Real:
        start = [int(rng.integers(n - m + 1)) for n, m in zip(volume.shape, size, strict=True)]
        block = volume[tuple(slice(s, s + m) for s, m in zip(start, size, strict=True))]
        return _box_mean(block.max(axis=0).clip(min=0), factor, factor)

    return _accepted(patch, count, rng, threshold, filled, "volume")


def retina_vessels(
    shape: tuple[int, ...],
    count: int,
    *,
    pixels: int = 2,
    level: float = 0.1,
    filled: float = 0.06,
    seed: int = 0,
) -> Image:
    """Random crops of :func:`retina_tree`, turned and mirrored at random, peak values uniform in [0.5, 1.5].

    Parameters
    ----------
    shape, count
        Returns ``(count, *shape)``.
    pixels
        How many pixels of the photograph make one of the result; vessels are 5 to 15 of them wide. With 2, and 4 x 4
        pixels of the result for one of the system matrix, they are one or two voxels wide.
    level, filled
        A crop is refused unless a share ``filled`` of its pixels exceeds ``level``.
    """
    if len(shape) != 2:
        raise ValueError(f"shape: {shape}, expected (H, W)")
    tree = retina_tree()
    size = (pixels * shape[0], pixels * shape[1])
    if pixels < 1 or max(size) > min(tree.shape):
        raise ValueError(f"shape: {shape} at {pixels} pixels each, expected at least 1 and at most {tree.shape} in all")
    rng = np.random.default_rng(seed)

    def crop() -> Real:
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        height, width = size if turns % 2 == 0 else size[::-1]
        top, left = int(rng.integers(tree.shape[0] - height + 1)), int(rng.integers(tree.shape[1] - width + 1))
        image = np.rot90(tree[top : top + height, left : left + width], turns)
        return _box_mean(image[:, ::-1] if mirror else image, pixels, pixels)

    return _accepted(crop, count, rng, level, filled, "shape")


def _accepted(
    draw: Callable[[], Real], count: int, rng: np.random.Generator, threshold: float, filled: float, source: str
) -> Image:
    """``count`` images that are not empty, each scaled to a random peak."""
    if count < 1:
        raise ValueError(f"count: {count}, expected at least 1")
    images: list[Image] = []
    for _ in range(_ATTEMPTS * count):
        if len(images) == count:
            break
        image = draw()
        if image.max() > 0 and np.mean(image > threshold) >= filled:
            images.append((image / image.max() * rng.uniform(0.5, 1.5)).astype(np.float32))
    if len(images) < count:
        raise DataError(
            f"{source}: {_ATTEMPTS * count} random patches gave {len(images)} of {count} with at least {filled:.0%} of "
            f"their pixels above {threshold:.3g}; lower level or filled"
        )
    return np.stack(images)


@lru_cache(maxsize=1)
def retina_tree() -> Image:
    """The vessel tree of scikit-image's retina photograph (CC0, in its wheel), 1411 x 1411, from 0 to 1, read-only.

    Dark ridges of the green channel at widths of 2 to 8 pixels (Sato's filter), the eye's rim left out.
    """
    try:
        from skimage import data
        from skimage.filters import sato
    except ImportError as error:
        raise MissingDependency("scikit-image", "demo", "the retina's vessel tree") from error
    ridges = sato(data.retina()[..., 1] / 255.0, sigmas=range(2, 10, 2), black_ridges=True)
    y, x = (np.arange(n) - (n - 1) / 2 for n in ridges.shape)
    eye = np.hypot(y[:, None], x) <= 640
    low, high = np.percentile(ridges[eye], [75, 99.2])  # a quarter of the eye is near a vessel, 1 % in a large one
    tree = np.where(eye, (ridges - low) / (high - low), 0.0).clip(0.0, 1.0).astype(np.float32)
    tree.flags.writeable = False
    return tree


# --- a head ----------------------------------------------------------------------------------------------------
# Grey level in scikit-image's Shepp-Logan phantom -> proton density, T1 and T2 in seconds at 3 T. The level 0 within
# the skull is the ventricles.
_TISSUES = {
    "ventricles": (1.00, 4.0, 2.0),
    0.1: (0.60, 1.0, 0.10),
    0.2: (0.70, 0.85, 0.07),
    0.3: (0.82, 1.4, 0.10),
    0.4: (0.90, 1.8, 0.15),
    1.0: (0.90, 0.35, 0.07),
}


def shepp_logan(shape: tuple[int, int], *, repetition_time: float = 3.0, echo_time: float = 0.09) -> Image:
    """Shepp-Logan head as a spin echo shows it: rho (1 - exp(-TR/T1)) exp(-TE/T2), (H, W), times in seconds.

    The default is T2-weighted with bright ventricles; 0.5 s and 10 ms give T1 weighting with a bright scalp, 10 s and 0
    the proton density. Pixels at tissue borders are mixed by area.
    """
    try:
        from skimage import data, measure, transform
    except ImportError as error:
        raise MissingDependency("scikit-image", "demo", "the Shepp-Logan phantom") from error
    levels = data.shepp_logan_phantom().round(1)
    regions = measure.label(levels == 0, background=0)
    outside = regions == regions[0, 0]
    image = np.zeros(levels.shape)
    for level, (density, t1, t2) in _TISSUES.items():
        tissue = (levels == 0) & ~outside if level == "ventricles" else levels == level
        image[tissue] = density * (1 - np.exp(-repetition_time / t1)) * np.exp(-echo_time / t2)
    return np.asarray(transform.resize(image, shape, order=1, anti_aliasing=True), dtype=np.float32)
