"""Where the images of a scan lie in the patient, and which of them are slices of one volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
# Metres of a field of view, a voxel, a place in the patient: with others no image can be put anywhere.
SHORTEST, LONGEST = 1e-9, 1e4
_STRAIGHT = 1e-3  # cosines and relative distances that count as equal


class Frame(NamedTuple):
    """Axes of one slice as a scanner tells them, in metres and patient coordinates: left, posterior, head."""

    phase: tuple[float, float, float]
    read: tuple[float, float, float]
    normal: tuple[float, float, float]
    position: tuple[float, float, float]

    @property
    def is_sound(self) -> bool:
        """Three axes of length 1 at right angles, and a place within ``LONGEST``."""
        axes = np.array([self.phase, self.read, self.normal], np.float64)
        if not (np.isfinite(axes).all() and (np.abs(self.position) <= LONGEST).all()):
            return False
        return bool(np.abs(axes @ axes.T - np.eye(3)).max() < 1e-2)


@dataclass(frozen=True)
class Placement:
    """Of all entries along S of a scan.

    Attributes
    ----------
    rows, columns, normal
        ``(S, 3)``: unit vectors, towards left, posterior, head, along which the numbers of rows, columns and partitions
        grow.
    center
        ``(S, 3)``: where pixel (H // 2, W // 2) lies, metres.
    """

    rows: Real
    columns: Real
    normal: Real
    center: Real

    def some(self, chosen: NDArray[np.int64]) -> Placement:
        """Of the entries of these numbers."""
        return Placement(self.rows[chosen], self.columns[chosen], self.normal[chosen], self.center[chosen])

    @property
    def letters(self) -> str:
        """Where rows and columns of the first entry lead: ``"PL"`` is to posterior and to left."""
        return "".join(_letter(axes[0]) for axes in (self.rows, self.columns))

    @property
    def words(self) -> str:
        """The same in words."""
        rows, columns = (_WORDS[letter] for letter in self.letters)
        return f"rows to {rows}, columns to {columns}"


def placed(frames: list[Frame], partitions: Real, *, against: bool) -> tuple[NDArray[np.bool_], Placement]:
    """``(S, 2)``, which of rows and columns of every entry are to be turned, and where its image then lies.

    Turned are those that would not lead to posterior, left or feet: shown with row 0 on top, an image then looks as
    radiologists expect. ``partitions`` ``(S,)`` are distances from the position along the normal, in metres;
    ``against``: the image of the scanner's k-space runs against its axes.
    """
    phase, read, normal, position = (np.array(axis, np.float64) for axis in zip(*frames, strict=True))
    sign = -1.0 if against else 1.0
    turn = np.stack([_is_to_be_turned(sign * axis) for axis in (phase, read)], axis=1)
    signs = sign * np.where(turn, -1.0, 1.0)
    return turn, Placement(
        rows=signs[:, :1] * phase,
        columns=signs[:, 1:] * read,
        normal=sign * normal,
        center=position + partitions[:, None] * sign * normal,
    )


def _is_to_be_turned(direction: Real) -> NDArray[np.bool_]:
    axis = np.abs(direction).argmax(axis=1)
    along = np.take_along_axis(direction, axis[:, None], axis=1)[:, 0]
    return np.asarray(np.where(axis < 2, along, -along) < 0)


def _letter(direction: Real) -> str:
    axis = int(np.abs(direction).argmax())
    return ("LR", "PA", "HF")[axis][int(direction[axis] < 0)]


Kind = TypeVar("Kind", bound=np.generic)


def turned(values: NDArray[Kind], turn: NDArray[np.bool_]) -> NDArray[Kind]:
    """``values`` ``(S | 1, ..., H, W)`` with the frequencies' signs reversed along the axes of those to be turned."""
    if len(values) == 1 and len(turn) > 1 and (turn != turn[0]).any():
        values = np.repeat(values, len(turn), axis=0)
    each = turn if len(values) > 1 else turn[:1]
    if not each.any():
        return values
    result = np.array(values)
    for i, axis in enumerate((-2, -1)):
        n = values.shape[axis]
        if n > 1 and each[:, i].any():  # k = -n/2 is its own mirror image if n is even
            chosen = each[:, i]
            result[chosen] = np.roll(np.flip(result[chosen], axis), 1 - n % 2, axis)
    return result


@dataclass(frozen=True)
class Stack:
    """Which slice of which volume every entry along S is.

    Attributes
    ----------
    volume, slice
        ``(S,)``: numbers of the volume (a time, a contrast), and of the slice by the file's counters.
    labels
        One for each volume.
    """

    volume: NDArray[np.int64]
    slice: NDArray[np.int64]
    labels: tuple[str, ...] = ()

    def some(self, chosen: NDArray[np.int64]) -> Stack:
        """Of the entries of these numbers."""
        volume = self.volume[chosen]
        numbers = np.unique(volume)
        labels = tuple(self.labels[i] for i in numbers if i < len(self.labels))
        return Stack(np.searchsorted(numbers, volume), self.slice[chosen], labels)


@dataclass(frozen=True)
class Volumes:
    """How images ``(S, H, W)`` become volumes.

    Attributes
    ----------
    order
        ``(V, Z)`` numbers of the entries, slices in the order of space.
    affine
        ``(4, 4)``: from (x, y, z) = (W, H, Z) to millimetres towards right, anterior, superior; None where the file
        does not say, or its slices are no stack.
    labels
        One for each of several volumes.
    note
        What a report says of it.
    """

    order: NDArray[np.int64]
    affine: Real | None
    labels: tuple[str, ...]
    note: str


def volumes(
    placement: Placement | None, stack: Stack, shape: tuple[int, int], spacing: tuple[float, float, float]
) -> Volumes:
    """The volumes of a scan with images of ``shape`` ``(H, W)``; ``spacing``: size of pixels and thickness, metres.

    Where not all volumes have the same slices, or these are no stack, each image is a volume of its own.
    """
    volume, slices, labels = stack.volume, stack.slice, stack.labels
    numbers = np.unique(volume)
    parts = [np.flatnonzero(volume == number) for number in numbers]
    parts = [part[np.argsort(slices[part], kind="stable")] for part in parts]
    if any(len(part) != len(parts[0]) or (slices[part] != slices[parts[0]]).any() for part in parts):
        order = np.arange(len(volume))[:, None]
        return Volumes(order, None, (), "not all slices are there at all times: each image is a volume of its own")
    order = np.stack(parts)
    names = labels if len(order) > 1 else ()
    if placement is None:
        return Volumes(order, None, names, "the file does not say where its slices lie")
    first = order[0]
    rows, columns, normal = (axis[first] for axis in (placement.rows, placement.columns, placement.normal))
    if any(np.abs(axis - axis[0]).max() > _STRAIGHT for axis in (rows, columns)):
        each = np.arange(len(volume))[:, None]
        return Volumes(each, None, (), "slices of several orientations: each is a volume of its own, nowhere in space")
    along = normal[0] if normal[0] @ _upwards(normal[0]) > 0 else -normal[0]
    height = placement.center[first] @ along
    order = order[:, np.argsort(height, kind="stable")]
    center = placement.center[order[0]]
    step = along * spacing[2]
    if len(center) > 1:
        step = (center[-1] - center[0]) / (len(center) - 1)
        straight = center[0] + np.arange(len(center))[:, None] * step
        length, each = np.linalg.norm(step), np.arange(len(volume))[:, None]
        if length == 0 or np.abs(center - straight).max() > 0.05 * length:
            return Volumes(each, None, (), "slices at uneven distances: each is a volume of its own, nowhere in space")
        if step @ along < max(SHORTEST, 0.1 * length):
            return Volumes(each, None, (), "slices side by side: each is a volume of its own, nowhere in space")
    affine = np.eye(4)
    for column, axis in enumerate((columns[0] * spacing[1], rows[0] * spacing[0], step)):
        affine[:3, column] = 1e3 * axis
    corner = center[0] - shape[1] // 2 * spacing[1] * columns[0] - shape[0] // 2 * spacing[0] * rows[0]
    affine[:3, 3] = 1e3 * corner
    affine[:2] *= -1  # left and posterior to right and anterior
    said = f"rows to {_WORDS[_letter(rows[0])]}, columns to {_WORDS[_letter(columns[0])]}, by the file's geometry"
    return Volumes(order, affine, names, said)


_WORDS = {"L": "left", "R": "right", "P": "posterior", "A": "anterior", "H": "head", "F": "feet"}


def _upwards(direction: Real) -> Real:
    """The nearest of right, anterior and head."""
    axis = int(np.abs(direction).argmax())
    return np.asarray(np.eye(3)[axis] * (-1.0 if axis < 2 else 1.0))
