"""Partial Fourier and asymmetric echo: lines or samples of one side of k-space that were left out, and what fills them
in.

An image whose phase is known has a k-space of which one half says the other. The phase is that of the low-resolution
image from the lines that lie on both sides of the centre, so it has to be smooth: a phase that varies within their
resolution is not recovered by either method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon.data.fourier import fft_centered, ifft_centered

Way = Literal["zero", "homodyne", "pocs"]
WAYS: tuple[Way, ...] = ("zero", "homodyne", "pocs")

LINES = ("lines", "samples of the readout")  # of an image's k-space
PARTITIONS = ("partitions", "lines")  # of a plane of a 3-D scan's

_LEAST_MISSING = 20  # a 20th of an axis: what less is missing at one side costs less resolution than is seen
_LEAST_BAND = 3  # lines at both sides of the centre that a phase can come from


class Part(NamedTuple):
    """What was measured of one image's k-space, along rows and columns; whole axes reach from 0 to their end."""

    rows: slice
    columns: slice
    shape: tuple[int, int]

    @property
    def axes(self) -> tuple[tuple[slice, int], tuple[slice, int]]:
        """Both with their length."""
        return (self.rows, self.shape[0]), (self.columns, self.shape[1])

    @property
    def is_partial(self) -> bool:
        """Whether samples are missing at one side of either axis."""
        return any(_missing(along, n) for along, n in self.axes)

    @property
    def has_phase(self) -> bool:
        """Whether enough lies at both sides of the centre for a low-resolution phase."""
        return all(_band(along, n) >= _LEAST_BAND for along, n in self.axes if _missing(along, n))

    def said(self, names: tuple[str, str]) -> str:
        """In words, with the names of both axes."""
        parts = [
            f"{along.stop - along.start} of {n} {what}, {max(0, _band(along, n))} beyond the centre"
            for (along, n), what in zip(self.axes, names, strict=True)
            if _missing(along, n)
        ]
        return " and ".join(parts)


def _missing(along: slice, n: int) -> bool:
    return bool(along.stop - along.start < n)


def _band(along: slice, n: int) -> int:
    """Samples at both sides of the centre; negative where it is not among them."""
    return int(min(n // 2 - along.start, along.stop - 1 - n // 2))


def measured_parts(mask: NDArray[np.bool_], shape: tuple[int, int]) -> list[Part]:
    """Of every image of a mask ``(S | 1, 1, H, W | 1)``.

    An axis counts as partial where the last samples at either end are at unequal distances from the centre: by a 20th
    of the axis, and by more than gaps of undersampling explain.
    """
    found = []
    for own in mask[:, 0]:
        columns = own.any(axis=0) if own.shape[1] == shape[1] else np.ones(shape[1], bool)
        found.append(Part(_measured(own.any(axis=1)), _measured(columns), shape))
    return found


def _measured(sampled: NDArray[np.bool_]) -> slice:
    n, there = len(sampled), np.flatnonzero(sampled)
    if there.size == 0:
        return slice(0, n)
    first, last = int(there[0]), int(there[-1])
    gap = int(np.diff(there).max()) - 1 if there.size > 1 else 0
    missing = abs((n // 2 - first) - (last - (n - 1) // 2))
    return slice(first, last + 1) if missing > max(2 * gap, n // _LEAST_MISSING, 1) else slice(0, n)


def told(parts: Sequence[Part], names: tuple[str, str] = LINES) -> str:
    """What a report says of them, with the names of both axes; nothing where all are whole."""
    counts = Counter(part.said(names) for part in parts if part.is_partial)
    if not counts:
        return ""
    text, count = counts.most_common(1)[0]
    if count == len(parts):
        return text
    return f"{text}, in {count} of {len(parts)} images" + (
        f", others in {counts.total() - count}" if len(counts) > 1 else ""
    )


def complete(kspace: Tensor, parts: Sequence[Part], way: Way) -> Tensor:
    """Images of k-space of which one side was left out.

    Parameters
    ----------
    kspace
        ``(B, ..., H, W)`` complex: of coils, or of combined images; what lies beyond the part is not looked at.
    parts
        One for each of B, or one for all. Where it is whole, or has too few lines at both sides of the centre for a
        phase, the image is that of k-space as it is.
    way
        ``"homodyne"``: the lines of one side alone count twice, those of both sides by a ramp in between, and the part
        of the image that has the low-resolution phase is its magnitude (Noll, Nishimura and Macovski, IEEE Trans Med
        Imaging 10:154, 1991). ``"pocs"``: projections in turn onto the images of that phase and onto those that have
        the measured samples, which stay as they are (Haacke, Lindskog and Lin, J Magn Reson 92:126, 1991).
        ``"zero"``: zeros.

    Returns
    -------
    Tensor
        Complex images of the low-resolution phase (POCS: nearly), like ``kspace``.
    """
    if way not in WAYS:
        raise ValueError(f"way: {way!r} is not known, expected one of {', '.join(WAYS)}")
    images = torch.empty_like(kspace)
    each = list(parts) * len(kspace) if len(parts) == 1 else list(parts)
    for part in dict.fromkeys(map(_key, each)):
        chosen = [i for i, own in enumerate(each) if _key(own) == part]
        images[chosen] = _completed(kspace[chosen], each[chosen[0]], way)
    return images


def _key(part: Part) -> tuple[int, int, int, int]:
    return part.rows.start, part.rows.stop, part.columns.start, part.columns.stop


def _completed(kspace: Tensor, part: Part, way: Way) -> Tensor:
    if not part.is_partial:
        return ifft_centered(kspace)
    measured = _outer(part, lambda along, n: _indicator(along, n), kspace)
    kspace = kspace * measured
    if way == "zero" or not part.has_phase:
        return ifft_centered(kspace)
    phase = _phase(ifft_centered(kspace * _outer(part, _window, kspace)))
    return _homodyne(kspace, part, phase) if way == "homodyne" else _pocs(kspace, measured, phase)


def _homodyne(kspace: Tensor, part: Part, phase: Tensor) -> Tensor:
    ramp = _outer(part, _ramp, kspace)
    mirrored = ramp
    for axis in (-2, -1):
        mirrored = torch.roll(mirrored.flip(axis), 1 - ramp.shape[axis] % 2, axis)
    both = ramp + mirrored
    weight = torch.where(both > 0, 2 * ramp / both.clamp_min(1e-12), 0)
    return _with_phase(ifft_centered(kspace * weight), phase)


def _pocs(kspace: Tensor, measured: Tensor, phase: Tensor, tol: float = 1e-4, max_iter: int = 100) -> Tensor:
    image = ifft_centered(kspace)
    for _ in range(max_iter):
        filled = ifft_centered(kspace + fft_centered(_with_phase(image, phase)) * (1 - measured))
        change = torch.linalg.vector_norm(filled - image)
        image = filled
        if bool(change <= tol * torch.linalg.vector_norm(image)):
            break
    return image


def _with_phase(image: Tensor, phase: Tensor) -> Tensor:
    """The part of an image that has this phase."""
    return (image * phase.conj()).real * phase


def _phase(image: Tensor) -> Tensor:
    size = image.abs()
    return torch.where(size > 0, image / size.clamp_min(torch.finfo(size.dtype).tiny), 1)


Along = Callable[[slice, int], NDArray[np.float64]]


def _outer(part: Part, along: Along, like: Tensor) -> Tensor:
    """``(H, W)``: the product of weights along the axes that are partial."""
    rows, columns = (along(own, n) if _missing(own, n) else np.ones(n) for own, n in part.axes)
    return torch.from_numpy(np.outer(rows, columns)).to(like.real.dtype).to(like.device)


def _indicator(along: slice, n: int) -> NDArray[np.float64]:
    inside = np.zeros(n)
    inside[along] = 1
    return inside


def _window(along: slice, n: int) -> NDArray[np.float64]:
    """Hann's, over what lies at both sides of the centre."""
    band = _band(along, n)
    k = np.arange(n) - n // 2
    return np.where(np.abs(k) <= band, 0.5 + 0.5 * np.cos(np.pi * k / (band + 1)), 0)


def _ramp(along: slice, n: int) -> NDArray[np.float64]:
    """From 0 to 1 over what lies at both sides of the centre, towards the side that was measured; with its mirror image
    it is 1 where either was measured."""
    band = _band(along, n)
    k = np.arange(n) - n // 2
    rising = np.clip(0.5 + k / (2 * band + 1), 0, 1)
    longer_after = along.stop - 1 - n // 2 > n // 2 - along.start
    return _indicator(along, n) * (rising if longer_after else 1 - rising)
