"""What a raw MRI file says in its headers, without its samples: what :mod:`pyrecon.io.inspection` shows of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrecon.data.placement import Frame, Placement, placed
from pyrecon.data.raw import Complex
from pyrecon.io._readouts import Readout, integrated


@dataclass(frozen=True)
class Outline:
    """Of N readouts.

    ``kinds`` ``(N,)`` say by name which readouts are what, ``flags`` which have each flag, ``counters`` their values;
    ``image`` and ``reference`` are those of the image's matrix ``shape`` ``(P, H, W)``, with :func:`hollow` samples.
    """

    kinds: dict[str, NDArray[np.bool_]]
    counters: dict[str, NDArray[np.int64]]
    flags: dict[str, NDArray[np.bool_]]
    channels: NDArray[np.int64]
    samples: NDArray[np.int64]
    facts: dict[str, Any]
    shape: tuple[int, int, int] | None = None
    oversampling: float | None = None
    field_of_view: tuple[float, float, float] | None = None  # rows, columns, a partition: metres
    image: list[Readout] = field(default_factory=list)
    reference: list[Readout] = field(default_factory=list)
    placement: Placement | None = None  # of the first image
    noise_elsewhere: int = 0  # readouts of noise in other measurements of the file


def hollow(channels: int, samples: int) -> Complex:
    """Samples that take no memory: ones, for what looks at their number alone."""
    return np.broadcast_to(np.complex64(1), (int(channels), int(samples)))


def first_placement(frames: list[Frame] | None, *, against: bool) -> Placement | None:
    """Of the first image, as the reader turns it; None where the file does not say it."""
    if not frames or not frames[0].is_sound:
        return None
    return placed(frames[:1], np.zeros(1), against=against)[1]


def table_of_counters(outline: Outline) -> list[tuple[str, int, int, int]]:
    """Name, lowest and highest value, and how many different ones, among the readouts of image and reference."""
    none = np.zeros(len(outline.channels), bool)
    chosen = outline.kinds.get("image", none) | outline.kinds.get("reference", none)
    if not chosen.any():
        chosen = ~none
    rows = []
    for name, values in outline.counters.items():
        there = values[chosen]
        if not len(there):
            break
        rows.append((name, int(there.min()), int(there.max()), len(np.unique(there))))
    return rows


def table_of_readouts(outline: Outline) -> list[tuple[str, int, str, str, str]]:
    """Kind, how many, of how many channels and samples, with which flags."""
    rows = []
    for kind, which in sorted(outline.kinds.items(), key=lambda item: -int(item[1].sum())):
        flags = {name: int((has & which).sum()) for name, has in outline.flags.items()}
        told = ", ".join(f"{name} {n}" for name, n in flags.items() if n)
        rows.append((kind, int(which.sum()), _span(outline.channels[which]), _span(outline.samples[which]), told))
    return rows


def _span(values: NDArray[np.int64]) -> str:
    found = np.unique(values).tolist()
    return ", ".join(map(str, found)) if len(found) < 4 else f"{found[0]} to {found[-1]}"


def lines_of(outline: Outline) -> NDArray[np.bool_]:
    """``(E, P, H)``: which lines of each entry the image's readouts have, with the reference lines in their gaps."""
    assert outline.shape is not None
    readouts = outline.image
    if integrated(outline.image, outline.reference):
        readouts = outline.image + outline.reference
    index = {entry: i for i, entry in enumerate(sorted({r.entry for r in readouts}))}
    partitions, rows, _ = outline.shape
    lines = np.zeros((len(index), partitions, rows), bool)
    for r in readouts:
        if 0 <= r.row < rows and 0 <= r.partition < partitions:  # the reader refuses others
            lines[index[r.entry], r.partition, r.row] = True
    return lines


def sampling(lines: NDArray[np.bool_], what: str = "lines") -> str:
    """Acceleration, regularity and calibration of ``lines`` ``(E, H)`` in words."""
    count = lines.shape[1]
    each = lines.sum(axis=1)
    there = np.flatnonzero(lines[int(each.argmax())])
    taken = f"{each.min()} to {each.max()}" if each.min() < each.max() else f"{each.max()}"
    said = [f"{taken} of {count} {what}"]
    steps = Counter(np.diff(there).tolist())
    wide = [step for step in steps if step > 1]
    if wide:
        usual = max(wide, key=lambda step: (steps[step], -step))
        regular = steps[usual] >= 0.8 * sum(steps[step] for step in wide) and steps[usual] > 2
        said.append(f"every {_ordinal(usual)}" if regular else "at irregular distances")
        said.append(f"net acceleration {count / max(1, each.max()):.2f}")
        block = _central(np.asarray(lines.all(axis=0)))
        said.append(f"{block} fully sampled about the centre" if block > 1 else "no fully sampled block at the centre")
    first, last = int(there[0]), count - 1 - int(there[-1])
    if abs(first - last) > max([1, *wide]):
        said.append(f"{first} left out at the beginning and {last} at the end (partial Fourier)")
    if len(lines) > 1 and (lines != lines[:1]).any():
        said.append("not the same in every image")
    return ", ".join(said)


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _central(full: NDArray[np.bool_]) -> int:
    """How many in a row about the centre."""
    center = len(full) // 2
    if not full[center]:
        return 0
    gaps = np.flatnonzero(~full)
    before = gaps[gaps < center].max(initial=-1)
    after = gaps[gaps > center].min(initial=len(full))
    return int(after - before - 1)
