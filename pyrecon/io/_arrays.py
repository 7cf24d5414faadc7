"""The arrays of a file that holds arrays and little else: NumPy's, MATLAB's, BART's."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io._bart import header_of, read_bart
from pyrecon.io._files import PathLike, existing_file
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._matlab import SIGNATURE, outline_matlab, read_matlab
from pyrecon.io._npz import damage, map_npy, outline_npz, read_npy

NPY = b"\x93NUMPY"
MATLAB_HDF5 = b"MATLAB 7.3 MAT-file"
KSPACE = ("kspace", "ksp", "kdata", "k_space")  # what arrays of k-space are called
MASK = ("mask", "pattern", "sampling")


class Held(NamedTuple):
    """What an array is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


@dataclass(frozen=True)
class Arrays:
    """The arrays of a file by name, and how to get one; ``axes``, a letter for each, where the format says them."""

    path: Path
    held: dict[str, Held]
    load: Callable[[str], NDArray[Any]]
    axes: str | None = None

    def called(self, names: tuple[str, ...]) -> str | None:
        """The first array with one of these names, in letters of any size."""
        lower = {name.lower(): name for name in reversed(self.held)}
        return next((lower[name] for name in names if name in lower), None)

    def listing(self) -> str:
        """What there is, for errors."""
        shown = [f"{name} ({held})" for name, held in list(self.held.items())[:8]]
        return ", ".join(shown + ["..."] * (len(self.held) > 8)) or "no array of numbers"


def open_arrays(path: PathLike) -> Arrays:
    """The arrays of an NPY, NPZ, MATLAB or BART file. Raises DataError where it is none of these, or damaged."""
    header = header_of(path)
    if header is not None:
        values, axes = read_bart(header)
        return Arrays(header, {header.stem: Held(values.shape, values.dtype)}, lambda _: values, axes)
    path = existing_file(path)
    with path.open("rb") as file:
        head = file.read(128)
    if head.startswith(NPY):
        mapped = map_npy(path)
        return Arrays(path, {path.stem: Held(mapped.shape, mapped.dtype)}, lambda _: mapped)
    if head.startswith(b"PK\x03\x04"):
        return Arrays(path, {n: Held(*v) for n, v in outline_npz(path).items()}, lambda name: _from_npz(path, name))
    if head.startswith(SIGNATURE):
        known = {n: Held(v.shape, v.dtype) for n, v in outline_matlab(path).items() if v.dtype is not None}
        return Arrays(path, known, lambda name: np.asarray(read_matlab(path, only=name)[name]))
    if head.startswith(MATLAB_HDF5):
        with Hdf5(path) as hdf5:
            return Arrays(path, _outline_hdf5(hdf5), lambda name: _from_hdf5(path, name))
    raise DataError(f"{path}: holds no array, expected NumPy's (.npy, .npz), MATLAB's (.mat) or BART's (.cfl, .hdr)")


def _from_npz(path: Path, name: str) -> NDArray[Any]:
    with damage(path, "NPZ"), zipfile.ZipFile(path) as archive:
        return read_npy(path, archive, f"{name}.npy")


def _outline_hdf5(file: Hdf5) -> dict[str, Held]:
    """Of MATLAB 7.3, which keeps the axes of its arrays backwards."""
    found = {}
    for name in file.names("/"):
        held = None if name.startswith("#") else file.outline(f"/{name}")
        if held is not None:
            found[name] = Held(held[0][::-1], held[1])
    return found


def _from_hdf5(path: Path, name: str) -> NDArray[Any]:
    with Hdf5(path) as file:
        return file.array(f"/{name}").T
