"""BrainWeb's segmentations as users have them: volumes of class numbers, raw, MINC or NIfTI, packed by gzip or not.

Two kinds, known by their size (z, y, x): those of the 20 normal heads, 362 x 434 x 362 voxels of 0.5 mm, and of the
first phantom, 181 x 217 x 181 of 1 mm. Numbers of the 20: 0 background, 1 fluid, 2 grey and 3 white matter, 4 fat,
5 muscle, 6 muscle and skin, 7 skull, 8 vessels, 9 around fat, 10 dura, 11 bone marrow. Of the first: 0 to 4 the same,
5 muscle and skin, 6 skin, 7 skull, 8 glial matter, 9 connective tissue, 10 lesions of multiple sclerosis.

- ``.rawb``, ``.raws``, ``.raw``, ``.bin``, ``.i8``: one byte a voxel or two, little-endian, told by the size. Two bytes
  hold the number, or the number times 4095 / 255, as BrainWeb writes them.
- ``.mnc``: MINC 1 (netCDF) and 2 (HDF5), axes by their names.
- ``.nii``: NIfTI; its converters leave the axes z, y, x or turn them to x, y, z, so left and right are found by
  symmetry.

Each but MINC 2 with ``.gz`` too. Files are taken for hostile: no more is unpacked than a volume has.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError, MissingDependency
from pyrecon.io._files import PathLike, existing_file, one_line
from pyrecon.io._minc import MINC1, MINC2, read_minc1, read_minc2
from pyrecon.io.results import read_result

__all__ = ["brainweb_files", "read_brainweb"]

Volume = NDArray[np.uint8]

TWENTY, FIRST = (362, 434, 362), (181, 217, 181)
_TOP = {TWENTY: 11, FIRST: 10}  # the largest class number
_VOXELS = {shape: int(np.prod(shape)) for shape in _TOP}
_GREY, _WHITE = 2, 3

_RAW = (".rawb", ".raws", ".raw", ".bin", ".i8")
_SUFFIXES = tuple(suffix + packed for suffix in (*_RAW, ".mnc", ".nii") for packed in ("", ".gz"))
_SUBJECT = re.compile(r"(?:subject|subj|sub|_s)[-_]?0*(\d+)")
_MOST_FILES = 2**16
_MOST_HEADER = 2**20
_STEP = 4095 / 255  # of the numbers in shorts
_NEAR = 1 / 16  # that step's rounding


def read_brainweb(path: PathLike) -> Iterator[Volume]:
    """The segmentations of a folder and those below it, in the order of :func:`brainweb_files`, or that of one file.

    Yields
    ------
    uint8 ``(362, 434, 362)`` or ``(181, 217, 181)``, axes z, y, x in the directions of the file: BrainWeb's class
    numbers. Files are read one by one, when they are asked for.

    Raises
    ------
    DataError
        naming the file that has not the size of a BrainWeb volume, holds other numbers than those of the classes (as
        the fuzzy volumes do), no brain, or is damaged; or the folder that holds none.
    """
    return map(_volume, brainweb_files(path))


def brainweb_files(path: PathLike) -> list[Path]:
    """One file for each subject, by the subjects' numbers, then by name.

    A number stands after ``subject``, ``sub`` or ``_s``. Where files have ``crisp`` in their names others are left.
    """
    path = Path(path)
    if not path.is_dir():
        if not _kind(existing_file(path).name):
            raise DataError(f"{path}: is no BrainWeb volume by its name, expected one of {', '.join(_SUFFIXES)}")
        return [path]
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if _kind(name) and not name.startswith(".")]
        if len(found) > _MOST_FILES:
            raise DataError(f"{path}: holds more than {_MOST_FILES} volumes, expected a folder of BrainWeb alone")
    found = [file for file in found if "crisp" in file.name.lower()] or found
    if not found:
        raise DataError(f"{path}: holds no BrainWeb volumes, expected files like subject04_crisp_v.rawb.gz")
    numbered: dict[int, Path] = {}
    others = []
    for file in found:
        match = _SUBJECT.search(file.name.lower())
        if match is None:
            others.append(file)
            continue
        number = int(match[1][:9])
        if number in numbered:
            raise DataError(f"{file}: is of subject {number}, as is {numbered[number].name}; leave one of them")
        numbered[number] = file
    return [numbered[number] for number in sorted(numbered)] + others


def _kind(name: str) -> str:
    """Its suffix, empty for what is not read."""
    return next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")


def _volume(path: Path) -> Volume:
    existing_file(path)
    if ".nii" in _kind(path.name):
        volume = _nifti(path)
    else:
        volume = _raw_or_minc(path)
    missing = [name for number, name in ((_GREY, "grey"), (_WHITE, "white")) if not (volume == number).any()]
    if missing:
        raise DataError(f"{path}: holds no {' and no '.join(missing)} matter, expected the segmentation of a head")
    return volume


def _raw_or_minc(path: Path) -> Volume:
    """By the content: raw files have no header."""
    with path.open("rb") as file:
        if file.read(len(MINC2)) == MINC2:
            return _labels(path, *read_minc2(path, tuple(_TOP)))
    content = _unpacked(path, 2 * _VOXELS[TWENTY] + _MOST_HEADER)
    if content[: len(MINC2)] == MINC2:
        raise DataError(f"{path}: is a packed MINC 2 file, which is not read here; unpack it with gunzip")
    if content[: len(MINC1)] == MINC1:
        return _labels(path, *read_minc1(path, content, tuple(_TOP)))
    for shape, voxels in _VOXELS.items():
        for kind in ("u1", "<u2"):
            if len(content) == voxels * np.dtype(kind).itemsize:
                stored = np.frombuffer(content, kind).reshape(shape)
                step = 1 / _STEP if kind == "<u2" and stored.max() > _TOP[shape] else 1.0
                return _labels(path, stored, np.full(shape[0], step), np.zeros(shape[0]))
    more = "at least " if len(content) > 2 * _VOXELS[TWENTY] else ""
    sizes = " or ".join(f"{voxels} ({' x '.join(map(str, shape))})" for shape, voxels in _VOXELS.items())
    raise DataError(
        f"{path}: {more}{len(content)} bytes, expected {sizes}, or twice that; it is truncated or no BrainWeb volume"
    )


def _unpacked(path: Path, most: int) -> bytes:
    """The content up to one byte beyond ``most``."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return file.read(min(most, path.stat().st_size) + 1)
    try:
        with gzip.open(path, "rb") as packed:
            return packed.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be decompressed ({one_line(error)}); it is truncated or corrupted") from error


# --- NIfTI -----------------------------------------------------------------------------------------------------------
def _nifti(path: Path) -> Volume:
    shape = _declared(path)  # before anything is unpacked
    if shape not in _TOP:
        raise DataError(
            f"{path}: a volume of {' x '.join(map(str, shape))} voxels, expected "
            + " or ".join(" x ".join(map(str, known)) for known in _TOP)
        )
    image = read_result(path).image
    if image.shape != shape or image.dtype.kind not in "biuf":
        raise DataError(f"{path}: {image.dtype} of shape {image.shape}, expected class numbers {shape}")
    volume = _labels(path, image, np.ones(shape[0]), np.zeros(shape[0]))
    filled = volume[::4, ::4, ::4] > 0
    skewed = [int((filled != np.flip(filled, axis)).sum()) for axis in (0, 2)]
    return volume.transpose(2, 1, 0).copy() if skewed[0] < skewed[1] else volume


def _declared(path: Path) -> tuple[int, ...]:
    """The shape that a NIfTI header gives, axes reversed as :func:`read_result` does."""
    try:
        import nibabel
    except ImportError:
        raise MissingDependency("nibabel", "io", "reading NIfTI") from None
    head = _unpacked(path, 540)[:540]
    kind, size = (nibabel.Nifti2Header, 540) if head[4:7] == b"n+2" else (nibabel.Nifti1Header, 348)
    try:
        header = kind(head[:size], check=False)
        shape = tuple(int(n) for n in header.get_data_shape())
        offset, bits = float(header["vox_offset"]), int(header["bitpix"])
    except Exception as error:  # nibabel raises many kinds on damaged headers
        raise DataError(f"{path}: is not a readable NIfTI file ({one_line(error)})") from error
    if not 0 <= offset <= _MOST_HEADER or bits > 64 or path.stat().st_size > 8 * _VOXELS[TWENTY] + 2 * _MOST_HEADER:
        raise DataError(f"{path}: {bits} bits a voxel after {offset:g} bytes, expected a volume of class numbers")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape[::-1]


# --- class numbers ---------------------------------------------------------------------------------------------------
def _labels(path: Path, stored: NDArray[Any], slope: NDArray[Any], offset: NDArray[Any]) -> Volume:
    """Whole numbers of the classes from ``slope * stored + offset`` ``(Z, Y, X)``, one pair a slice."""
    top = _TOP[stored.shape]
    if stored.dtype == np.uint8 and (slope == 1).all() and (offset == 0).all() and stored.max() <= top:
        return stored.copy()
    labels = np.empty(stored.shape, np.uint8)
    for plane, found, a, b in zip(stored, labels, slope, offset, strict=True):
        values = plane.astype(np.float32) * np.float32(a) + np.float32(b)
        near = np.rint(values)
        known = (np.abs(values - near) <= _NEAR) & (near >= 0) & (near <= top)  # no NaN is
        if not known.all():
            examples = ", ".join(f"{value:g}" for value in np.unique(values[~known])[:4])
            raise DataError(
                f"{path}: holds {examples}, expected class numbers from 0 to {top}; bring the crisp volume, not one of "
                "a tissue's shares or an image"
            )
        found[...] = near
    return labels
