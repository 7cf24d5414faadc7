"""3-D scans whose partitions are sampled differently, as planes (kz, ky): one for every column of the image.

Whatever (ky, kz) are sampled, all of a line is. Transformed along the readout, a volume falls apart into as many two-
dimensional problems as it has columns, all with the same mask; :class:`pyrecon.linops.Sense3D` does the same within. A
plane is to a method what a slice is: rows are partitions, columns the phase-encoding lines.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data.fourier import ifft_centered
from pyrecon.data.mri import check_scan, slice_name
from pyrecon.data.raw import MRIScan


def to_planes(values: Tensor, partitions: int) -> Tensor:
    """``(V P, ..., H, W)``, P partitions of every volume in a row, to ``(V W, ..., P, H)``."""
    volumes: Tensor = values.unflatten(0, (-1, partitions))
    return volumes.movedim(-1, 1).movedim(2, -2).flatten(0, 1).contiguous()


def to_slices(values: Tensor, columns: int) -> Tensor:
    """``(V W, ..., P, H)``, planes of W columns in a row, to ``(V P, ..., H, W)``: undoes :func:`to_planes`."""
    volumes: Tensor = values.unflatten(0, (-1, columns))
    return volumes.movedim(1, -1).movedim(-3, 1).flatten(0, 1).contiguous()


def planes_of(scan: MRIScan) -> tuple[MRIScan, float]:
    """The planes of a scan with partitions in k-space, and which fraction of the columns was sampled.

    The transform is orthonormal: where all columns were sampled the noise of a sample stays what it was. Columns that
    no line has (a partial echo) are zero; the noise power is then this fraction of it. Raises DataError where lines of
    one volume have different columns.
    """
    check_scan(scan)
    count, _, rows, columns = scan.kspace.shape
    partitions = scan.encoded_partitions
    mask = np.broadcast_to(scan.mask, (count, *scan.mask.shape[1:])).reshape(-1, partitions, rows, scan.mask.shape[3])
    lines, sampled = np.asarray(mask.any(axis=3)), np.asarray(mask.any(axis=(1, 2)))
    uneven = np.flatnonzero((mask != (lines[..., None] & sampled[:, None, None])).any(axis=(1, 2, 3)))
    if uneven.size:
        raise DataError(
            f"mask: some lines of {volume_name(scan, int(uneven[0]))} lack a part of the readout that others have; "
            "expected the same columns in all lines of a 3-D scan whose partitions are sampled differently; leave out "
            "what only some have"
        )
    if (lines == lines[0]).all():
        lines = lines[:1]
    else:
        lines = lines.repeat(columns, axis=0)
    places = None
    if scan.places is not None:
        places = (scan.places[::partitions, None] * columns + np.arange(columns)).ravel()
    height, width, thickness = scan.field_of_view
    planes = replace(
        scan,
        kspace=_along_the_readout(scan.kspace, partitions),
        mask=np.array(lines[:, None]),
        calibration=None if scan.calibration is None else _along_the_readout(scan.calibration, partitions),
        field_of_view=(partitions * thickness, height, width / columns),
        labels=tuple(volume_name(scan, v) for v in range(count // partitions) for _ in range(columns)),
        slices=None,
        places=places,
        placement=None,
        stack=None,
        settings={},
        encoded_partitions=1,
        phase_oversampling=1.0,  # of what are columns now: images are cropped when they are slices again
    )
    return planes, float(sampled.mean())


def volume_name(scan: MRIScan, index: int) -> str:
    """What the labels of a volume's partitions have in common, or its number."""
    label = slice_name(scan, index * scan.encoded_partitions)
    return ", ".join(part for part in label.split(", ") if not part.startswith("partition ")) or f"volume {index}"


def expect_slices(scan: MRIScan, what: str, instead: str) -> None:
    """DataError of ``what`` takes slices alone, with what to do ``instead``, where partitions are in k-space."""
    if scan.encoded_partitions > 1:
        raise DataError(
            f"kspace: the {scan.encoded_partitions} partitions of a 3-D scan are sampled differently; {what} expects "
            f"slices: {instead}"
        )


def _along_the_readout(kspace: NDArray[np.complex64], partitions: int) -> NDArray[np.complex64]:
    return to_planes(ifft_centered(torch.from_numpy(kspace), (-1,)), partitions).numpy()
