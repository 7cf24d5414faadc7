"""Fan-beam scans of the Helsinki Tomography Challenge: a MATLAB struct of sinogram and scanner.

Source: S. Latva-Aijo et al., Helsinki Tomography Challenge 2022 open tomographic data set, Zenodo 7418878. The struct
is called CtDataFull or CtDataLimited and holds ``sinogram`` (views, detector) and ``parameters``; other data sets of
the group keep the same fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.ct import CTScan
from pyrecon.io._files import PathLike
from pyrecon.io._matlab import find_struct, read_matlab
from pyrecon.io._scan import on_natural_grid, scan
from pyrecon.ops import FanBeam
from pyrecon.ops._radon_geometry import Beam

__all__ = ["read_htc"]

_UNITS = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}
_KEPT = ("projectName", "scanner", "date", "voltage", "current", "target", "exposureTime")


def read_htc(path: PathLike) -> CTScan:
    """Read a scan of one slice; the file's own line integrals are taken as they are.

    The geometry is a flat detector opposite the source, both turning about the origin by the file's angles in degrees,
    as :class:`~pyrecon.ops.FanBeam` has them. Images then lie as the challenge's segmentations do, without a turn: one
    projected with a file's geometry correlates 0.996 with its sinogram.

    Raises DataError naming the field that is missing or makes no sense.
    """
    path = Path(path)
    variables = read_matlab(path)
    name = find_struct(variables)
    if name is None:
        raise DataError(
            f"{path}: holds {', '.join(variables) or 'nothing'}, expected a struct with sinogram and parameters"
        )
    struct = variables[name]
    fields = _Fields(path, f"{name}.parameters", struct["parameters"])
    sinogram = struct["sinogram"]
    if (
        not isinstance(sinogram, np.ndarray)
        or sinogram.dtype.kind not in "fiu"
        or sinogram.ndim != 2
        or not sinogram.size
    ):
        raise DataError(f"{path}: {name}.sinogram: {_told(sinogram)}, expected real numbers (views, detector)")
    views, n_det = sinogram.shape
    kind = fields.text("geometryType", "Cone")
    if kind.lower() not in ("cone", "fan"):
        raise DataError(f"{path}: {name}.parameters.geometryType: {kind!r}, expected 'Cone' or 'Fan'")
    unit = fields.text("distanceUnit", "mm")
    if unit not in _UNITS:
        raise DataError(f"{path}: {name}.parameters.distanceUnit: {unit!r}, expected one of {', '.join(_UNITS)}")
    metre = _UNITS[unit]
    spacing = metre * fields.number("pixelSizePost" if fields.has("pixelSizePost") else "pixelSize")
    to_axis, to_detector = (metre * fields.number(f) for f in ("distanceSourceOrigin", "distanceSourceDetector"))
    if to_detector <= to_axis:
        raise DataError(
            f"{path}: {name}.parameters.distanceSourceDetector: {to_detector:g} m, expected more than the "
            f"{to_axis:g} m from source to origin"
        )
    angles = torch.from_numpy(np.deg2rad(fields.numbers("angles", views)))
    said = fields.number("numDetectorsPost") if fields.has("numDetectorsPost") else n_det
    if said != n_det:
        raise DataError(f"{path}: {name}.sinogram: {n_det} detector pixels, expected {said:g} as numDetectorsPost says")
    metadata: dict[str, Any] = {
        "format": "Helsinki Tomography Challenge",
        "minus_log": "done by its writer",
        "lengths": unit if fields.has("distanceUnit") else f"{unit} (assumed)",
        "detector_offset": "0 (the format has none)",
        "scanner": ", ".join(text for text in map(fields.fact, _KEPT) if text),
    }

    def build(shape: tuple[int, int], pixel: float) -> Beam:
        return FanBeam(angles, shape, n_det, spacing, to_axis, to_detector, pixel_size=pixel, unit="m")

    geometry = on_natural_grid(path, build, metadata)
    return scan(path, f"{name}.sinogram", sinogram[None], geometry, (), metadata)


class _Fields:
    """The parameters of a scan, of which nothing is believed."""

    def __init__(self, path: Path, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise DataError(f"{path}: {name}: {_told(values)}, expected a struct")
        self._path, self._name, self._values = path, name, values

    def has(self, field: str) -> bool:
        return field in self._values

    def text(self, field: str, default: str) -> str:
        found = self.fact(field)
        if found is None and field in self._values and np.size(self._values[field]):
            raise DataError(f"{self._path}: {self._name}.{field}: {_told(self._values[field])}, expected a text")
        return found or default

    def fact(self, field: str) -> str | None:
        """A text or a number in words; None for anything else."""
        value = self._values.get(field)
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu":
            return f"{value.item():g}"
        return value.strip()[:200] if isinstance(value, str) else None

    def number(self, field: str) -> float:
        """A finite number above zero."""
        value = self.numbers(field, 1)[0]
        if not value > 0:
            raise DataError(f"{self._path}: {self._name}.{field}: {value:g}, expected a number above 0")
        return float(value)

    def numbers(self, field: str, count: int) -> NDArray[np.float64]:
        if field not in self._values:
            raise DataError(f"{self._path}: {self._name}.{field} is missing")
        value = self._values[field]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.size != count:
            raise DataError(f"{self._path}: {self._name}.{field}: {_told(value)}, expected {count} real numbers")
        numbers = value.reshape(-1).astype(np.float64)
        if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e6:
            raise DataError(f"{self._path}: {self._name}.{field}: holds NaN, Inf or numbers beyond a million")
        return numbers


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return (
        f"the text {value[:40]!r}"
        if isinstance(value, str)
        else "a struct"
        if isinstance(value, dict)
        else "no numbers"
    )
