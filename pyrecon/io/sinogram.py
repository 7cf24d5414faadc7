"""Sinogram and geometry in one file, HDF5 or NPZ: pyrecon's own format, open to anybody (docs/reconstruct.md).

One flat list of names, the same in both: ``sinogram`` (A, D) or (S, A, D) line integrals; ``beam`` "parallel", "fan",
"fan-curved", "views" or "views-curved"; ``unit`` "m" or "mm" of all lengths; ``angle_unit`` "rad" or "deg"; by beam

========  =====================================================================================================
parallel  angles (A,), det_spacing, det_offset
fan       the same, source_to_axis, source_to_detector
views     detectors (A, 2), axes (A, 2), and sources (A, 2) or rays (A, 2)
========  =====================================================================================================

and, optional, ``shape`` (2,), ``pixel_size`` (2,), ``labels`` and ``metadata`` (both JSON).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon._plain import plain
from pyrecon.data.ct import CTScan, check_scan
from pyrecon.io._files import PathLike, existing_file, one_line, written_whole
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._npz import damage, read_npy
from pyrecon.io._scan import MOST_PIXELS, built, on_natural_grid, scan
from pyrecon.ops import FanBeam, ParallelBeam, ViewBeam
from pyrecon.ops._radon_geometry import Beam

__all__ = ["read_sinogram", "write_sinogram"]

_BEAMS = ("parallel", "fan", "fan-curved", "views", "views-curved")
_METRES = {"m": 1.0, "mm": 1e-3}
_RADIANS = {"rad": 1.0, "deg": np.pi / 180}
_MOST_TEXT = 2**20


def write_sinogram(path: PathLike, scan: CTScan) -> None:
    """Write a scan as ``.npz`` or, with any other extension, as HDF5; in metres and radians, whole or not at all."""
    check_scan(scan)
    geometry = scan.geometry
    content: dict[str, Any] = {
        "sinogram": scan.sinogram,
        "beam": _beam_of(geometry),
        "unit": "m",
        "angle_unit": "rad",
        "shape": np.array(geometry.shape),
        "pixel_size": np.array(geometry.pixel_size),
        "metadata": json.dumps(plain(scan.metadata)),
    }
    names = (
        "det_spacing",
        "det_offset",
        "source_to_axis",
        "source_to_detector",
        "angles",
        "detectors",
        "axes",
        "sources",
    )
    for name in names:
        if (value := getattr(geometry, name, None)) is not None:
            content[name] = value.detach().cpu().numpy()
    if isinstance(geometry, ViewBeam) and geometry.ray_directions is not None:
        content["rays"] = geometry.ray_directions.detach().cpu().numpy()
    if scan.labels:
        content["labels"] = json.dumps(scan.labels)
    with written_whole(path) as temporary:
        if Path(path).suffix.lower() == ".npz":
            with temporary.open("wb") as handle:
                np.savez_compressed(handle, **{n: np.asarray(v) for n, v in content.items()})  # type: ignore[arg-type]
            return
        with h5py.File(temporary, "w") as file:
            for name, value in content.items():
                file.create_dataset(name, data=value, compression="gzip" if name == "sinogram" else None)


def read_sinogram(path: PathLike) -> CTScan:
    """Read what :func:`write_sinogram` or anybody else wrote in this format.

    Raises DataError naming the field that is missing or does not fit.
    """
    path = existing_file(path)
    with path.open("rb") as handle:
        is_zip = handle.read(4) == b"PK\x03\x04"
    if is_zip:
        with damage(path, "NPZ"), zipfile.ZipFile(path) as archive:
            return _read(path, _Npz(path, archive))
    with Hdf5(path) as file:
        return _read(path, _Hdf5(file))


class _Source(Protocol):
    def has(self, name: str) -> bool: ...
    def array(self, name: str) -> NDArray[Any]: ...
    def text(self, name: str) -> str: ...


class _Hdf5:
    def __init__(self, file: Hdf5) -> None:
        self._file = file

    def has(self, name: str) -> bool:
        return self._file.has(f"/{name}")

    def array(self, name: str) -> NDArray[Any]:
        return self._file.array(f"/{name}")

    def text(self, name: str) -> str:
        return self._file.text(f"/{name}")


class _Npz:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._names = set(archive.namelist())

    def has(self, name: str) -> bool:
        return f"{name}.npy" in self._names

    def array(self, name: str) -> NDArray[Any]:
        return read_npy(self._path, self._archive, f"{name}.npy")

    def text(self, name: str) -> str:
        value = self.array(name)
        if value.dtype.kind not in "US" or value.size != 1 or value.nbytes > 4 * _MOST_TEXT:
            raise DataError(f"{self._path}: {name}: {value.dtype} of shape {value.shape}, expected one text")
        content = value.reshape(-1)[0]
        return content.decode(errors="replace") if isinstance(content, bytes) else str(content)


class _Fields:
    """Fields of a file with their errors."""

    def __init__(self, path: Path, source: _Source) -> None:
        self.path, self._source, self.has = path, source, source.has
        self._known: dict[str, NDArray[Any]] = {}

    def array(self, name: str) -> NDArray[Any]:
        """Read once."""
        if name not in self._known:
            if not self._source.has(name):
                raise DataError(f"{self.path}: {name} is missing")
            self._known[name] = self._source.array(name)
        return self._known[name]

    def numbers(self, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
        value = self.array(name)
        fits = value.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, value.shape, strict=True))
        if value.dtype.kind not in "fiu" or not fits:
            wanted = ", ".join("?" if n is None else str(n) for n in shape)
            raise DataError(
                f"{self.path}: {name}: {value.dtype} of shape {value.shape}, expected real numbers ({wanted})"
            )
        return value if name == "sinogram" else value.astype(np.float64)

    def number(self, name: str, default: float | None = None) -> float:
        if default is not None and not self.has(name):
            return default
        value = float(self.numbers(name, ()))
        if not np.isfinite(value):
            raise DataError(f"{self.path}: {name}: {value}, expected a finite number")
        return value

    def word(self, name: str, known: tuple[str, ...], default: str | None = None) -> str:
        if not self.has(name):
            if default is not None:
                return default
            raise DataError(f"{self.path}: {name} is missing, expected one of {', '.join(known)}")
        value = self._source.text(name)
        if value not in known:
            raise DataError(f"{self.path}: {name}: {value[:40]!r}, expected one of {', '.join(known)}")
        return value

    def json(self, name: str, kind: type) -> Any:
        if not self.has(name):
            return kind()
        try:
            value = json.loads(self._source.text(name)[:_MOST_TEXT])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}: {name}: is no JSON ({one_line(error)}); the file is corrupted") from error
        if not isinstance(value, kind):
            raise DataError(f"{self.path}: {name}: is JSON of a {type(value).__name__}, expected a {kind.__name__}")
        return value


def _read(path: Path, source: _Source) -> CTScan:
    fields = _Fields(path, source)
    beam = fields.word("beam", _BEAMS)
    flat = fields.array("sinogram").ndim == 2
    data = fields.numbers("sinogram", (None, None) if flat else (None, None, None))
    data = data[None] if flat else data
    if not data.size:
        raise DataError(f"{path}: sinogram: shape {data.shape}, expected at least one number")
    slices, views, n_det = data.shape
    metadata = {"format": "pyrecon sinogram"} | fields.json("metadata", dict)
    metadata.pop("warnings", None)
    labels = tuple(str(label)[:200] for label in fields.json("labels", list))
    if labels and len(labels) != slices:
        raise DataError(f"{path}: labels: {len(labels)} texts, expected one for each of {slices} slices")
    build = _builder(fields, beam, views, n_det)
    if fields.has("shape") and fields.has("pixel_size"):
        shape, pixel = fields.numbers("shape", (2,)), fields.numbers("pixel_size", (2,))
        unit = _METRES[fields.word("unit", tuple(_METRES))]
        if not (
            np.isfinite(shape).all()
            and (shape == shape.round()).all()
            and 1 <= shape.min() <= shape.max() <= MOST_PIXELS
        ):
            raise DataError(f"{path}: shape: {shape.tolist()}, expected two whole numbers from 1 to {MOST_PIXELS}")
        sizes = (float(pixel[0]) * unit, float(pixel[1]) * unit)
        geometry = built(path, lambda: build((int(shape[0]), int(shape[1])), sizes), metadata)
    else:
        geometry = on_natural_grid(path, lambda s, p: build(s, (p, p)), metadata)
    return scan(path, "sinogram", data, geometry, labels, metadata)


def _builder(
    fields: _Fields, beam: str, views: int, n_det: int
) -> Callable[[tuple[int, int], tuple[float, float]], Beam]:
    """The geometry as a function of the image's shape and pixel size in metres."""
    metre = _METRES[fields.word("unit", tuple(_METRES))]
    curved = beam.endswith("-curved")

    def tensor(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.from_numpy(scale * fields.numbers(name, shape))

    if beam.startswith("views"):
        detectors, axes = (tensor(name, (views, 2), metre) for name in ("detectors", "axes"))
        sources = tensor("sources", (views, 2), metre) if fields.has("sources") else None
        rays = tensor("rays", (views, 2), 1.0) if fields.has("rays") else None
        return lambda shape, pixel: ViewBeam(
            detectors, axes, shape, n_det, pixel, sources=sources, rays=rays, curved=curved, unit="m"
        )
    angles = tensor("angles", (views,), _RADIANS[fields.word("angle_unit", tuple(_RADIANS), "rad")])
    spacing = metre * fields.number("det_spacing")
    per_view = fields.has("det_offset") and fields.array("det_offset").ndim > 0
    offset = tensor("det_offset", (views,), metre) if per_view else metre * fields.number("det_offset", 0.0)
    if beam == "parallel":
        return lambda shape, pixel: ParallelBeam(angles, shape, n_det, spacing, offset, pixel, unit="m")
    to_axis, to_detector = (metre * fields.number(name) for name in ("source_to_axis", "source_to_detector"))
    return lambda shape, pixel: FanBeam(
        angles, shape, n_det, spacing, to_axis, to_detector, offset, pixel, curved=curved, unit="m"
    )


def _beam_of(geometry: Beam) -> str:
    if isinstance(geometry, ParallelBeam):
        return "parallel"
    kind = "fan" if isinstance(geometry, FanBeam) else "views"
    return kind + ("-curved" if getattr(geometry, "curved", False) else "")
