"""Slices of segmented heads on another grid: a frame about the head, turned where wanted, averaged over the pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrecon.data._drawing import Real, means

_MARGIN = 0.04  # of the head's extent, on either side
_LEAST_BRAIN = 0.1  # of the largest slice's


class Frame(NamedTuple):
    """A window of ``rows x columns`` voxels about a centre; it may reach beyond the slice."""

    y: float
    x: float
    rows: int
    columns: int


def with_brain(areas: NDArray[Any]) -> NDArray[np.intp]:
    """Numbers of the slices of a tenth of the largest brain area at least."""
    return np.flatnonzero((areas > 0) & (areas >= _LEAST_BRAIN * areas.max()))


def frame_of(filled: NDArray[np.bool_], shape: tuple[int, int]) -> Frame:
    """The smallest window of the aspect of ``shape`` that holds ``filled`` ``(Y, X)`` with a margin: pixels stay
    square."""
    (top, bottom), (left, right) = (np.flatnonzero(filled.any(axis))[[0, -1]] for axis in (1, 0))
    height, width = bottom + 1 - top, right + 1 - left
    scale = (1 + 2 * _MARGIN) * max(height / shape[0], width / shape[1])  # voxels of a pixel
    rows, columns = (max(1, round(scale * n)) for n in shape)
    # Whole voxels: without a turn no value is moved.
    y, x = top + (height - rows) // 2 + (rows - 1) / 2, left + (width - columns) // 2 + (columns - 1) / 2
    return Frame(y, x, rows, columns)


def seen(image: NDArray[Any], frame: Frame, *, turn: float = 0.0, flips: tuple[bool, bool] = (False, False)) -> Any:
    """The frame's part of an image ``(..., Y, X)``, ``(..., rows, columns)``, 0 beyond it: nearest values, as labels
    need, ``turn`` in radians."""
    dy = (np.arange(frame.rows) - (frame.rows - 1) / 2)[:, None] * (-1 if flips[0] else 1)
    dx = (np.arange(frame.columns) - (frame.columns - 1) / 2)[None, :] * (-1 if flips[1] else 1)
    y = np.rint(frame.y + np.cos(turn) * dy - np.sin(turn) * dx).astype(np.intp)
    x = np.rint(frame.x + np.sin(turn) * dy + np.cos(turn) * dx).astype(np.intp)
    within = (y >= 0) & (y < image.shape[-2]) & (x >= 0) & (x < image.shape[-1])
    return np.where(within, image[..., y.clip(0, image.shape[-2] - 1), x.clip(0, image.shape[-1] - 1)], 0)


def averaged(images: NDArray[Any], shape: tuple[int, int]) -> Real:
    """Means over ``shape`` pixels ``(..., H, W)`` of images ``(..., rows, columns)``, voxels at borders shared."""
    for axis in (-2, -1):
        images = means(images, shape[axis], axis)
    return images.astype(np.float64)
