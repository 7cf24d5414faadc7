"""Headers that contradict the readouts: a centre without the signal's peak, oversampling that is gone already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyrecon.data.raw import Complex
from pyrecon.io._readouts import Readout

# A linear phase in the image moves the peak by a few lines, and so do gradients that are out of balance: only further
# off, and where next to nothing lies about the header's centre, is it a contradiction.
_NEAR, _SHARE = 16, 0.25


def off_centre(readouts: Sequence[Readout], shape: tuple[int, int, int], centers: tuple[int, int, int]) -> list[str]:
    """What to tell where the signal's peak is far from the centre of k-space.

    Energies of all readouts are summed, over everything but one axis, so that the bright images of a stack decide.
    ``shape`` is the matrix (P, H, W) they lie on, ``centers`` are the counters of partition, line and sample at its
    centre.
    """
    energy = [np.zeros(n) for n in shape]
    with np.errstate(over="ignore", invalid="ignore"):  # of samples that the file is refused for
        for r in readouts:
            of_samples = energy_of(r.data)
            energy[0][r.partition] += of_samples.sum()
            energy[1][r.row] += of_samples.sum()
            energy[2][r.column : r.column + len(of_samples)] += of_samples
    notes = []
    for name, along, center in zip(("partition", "line", "sample"), energy, centers, strict=True):
        middle, peak = len(along) // 2, int(along.argmax())
        reach = max(4, len(along) // _NEAR)
        about = along[max(0, middle - reach) : middle + reach + 1].max()
        if abs(peak - middle) > reach and about < _SHARE * along[peak]:
            notes.append(
                f"the signal is strongest in {name} {center + peak - middle}, the centre by the header is {name} "
                f"{center}: one of the two is wrong, and with it what is taken for the centre of k-space"
            )
    return notes


def is_without_oversampling(lines: Sequence[Complex], centers: NDArray[np.int64], columns: int, kept: int) -> bool:
    """Whether all readouts are those of the image, though the header encodes ``columns`` samples for its ``kept``.

    A partial echo of as many samples has another centre. One of 0 is a half echo, or not known: the signal decides.
    """
    if kept == columns or not lines or {line.shape[1] for line in lines} != {kept}:
        return False
    if not centers.any():
        with np.errstate(over="ignore", invalid="ignore"):
            peak = int(np.sum([energy_of(line) for line in lines], axis=0).argmax())
        return bool(abs(peak - kept // 2) <= kept // 4)
    return bool((np.abs(centers - kept // 2) <= 1).all() or (np.abs(centers - columns // 2) <= 1).all())


def oversampling_note(columns: int, kept: int) -> str:
    """What a user has to know of it."""
    return (
        f"readouts have {kept} samples, as the image, where the header encodes {columns}: the oversampling of the "
        "readout is taken as removed already"
    )


def energy_of(data: Complex) -> NDArray[np.float64]:
    """Of every sample, all channels together."""
    return np.asarray(np.einsum("cn,cn->n", data.real, data.real, dtype=np.float64)
                      + np.einsum("cn,cn->n", data.imag, data.imag, dtype=np.float64))  # fmt: skip
