"""Series of images for quantitative MRI: one image for every setting of the sequence, and the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon.data.raw import Grid, Real


@dataclass(frozen=True)
class ImageSeries:
    """Images of the same slices under T settings.

    Attributes
    ----------
    images
        ``(T, S, H, W)`` float32, or complex64: settings, slices, rows, columns.
    settings
        ``(T,)`` by name, of those that are known: ``"inversion time"``, ``"echo time"``, ``"repetition time"`` in
        seconds, ``"flip angle"`` in radians.
    grid
        Slices, rows and columns in metres; None if unknown.
    affine
        ``(4, 4)``: from column, row and slice to millimetres towards right, anterior and superior; None if unknown.
    metadata
        What was read, done and assumed, by name, in words and numbers; reports print it.
    """

    images: NDArray[Any]
    settings: dict[str, Real] = field(default_factory=dict)
    grid: Grid | None = None
    affine: Real | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def magnitudes(self) -> bool:
        """Whether they are real and not negative."""
        return not np.iscomplexobj(self.images) and not bool((self.images < 0).any())
