"""Brains of BrainWeb for quantitative MRI: axial slices of a folder of its segmentations, with T1 and M0 of each class.

The tissues' ranges, the polynomials, the bias and the phase are those of :mod:`pyrecon.data.brains`, as PINQI was
trained on them. The folder is the user's: no file of BrainWeb comes with the package. Sources: B. Aubert-Broche et al.,
"Twenty new digital brain phantoms for creation of validation image data bases", IEEE Trans. Med. Imaging 25 (2006);
D. L. Collins et al., "Design and construction of a realistic digital brain phantom", ibid. 17 (1998).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrecon._check import check_count, check_size
from pyrecon._errors import DataError
from pyrecon.data._drawing import Real
from pyrecon.data._slices import averaged, frame_of, seen, with_brain
from pyrecon.data.brains import CLASSES, Brains, fill, nothing
from pyrecon.io._files import PathLike
from pyrecon.io.brainweb import FIRST, TWENTY, brainweb_files, read_brainweb

__all__ = ["brainweb", "read_brainweb"]

Split = Literal["train", "validation", "test"]

_STREAM = 9
_TURN = np.deg2rad(10)
_GREY, _WHITE = 2, 3
# BrainWeb's numbers in order, as tissues of CLASSES. "Around fat" and connective tissue have T1 nearest to fat's, glial
# matter and lesions of multiple sclerosis nearest to grey matter's, by BrainWeb's own table of tissues.
_OF_TWENTY = (
    "", "fluid", "grey matter", "white matter", "fat", "muscle", "skin", "bone", "vessels", "fat", "dura", "marrow",
)  # fmt: skip
_OF_THE_FIRST = (
    "", "fluid", "grey matter", "white matter", "fat", "muscle", "skin", "bone", "grey matter", "fat", "grey matter",
)  # fmt: skip
_PLACES = {tissue.name: place for place, tissue in enumerate(CLASSES)} | {"": -1}
_PLACE_OF = {
    shape: np.array([_PLACES[name] for name in names], np.int8)
    for shape, names in ((TWENTY, _OF_TWENTY), (FIRST, _OF_THE_FIRST))
}


def brainweb(
    folder: PathLike, count: int, shape: tuple[int, int], *, seed: int = 0, first: int = 0, split: Split = "train"
) -> Brains:
    """Random axial slices of a folder's heads; brain i depends on the files and ``(seed, first + i)`` alone.

    Parameters
    ----------
    folder
        BrainWeb's segmentations, as :func:`~pyrecon.io.brainweb.read_brainweb` reads them; at least three subjects.
    count, shape
        Maps ``(count, H, W)``: the share of each class in a pixel by area, the head with a margin in the frame, pixels
        square. Slices with less than a tenth of the largest slice's grey and white matter are left out.
    split
        Subjects by their numbers: 16, one and three of 20, the first to train on, and of others in the same proportion,
        at least one each. Slices to train on are flipped at random and turned by up to 10 degrees.

    Raises
    ------
    DataError
        naming the file that is not one of BrainWeb's segmentations, or the folder with less than three subjects.
    """
    for name, value in (("count", count), ("seed", seed), ("first", first)):
        check_count(name, value, 0)
    check_size("shape", shape, 2)
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split: {split!r}, expected train, validation or test")
    files = _files(folder, split)
    found = nothing(count, shape)
    for i in range(count):
        rng = np.random.default_rng((seed, _STREAM, first + i))
        path = files[int(rng.integers(len(files)))]
        info = path.stat()
        head = _head(path, info.st_size, info.st_mtime_ns)
        labels = head.slice(int(rng.integers(len(head.slices))))
        frame = frame_of(head.filled, shape)
        if split == "train":
            up, left = (bool(flip) for flip in rng.integers(2, size=2))
            labels = seen(labels, frame, turn=float(rng.uniform(-_TURN, _TURN)), flips=(up, left))
        else:
            labels = seen(labels, frame)
        fill(found, i, _shares(labels, head.places, shape), rng, seed=seed, number=first + i)
    return found


def _files(folder: PathLike, split: Split) -> list[Path]:
    """Those of the subjects of one part."""
    files = brainweb_files(folder)
    if len(files) < 3:
        raise DataError(f"{folder}: holds {len(files)} subjects, expected at least three, one for each part")
    validation, test = max(1, round(len(files) / 20)), max(1, round(3 * len(files) / 20))
    train = len(files) - validation - test
    parts = {"train": (0, train), "validation": (train, train + validation), "test": (train + validation, len(files))}
    return files[slice(*parts[split])]


@dataclass(frozen=True)
class _Head:
    """The slices with brain of a volume, packed: 20 heads take 60 MB in the place of 1 GB.

    ``filled`` is where any of them has tissue, ``places`` what BrainWeb's numbers are in ``CLASSES``.
    """

    filled: NDArray[np.bool_]
    places: NDArray[np.int8]
    slices: tuple[bytes, ...]

    def slice(self, number: int) -> NDArray[np.uint8]:
        return np.frombuffer(zlib.decompress(self.slices[number]), np.uint8).reshape(self.filled.shape)


@lru_cache(maxsize=32)
def _head(path: Path, size: int, changed: int) -> _Head:
    volume = next(iter(read_brainweb(path)))
    chosen = with_brain(((volume == _GREY) | (volume == _WHITE)).sum((1, 2)))
    filled = np.asarray((volume[chosen] > 0).any(0))
    return _Head(filled, _PLACE_OF[volume.shape], tuple(zlib.compress(volume[k].tobytes(), 1) for k in chosen))


def _shares(labels: NDArray[np.uint8], places: NDArray[np.int8], shape: tuple[int, int]) -> Real:
    """``(11, H, W)`` of BrainWeb's numbers ``(rows, columns)``."""
    classes = places[labels]
    shares = np.zeros((len(CLASSES), *shape))
    for place in np.unique(classes[classes >= 0]):
        shares[place] = averaged((classes == place).astype(np.float32), shape)
    return shares
