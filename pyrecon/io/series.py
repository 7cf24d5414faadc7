"""Series of images with the settings of every one: NIfTI with BIDS sidecars, or DICOM."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.series import ImageSeries
from pyrecon.io._detect import detect
from pyrecon.io._files import PathLike, one_line
from pyrecon.io.dicom import read_dicom
from pyrecon.io.results import Result, read_result

__all__ = ["read_map", "read_series"]

# Names of settings, of sidecars (BIDS: seconds, degrees), and their units.
_SIDECAR = {
    "inversion time": (("InversionTime",), 1.0),
    "echo time": (("EchoTime",), 1.0),
    "repetition time": (("RepetitionTimeExcitation", "RepetitionTime"), 1.0),
    "flip angle": (("FlipAngle",), math.pi / 180),
}
_MOST_TEXT = 2**24
_IMAGES = (".nii", ".nii.gz", ".npz", ".h5", ".hdf5")


def read_series(paths: PathLike | Sequence[PathLike], *, component: str | None = None) -> ImageSeries:
    """One image with an axis of settings, several images, or a folder of images or of DICOM files.

    Images are what :func:`read_result` reads, ``(T, S, H, W)`` or each ``(S, H, W)``, in the order given, those of a
    folder in the order of their names; what their sidecars (``NAME.json`` beside ``NAME.nii.gz``, as BIDS has them) say
    of settings is read. ``component`` is of DICOM.
    """
    known = [Path(p) for p in ([paths] if isinstance(paths, str | Path) or not isinstance(paths, Sequence) else paths)]
    if len(known) == 1 and known[0].is_dir():
        folder = known[0]
        known = sorted(p for p in folder.iterdir() if p.name.lower().endswith(_IMAGES))
        if not known:
            return read_dicom(folder, component=component)
    elif len(known) == 1 and detect(known[0]) == "dicom":
        return read_dicom(known[0], component=component)
    if component is not None:
        raise DataError(f"--component: of DICOM, {known[0]} is none")
    found = [read_result(path) for path in known]
    stacks = [_stack(path, result) for path, result in zip(known, found, strict=True)]
    first = stacks[0]
    for path, result, stack in zip(known, found, stacks, strict=True):
        if stack.shape[1:] != first.shape[1:]:
            raise DataError(f"{path}: {_size(stack)} voxels, but {known[0].name} has {_size(first)}")
        if not _same_place(result, found[0]):
            raise DataError(f"{path}: lies elsewhere than {known[0].name}; register them first")
    images = np.concatenate(stacks)
    if not np.isfinite(images).any():
        raise DataError(f"{known[0]}: the images hold no finite number")
    settings = _settings(known, [len(stack) for stack in stacks])
    kind = np.complex64 if np.iscomplexobj(images) else np.float32
    grid = found[0].grid
    metadata = {"images": ", ".join(path.name for path in known[:4]) + (" ..." if len(known) > 4 else "")}
    return ImageSeries(
        np.ascontiguousarray(images, kind), settings, grid if grid is None or len(grid.shape) == 3 else None,
        found[0].affine, metadata,
    )  # fmt: skip


def read_map(path: PathLike, series: ImageSeries, what: str) -> NDArray[Any]:
    """``(S, H, W)``: a map in the place of a series, such as a mask or B1."""
    found = read_result(path)
    stack = _stack(Path(path), found)
    wanted = series.images.shape[1:]
    if len(stack) != 1 or stack.shape[1:] != wanted:
        raise DataError(
            f"{what} {path}: {_size(stack, whole=True)} voxels, the images have {' x '.join(map(str, wanted))}"
        )
    if found.affine is not None and series.affine is not None and not _close(found.affine, series.affine):
        raise DataError(f"{what} {path}: lies elsewhere than the images; resample it to them first")
    values: NDArray[Any] = stack[0]
    return values


def _stack(path: Path, result: Result) -> NDArray[Any]:
    """``(T, S, H, W)``, any number of leading axes."""
    image = result.image
    if image.ndim > 4:
        raise DataError(f"{path}: an image of {image.ndim} axes, expected slices, rows, columns and one of settings")
    axes = 3 if result.grid is None else len(result.grid.shape)
    lead = image.ndim - min(axes, image.ndim)
    image = image.reshape(-1, *(1,) * (3 - (image.ndim - lead)), *image.shape[lead:])
    return image


def _size(stack: NDArray[Any], whole: bool = False) -> str:
    return " x ".join(map(str, stack.shape if whole and len(stack) > 1 else stack.shape[1:]))


def _same_place(one: Result, other: Result) -> bool:
    if one.affine is None or other.affine is None:
        return True
    return _close(one.affine, other.affine)


def _close(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """To a hundredth of a millimetre a voxel, and a tenth in position: files are rounded."""
    return np.allclose(one[:, :3], other[:, :3], atol=1e-2) and np.allclose(one[:, 3], other[:, 3], atol=0.1)


def _settings(paths: Sequence[Path], counts: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Those that the sidecars of all files have."""
    parts = [_sidecar(path, count) for path, count in zip(paths, counts, strict=True)]
    names = [name for name in _SIDECAR if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _sidecar(path: Path, count: int) -> dict[str, NDArray[np.float64]]:
    beside = path.with_name(next((path.name.removesuffix(s) for s in (".gz",)), path.name)).with_suffix(".json")
    if not beside.is_file():
        return {}
    if beside.stat().st_size > _MOST_TEXT:
        raise DataError(f"{beside}: {beside.stat().st_size} bytes, expected a sidecar")
    try:
        said = json.loads(beside.read_text())
        if not isinstance(said, dict):
            raise TypeError("no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{beside}: is no sidecar in JSON ({one_line(error)})") from error
    found = {}
    for name, (keys, unit) in _SIDECAR.items():
        for key in keys:
            if said.get(key) is None:
                continue
            values = said[key] if isinstance(said[key], list) else [said[key]] * count
            try:
                numbers = unit * np.array([float(v) for v in values])
            except (TypeError, ValueError, OverflowError):
                raise DataError(f"{beside}: {key} is {str(said[key])[:60]}, expected numbers") from None
            if len(numbers) != count or not np.isfinite(numbers).all():
                raise DataError(f"{beside}: {key} has {len(numbers)} values, {path.name} has {count} images")
            found[name] = numbers
            break
    return found
