"""Random crops of photographs in scikit-image's wheel that are CC0 or in the public domain."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrecon._check import check_count, check_flag, check_size
from pyrecon._errors import MissingDependency
from pyrecon.data._drawing import means

Part = Literal["train", "validation", "test"]
Images = NDArray[np.float32]

# As scikit-image 0.26 states of each: CC0, or released into the public domain by NASA (astronaut) or SpaceX (rocket);
# with how often each is taken.
_TRAIN = {"astronaut": 3, "coffee": 3, "rocket": 2, "retina": 1, "brick": 1, "gravel": 1, "grass": 1}
_HELD_OUT = {"chelsea": 2, "camera": 1}
PHOTOGRAPHS = (*_TRAIN, *_HELD_OUT)

_LARGEST_SCALE = 8.0
_PLAIN = 0.03  # a crop of a smaller standard deviation is drawn again: a wall teaches nothing
_ATTEMPTS = 50


def photographs(
    count: int, shape: tuple[int, int], *, color: bool = True, part: Part = "train", seed: int = 0, first: int = 0
) -> Images:
    """Random crops, turned and mirrored, each at a scale of its own: from 0 to 1.

    Parameters
    ----------
    count, shape, color
        Returns ``(count, 3, H, W)``, or ``(count, H, W)`` of their luminance without ``color``. Beyond 225 pixels
        along an axis, 400 in training, photographs are enlarged.
    part
        ``"train"``, or of other photographs ``"validation"`` (their left halves) and ``"test"`` (their right halves).
        In training half of the crops have their colours exchanged: so few photographs have few colours.
    seed, first
        Image i depends on ``(seed, first + i)`` alone.
    """
    check_count("count", count, 0)
    check_count("seed", seed, 0)
    check_count("first", first, 0)
    check_flag("color", color)
    shape = check_size("shape", shape, 2)  # type: ignore[assignment]  # two of them
    if part not in ("train", "validation", "test"):
        raise ValueError(f"part: {part!r}, expected train, validation or test")
    weights = _TRAIN if part == "train" else _HELD_OUT
    sources = [_half(_photograph(name), part) for name in weights]
    # The largest ones at least; in the end that is enlarged, to no use.
    fitting = [min(*source.shape[1:], max(shape)) for source in sources]
    sources = [source for source, size in zip(sources, fitting, strict=True) if size == max(fitting)]
    shares = np.array([w for w, size in zip(weights.values(), fitting, strict=True) if size == max(fitting)], float)
    shares /= shares.sum()
    images = np.empty((count, 3, *shape), np.float32)
    for i in range(count):
        rng = np.random.default_rng((seed, 4, first + i))
        for _ in range(_ATTEMPTS):
            images[i] = _crop(rng, sources[int(rng.choice(len(sources), p=shares))], shape)
            if images[i].std(axis=(1, 2)).max() >= _PLAIN:
                break
        if part == "train" and rng.random() < 0.5:
            images[i] = images[i][rng.permutation(3)]
    return images if color else np.tensordot(images, np.array([0.299, 0.587, 0.114], np.float32), axes=([1], [0]))


def _crop(rng: np.random.Generator, source: Images, shape: tuple[int, int]) -> Images:
    """A window of ``scale`` pixels for one of the result, averaged down; log-uniform scales."""
    turned = bool(rng.integers(2))
    height, width = shape[::-1] if turned else shape
    most = min(source.shape[1] / height, source.shape[2] / width, _LARGEST_SCALE)
    scale = np.exp(rng.uniform(min(0.0, np.log(most)), np.log(most)))
    rows, columns = min(int(scale * height), source.shape[1]), min(int(scale * width), source.shape[2])
    top, left = int(rng.integers(source.shape[1] - rows + 1)), int(rng.integers(source.shape[2] - columns + 1))
    crop = means(means(source[:, top : top + rows, left : left + columns], height, 1), width, 2)
    crop = crop.transpose(0, 2, 1) if turned else crop
    return crop[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])] * np.float32(rng.uniform(0.8, 1.0))


def _half(image: Images, part: Part) -> Images:
    middle = image.shape[2] // 2
    return {"train": image, "validation": image[:, :, :middle], "test": image[:, :, middle:]}[part]


@lru_cache(maxsize=16)
def _photograph(name: str) -> Images:
    """``(3, H, W)`` from 0 to 1, read-only."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingDependency("scikit-image", "train", "training on photographs") from error
    image = np.asarray(getattr(data, name)(), np.float32) / np.float32(255)
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    image = np.ascontiguousarray(image.transpose(2, 0, 1))
    image.flags.writeable = False
    return image
