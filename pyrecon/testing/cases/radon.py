from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

from pyrecon.ops import Beam, FanBeam, ParallelBeam, ViewBeam, fbp, radon, radon_adjoint
from pyrecon.testing.cases._case import Case, randn

REAL = (torch.float32, torch.float64)
Geometry = Callable[[], Beam]


def angles(count: int, arc: float = math.pi, first: float = 0.1) -> torch.Tensor:
    return first + torch.arange(count, dtype=torch.float64) * (arc / count)


def parallel(views: int, height: int, width: int, n_det: int | None = None, **options: Any) -> Geometry:
    return lambda: ParallelBeam(angles(views), (height, width), n_det, **options)


def fan(views: int, height: int, width: int, n_det: int, *, wide: float = 1.0, **options: Any) -> Geometry:
    """The source 1.5 diagonals from the axis, detector pixels ``wide`` image pixels on the axis."""
    far = 1.5 * math.hypot(height, width)
    return lambda: FanBeam(angles(views, 2 * math.pi), (height, width), n_det, 1.5 * wide, far, 1.5 * far, **options)


def crooked() -> Beam:
    """Three views that belong to no circle, one with its pixels in the other order."""
    return ViewBeam(
        [[0.3, 9.0], [11.0, 1.0], [-1.0, -10.0]], [[-1.2, 0.1], [0.1, 1.3], [1.0, 0.3]], (7, 6), 15,
        sources=[[1.0, -12.0], [-13.0, 0.4], [0.0, 14.0]],
    )  # fmt: skip


def _cases(
    op: Callable[..., Any], name: str, geometry: Geometry, k: float, batch: tuple[int, ...], **more: Any
) -> Case:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        beam = geometry()
        size = beam.shape if op is radon else beam.range_shape
        return randn(generator, *batch, *size, dtype=dtype), beam

    return Case(op, name, make, k, dtypes=REAL, **more)


def _pair(name: str, geometry: Geometry, k: float = 48, batch: tuple[int, ...] = (2,), **more: Any) -> tuple[Case, ...]:
    return tuple(_cases(op, name, geometry, k, batch, **more) for op in (radon, radon_adjoint))


TINY: dict[str, Any] = {"tiny": True, "grad": (0,)}
# k: places err by a rounding of 16 to 48 pixels in float32 and of the image's size in float64, which moves a sample by
# so many eps of the difference of two pixels; random, a sum of n samples keeps 1/sqrt(n) of that. Measured 5 to 33 in
# float32 and, in float64, half the image's size.
CASES: tuple[Case, ...] = (
    *_pair("5x7-parallel", parallel(4, 5, 7), **TINY),
    *_pair("6x5-sides", parallel(3, 6, 5, 9, det_spacing=1.3, det_offset=0.4, pixel_size=(1.0, 1.5)), **TINY),
    *_pair("5x6-fan", fan(3, 5, 6, 8, det_offset=0.3), **TINY),
    *_pair("6x4-curved", fan(3, 6, 4, 7, curved=True), **TINY),
    *_pair("7x6-crooked", crooked, batch=(), **TINY),
    *_pair("one-pixel", parallel(3, 1, 1), batch=(2, 2)),
    *_pair("empty-batch", parallel(3, 4, 5), batch=(0,)),
    *_pair("row", parallel(7, 1, 37)),
    *_pair("column", parallel(7, 37, 1, det_spacing=0.8)),
    *_pair("one-ray", parallel(9, 33, 31, 1)),
    # Rays closer together than pixels, so that a pixel lies between several, and further apart, beyond any window.
    *_pair("dense", parallel(11, 61, 83, det_spacing=0.6), 64),
    *_pair("denser", parallel(11, 61, 83, det_spacing=0.35), 64),
    *_pair("densest", parallel(11, 61, 83, det_spacing=0.1), 64),
    *_pair("coarse", parallel(11, 61, 83, det_spacing=2.5), 64),
    *_pair("coarser", parallel(11, 61, 83, det_spacing=7.0), 64),
    *_pair("odd-fan", fan(23, 61, 83, 140), 64),
    *_pair("odd-curved", fan(23, 61, 83, 140, curved=True, det_offset=2.0), 64),
    *_pair("odd-coarse-fan", fan(23, 61, 83, 40, wide=4.0), 64),
    *_pair("near", lambda: FanBeam(angles(23, 6.3), (61, 83), 150, 0.6, 58.0, 70.0), 64),
    *_pair("slices", parallel(30, 128, 128), 96, batch=(3, 2)),
    *_pair("ct", parallel(40, 362, 362, 512), 256, batch=(1,)),
    *_pair("ct-fan", fan(40, 362, 362, 512, wide=0.9), 256, batch=(1,)),
)  # fmt: skip


def _fbp(name: str, geometry: Geometry, k: float = 64, batch: tuple[int, ...] = (2,), **more: Any) -> Case:
    return _cases(fbp, name, geometry, k, batch, **more)


# k: the filter, two FFTs in the precision of the sinogram, 10; places as above.
CASES += (
    _fbp("5x7-parallel", parallel(4, 5, 7), **TINY),
    _fbp("6x5-hann", parallel(3, 6, 5, 9, det_spacing=1.3, pixel_size=(1.0, 1.5)), options={"filter": "hann"}, **TINY),
    _fbp("5x6-fan", fan(3, 5, 6, 8, det_offset=0.3), options={"filter": "cosine", "short_scan": False}, **TINY),
    _fbp("6x4-curved", fan(3, 6, 4, 7, curved=True), options={"filter": None}, **TINY),
    _fbp("empty-batch", parallel(3, 4, 5), batch=(0,)),
    _fbp("one-ray", parallel(9, 33, 31, 1)),
    _fbp("dense", parallel(11, 61, 83, det_spacing=0.35), 256),
    _fbp("coarse", parallel(11, 61, 83, det_spacing=4.0)),
    _fbp("odd-fan", fan(23, 61, 83, 140), 128, options={"filter": "shepp-logan"}),
    _fbp("odd-curved", fan(23, 61, 83, 140, curved=True), 128, options={"filter": "hamming"}),
    _fbp("slices", parallel(30, 128, 128), 256, batch=(3, 2)),
    _fbp("ct-fan", fan(40, 362, 362, 512, wide=0.9), 512, batch=(1,)),
)  # fmt: skip
