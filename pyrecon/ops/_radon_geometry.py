"""Where the rays of a CT scan run: parallel beams, fan beams, and scanners that are not ideal, view by view.

x points to the right along an image's columns, y up (row 0 is the top one), and the origin, which is the axis of
rotation, is the middle of the image. A ray is a point and a direction; everything else follows from them.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrecon._check import check_count, check_flag, check_number, check_size
from pyrecon.ops._radon_inputs import Length, length, offset, unit_scale, vectors, view_angles, view_index

MOST = 1 << 20  # pixels of a side, or of a detector
LARGEST = 10.0  # metres that a body may have in a scanner whose unit was stated


class _Metres:
    """A length kept in the unit it was given in and read in metres: whoever reads it gets a graph of its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, beam: Beam, owner: type | None = None) -> Tensor:
        value: Tensor = getattr(beam, self.name)
        return value if beam._scale == 1 else value * beam._scale

    def __set__(self, beam: Beam, value: Tensor) -> None:
        setattr(beam, self.name, value)


class Beam(ABC):
    """The rays of one scan of one slice; made by :class:`ParallelBeam`, :class:`FanBeam` or :class:`ViewBeam`.

    Attributes
    ----------
    shape
        ``(H, W)`` of the image.
    pixel_size
        Of a row and of a column, metres.
    views, n_det, range_shape
        How many views and detector pixels, and both as a pair.
    angles
        Of the views in radians, ``(views,)``; None where they have none.
    """

    angles: Tensor | None = None
    _per_view: ClassVar[tuple[str, ...]]  # names of tensors whose first axis is the view, or that have none

    shape: tuple[int, int]
    pixel_size: tuple[float, float]
    n_det: int

    def __init__(self, shape: Sequence[int], n_det: int, pixel_size: float | Sequence[float], unit: str | None) -> None:
        size = check_size("shape", shape, 2)
        self.shape = (check_count("shape", size[0], most=MOST), check_count("shape", size[1], most=MOST))
        self.n_det = check_count("n_det", n_det, most=MOST)
        self._scale = unit_scale(unit)
        sides = pixel_size if isinstance(pixel_size, tuple | list) else (pixel_size, pixel_size)
        if len(sides) != 2:
            raise ValueError(f"pixel_size: {pixel_size} does not fit, expected one length, or (of a row, of a column)")
        rows, columns = (check_number("pixel_size", side, above=True) * self._scale for side in sides)
        self.pixel_size = (rows, columns)
        largest = max(n * p for n, p in zip(self.shape, self.pixel_size, strict=True))
        if unit is not None and largest > LARGEST:
            raise ValueError(
                f"pixel_size: makes a body of {largest:.4g} m, expected at most {LARGEST:g} m; lengths are in {unit!r}"
                f"{', are they mm?' if unit == 'm' else ''} Without unit= no size is wrong"
            )
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._plans: dict[bool | None, Any] = {}  # of ops/_fbp.py

    # --- what follows from the rays --------------------------------------------------------------------------------
    @abstractmethod
    def rays(self) -> tuple[Tensor, Tensor]:
        """A point on each ray in metres and its direction (any length), both ``(views, n_det, 2)`` float64, as (x, y).

        Differentiable in what the geometry was made of.
        """

    @property
    @abstractmethod
    def arc(self) -> float:
        """Radians of directions that the views cover, up to pi for parallel rays and 2 pi for a fan."""

    @property
    @abstractmethod
    def full_arc(self) -> float:
        """Radians that a complete scan covers: pi, or pi and the angle of the fan."""

    @property
    def views(self) -> int:
        return max(len(t) for t in self._of_views().values() if t.dim())

    @property
    def range_shape(self) -> tuple[int, int]:
        """``(views, n_det)``."""
        return self.views, self.n_det

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are wanted of anything that the geometry was made of."""
        return any(isinstance(v, Tensor) and v.requires_grad for v in vars(self).values())

    def subset(self, views: Tensor | Sequence[int] | slice) -> Beam:
        """The geometry of some of the views, by their numbers; nothing is computed again."""
        index = view_index(views, self.views)
        part = copy.copy(self)
        for name, tensor in self._of_views().items():
            setattr(part, name, tensor[index.to(tensor.device)] if tensor.dim() else tensor)
        part._plans = {}
        part._tables = {d: (r[index.to(d)], a[index.to(d)]) for d, (r, a) in self._tables.items()}
        return part

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the kernels read: ``(views, 3, n_det)`` float64 and ``(views, n_det)`` bool, see ops/_radon.py."""
        if self.requires_grad:
            rays, along = self._lines()
            return rays.to(device), along.to(device)
        if device not in self._tables:
            rays, along = self._lines() if not self._tables else next(iter(self._tables.values()))
            self._tables[device] = (rays.to(device), along.to(device))
        return self._tables[device]

    def __repr__(self) -> str:
        height, width = self.shape
        return f"{type(self).__name__}({height} x {width} pixels, {self.views} views of {self.n_det} rays)"

    def _of_views(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in self._per_view}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _lines(self) -> tuple[Tensor, Tensor]:
        """Each ray as column = start + slope * row, with the length of a step to the next row; or with rows and columns
        exchanged, for rays that cross more columns than rows."""
        points, directions = self.rays()
        height, width = self.shape
        dy, dx = self.pixel_size
        column, row = points[..., 0] / dx + (width - 1) / 2, (height - 1) / 2 - points[..., 1] / dy
        d_column, d_row = directions[..., 0] / dx, -directions[..., 1] / dy
        along = d_row.abs() >= d_column.abs()  # along the columns, from row to row
        one = torch.ones_like(d_row)
        step, across = torch.where(along, d_row, d_column), torch.where(along, d_column, d_row)
        step = torch.where(step == 0, one, step)  # refused below
        slope = across / step
        start = torch.where(along, column, row) - slope * torch.where(along, row, column)
        weight = torch.linalg.vector_norm(directions, dim=-1) / step.abs()
        rays = torch.stack([start, slope, weight], dim=1)
        return rays, along.detach()

    def _check(self, sources: Tensor | None = None) -> None:
        """Raise for rays that are none; warn of those that miss the body. Builds the tables."""
        rays, _ = self.tables(torch.device("cpu"))
        if not bool(torch.isfinite(rays.detach()).all()):
            raise ValueError("geometry: some rays have no finite place or direction, expected a scanner of finite size")
        if sources is not None:
            half = torch.tensor([self.shape[1] * self.pixel_size[1], self.shape[0] * self.pixel_size[0]]).double() / 2
            inside = (sources.detach().abs() < half).all(dim=-1)
            if bool(inside.any()):
                view = int(inside.nonzero()[0, 0])
                raise ValueError(
                    f"source: that of view {view} lies inside the image, {half[0] * 2:.4g} x {half[1] * 2:.4g} m; "
                    "expected one outside of it"
                )
        self._warn_truncated()

    def _warn_truncated(self) -> None:
        """The disc that touches the image's sides holds the body; rays should reach its rim on both sides."""
        points, directions = (t.detach() for t in self.rays())
        directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
        distance = points[..., 0] * directions[..., 1] - points[..., 1] * directions[..., 0]
        spacing = distance.diff(dim=1).abs().amax(dim=1) if self.n_det > 1 else torch.zeros(len(distance))
        radius = min(n * p for n, p in zip(self.shape, self.pixel_size, strict=True)) / 2
        short = (distance.amin(1) > spacing - radius) | (distance.amax(1) < radius - spacing)
        if bool(short.any()):
            reach = float(torch.minimum(-distance.amin(1), distance.amax(1)).amin())
            warnings.warn(
                f"detector: {int(short.sum())} of {len(short)} views reach only {reach:.4g} m to one side of the axis, "
                f"the image {radius:.4g} m: projections of what fills it are truncated. Take a wider detector (n_det, "
                "det_spacing) or a smaller image",
                stacklevel=4,
            )


class ParallelBeam(Beam):
    """Parallel rays, as of a synchrotron: at angle a the detector's coordinate is ``s = x cos a + y sin a``.

    At angle 0 the rays run along the image's columns, and sums are over rows, as in ``skimage.transform.radon``. Pixel
    d of the detector is at ``s = (d - (n_det - 1) / 2) * det_spacing + det_offset``.

    Parameters
    ----------
    angles
        Radians, ``(A,)``, in any order; a tensor, an array or a list.
    shape
        ``(H, W)`` of the image.
    n_det
        Detector pixels; as many as the image's diagonal needs unless given.
    det_spacing
        Between detector pixels; the smaller side of an image pixel unless given.
    det_offset
        Of the detector's middle from the axis of rotation: a number, or a tensor of one or of one per view.
    pixel_size
        Of the image: a number, or (of a row, of a column).
    unit
        ``"m"`` or ``"mm"``: what all lengths are given in; images are then in 1/m. Unless given, lengths are in any
        unit, say pixels, and no body is too large.

    Lengths may be tensors that require grad, and so may the angles: :func:`radon` is differentiable in them.
    """

    _per_view = ("angles", "_det_offset")
    angles: Tensor
    det_spacing, det_offset = _Metres(), _Metres()

    def __init__(
        self,
        angles: Tensor | Sequence[float],
        shape: Sequence[int],
        n_det: int | None = None,
        det_spacing: Length | None = None,
        det_offset: Length = 0.0,
        pixel_size: float | Sequence[float] = 1.0,
        *,
        unit: str | None = None,
    ) -> None:
        super().__init__(shape, 1 if n_det is None else n_det, pixel_size, unit)
        self.angles = view_angles(angles)
        smallest = min(self.pixel_size) / self._scale
        self.det_spacing = length("det_spacing", smallest if det_spacing is None else det_spacing)
        if n_det is None:
            diagonal = math.hypot(*(n * p for n, p in zip(self.shape, self.pixel_size, strict=True)))
            wanted = diagonal / float(self.det_spacing.detach())
            if not wanted <= MOST:
                raise ValueError(f"det_spacing: {wanted:.4g} pixels would see the whole image, expected at most {MOST}")
            self.n_det = math.ceil(wanted)
        self.det_offset = offset(det_offset, len(self.angles))
        self._check()

    def rays(self) -> tuple[Tensor, Tensor]:
        across, forward = _axes_of(self.angles)
        s = _detector(self.n_det, self.det_spacing, self.det_offset, len(self.angles))
        points = s[..., None] * across[:, None]
        return points, forward[:, None].expand_as(points)

    @property
    def arc(self) -> float:
        return _covered(self.angles, math.pi)

    @property
    def full_arc(self) -> float:
        return math.pi


class FanBeam(Beam):
    """A fan of rays from a source that turns with a flat or curved detector about the axis.

    At angle a the source is at ``source_to_axis * (sin a, -cos a)``, the detector on the other side of the axis, along
    ``(cos a, sin a)``: with the source far away, the parallel beam of the same angles. Pixel d of the detector is at
    ``(d - (n_det - 1) / 2) * det_spacing + det_offset`` on it, along the arc if it is curved.

    Parameters
    ----------
    angles, shape, det_offset, pixel_size, unit
        As of :class:`ParallelBeam`.
    n_det, det_spacing
        Pixels of the detector, and their distance on it.
    source_to_axis, source_to_detector
        Distances of the source from the axis of rotation and from the detector's middle.
    curved
        Whether the detector is an arc about the source.
    """

    _per_view = ("angles", "_det_offset")
    angles: Tensor
    det_spacing, det_offset, source_to_axis, source_to_detector = _Metres(), _Metres(), _Metres(), _Metres()

    def __init__(
        self,
        angles: Tensor | Sequence[float],
        shape: Sequence[int],
        n_det: int,
        det_spacing: Length,
        source_to_axis: Length,
        source_to_detector: Length,
        det_offset: Length = 0.0,
        pixel_size: float | Sequence[float] = 1.0,
        *,
        curved: bool = False,
        unit: str | None = None,
    ) -> None:
        super().__init__(shape, n_det, pixel_size, unit)
        check_flag("curved", curved)
        self.curved = curved
        self.angles = view_angles(angles)
        self.det_spacing = length("det_spacing", det_spacing)
        self.source_to_axis = length("source_to_axis", source_to_axis)
        self.source_to_detector = length("source_to_detector", source_to_detector)
        self.det_offset = offset(det_offset, len(self.angles))
        half = self._half_fan()
        if not half < math.pi / 2:
            raise ValueError(
                f"det_spacing: makes a fan of {2 * math.degrees(half):.4g} degrees, expected less than 180; is "
                "source_to_detector in the same unit?"
            )
        _, forward = _axes_of(self.angles.detach())
        self._check(-self.source_to_axis.detach() * forward)

    def rays(self) -> tuple[Tensor, Tensor]:
        across, forward = (t[:, None] for t in _axes_of(self.angles))
        s = _detector(self.n_det, self.det_spacing, self.det_offset, len(self.angles))[..., None]
        if self.curved:
            fan = s / self.source_to_detector
            directions = fan.cos() * forward + fan.sin() * across
            distance = self.source_to_axis / fan.cos()
        else:
            directions = self.source_to_detector * forward + s * across
            distance = self.source_to_axis / self.source_to_detector
        # Where they pass the axis, not the source: from far away that would take digits of their place.
        return distance * directions - self.source_to_axis * forward, directions

    @property
    def arc(self) -> float:
        return _covered(self.angles, 2 * math.pi)

    @property
    def full_arc(self) -> float:
        return math.pi + 2 * self._half_fan()

    def _half_fan(self) -> float:
        """Largest angle of a ray with the middle one, radians."""
        edge = 0.5 * (self.n_det - 1) * self.det_spacing.detach() + self.det_offset.detach().abs().max()
        ratio = float(edge / self.source_to_detector.detach())
        return ratio if self.curved else math.atan(ratio)


class ViewBeam(Beam):
    """A scanner given view by view: where its detector lies, and where its rays come from.

    Parameters
    ----------
    detectors
        Middle of the detector in each view, ``(A, 2)`` as (x, y).
    axes
        From one detector pixel to the next, ``(A, 2)``; on a curved detector at its middle, along the arc.
    shape, n_det, pixel_size, unit
        As of :class:`ParallelBeam`.
    sources
        Position of the source in each view, ``(A, 2)``; this or ``rays``.
    rays
        Direction of the parallel rays of each view, ``(A, 2)``, of any length.
    curved
        Whether detectors are arcs about their sources.
    """

    _per_view = ("_detectors", "_axes", "_sources", "ray_directions")
    detectors, axes = _Metres(), _Metres()

    def __init__(
        self,
        detectors: Tensor | Sequence[Sequence[float]],
        axes: Tensor | Sequence[Sequence[float]],
        shape: Sequence[int],
        n_det: int,
        pixel_size: float | Sequence[float] = 1.0,
        *,
        sources: Tensor | Sequence[Sequence[float]] | None = None,
        rays: Tensor | Sequence[Sequence[float]] | None = None,
        curved: bool = False,
        unit: str | None = None,
    ) -> None:
        super().__init__(shape, n_det, pixel_size, unit)
        check_flag("curved", curved)
        if (sources is None) == (rays is None):
            raise ValueError("sources: expected either sources or rays, not both and not none")
        if curved and sources is None:
            raise ValueError("curved: a curved detector is an arc about its source, expected sources")
        self.curved = curved
        self.detectors = vectors("detectors", detectors)
        count = len(self.detectors)
        self.axes = vectors("axes", axes, count)
        self._sources = None if sources is None else vectors("sources", sources, count)
        self.ray_directions = None if rays is None else vectors("rays", rays, count)
        toward = self.detectors - self.sources if self.sources is not None else self.ray_directions
        assert toward is not None
        cross = (toward[:, 0] * self.axes[:, 1] - toward[:, 1] * self.axes[:, 0]).detach().abs()
        sizes = (torch.linalg.vector_norm(toward.detach(), dim=1), torch.linalg.vector_norm(self.axes.detach(), dim=1))
        if not bool((cross > 1e-6 * sizes[0] * sizes[1]).all()):
            view = int((~(cross > 1e-6 * sizes[0] * sizes[1])).nonzero()[0, 0])
            raise ValueError(f"axes: the detector of view {view} lies along its rays, expected one across them")
        if self.sources is not None:
            behind = (toward * self.sources).sum(1).detach() >= 0
            if bool(behind.any()):
                view = int(behind.nonzero()[0, 0])
                raise ValueError(
                    f"detectors: that of view {view} is not on the image's side of its source, expected the image's "
                    "middle in front of the source"
                )
        self._check(self.sources)

    @property
    def sources(self) -> Tensor | None:
        """Of each view, metres; None for parallel rays."""
        return None if self._sources is None else self._sources * self._scale

    def rays(self) -> tuple[Tensor, Tensor]:
        d = torch.arange(self.n_det, dtype=torch.float64, device=self.detectors.device) - (self.n_det - 1) / 2
        detectors, axes, sources = self.detectors, self.axes, self.sources
        if sources is None:
            assert self.ray_directions is not None
            points = detectors[:, None] + d[:, None] * axes[:, None]
            return points, self.ray_directions[:, None].expand_as(points)
        toward = detectors - sources
        if not self.curved:
            points = detectors[:, None] + d[:, None] * axes[:, None]
            return points, points - sources[:, None]
        radius = torch.linalg.vector_norm(toward, dim=1, keepdim=True)
        turned = torch.stack([-toward[:, 1], toward[:, 0]], dim=1)  # by 90 degrees, anticlockwise
        fan = d * (turned * axes).sum(1, keepdim=True) / radius**2  # (A, D)
        directions = fan.cos()[..., None] * toward[:, None] + fan.sin()[..., None] * turned[:, None]
        return sources[:, None] + directions, directions

    @property
    def arc(self) -> float:
        if self.sources is not None:
            return _covered(torch.atan2(self.sources[:, 1], self.sources[:, 0]), 2 * math.pi)
        assert self.ray_directions is not None
        return _covered(torch.atan2(self.ray_directions[:, 1], self.ray_directions[:, 0]), math.pi)

    @property
    def full_arc(self) -> float:
        _, directions = self.rays()
        ends = directions.detach()[:, [0, -1]]
        cross = ends[:, 0, 0] * ends[:, 1, 1] - ends[:, 0, 1] * ends[:, 1, 0]
        return math.pi + float(torch.atan2(cross, (ends[:, 0] * ends[:, 1]).sum(1)).abs().max())


# --- parts ---------------------------------------------------------------------------------------------------------
def _axes_of(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors along the detector and along the middle ray, ``(A, 2)`` each."""
    c, s = angles.cos(), angles.sin()
    return torch.stack([c, s], dim=1), torch.stack([-s, c], dim=1)


def _detector(n_det: int, spacing: Tensor, offset: Tensor, views: int) -> Tensor:
    """Coordinates of the pixels on the detector, ``(views, n_det)``."""
    d = torch.arange(n_det, dtype=torch.float64, device=spacing.device) - (n_det - 1) / 2
    return d * spacing + offset.expand(views)[:, None]


def _covered(angles: Tensor, period: float) -> float:
    """How much of a period the angles cover, each half of the usual distance to its neighbours."""
    turned, _ = torch.sort(angles.detach().double().remainder(period))
    gaps = torch.cat([turned.diff(), turned[:1] + period - turned[-1:]])
    if len(gaps) == 1:
        return 0.0
    gaps, _ = torch.sort(gaps)
    usual = gaps[:-1][gaps[:-1] > 1e-9 * period]
    between = float(usual.median()) if len(usual) else 0.0
    return min(period, period - float(gaps[-1]) + between)
