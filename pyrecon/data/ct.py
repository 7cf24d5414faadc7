"""CT scans: the container of line integrals with their rays, preprocessing, and what a scan can and cannot show.

Arrays are NumPy, as in :mod:`pyrecon.data.raw`; images are in 1/m, lengths in metres.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._check import check_number, check_size
from pyrecon._errors import DataError
from pyrecon.data._ct_center import find_center
from pyrecon.data.raw import Grid, fault, usable
from pyrecon.ops import FanBeam, ParallelBeam, ViewBeam
from pyrecon.ops._radon_geometry import Beam

__all__ = [
    "CTScan",
    "Coverage",
    "check_rays",
    "check_scan",
    "coverage",
    "field_of_view",
    "find_center",
    "first_angle",
    "line_integrals",
    "natural_grid",
    "noise_std",
    "on_grid",
    "some_slices",
    "some_views",
]

Given = TypeVar("Given")
_GAP = 2.5  # a gap between views this many times the usual one is a missing range, not sparse sampling
_NARROW = math.radians(4)  # narrower ones are not worth a word
_FEW = 4  # fewer than one view for so many pixels of the detector, over half a turn, is sparse


@dataclass(frozen=True)
class CTScan:
    """Line integrals of one slice or more, measured along the same rays.

    Attributes
    ----------
    sinogram
        ``(S, A, D)`` float32, dimensionless: slices, views, detector pixels.
    geometry
        The rays, and the grid that an image has unless another is asked for.
    labels
        One text per slice, or none.
    metadata
        What was done and assumed on the way, by name, in words and numbers; reports print it.
    """

    sinogram: NDArray[np.float32]
    geometry: Beam
    labels: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """Of the images; row 0 is at the top (largest y)."""
        return Grid(self.geometry.shape, self.geometry.pixel_size, (0.0, 0.0))


def check_scan(scan: CTScan) -> None:
    """DataError if the parts of a scan do not fit together, or it holds NaN, Inf or nothing."""
    if not isinstance(scan, CTScan):
        raise TypeError(f"scan: expected a CTScan from a reader or a simulation, got {type(scan).__name__}")
    if not isinstance(scan.geometry, Beam):
        raise TypeError(f"geometry: got {type(scan.geometry).__name__}, expected ParallelBeam, FanBeam or ViewBeam")
    data = np.asarray(scan.sinogram)
    if data.ndim != 3 or data.dtype.kind != "f" or len(data) == 0 or data.shape[1:] != scan.geometry.range_shape:
        views, pixels = scan.geometry.range_shape
        raise DataError(
            f"sinogram: {data.dtype} of shape {data.shape}, expected floating-point (S, A, D) = (?, {views}, {pixels}) "
            "as the geometry has it"
        )
    if scan.labels and len(scan.labels) != len(data):
        raise DataError(f"labels: got {len(scan.labels)}, expected one for each of {len(data)} slices")
    bad = np.argwhere(~usable(data).all(axis=2))
    if len(bad):
        s, view = bad[0]
        raise DataError(f"sinogram: {len(bad)} views hold {fault(data)}, the first is view {view} of slice {s}")
    if not data.any():
        raise DataError("sinogram: is zero everywhere, nothing to reconstruct")


def some_views(scan: CTScan, views: slice | Sequence[int] | Tensor) -> CTScan:
    """The scan without the other views."""
    geometry = quietly(scan.metadata, lambda: scan.geometry.subset(views))
    index = views if isinstance(views, slice) else np.asarray(views)
    return replace(scan, sinogram=np.ascontiguousarray(scan.sinogram[:, index]), geometry=geometry)


def some_slices(scan: CTScan, count: int) -> CTScan:
    """The first ``count`` slices."""
    return replace(scan, sinogram=scan.sinogram[:count], labels=scan.labels[:count])


# --- grids ---------------------------------------------------------------------------------------------------------
def on_grid(
    geometry: Beam,
    shape: Sequence[int] | None = None,
    pixel_size: float | Sequence[float] | None = None,
    *,
    turn: float = 0.0,
) -> Beam:
    """The same rays through an image of another ``shape``, or of other pixels (metres).

    With only one of the two the field of view stays as it is, as nearly as whole pixels allow. ``turn``, radians, turns
    the image's rows and columns anticlockwise, so that angles are smaller by as much: for geometries that have angles.
    """
    if shape is None and pixel_size is None and not turn:
        return geometry
    if turn and geometry.angles is None:
        raise ValueError(f"turn: {turn:g}, but a {type(geometry).__name__} has no angles, expected 0")
    if shape is not None:
        shape = check_size("shape", shape, 2)
    extent = [n * p for n, p in zip(geometry.shape, geometry.pixel_size, strict=True)]
    if shape is None and pixel_size is None:
        shape, pixels = geometry.shape, list(geometry.pixel_size)
    elif pixel_size is None:
        assert shape is not None
        pixels = [e / n for e, n in zip(extent, shape, strict=True)]
    else:
        given = pixel_size if isinstance(pixel_size, Sequence) else [pixel_size, pixel_size]
        pixels = [check_number("pixel_size", p, above=True) for p in given]
        if len(pixels) != 2:
            raise ValueError(f"pixel_size: {pixels} does not fit, expected a number, or (of a row, of a column)")
    size = [max(1, round(e / p)) for e, p in zip(extent, pixels, strict=True)] if shape is None else list(shape)
    grid: dict[str, Any] = {"shape": size, "pixel_size": tuple(pixels), "unit": "m"}
    if isinstance(geometry, ParallelBeam | FanBeam):
        angles = geometry.angles - turn if turn else geometry.angles
    if isinstance(geometry, ParallelBeam):
        return ParallelBeam(
            angles, n_det=geometry.n_det, det_spacing=geometry.det_spacing, det_offset=geometry.det_offset, **grid
        )  # fmt: skip
    if isinstance(geometry, FanBeam):
        return FanBeam(
            angles, n_det=geometry.n_det, det_spacing=geometry.det_spacing, det_offset=geometry.det_offset,
            source_to_axis=geometry.source_to_axis, source_to_detector=geometry.source_to_detector,
            curved=geometry.curved, **grid,
        )  # fmt: skip
    assert isinstance(geometry, ViewBeam)
    return ViewBeam(
        geometry.detectors, geometry.axes, n_det=geometry.n_det, sources=geometry.sources, rays=geometry.ray_directions,
        curved=geometry.curved, **grid,
    )  # fmt: skip


def natural_grid(geometry: Beam) -> tuple[tuple[int, int], float]:
    """The square grid of a scan: pixels as wide as rays are apart at the axis, as far as every view sees.

    ``(H, W)`` and the pixel size in metres.
    """
    distance = _distances(geometry)
    middle = distance.shape[1] // 2
    steps = np.abs(np.diff(distance, axis=1)) if distance.shape[1] > 1 else np.abs(2 * distance) + 1e-3
    pixel = float(np.median(steps[:, max(0, middle - 2) : middle + 2]))
    reach = field_of_view(geometry) or float(np.abs(distance).max())
    if not 0 < pixel < math.inf or not reach < 2**31 * pixel:
        raise ValueError(f"geometry: rays {pixel:g} m apart at the axis, expected a positive distance")
    side = max(1, int(2 * reach / pixel + 1 + 1e-6))
    return (side, side), pixel


def field_of_view(geometry: Beam) -> float:
    """Radius of the disc about the axis that every view sees, metres; 0 where some see one side only."""
    distance = _distances(geometry)
    return max(0.0, float(min(-distance.min(axis=1).max(), distance.max(axis=1).min())))


def check_rays(geometry: Beam) -> None:
    """DataError if no ray crosses the image."""
    nearest = float(np.abs(_distances(geometry)).min())
    sides = [n * p for n, p in zip(geometry.shape, geometry.pixel_size, strict=True)]
    if not nearest < math.hypot(*sides) / 2:
        raise DataError(
            f"geometry: no ray crosses the image of {sides[0]:.3g} x {sides[1]:.3g} m, the nearest passes "
            f"{nearest:.3g} m from its middle; are all lengths in the same unit?"
        )


def _distances(geometry: Beam) -> NDArray[np.float64]:
    """Of each ray from the axis, with its sign, ``(views, n_det)``."""
    points, directions = (t.detach().cpu().numpy() for t in geometry.rays())
    cross = points[..., 0] * directions[..., 1] - points[..., 1] * directions[..., 0]
    distance: NDArray[np.float64] = cross / np.linalg.norm(directions, axis=-1)
    return distance


def quietly(metadata: dict[str, Any], build: Callable[[], Given]) -> Given:
    """What ``build`` returns; what it warned of is kept in ``metadata["warnings"]``, for the report."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = build()
    texts = [*metadata.get("warnings", []), *(str(w.message) for w in caught)]
    if texts:
        metadata["warnings"] = list(dict.fromkeys(texts))
    return value


# --- what the views cover ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Coverage:
    """Which directions the rays through the axis have.

    Attributes
    ----------
    views
        How many.
    arc
        Radians of directions from the first view to the last, of pi; a fan's views from opposite sides count once.
    missing
        Ranges ``(first, last)`` in degrees of the edge normals that no ray is tangent to, counted anticlockwise from x.
        Modulo 180; ``last`` may exceed it.
    sparse
        Whether there are few views for the detector's resolution.
    """

    views: int
    arc: float
    missing: tuple[tuple[float, float], ...]
    sparse: bool

    @property
    def limited(self) -> bool:
        """Whether a range of directions is missing."""
        return bool(self.missing)

    def __str__(self) -> str:
        if not self.limited:
            kind = "few views: streaks in filtered back-projection" if self.sparse else "all directions"
            return f"{self.views} views, {kind}"
        ranges = " and ".join(f"{a:.0f} to {b:.0f}" for a, b in self.missing)
        return (
            f"limited angle: {self.views} views over {math.degrees(self.arc):.0f} of 180 degrees; edges whose normal "
            f"lies from {ranges} degrees (anticlockwise from the right) cannot be recovered by filtered "
            "back-projection"
        )


def coverage(geometry: Beam) -> Coverage:
    """What the views of a scan cover, by their rays through the axis.

    An edge is seen where a ray is tangent to it (Quinto, SIAM J Math Anal 24:1215, 1993). Rays of a fan besides its
    middle one see edges away from the axis up to half the fan's angle further.
    """
    _, directions = (t.detach().cpu().numpy() for t in geometry.rays())
    nearest = np.abs(_distances(geometry)).argmin(axis=1)
    middle = directions[np.arange(len(directions)), nearest]
    normals = np.sort(np.arctan2(-middle[:, 0], middle[:, 1]) % np.pi)
    gaps = np.diff(np.append(normals, normals[0] + np.pi))
    apart = gaps[gaps > 1e-6]
    usual = float(np.median(apart)) if len(apart) > 1 else 0.0
    wide = (gaps > max(_GAP * usual, _NARROW)) & (gaps > _NARROW + usual)
    if len(apart) <= 1:
        wide = gaps > _NARROW
    ranges = tuple((math.degrees(normals[i]), math.degrees(normals[i] + gaps[i])) for i in np.flatnonzero(wide))
    arc = math.pi - float(gaps[wide].sum())
    return Coverage(len(normals), arc, ranges, len(apart) * _FEW < geometry.n_det * arc / math.pi)


def first_angle(geometry: Beam) -> float:
    """Where the arc of the views begins, radians: the end of the widest gap between their angles; 0 without angles."""
    if geometry.angles is None:
        return 0.0
    turn = math.pi if isinstance(geometry, ParallelBeam) else 2 * math.pi
    angles = np.sort(geometry.angles.detach().cpu().numpy() % turn)
    gaps = np.diff(angles, prepend=angles[-1] - turn)
    return float(angles[gaps.argmax()])


# --- preprocessing -------------------------------------------------------------------------------------------------
def line_integrals(
    counts: NDArray[Any], dark: NDArray[Any] | None = None, white: NDArray[Any] | float = 1.0
) -> tuple[NDArray[np.float32], int]:
    """``-log((counts - dark) / (white - dark))`` and how many values had to be clamped to make sense.

    Parameters
    ----------
    counts
        ``(A, S, D)`` or any other shape.
    dark, white
        The detector without and with the beam, nothing in it; broadcast with ``counts``.

    Returns
    -------
    line_integrals, clamped
        Where no more than the dark came through, the transmission counts as the smallest positive one among them;
        where the white is no brighter than the dark, the detector is dead, and the integral is 0. Both are clamped.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        floor = np.zeros(1) if dark is None else np.asarray(dark, np.float64)
        beam = np.asarray(white, np.float64) - floor
        transmission = (np.asarray(counts, np.float64) - floor) / beam
        dead = np.broadcast_to(~(beam > 0), transmission.shape)
        opaque = ~(transmission > 0) & ~dead
        seen = transmission[~opaque & ~dead]
        least = float(seen.min()) if seen.size else 1.0
        integrals = -np.log(np.where(opaque, least, np.where(dead, 1.0, transmission)))
    return integrals.astype(np.float32), int(opaque.sum() + dead.sum())


def noise_std(sinogram: NDArray[Any]) -> float:
    """Standard deviation of white noise in a sinogram ``(..., D)``, from third differences along the detector.

    The median absolute difference, so edges hardly count; an object that is smooth from pixel to pixel not at all.
    """
    data = np.asarray(sinogram, np.float64)
    if data.shape[-1] < 4:
        return 0.0
    differences = np.diff(data, n=3, axis=-1)  # weights 1, -3, 3, -1
    return float(np.median(np.abs(differences)) / (0.6745 * math.sqrt(20)))
