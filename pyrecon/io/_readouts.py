"""Which readouts of a file make its image, its calibration, or neither: what all MRI formats share.

Nothing is left out in silence: what is not used, or had to be guessed, is told in ``notes``, which the reconstruction
turns into warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pyrecon._errors import DataError
from pyrecon.data.placement import Frame
from pyrecon.data.raw import Complex
from pyrecon.io._files import PathLike

_LARGEST = 1e12  # of a navigator's samples


class Readout(NamedTuple):
    """One readout and where it belongs."""

    data: Complex  # (C, n)
    row: int  # phase encoding, 0 .. H - 1
    partition: int  # second phase encoding, 0 .. P - 1
    column: int  # where its first sample belongs, 0 .. W - 1
    entry: tuple[int, ...]  # slice, contrast, ...: one entry along S for each different value
    average: int = 0
    others: tuple[int, ...] = ()  # counters that images have no axis for: segment, those of the user
    frame: Frame | None = None  # where its slice lies
    backwards: bool = False  # sampled from right to left; ``data`` runs from left to right

    @property
    def line(self) -> tuple[int, ...]:
        """Of k-space."""
        return (*self.entry, self.partition, self.row)

    @property
    def stretch(self) -> tuple[int, ...]:
        """What averages share: a line may be measured in pieces."""
        return (*self.line, self.column, self.average)


class Chosen(NamedTuple):
    """Readouts of one image each by ``entry``, the names of its counters, and what a user has to know."""

    readouts: list[Readout]
    names: tuple[str, ...]
    notes: list[str]


def choose(
    path: PathLike,
    readouts: Sequence[Readout],
    names: Sequence[str],
    others: Sequence[str],
    channels: int | None = None,
) -> Chosen:
    """The readouts that are samples of the image's coils, each where no other one is but its averages.

    ``names`` are those of the counters in ``Readout.entry``, ``others`` those in ``Readout.others``; ``channels`` is
    what the header says.
    """
    notes: list[str] = []
    kept = _of_one_array(readouts, channels, notes)
    measured = [r for r in kept if is_measured(r)]
    if kept and not measured:
        raise DataError(f"{path}: all {len(kept)} imaging readouts are zero, nothing to reconstruct")
    if len(measured) < len(kept):
        notes.append(
            f"{len(kept) - len(measured)} of {len(kept)} readouts are exactly zero in every channel and count as not "
            "measured"
        )
    return _apart(measured, tuple(names), tuple(others), notes)


def is_measured(r: Readout) -> bool:
    """Whether any sample of any channel is not exactly zero."""
    with np.errstate(invalid="ignore"):  # NaN, which the file is refused for later
        return bool(r.data.any())


def _of_one_array(readouts: Sequence[Readout], channels: int | None, notes: list[str]) -> list[Readout]:
    """Those with as many channels as the header says, or, where none has, as most have."""
    counts = Counter(len(r.data) for r in readouts)
    if len(counts) < 2:
        return list(readouts)
    wanted = channels if channels in counts else max(counts, key=lambda n: (counts[n], n))
    for count in sorted(set(counts) - {wanted}):
        notes.append(
            f"{counts[count]} readouts of {count} channels are left out, the image has {wanted}: another coil's, such "
            "as the body coil's in an adjustment"
        )
    return [r for r in readouts if len(r.data) == wanted]


def _apart(readouts: list[Readout], names: tuple[str, ...], others: tuple[str, ...], notes: list[str]) -> Chosen:
    """Readouts on one place are averages if the average's counter counts them; else they are images of their own."""
    if not _repeated(r.stretch for r in readouts):
        return Chosen(readouts, names, notes)
    times = max(Counter(r.stretch for r in readouts).values())
    said = f"{times} readouts lie on one place of k-space although the counter of averages does not count them"
    for i, name in enumerate(others):
        if not _repeated((*r.stretch, r.others[i]) for r in readouts):
            notes.append(f"{said}; they are told apart by the counter {name}, an image for each of its values")
            apart = [r._replace(entry=(*r.entry, r.others[i])) for r in readouts]
            return Chosen(apart, (*names, name), notes)
    notes.append(
        f"{said}, nor does any other; they are told apart by their order, an image for each: echoes of which the "
        "counter stays 0, perhaps. Average the images if they are averages"
    )
    seen: Counter[tuple[int, ...]] = Counter()
    ordered = []
    for r in readouts:
        ordered.append(r._replace(entry=(*r.entry, seen[r.stretch])))
        seen[r.stretch] += 1
    return Chosen(ordered, (*names, "order"), notes)


def _repeated(keys: Iterable[tuple[int, ...]]) -> bool:
    return max(Counter(keys).values(), default=0) > 1


def integrated(image: Sequence[Readout], reference: Sequence[Readout]) -> bool:
    """Whether reference lines were measured in the place of image lines that are skipped, not beside them.

    Integrated reference lines fill the gaps of the image's: together they are the calibration, and all are image data.
    A scan of its own has lines that the image has too, or counters of its own, and another contrast.
    """
    entries = {r.entry for r in image}
    return all(r.entry in entries for r in reference) and not {r.line for r in image} & {r.line for r in reference}


def of_image(references: Sequence[Readout], channels: int, notes: list[str]) -> list[Readout]:
    """Reference readouts of the image's coils that were measured; others are told of."""
    kept = [r for r in references if len(r.data) == channels and is_measured(r)]
    if len(kept) < len(references):
        notes.append(
            f"{len(references) - len(kept)} of {len(references)} reference readouts are left out: they are zero, or of "
            f"another number of channels than the image's {channels}"
        )
    return kept


# --- lines of both directions --------------------------------------------------------------------------------------
def one_direction(
    readouts: list[Readout], navigators: Sequence[Readout], columns: int, notes: list[str]
) -> tuple[list[Readout], int]:
    """Echo-planar lines that were sampled backwards, with the phase of those that were not; and by how many navigators.

    The two differ by a constant and a linear phase along the readout, of every channel its own; ``navigators``, lines
    of no phase encoding in both directions, tell it. Per channel, with c(x) the sum of f(x) conj(b(x)) over pairs of
    a forward and a backward one: the slope is the angle of sum c(x+1) conj(c(x)), the constant that of what is left
    (Ahn and Cho, IEEE Trans Med Imaging 6:32, 1987).
    """
    directions = {r.backwards for r in readouts}
    if len(directions) < 2:
        return readouts, 0
    channels = {len(r.data) for r in readouts}
    usable = [r for r in navigators if len(r.data) in channels and _sound(r) and _fits(r, columns)]
    phases: dict[tuple[int, ...], Complex | None] = {}
    for entry in {r.entry for r in readouts}:
        phases[entry] = _phase(_nearest(usable, entry), columns)
    if all(phase is None for phase in phases.values()):
        notes.append(
            "lines were sampled in both directions and the file has no lines to correct their phases by: expect a "
            "ghost, shifted by half the field of view"
        )
        return readouts, 0
    if any(phase is None for phase in phases.values()):
        notes.append("some images have no lines to correct the phases of both directions by: expect ghosts in these")
    return [_corrected(r, phases[r.entry], columns) if r.backwards else r for r in readouts], len(usable)


def phase_correction(navigators: int) -> dict[str, str]:
    """What a report says of :func:`one_direction`."""
    return {"phase_correction": f"lines of both directions, by {navigators} navigators"} if navigators else {}


def _sound(r: Readout) -> bool:
    """Measured, finite, and so far below the largest number that products are too."""
    return bool(np.isfinite(r.data).all() and 0 < np.abs(r.data).max() < _LARGEST)


def _fits(r: Readout, columns: int) -> bool:
    """Whether it lies within the matrix; an image's readout that does not is refused when it is laid there."""
    return bool(0 <= r.column <= r.column + r.data.shape[1] <= columns)


def _nearest(navigators: Sequence[Readout], entry: tuple[int, ...]) -> list[Readout]:
    """Those of the same image, or at least of the same slice."""
    same = [r for r in navigators if r.entry == entry[: len(r.entry)]]
    return same if len({r.backwards for r in same}) == 2 else [r for r in navigators if r.entry[:1] == entry[:1]]


def _phase(navigators: Sequence[Readout], columns: int) -> Complex | None:
    """``(C, W)``: what a backward line's image along the readout is multiplied by."""
    lines: dict[bool, list[Complex]] = {False: [], True: []}
    for r in navigators:
        lines[r.backwards].append(_line_image(r, columns))
    if not lines[False] or not lines[True]:
        return None
    forward, backward = (np.mean(lines[way], axis=0) for way in (False, True))
    c = forward * backward.conj()
    slope = np.angle((c[:, 1:] * c[:, :-1].conj()).sum(axis=1))[:, None]
    turn = np.exp(1j * slope * (np.arange(columns) - columns // 2))
    constant = np.angle((c * turn.conj()).sum(axis=1))[:, None]
    return np.asarray(turn * np.exp(1j * constant), np.complex64)


def _line_image(r: Readout, columns: int) -> Complex:
    whole = np.zeros((len(r.data), columns), np.complex64)
    whole[:, r.column : r.column + r.data.shape[1]] = r.data
    return np.asarray(np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(whole, axes=1), axis=1), axes=1), np.complex64)


def _corrected(r: Readout, phase: Complex | None, columns: int) -> Readout:
    if phase is None or not _fits(r, columns):
        return r
    with np.errstate(over="ignore", invalid="ignore"):  # of samples that the file is refused for later
        image = _line_image(r, columns) * phase
    line = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=1), axis=1), axes=1)
    kept = line[:, r.column : r.column + r.data.shape[1]]  # a partial echo stays one
    return r._replace(data=np.asarray(kept, np.complex64))
