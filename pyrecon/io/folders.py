"""Folders of images as users have them, for training: fastMRI, LoDoPaB-CT, CelebA, volumes, photographs, arrays.

A file is read by its kind; sizes are judged before anything is read. Every image is cropped about its centre to the
wanted aspect and averaged down to the wanted size; smaller ones are refused.

- ``.h5``, ``.hdf5``: fastMRI, single coil, ``kspace`` ``(S, H, W)`` as complex images in the field of view of
  ``reconstruction_esc`` or the middle square, or ``reconstruction_esc`` where there is nothing else; LoDoPaB-CT,
  ``data`` ``(S, H, W)``, attenuation over 81.35858 /m, which becomes attenuation over twice that of water (20 /m);
- ``.nii``, ``.nii.gz``: volumes, slices along the third axis, without the outer fifths;
- ``.npz`` with one array, ``.npy``: ``(H, W)`` or ``(S, H, W)``, real or complex;
- ``.png``, ``.jpg``: from 0 to 1, grey or in colour.

Volumes and arrays with values of -500 and less are Hounsfield numbers h and become ``max(0, 1 + h / 1000) / 2``; other
whole numbers are divided by the volume's largest, and so are all volumes of NIfTI.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrecon._check import check_count, check_flag
from pyrecon._errors import DataError, MissingDependency
from pyrecon.data._drawing import means
from pyrecon.data.fourier import ifft_centered
from pyrecon.io._files import PathLike, check_memory, existing_file, one_line
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io.results import read_result

Part = Literal["train", "validation", "test"]
Values = Literal["real", "complex", "color"]

_HDF5, _PICTURES, _VOLUMES, _ARRAYS = (".h5", ".hdf5"), (".png", ".jpg", ".jpeg"), (".nii", ".nii.gz"), (".npz", ".npy")
_FIELDS = "/kspace", "/reconstruction_esc", "/reconstruction_rss", "/data"
_MAGNITUDES = "/reconstruction_rss", "/reconstruction_esc", "/data"
_MOST_FILES = 2**20
_MOST_PIXELS = 2**28
_LODOPAB = 81.35858 / 40  # its unit over twice water's attenuation
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class ImageFolder:
    """The images of a folder, or of one file, in three parts: ``train`` has nine tenths.

    The parts are of different files, so that no volume is in two; of fewer than ten files they are of different slices,
    in order. Within a part images are shuffled, in the same way at all times.

    Parameters
    ----------
    path
        The folder or file.
    magnitudes
        Of HDF5 the reconstructions alone, fastMRI's ``reconstruction_rss`` (of any number of coils) or
        ``reconstruction_esc``, never its k-space.
    central
        Of every volume so many slices about its middle, in place of those said above.
    """

    def __init__(self, path: PathLike, *, magnitudes: bool = False, central: int | None = None) -> None:
        check_flag("magnitudes", magnitudes)
        self.path = Path(path)
        self.fields = _MAGNITUDES if magnitudes else _FIELDS
        self.central = None if central is None else check_count("central", central)
        self.files = _files(self.path)
        self._parts: dict[Part, list[tuple[Path, int]]] | None = None

    def __len__(self) -> int:
        return sum(len(images) for images in self._images().values())

    def count(self, part: Part) -> int:
        """How many images a part has."""
        return len(self._images()[part])

    def read(self, part: Part, first: int, count: int, shape: tuple[int, int], values: Values = "real") -> NDArray[Any]:
        """Images ``first`` and following of a part.

        Returns
        -------
        ``(count, H, W)`` float32 or complex64, or ``(count, 3, H, W)`` float32 for ``values="color"``. Complex ones
        become real as magnitudes, colours as luminance; complex ones and those of fastMRI have peak 1.
        """
        known = self._images()[part]
        if first + count > len(known):
            raise DataError(
                f"{self.path}: has {len(known)} images of {len(self.files)} files for {part}, "
                f"{first + count} are asked for; ask for fewer, or bring more"
            )
        channels = (3,) if values == "color" else ()
        images = np.empty((count, *channels, *shape), np.complex64 if values == "complex" else np.float32)
        for i, (path, number) in enumerate(known[first : first + count]):
            images[i] = _valued(_fitted(path, _image(path, number, self.fields), shape), values)
        if not np.isfinite(images).all():
            bad = sorted({str(path) for path, _ in known[first : first + count]})
            raise DataError(f"{self.path}: NaN or infinite values in one of {', '.join(bad[:4])}")
        return images

    def _images(self) -> dict[Part, list[tuple[Path, int]]]:
        if self._parts is None:
            whole = [[(path, n) for n in _slices(path, self.fields, self.central)] for path in self.files]
            if len(whole) < 10:  # parts of the slices
                whole = [[image] for images in whole for image in images]
            whole = [images for images in whole if images]
            if len(whole) < 3:
                raise DataError(f"{self.path}: holds {len(whole)} images, expected at least three, one for each part")
            held_out = max(2, round(len(whole) / 10))
            train = len(whole) - held_out
            ends = {"train": (0, train), "validation": (train, train + held_out // 2)}
            ends["test"] = (train + held_out // 2, len(whole))
            rng = np.random.default_rng(0)
            if len(self.files) >= 10:
                whole = [whole[i] for i in rng.permutation(len(whole))]
            self._parts = {}
            for part, (start, stop) in ends.items():
                images = [image for one in whole[start:stop] for image in one]
                self._parts[part] = [images[i] for i in rng.permutation(len(images))]  # type: ignore[index]
        return self._parts


def _files(path: Path) -> list[Path]:
    """Readable files, in the order of their names."""
    if path.is_file():
        if not _kind(path):
            raise DataError(f"{path}: is no image that is read here, expected {_kinds()}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if _kind(name) and not name.startswith(".")]
        if len(found) > _MOST_FILES:
            raise DataError(f"{path}: holds more than {_MOST_FILES} files")
    if not found:
        raise DataError(f"{path}: holds no images that are read here, expected {_kinds()}")
    return found


def _kind(name: PathLike) -> str:
    """Its suffix, empty for what is not read."""
    text = str(name).lower()
    return next((suffix for suffix in (*_HDF5, *_PICTURES, *_VOLUMES, *_ARRAYS) if text.endswith(suffix)), "")


def _kinds() -> str:
    return ", ".join((*_HDF5, *_VOLUMES, *_ARRAYS, *_PICTURES))


# --- one file --------------------------------------------------------------------------------------------------------
def _slices(path: Path, fields: tuple[str, ...], central: int | None) -> range:
    """Numbers of the images in a file."""
    if _kind(path) in _PICTURES:
        return range(1)
    if _kind(path) in _HDF5:
        with Hdf5(path) as file:
            count = file.dataset(_field(file, fields)).shape[0]
    else:
        count = len(_volume(path))
    if central is not None:
        first = max(0, (count - central) // 2)
        return range(first, min(count, first + central))
    if _kind(path) in _HDF5:
        return range(count)
    return range(count // 5, count - count // 5) if _kind(path) in _VOLUMES else range(count)


def _image(path: Path, number: int, fields: tuple[str, ...]) -> NDArray[Any]:
    """``(H, W)`` real or complex, or ``(H, W, 3)``."""
    existing_file(path)
    if _kind(path) in _PICTURES:
        return _picture(path)
    if _kind(path) in _HDF5:
        with Hdf5(path) as file:
            return _hdf5(file, number, fields)
    return np.asarray(_volume(path)[number])


def _field(file: Hdf5, fields: tuple[str, ...]) -> str:
    """The dataset of images in an HDF5 file, ``(S, H, W)``, the first of ``fields`` that is there."""
    for field in fields:
        if file.has(field):
            shape = file.dataset(field).shape
            if field == "/kspace" and len(shape) == 4:
                raise file.fail(
                    field,
                    f"{shape[1]} coils (multi-coil fastMRI)",
                    "single-coil (S, H, W); take fastMRI's single-coil files, or leave only reconstruction_rss",
                )
            if len(shape) != 3 or 0 in shape:
                raise file.fail(field, f"shape {shape}", "(S, H, W)")
            return field
    names = ", ".join(file.names("/")[:8]) or "nothing"
    wanted = "kspace or reconstruction_esc" if fields is _FIELDS else "reconstruction_rss or reconstruction_esc"
    raise DataError(f"{file.path}: holds {names}; expected {wanted} (fastMRI), or data (LoDoPaB)")


def _hdf5(file: Hdf5, number: int, fields: tuple[str, ...]) -> NDArray[Any]:
    field = _field(file, fields)
    node = file.dataset(field)
    with file.reading(field):
        image = np.asarray(node[number])
    if image.dtype.kind not in "iufc":
        raise file.fail(field, f"values of type {image.dtype}", "numbers")
    if field == "/data":
        return image * np.float32(_LODOPAB)
    if field != "/kspace":
        return image / max(float(np.abs(image).max()), 1e-30)
    import torch

    image = ifft_centered(torch.from_numpy(image.astype(np.complex64))).numpy()
    sides: tuple[int, ...] = (min(image.shape),) * 2  # readouts are sampled twice as finely
    if file.has("/reconstruction_esc"):
        sides = tuple(
            min(n, m) for n, m in zip(image.shape, file.dataset("/reconstruction_esc").shape[-2:], strict=True)
        )
    return _centre(image, (sides[0], sides[1]))


def _volume(path: Path) -> NDArray[Any]:
    """``(S, H, W)``, kept while slices of it are asked for."""
    info = existing_file(path).stat()
    return _read_volume(path, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_volume(path: Path, size: int, changed: int) -> NDArray[Any]:
    if _kind(path) == ".npy":
        with _damage(path):
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            check_memory(path, "the array", mapped.nbytes, size, 1)
            volume = np.array(mapped)
    else:
        volume = read_result(path).image
    volume = volume[None] if volume.ndim == 2 else volume
    if volume.ndim != 3 or 0 in volume.shape or volume.dtype.kind not in "biufc":
        raise DataError(f"{path}: {volume.dtype} of shape {volume.shape}, expected numbers (H, W) or (S, H, W)")
    if volume.dtype.kind == "c":
        return volume
    scaled = _kind(path) in _VOLUMES or volume.dtype.kind in "iub"
    volume = volume.astype(np.float32)
    if float(volume.min()) <= -500:
        return (1 + volume / 1000).clip(0) / 2
    return volume / max(float(np.abs(volume).max()), 1e-30) if scaled else volume


def _picture(path: Path) -> NDArray[np.float32]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("pillow", "io", "reading pictures") from error
    with _damage(path), Image.open(path) as picture:
        if picture.width * picture.height > _MOST_PIXELS:
            raise DataError(f"{path}: {picture.width} x {picture.height} pixels, expected at most 2^28")
        if picture.mode.startswith(("I", "F")):
            top = 65535.0 if picture.mode.startswith("I") else 1.0
            return np.asarray(picture, np.float32) / np.float32(top)
        grey = picture.mode in ("1", "L", "LA")
        return np.asarray(picture.convert("L" if grey else "RGB"), np.float32) / np.float32(255)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # pillow and numpy have their own ways to fail on damaged files
        raise DataError(f"{path}: cannot be read ({one_line(error)}); it is truncated or corrupted") from error


# --- sizes and values ------------------------------------------------------------------------------------------------
def _centre(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    top, left = (n // 2 - m // 2 for n, m in zip(image.shape, size, strict=False))
    return image[top : top + size[0], left : left + size[1]]


def _fitted(path: Path, image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """The largest centred part of the aspect of ``shape``, averaged down to it; axes of colour last."""
    scale = min(n / m for n, m in zip(image.shape, shape, strict=False))
    if scale < 1:
        raise DataError(
            f"{path}: {image.shape[0]} x {image.shape[1]} pixels, expected at least {shape[0]} x {shape[1]}; train at "
            "a smaller size"
        )
    image = _centre(image, (round(scale * shape[0]), round(scale * shape[1])))
    for axis in (0, 1):
        image = means(image, shape[axis], axis)
    return image


def _valued(image: NDArray[Any], values: Values) -> NDArray[Any]:
    if image.dtype.kind == "c" or values == "complex":
        image = image @ _LUMINANCE if image.ndim == 3 else image
        image = image / max(float(np.abs(image).max()), 1e-30)
        return image if values == "complex" else _valued(np.abs(image), values)
    if values == "color":
        return image.transpose(2, 0, 1) if image.ndim == 3 else np.broadcast_to(image, (3, *image.shape))
    return image @ _LUMINANCE if image.ndim == 3 else image
