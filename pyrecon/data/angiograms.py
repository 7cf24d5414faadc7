"""Training images from an angiogram of one's own: slabs, maximum-intensity projection, patches.

A volume is cut along its first axis. The first 45 % are for training, the last 45 % for tests, and the validation of a
training run comes from between them: slabs of one part hold no voxel of another. Where the tenth between holds no slab,
it is made larger, at the cost of training, and reaches into the part for tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.phantoms import vessel_patches
from pyrecon.io import detect, read_result
from pyrecon.io._files import PathLike, check_finite

Part = Literal["training", "validation", "test"]

_END = 0.45  # of a volume, at either end
DEPTH = 10  # slices of a slab, as in DEQ-MPI, section IV-B


def read_volume(path: PathLike) -> NDArray[np.float32]:
    """A NIfTI volume, axes in the file's order; DataError unless it has three and finite numbers, some above 0."""
    kind = detect(path)
    if kind != "nifti":
        raise DataError(f"{path}: is {kind}, expected a NIfTI volume (.nii, .nii.gz)")
    image = read_result(path).image  # of a file's axes x, y, z, t this is t, z, y, x
    while image.ndim > 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or min(image.shape) == 1:
        axes = " x ".join(map(str, image.shape[::-1]))
        raise DataError(f"{path}: has {axes} voxels, expected a volume of three axes")
    if image.dtype.kind == "c":
        raise DataError(f"{path}: holds complex numbers, expected intensities")
    volume = image.transpose(2, 1, 0).astype(np.float32)
    check_finite(path, "the volume", volume, "slice")
    if not volume.max() > 0:
        raise DataError(f"{path}: holds no value above 0, expected an angiogram with bright vessels")
    return volume


def part_of(length: int, part: Part) -> slice:
    """The slices of a part of a volume that has ``length`` along its first axis."""
    end = round(_END * length)
    if part == "test":
        return slice(length - end, length)
    # Between the ends there may be less than a slab.
    between = max(length - 2 * end, DEPTH)
    start = (length - between) // 2
    return slice(0, min(end, start)) if part == "training" else slice(start, start + between)


def cut_patches(
    path: PathLike,
    volume: NDArray[np.float32],
    part: Part,
    count: int,
    *,
    shape: tuple[int, int],
    factor: int = 1,
    level: float = 0.1,
    filled: float = 0.03,
    seed: int = 0,
) -> NDArray[np.float32]:
    """:func:`~pyrecon.data.phantoms.vessel_patches` of a part of a volume; DataError with the file's name."""
    slab = volume[part_of(len(volume), part)]
    size = (DEPTH, factor * shape[0], factor * shape[1])
    if any(n < m for n, m in zip(slab.shape, size, strict=True)):
        raise DataError(
            f"{path}: has {_times(slab.shape)} voxels for {part} (of {_times(volume.shape)}), too few for a patch of "
            f"{_times(size)}"
        )
    try:
        return vessel_patches(
            slab, count, shape=shape, depth=DEPTH, factor=factor, level=level, filled=filled, seed=seed
        )
    except DataError as error:
        raise DataError(f"{path}: {part}: {error}") from None


@dataclass(frozen=True)
class Angiogram:
    """A volume to train on: where it lies, its shape, and SHA-256 of its numbers, for a run that is resumed.

    The patches of one number, part and seed are the same at all times.
    """

    path: str
    shape: tuple[int, int, int]
    digest: str

    @classmethod
    def read(cls, path: PathLike, patch: tuple[int, int]) -> Angiogram:
        """Of a file, from which patches of ``patch`` voxels can be cut in both parts; DataError where not."""
        volume = read_volume(path)
        for part in ("training", "validation"):
            cut_patches(path, volume, part, 1, shape=patch)
        x, y, z = volume.shape
        return cls(str(path), (x, y, z), _digest(volume))

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Angiogram:
        """From :meth:`facts`; KeyError, TypeError or ValueError where these are something else."""
        x, y, z = (int(n) for n in facts["shape"])
        if not isinstance(facts["path"], str) or not isinstance(facts["sha256"], str) or min(x, y, z) < 1:
            raise ValueError("no description of an angiogram")
        return cls(facts["path"], (x, y, z), facts["sha256"])

    def facts(self) -> dict[str, Any]:
        """As JSON: what was cut from where."""
        parts = {part: part_of(self.shape[0], part) for part in ("training", "validation")}
        slices = {f"{part}_slices": [found.start, found.stop] for part, found in parts.items()}
        return {"path": self.path, "shape": self.shape, "sha256": self.digest, "slab": DEPTH, **slices}

    def volume(self) -> NDArray[np.float32]:
        """The file's numbers again."""
        volume = read_volume(self.path)
        if volume.shape != self.shape or _digest(volume) != self.digest:
            raise DataError(f"{self.path}: is not the volume that the run began with; put that one there")
        return volume


def _digest(volume: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest()


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
