"""From chosen readouts to the k-space of an :class:`~pyrecon.data.raw.MRIScan`: what all MRI formats share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.fourier import centered_slice
from pyrecon.data.mri import some_entries
from pyrecon.data.placement import Frame, Placement, Stack, placed, turned
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._files import PathLike, check_memory, listing
from pyrecon.io._readouts import Readout, choose, of_image, one_direction

# A k-space matrix this much larger than the samples measured comes from a damaged counter, not from undersampling.
_MOST_UNDERSAMPLING = 64


class Assembled(NamedTuple):
    """Entries along S with mask ``(S, 1, H, W)`` and labels; ``slices`` and ``places`` as of a scan.

    The entries are volumes one after another, each of ``partitions`` in k-space. ``contrasts`` ``(S,)`` are their
    counters, ``where`` ``(S, 2)`` the counter of the slice and the partition, ``frames`` where the slices lie if all
    say it.
    """

    kspace: Complex
    mask: NDArray[np.bool_]
    partitions: int
    labels: tuple[str, ...]
    slices: NDArray[np.int64]
    places: NDArray[np.int64]
    contrasts: NDArray[np.int64]
    where: NDArray[np.int64]
    stack: Stack
    frames: list[Frame] | None


class Laid(NamedTuple):
    """What a scan has, turned as images are to be seen; each field as of :class:`~pyrecon.data.raw.MRIScan`."""

    kspace: Complex
    mask: NDArray[np.bool_]
    calibration: Complex | None
    placement: Placement | None
    encoded_partitions: int


def assemble(
    path: PathLike,
    readouts: Sequence[Readout],
    shape: tuple[int, int, int],
    names: Sequence[str],
    vouched: int = 0,
) -> Assembled:
    """K-space ``(S, C, H, W)``, mask and labels from readouts on a matrix ``shape = (P, H, W)``.

    Readouts of the same place are averaged. ``names`` are those of the counters in ``Readout.entry``, ``"contrast"``
    among them; ``vouched`` samples of something else lie on the same matrix.
    """
    if not readouts:
        raise DataError(f"{path}: no imaging readouts, expected at least one")
    partitions, rows, columns = shape
    channels = len(readouts[0].data)
    entries = sorted({r.entry for r in readouts})
    index = {entry: i for i, entry in enumerate(entries)}
    places = len(entries) * partitions * channels * rows * columns
    measured = max(vouched, sum(r.data.size for r in readouts))
    field = f"the k-space of {len(entries)} x {partitions} x {channels} x {rows} x {columns}"
    if places > _MOST_UNDERSAMPLING * measured and places > 2**16:
        raise DataError(
            f"{path}: {field} has {places // measured} places for each sample measured, expected at most "
            f"{_MOST_UNDERSAMPLING}; a counter or the header is corrupted"
        )
    check_memory(path, field, 8 * places, 8 * measured, _MOST_UNDERSAMPLING)
    kspace = np.zeros((len(entries), partitions, rows, channels, columns), np.complex64)
    times = np.zeros((len(entries), partitions, rows, columns), np.uint32)
    bad = []
    for number, r in enumerate(readouts):
        stop = r.column + r.data.shape[1]
        if not (0 <= r.row < rows and 0 <= r.partition < partitions and 0 <= r.column <= stop <= columns):
            raise DataError(
                f"{path}: readout {number} belongs to row {r.row}, partition {r.partition}, columns {r.column} to "
                f"{stop - 1}, expected a place in the matrix of {rows} x {partitions} x {columns}"
            )
        if len(r.data) != channels:
            raise DataError(f"{path}: readout {number} has {len(r.data)} channels, expected {channels} as in the first")
        if not np.isfinite(r.data).all():
            bad.append(number)
        with np.errstate(over="ignore", invalid="ignore"):
            kspace[index[r.entry], r.partition, r.row, :, r.column : stop] += r.data
        times[index[r.entry], r.partition, r.row, r.column : stop] += 1
    if bad:
        raise DataError(f"{path}: NaN or Inf in {listing('readout', bad)} of {len(readouts)}; expected finite numbers")
    if times.max() > 1:
        kspace /= np.maximum(times, 1)[:, :, :, None, :]
        if not np.isfinite(kspace).all():
            raise DataError(f"{path}: the average of repeated readouts overflows, expected k-space values within 1e38")

    return gathered(kspace, times > 0, entries, names, _frames(entries, readouts, partitions))


def gathered(
    kspace: Complex,
    sampled: NDArray[np.bool_],
    entries: Sequence[tuple[int, ...]],
    names: Sequence[str],
    frames: list[Frame] | None,
) -> Assembled:
    """What :func:`assemble` makes of k-space ``(E, P, H, C, W)`` that lies on its matrix, with ``sampled``
    ``(E, P, H, W)``; ``entries`` are sorted, ``frames`` one for each entry and partition."""
    _, partitions, rows, channels, columns = kspace.shape
    whole = np.ascontiguousarray(kspace.reshape(-1, rows, channels, columns).transpose(0, 2, 1, 3))
    mask = sampled.reshape(-1, 1, rows, columns)
    labels = _labels(entries, names, partitions)
    contrasts = np.array([entry[names.index("contrast")] for entry in entries for _ in range(partitions)], np.int64)
    where = np.array([(entry[0], p) for entry in entries for p in range(partitions)], np.int64)
    same_slice = _numbered(entries, names, partitions, "contrast")
    same_thing = _numbered(entries, names, partitions, "phase", "repetition")
    stack = _stack(entries, names, partitions)
    return Assembled(whole, mask, partitions, labels, same_slice, same_thing, contrasts, where, stack, frames)


def laid(found: Assembled, calibration: Complex | None, thickness: float, notes: list[str], *, against: bool) -> Laid:
    """Images that look as radiologists expect, and where they lie; as they are where the file does not say it.

    Partitions that are sampled alike are transformed to slices (centred, orthonormal), zeros where a lower resolution
    left some out at both ends; else they stay in k-space, those of the calibration too. ``thickness`` of a partition in
    metres, ``against`` as of :func:`~pyrecon.data.placement.placed`.
    """
    kspace, mask, encoded = found.kspace, found.mask, found.partitions
    if encoded > 1:
        notes += _left_out(mask, encoded)
        if _alike(mask, encoded) and _without_gaps(mask, encoded) and _alike(_measured(calibration), encoded):
            kspace = _slices(kspace, encoded)
            mask = np.repeat(mask.reshape(-1, encoded, *mask.shape[1:]).any(axis=1), encoded, axis=0)
            calibration = None if calibration is None else _slices(calibration, encoded)
            encoded = 1
    if mask.all(axis=-1).sum() == mask.any(axis=-1).sum():  # every line is complete
        mask = mask[..., :1]
    if (mask == mask[:1]).all():
        mask = mask[:1]
    if found.frames is None:
        return Laid(kspace, mask, calibration, None, encoded)
    partition = found.where[:, 1]
    distances = (partition - (int(partition.max()) + 1) // 2) * thickness
    turn, placement = placed(found.frames, distances.astype(float), against=against)
    kspace, mask = turned(kspace, turn), turned(mask, turn)
    if calibration is not None:
        each = len(turn) // len(calibration)
        if (turn.reshape(-1, each, 2) != turn[::each, None]).any():
            calibration, each = calibration.repeat(each, axis=0), 1
        calibration = turned(calibration, turn[::each])
    return Laid(kspace, mask, calibration, placement, encoded)


def without_slice_oversampling(scan: MRIScan, partition: NDArray[np.int64], partitions: int, kept: int) -> MRIScan:
    """The scan's entries in the ``kept`` partitions about the centre; ``partition`` ``(S,)`` of every entry. Those of a
    scan that has them in k-space stay, and this is told."""
    if kept == partitions:
        return scan
    said = f"{partitions / kept:.4g}: {kept} of {partitions} partitions are in the slab"
    if scan.encoded_partitions > 1:
        return replace(scan, metadata=scan.metadata | {"slice_oversampling": f"{said}, images are of all"})
    inside = centered_slice(partitions, kept)
    scan = some_entries(scan, np.flatnonzero((inside.start <= partition) & (partition < inside.stop)))
    return replace(scan, metadata=scan.metadata | {"slice_oversampling": said})


def averages(readouts: Sequence[Readout]) -> float:
    """Readouts per place, on average: how often noise was averaged."""
    return len(readouts) / len({(r.row, r.partition, r.entry) for r in readouts})


def reference_scan(
    path: PathLike,
    references: Sequence[Readout],
    navigators: Sequence[Readout],
    image: Assembled,
    names: tuple[Sequence[str], Sequence[str]],
    notes: list[str],
) -> Complex | None:
    """The calibration of a reference scan of its own; None where nothing of it can be used. ``names`` are those of the
    counters, and of those that images have no axis for."""
    channels, rows, columns = image.kspace.shape[1:]
    usable = of_image(references, channels, notes)
    if not usable:
        return None
    chosen = choose(path, usable, *names, channels)
    notes += chosen.notes
    lines, _ = one_direction(chosen.readouts, navigators, columns, notes)
    vouched = channels * int(image.mask.sum())  # a few lines about the centre lie on the image's whole matrix
    reference = assemble(path, lines, (image.partitions, rows, columns), chosen.names, vouched)
    return _calibration_of(reference, image, notes)


def _calibration_of(reference: Assembled, image: Assembled, notes: list[str]) -> Complex:
    """The reference lines ``(S', C, H, W)`` of a scan of its own, as a scan has them: each for S / S' entries in a row.

    Entries of the image go with the first reference of the same slice and partition; a slice that has none, with the
    nearest one that has.
    """
    places, inverse = np.unique(image.where, axis=0, return_inverse=True)
    reach = 1 + max(int(reference.where[:, 1].max()), int(places[:, 1].max()))  # no partition is as far as a slice
    nearest = np.array([np.argmin(np.abs(reference.where - place) @ (reach, 1)) for place in places])
    lacking = np.unique(places[(reference.where[nearest] != places).any(axis=1), 0]).tolist()
    if lacking:
        notes.append(f"no reference lines of {listing('slice', lacking)}: those of the nearest slice serve")
    chosen = nearest[inverse.ravel()]
    count = len(np.unique(chosen))
    each = len(chosen) // count
    if len(chosen) == each * count and (chosen.reshape(-1, each) == chosen[::each, None]).all():
        chosen = chosen[::each]
    return np.asarray(reference.kspace[chosen])


def _measured(calibration: Complex | None) -> NDArray[np.bool_] | None:
    return None if calibration is None else np.asarray((calibration != 0).any(axis=1, keepdims=True))


def _alike(mask: NDArray[np.bool_] | None, partitions: int) -> bool:
    """Whether the partitions of each volume are sampled alike or not at all."""
    if mask is None:
        return True
    volumes = mask.reshape(-1, partitions, *mask.shape[2:])
    lines, there = volumes.any(axis=1, keepdims=True), volumes.any(axis=(2, 3), keepdims=True)
    return bool((volumes == (lines & there)).all())


def _ends(mask: NDArray[np.bool_], partitions: int) -> tuple[list[bool], int, int]:
    """Which partitions any volume has, and how many are missing before the first and after the last of these."""
    there: list[bool] = np.asarray(mask.reshape(-1, partitions, mask[0].size).any(axis=(0, 2))).tolist()
    return there, there.index(True), there[::-1].index(True)


def _without_gaps(mask: NDArray[np.bool_], partitions: int) -> bool:
    """Whether all volumes have the same partitions, a block about the centre."""
    there, before, after = _ends(mask, partitions)
    each = mask.reshape(-1, partitions, mask[0].size).any(axis=2)
    return sum(there) == partitions - before - after and abs(before - after) <= 1 and bool((each == there).all())


def _left_out(mask: NDArray[np.bool_], partitions: int) -> Iterator[str]:
    """Tells of partitions at the ends of k-space that no volume has, more of them than are left out in between; the
    first of an even number has no counterpart."""
    there, before, after = _ends(mask, partitions)
    gap = int(np.diff(np.flatnonzero(there)).max(initial=1)) - 1
    if before > max(gap, 1 - partitions % 2) or after > gap:
        ends = [*range(before), *range(partitions - after, partitions)]
        yield (
            f"{listing('partition', ends)} of {partitions} not measured (slice partial Fourier, or a lower resolution "
            "across slices): their k-space is zero, or what the coils tell of it, unless it is filled in"
        )


def _slices(kspace: Complex, partitions: int) -> Complex:
    shifted = np.fft.ifftshift(kspace.reshape(-1, partitions, *kspace.shape[1:]), axes=1)
    slices = np.fft.fftshift(np.fft.ifft(shifted, axis=1, norm="ortho"), axes=1)
    return slices.astype(np.complex64).reshape(kspace.shape)


def _numbered(
    entries: Sequence[tuple[int, ...]], names: Sequence[str], partitions: int, *without: str
) -> NDArray[np.int64]:
    """``(S,)``: the same number where no counter but ``without`` differs, numbers in the order of the rest."""
    rest = [i for i, name in enumerate(names) if name not in without]
    keys = [(*(entry[i] for i in rest), p) for entry in entries for p in range(partitions)]
    number = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([number[key] for key in keys], np.int64)


def _stack(entries: Sequence[tuple[int, ...]], names: Sequence[str], partitions: int) -> Stack:
    """Volumes are entries that differ in their slice alone."""
    rest = [(0, *entry[1:]) for entry in entries]
    times = sorted(set(rest))
    when = {entry: i for i, entry in enumerate(times)}
    volume = np.array([when[entry] for entry in rest for _ in range(partitions)], np.int64)
    counters = {counter: i for i, counter in enumerate(sorted({entry[0] for entry in entries}))}
    number = [counters[entry[0]] * partitions + p for entry in entries for p in range(partitions)]
    return Stack(volume, np.array(number, np.int64), _labels(times, names, 1))


def _frames(entries: Sequence[tuple[int, ...]], readouts: Sequence[Readout], partitions: int) -> list[Frame] | None:
    first: dict[tuple[int, ...], Frame | None] = {}
    for r in readouts:
        first.setdefault(r.entry, r.frame)
    frames = [frame for entry in entries if (frame := first[entry]) is not None and frame.is_sound]
    return [f for f in frames for _ in range(partitions)] if len(frames) == len(entries) else None


def _labels(entries: Sequence[tuple[int, ...]], names: Sequence[str], partitions: int) -> tuple[str, ...]:
    """One text per entry of S, from the counters that differ."""
    varying = [i for i in range(len(names)) if len({entry[i] for entry in entries}) > 1]
    labels = []
    for entry in entries:
        text = ", ".join(f"{names[i]} {entry[i]}" for i in varying)
        for partition in range(partitions):
            part = f"partition {partition}" if partitions > 1 else ""
            labels.append(", ".join(filter(None, (text, part))) or f"{names[0]} {entry[0]}")
    return tuple(labels)
