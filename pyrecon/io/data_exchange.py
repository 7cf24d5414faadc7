"""Data Exchange (HDF5), as synchrotrons write parallel-beam scans: counts, darks and whites.

Source: F. De Carlo et al., "Scientific data exchange: a schema for HDF5-based storage of raw and analyzed data",
J. Synchrotron Rad. 21 (2014) 1224-1230.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan, find_center, line_integrals
from pyrecon.io._files import PathLike, check_finite
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._scan import on_natural_grid, scan
from pyrecon.ops import ParallelBeam
from pyrecon.ops._radon_geometry import Beam

__all__ = ["read_data_exchange"]

_PIXELS = (
    "/measurement/instrument/detector/actual_pixel_size_x",
    "/measurement/instrument/detector/pixel_size_x",
    "/measurement/instrument/detector/x_pixel_size",
)
_ASSUMED_PIXEL = 1e-3  # metres, where the file says nothing and nobody else does


def read_data_exchange(
    path: PathLike, *, pixel_size: float | None = None, center: float | None = None, rows: slice | None = None
) -> CTScan:
    """Read ``/exchange/data`` (views, rows, detector): line integrals of every row, about the centre of rotation.

    Corrected by the medians of ``data_dark`` and ``data_white`` where the file has them. Angles run anticlockwise as in
    :class:`~pyrecon.ops.ParallelBeam`; they are degrees, as the format has them, unless they span a turn in radians at
    most and the file speaks of radians. (Attributes are not read: HDF5 follows references in them unchecked.)

    Parameters
    ----------
    path
        The file.
    pixel_size
        Of the detector, metres, at the object; else the file's (micrometres), else 1 mm is assumed.
    center
        Detector pixel, from 0, that the axis projects to; :func:`~pyrecon.data.ct.find_center` unless given.
    rows
        Of the detector, which are slices of the object: read these only. A whole scan may not fit the memory.

    Returns
    -------
    CTScan
        ``metadata`` says what was corrected, clamped, found and assumed.
    """
    path = Path(path)
    with Hdf5(path) as file:
        counts, taken = _counts(file, rows)
        views, count, n_det = counts.shape
        dark, white = (_frame(file, f"/exchange/data_{kind}", taken, n_det) for kind in ("dark", "white"))
        if not file.has("/exchange/theta"):
            raise DataError(f"{path}: /exchange/theta is missing, expected the angles of {views} views")
        theta = file.array("/exchange/theta", (views,))
        pixel, origin = _pixel(file, pixel_size)
    check_finite(path, "/exchange/data", counts.reshape(-1, n_det), "line")
    angles, unit = _radians(path, theta)
    if white is None and counts.min() < 0:
        raise DataError(
            f"{path}: /exchange/data_white is missing, and the data are no counts (smallest {counts.min():g})"
        )
    bright = np.full((count, 1), np.percentile(counts, 99.9)) if white is None else white
    sinogram, clamped = np.empty((count, views, n_det), np.float32), 0
    for row in range(count):  # one at a time: in double they need many times their memory
        sinogram[row], lost = line_integrals(counts[:, row], None if dark is None else dark[row], bright[row])
        clamped += lost
    metadata: dict[str, Any] = {
        "format": "Data Exchange",
        "minus_log": "done here" + (", against the 99.9th percentile (no whites)" if white is None else ""),
        "dark_field": "none" if dark is None else "subtracted",
        "white_field": "none" if white is None else "divided by",
        "clamped": f"{clamped} of {counts.size} values (detector dead, or no more than the dark)",
        "angle_unit": unit,
        "detector_pixel": f"{1e6 * pixel:g} um ({origin})",
    }
    if origin == "assumed":
        metadata["warnings"] = [
            "detector pixel: not in the file, 1 mm is assumed; images and lengths are right but for that factor. Say "
            "it (--detector-pixel, pixel_size=) to have them in 1/m"
        ]
    if center is None:
        center, way = find_center(sinogram, angles)
    else:
        way = "given"
        if not 0 <= center <= n_det - 1:
            raise DataError(f"{path}: center: {center:g} is not on the detector, expected 0 to {n_det - 1}")
    metadata["center"] = f"pixel {center:.2f} of {n_det} ({way})"

    def build(shape: tuple[int, int], size: float) -> Beam:
        offset = ((n_det - 1) / 2 - center) * pixel
        return ParallelBeam(torch.from_numpy(angles), shape, n_det, pixel, offset, size, unit="m")

    geometry = on_natural_grid(path, build, metadata)
    labels = tuple(f"row {row}" for row in taken) if count > 1 else ()
    return scan(path, "/exchange/data", sinogram, geometry, labels, metadata)


def _counts(file: Hdf5, rows: slice | None) -> tuple[NDArray[Any], range]:
    """The data ``(views, rows, detector)``, and which rows they are."""
    field = "/exchange/data"
    node = file.dataset(field, axis=1, taken=rows)
    if node.dtype.kind not in "fiu" or node.ndim != 3 or not node.size:
        raise file.fail(field, f"{node.dtype} of shape {node.shape}", "real numbers (views, rows, detector)")
    taken = range(node.shape[1])[rows or slice(None)]
    if not len(taken):
        raise file.fail(field, f"{node.shape[1]} rows, of which none was asked for", "at least one of them")
    with file.reading(field):
        return np.asarray(node[:, taken.start : taken.stop : taken.step, :]), taken


def _frame(file: Hdf5, field: str, taken: range, n_det: int) -> NDArray[np.float64] | None:
    """The median of the frames, of the rows that are taken: a spark in one does not count."""
    if not file.has(field):
        return None
    frames = file.array(field)
    frames = frames[None] if frames.ndim == 2 else frames
    fits = frames.ndim == 3 and len(frames) > 0 and frames.shape[1] >= taken[-1] + 1 and frames.shape[2] == n_det
    if frames.dtype.kind not in "fiu" or not fits:
        wanted = f"real numbers (frames, {taken[-1] + 1} or more, {n_det}) as the data have"
        raise file.fail(field, f"{frames.dtype} of shape {frames.shape}", wanted)
    median: NDArray[np.float64] = np.median(frames[:, taken.start : taken.stop : taken.step], axis=0).astype(np.float64)
    if not np.isfinite(median).all():
        raise file.fail(field, "NaN or Inf", "finite numbers")
    return median


def _radians(path: Path, theta: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    if theta.dtype.kind not in "fiu" or not np.isfinite(theta).all() or np.abs(theta).max() > 1e5:
        raise DataError(
            f"{path}: /exchange/theta: {theta.dtype} with NaN, Inf or no angles, expected angles in degrees"
        )
    angles = theta.astype(np.float64)
    small = np.ptp(angles) <= 2 * math.pi * 1.01
    if small:
        content = path.read_bytes()
        if b"radian" in content or b"rad\0" in content:
            return angles, "radians (the file speaks of them)"
    return np.deg2rad(angles), "degrees"


def _pixel(file: Hdf5, given: float | None) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    for field in _PIXELS:
        if file.has(field):
            value = file.number(field)
            if not 1e-3 < value < 1e5:
                raise file.fail(field, f"{value:g}", "micrometres above 0.001 and below 100000")
            return 1e-6 * value, "from the file, in um"
    return _ASSUMED_PIXEL, "assumed"
