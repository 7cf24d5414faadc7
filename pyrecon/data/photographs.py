"""Random crops of the photographs in scikit-image's wheel that are CC0 or in the public domain."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError, MissingDependency

Part = Literal["train", "validation", "test"]

# As scikit-image 0.26 states of each: CC0, or released into the public domain by the photographer, NASA or SpaceX. No
# photograph is in two parts.
PHOTOGRAPHS: dict[Part, tuple[str, ...]] = {
    "train": ("astronaut", "coffee", "retina", "hubble_deep_field", "camera", "brick", "gravel"),
    "validation": ("rocket", "grass"),
    "test": ("chelsea", "clock"),
}
_SMALLEST = 0.4  # of a crop's pixel in those of the photograph: not below, or it would show the camera's blur


def photographs(
    count: int,
    shape: tuple[int, int],
    *,
    color: bool = True,
    part: Part = "train",
    seed: int = 0,
    first: int = 0,
) -> NDArray[np.float32]:
    """Random crops, turned and mirrored, each at a scale of its own: from 0 to 1.

    Parameters
    ----------
    count, shape, color
        Returns ``(count, 3, H, W)``, or ``(count, H, W)`` of their luminance without ``color``.
    part
        Crops of ``"train"``, ``"validation"`` and ``"test"`` come from different photographs.
    seed, first
        Image i depends on ``(seed, first + i)`` alone.
    """
    if part not in PHOTOGRAPHS:
        raise ValueError(f"part: {part!r}, expected one of {', '.join(PHOTOGRAPHS)}")
    if len(shape) != 2 or min(shape) < 1 or count < 0:
        raise ValueError(f"count={count}, shape={shape}: expected a whole number from 0 and two sizes")
    sources = [_photograph(name) for name in PHOTOGRAPHS[part]]
    if max(shape) > min(min(source.shape[1:]) for source in sources):
        smallest = min(min(source.shape[1:]) for source in sources)
        raise DataError(f"shape: {shape} is larger than a photograph, expected at most {smallest} pixels along an axis")
    images = np.empty((count, 3, *shape), np.float32)
    for i in range(count):
        images[i] = _crop(np.random.default_rng((seed, 4, first + i)), sources, shape)
    return images if color else np.tensordot(images, np.float32([0.299, 0.587, 0.114]), axes=([1], [0]))


def _crop(rng: np.random.Generator, sources: list[NDArray[np.float32]], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A window of 1 to 8 pixels for one of the result, most of them small, averaged down."""
    weights = np.array([np.sqrt(source[0].size) * (1.0 if _colored(source) else 0.5) for source in sources])
    source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
    turned = bool(rng.integers(2))
    height, width = shape[::-1] if turned else shape
    most = min(source.shape[1] / height, source.shape[2] / width)
    scale = float(np.exp(rng.uniform(0.0, np.log(min(most, 8.0)))))
    rows, columns = int(scale * height), int(scale * width)
    top, left = int(rng.integers(source.shape[1] - rows + 1)), int(rng.integers(source.shape[2] - columns + 1))
    crop = source[:, top : top + rows, left : left + columns]
    crop = np.asarray(_mean_to(_mean_to(crop, height, 1), width, 2))
    crop = crop.transpose(0, 2, 1) if turned else crop
    crop = crop[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return crop * np.float32(rng.uniform(0.8, 1.0))


def _colored(source: NDArray[np.float32]) -> bool:
    return not np.array_equal(source[0], source[1])


def _mean_to(image: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float32]:
    """Means over ``size`` intervals of equal length, pixels at their borders shared."""
    n = image.shape[axis]
    edges = np.arange(size + 1) * n / size
    weights = (np.minimum(edges[1:, None], np.arange(1, n + 1)) - np.maximum(edges[:-1, None], np.arange(n))).clip(0)
    moved = np.tensordot(image, (weights * size / n).astype(np.float32), axes=([axis], [1]))
    return np.moveaxis(moved, -1, axis)


@lru_cache(maxsize=16)
def _photograph(name: str) -> NDArray[np.float32]:
    """``(3, H, W)`` from 0 to 1."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingDependency("scikit-image", "demo", "training on photographs") from error
    image = np.asarray(getattr(data, name)(), np.float32) / 255
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    image = np.ascontiguousarray(image.transpose(2, 0, 1))
    image.flags.writeable = False
    return image
