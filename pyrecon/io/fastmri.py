"""fastMRI's HDF5 files: k-space of a volume, single- or multi-coil, of the train, test and challenge sets.

Source: J. Zbontar et al., "fastMRI: An open dataset and benchmarks for accelerated MRI" (2018), section 4. The file has
the readout along the rows; a scan here has it along the columns, as in every other format, so images come out
transposed against the file's ``reconstruction_rss``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.placement import Stack
from pyrecon.data.raw import Complex, MRIScan
from pyrecon.io._files import PathLike, check_finite
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._ismrmrd_header import Encoding, read_header

__all__ = ["read_fastmri"]


def read_fastmri(path: PathLike) -> MRIScan:
    """Read a fastMRI volume: ``kspace`` ``(S, [C,] readout, lines)``, with ``mask`` ``(lines,)`` where it is given.

    Lines that are exactly zero, in the margins that the files are padded with, are not measured. Field of view and
    oversampling come from ``ismrmrd_header``; without one, pixels count as 1 mm and the readout as not oversampled.
    Raises DataError naming what does not fit.
    """
    with Hdf5(path) as file:
        stored = file.array("/kspace")
        if stored.ndim not in (3, 4) or not np.iscomplexobj(stored) or stored.size == 0:
            raise file.fail("/kspace", f"{stored.dtype} of shape {stored.shape}", "complex (S, [C,] readout, lines)")
        kspace = _transposed(stored)
        slices, _, lines, samples = kspace.shape
        given = file.array("/mask", (lines,)) != 0 if file.has("/mask") else None
        encoding: Encoding | None = None
        notes: list[str] = []
        facts = {}
        if file.has("/ismrmrd_header"):
            header = read_header(file, "/ismrmrd_header")
            first, facts = header.encodings[0], header.facts
            if isinstance(first, DataError):
                raise first
            encoding = first
            if samples == first.columns_kept < first.shape[2]:
                encoding = first.without_oversampling()
            notes += encoding.notes
        else:
            notes.append("the file has no header: pixels count as 1 mm, the readout as not oversampled")
    check_finite(path, "/kspace", kspace.reshape(slices, -1), "slice")
    mask = _measured(path, kspace, given, notes)
    oversampling, phase_oversampling, extent = _sizes(encoding, samples, lines)
    return MRIScan(
        kspace=np.where(mask, kspace, 0),
        mask=mask,
        readout_oversampling=oversampling,
        phase_oversampling=phase_oversampling,
        field_of_view=extent,
        labels=tuple(f"slice {s}" for s in range(slices)),
        stack=Stack(np.zeros(slices, np.int64), np.arange(slices)),
        metadata=facts | ({"notes": notes} if notes else {}),
    )


def _transposed(stored: NDArray[np.complexfloating]) -> Complex:
    whole = stored if stored.ndim == 4 else stored[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(whole.swapaxes(-1, -2), np.complex64)


def _measured(path: PathLike, kspace: Complex, given: NDArray[np.bool_] | None, notes: list[str]) -> NDArray[np.bool_]:
    """``(1, 1, H, 1)``, by the values and the file's mask."""
    there = np.asarray(kspace.any(axis=(0, 1, 3)))
    if not there.any():
        raise DataError(f"{path}: /kspace is zero everywhere, nothing to reconstruct")
    if given is not None:
        if not (there & given).any():
            raise DataError(f"{path}: /mask keeps no line that /kspace has")
        if (there & ~given).any():
            notes.append(
                f"{int((there & ~given).sum())} lines that the file's mask leaves out have values; left out too"
            )
        there = np.asarray(there & given)
    return there.reshape(1, 1, -1, 1)


def _sizes(encoding: Encoding | None, samples: int, lines: int) -> tuple[float, float, tuple[float, float, float]]:
    """Oversampling of readout and lines, and the field of view along lines and readout with a slice's thickness."""
    if encoding is None:
        return 1.0, 1.0, (1e-3 * lines, 1e-3 * samples, 1e-3)
    kept = max(1, round(samples / encoding.oversampling))
    rows = max(1, round(lines * encoding.kept[1] / encoding.shape[1]))
    height = encoding.extent[1] * rows / lines
    return samples / kept, lines / rows, (height, *encoding.field_of_view[1:])
