"""What the readers of CT scans share: building a geometry from what a file says, and believing neither."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan, natural_grid, on_grid, quietly
from pyrecon.data.placement import LONGEST, SHORTEST
from pyrecon.io._files import check_finite, one_line
from pyrecon.ops._radon_geometry import Beam

Given = TypeVar("Given")

_LENGTHS = "det_spacing", "det_offset", "source_to_axis", "source_to_detector", "detectors", "axes", "sources"
MOST_PIXELS = 2**14  # of an image's side, unless it is asked for


def built(path: Path, build: Callable[[], Given], metadata: dict[str, Any]) -> Given:
    """A geometry; DataError where what the file says makes none, warnings kept in ``metadata``."""
    try:
        return quietly(metadata, build)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DataError(f"{path}: makes no geometry ({one_line(error)})") from error


def on_natural_grid(path: Path, build: Callable[[tuple[int, int], float], Beam], metadata: dict[str, Any]) -> Beam:
    """The geometry that ``build(shape, pixel_size)`` makes, on the grid that its rays ask for."""
    rays = built(path, lambda: build((1, 1), 1e-6), {})
    try:
        shape, pixel = natural_grid(rays)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: its rays cover no image ({one_line(error)})") from error
    if not math.isfinite(pixel) or not pixel > 0 or max(shape) > MOST_PIXELS:
        raise DataError(
            f"{path}: its rays ask for {shape[0]} x {shape[1]} pixels of {pixel:.3g} m, expected at most "
            f"{MOST_PIXELS} x {MOST_PIXELS}"
        )
    return built(path, lambda: on_grid(rays, shape, pixel), metadata)


def scan(
    path: Path, field: str, sinogram: NDArray[Any], geometry: Beam, labels: tuple[str, ...], metadata: dict[str, Any]
) -> CTScan:
    """A scan ``(S, A, D)`` of finite numbers that are not all zero, along rays of this world."""
    for name in _LENGTHS:
        length = getattr(geometry, name, None)
        if length is not None and not float(length.abs().max()) <= LONGEST:
            raise DataError(f"{path}: {name}: {float(length.abs().max()):g} m, expected at most {LONGEST:g} m")
    if not min(geometry.pixel_size) >= SHORTEST:
        raise DataError(f"{path}: pixels of {min(geometry.pixel_size):g} m, expected at least {SHORTEST:g} m")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(sinogram, np.float32)
    check_finite(path, field, data.reshape(-1, data.shape[-1]), "projection")
    if data.size == 0 or not data.any():
        raise DataError(f"{path}: {field} is zero everywhere, nothing to reconstruct")
    return CTScan(data, geometry, labels, metadata)
