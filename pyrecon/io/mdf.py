"""Magnetic Particle Imaging Data Format (MDF) 2.0 and 2.1: system matrices and measurements.

Source: T. Knopp et al., "MDF: Magnetic Particle Imaging Data Format", arXiv:1602.06072v9. The format counts frames and
frequencies from 1, names a spatial axis by x, y or z, and stores the spectrum of a period as an unnormalised real
Fourier transform, ``sum_v u_v exp(-2 pi i k v / V)``, which is what ``rfft`` gives.

**Image axes.** The format's grids have three sizes (x, y, z); x runs fastest unless ``/calibration/order`` says
otherwise. Here an image is indexed ``(y, x)`` or ``(z, y, x)``: axes of one voxel are dropped, z first, then y, then x,
until two are left. What an image axis is stands in ``metadata["axes"]``, for example ``"zx"``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.placement import LONGEST, SHORTEST
from pyrecon.data.raw import Complex, Grid, MPICalibration, MPIScan
from pyrecon.io._files import PathLike, check_finite
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._mdf_notes import metadata_of
from pyrecon.io._mdf_spec import ORDERS, located, problems
from pyrecon.io._mdf_write import write_measurement, write_system_matrix

__all__ = ["read_measurement", "read_system_matrix", "validate", "write_measurement", "write_system_matrix"]


def validate(path: PathLike) -> list[str]:
    """Where a file departs from the specification, one line per field; an empty list for a valid file.

    The readers accept more than this: names of older versions, a missing background mask, and metadata that is absent.
    Raises DataError only if the file is no HDF5 file.
    """
    with Hdf5(path) as file:
        return problems(file)


def read_measurement(path: PathLike) -> MPIScan:
    """Read a measurement: all frames in the order in which they were acquired, in the frequency domain and in volts.

    Time-domain data are transformed, raw converter values scaled by ``dataConversionFactor``. Raises DataError naming
    the field if the file is no MDF 2.x measurement, contradicts itself, or holds NaN or Inf.
    """
    with Hdf5(path) as file:
        _check_version(file)
        notes: list[str] = []
        stored = _read_data(file, notes)
        order = np.argsort(stored.acquired)
        spectrum, background = np.ascontiguousarray(stored.spectrum[order]), stored.is_background[order]
        check_finite(file.path, "/measurement/data", spectrum, "frame")
        return MPIScan(
            spectrum=spectrum,
            frequencies=stored.frequencies,
            is_background=background,
            transfer_function=_transfer_function(file, stored),
            transfer_corrected=_flag(file, "isTransferFunctionCorrected"),
            background_corrected=_flag(file, "isBackgroundCorrected"),
            unit=file.text(located(file, "/acquisition/receiver/unit"), default="V"),
            metadata=metadata_of(file, "measurement", notes),
        )


def read_system_matrix(path: PathLike, *, grid: Grid | None = None) -> MPICalibration:
    """Read a calibration: the spectrum at every grid position, sorted into image order.

    The order of positions is taken from ``/calibration/positions`` if the file has them, else from ``order`` and
    ``isMeanderingGrid``. A file without background frames or SNR gives None for them. ``grid`` replaces the geometry of
    a file that lacks ``size`` or ``fieldOfView``; its positions must then be stored in image order, last axis fastest.
    """
    with Hdf5(path) as file:
        _check_version(file)
        if not file.has("/calibration"):
            raise DataError(f"{file.path}: /calibration is missing; this is a measurement, not a system matrix")
        notes: list[str] = []
        stored = _read_data(file, notes)
        foreground = np.flatnonzero(~stored.is_background)
        background = np.flatnonzero(stored.is_background)
        if grid is None:
            axes, grid, positions, place = _grid(file, len(foreground), notes)
        else:
            if grid.size != len(foreground):
                raise file.fail(
                    "/measurement/data", f"{len(foreground)} positions", f"{grid.size} for the grid {grid.shape}"
                )
            axes, positions, place = "zyx"[-len(grid.shape) :], np.arange(grid.size), {}
            notes.append(f"the grid {grid.shape} was given by hand; positions are taken to be stored in its order")
        # Positions move to the end, where most files have them, before they are sorted: a row is then one stretch.
        spectrum = np.moveaxis(stored.spectrum, 0, -1)[..., foreground[positions]]
        check_finite(file.path, "/measurement/data", np.moveaxis(spectrum, -1, 0), "position")
        noise = stored.spectrum[background]
        check_finite(file.path, "/measurement/data", noise, "background frame")
        earlier = np.searchsorted(np.sort(stored.acquired[foreground]), stored.acquired[background])
        by_time = np.argsort(stored.acquired[background])
        order = np.argsort(np.argsort(stored.acquired[foreground[positions]]))
        drift_known = file.text("/_pyrecon/background_positions", default="known") == "known"
        return MPICalibration(
            spectrum=np.ascontiguousarray(spectrum),
            frequencies=stored.frequencies,
            grid=grid,
            background=np.ascontiguousarray(noise[by_time]) if len(background) else None,
            background_positions=earlier[by_time].astype(np.int64) if len(background) and drift_known else None,
            position_order=None if np.array_equal(order, np.arange(grid.size)) else order,
            snr=_snr(file, stored),
            transfer_function=_transfer_function(file, stored),
            transfer_corrected=_flag(file, "isTransferFunctionCorrected"),
            background_corrected=_flag(file, "isBackgroundCorrected"),
            unit=file.text(located(file, "/acquisition/receiver/unit"), default="V"),
            metadata={**metadata_of(file, "system matrix", notes), **place, "axes": axes},
        )


class _Stored(NamedTuple):
    spectrum: Complex  # (N, J, C, K), in file order
    frequencies: NDArray[np.float64]
    selection: NDArray[np.int64]  # (K,) from 0
    is_background: NDArray[np.bool_]  # (N,) in file order
    acquired: NDArray[np.int64]  # (N,) when each stored frame was acquired


def _check_version(file: Hdf5) -> None:
    version = file.text("/version")
    match = re.match(r"(\d+)\.\d+", version)
    if match is None:
        raise file.fail("/version", f"{version!r}", "an MDF version such as '2.1.0'")
    if match[1] != "2":
        raise file.fail(
            "/version", f"MDF {version}", "MDF 2.0 or 2.1; convert it with MPIFiles.jl: saveasMDF(new, old)"
        )


def _flag(file: Hdf5, name: str) -> bool:
    return file.flag(located(file, f"/measurement/{name}"), default=False)


def _read_data(file: Hdf5, notes: list[str]) -> _Stored:
    if not file.has("/measurement/data"):
        raise DataError(f"{file.path}: /measurement/data is missing; the file holds no measurement")
    if _flag(file, "isSparsityTransformed"):
        name = file.text("/measurement/sparsityTransformation", default="unnamed")
        raise file.fail(
            "/measurement/isSparsityTransformed", f"data compressed by a sparsity transformation ({name})",
            "uncompressed data; decompress it with MPIFiles.jl",
        )  # fmt: skip
    fourier = _flag(file, "isFourierTransformed")
    data = file.array("/measurement/data")
    if fourier and data.dtype.kind != "c":
        if data.ndim != 5 or data.shape[-1] != 2:
            raise file.fail(
                "/measurement/data",
                f"real values of shape {data.shape} with isFourierTransformed = 1",
                "complex values",
            )
        data = data[..., 0] + 1j * data[..., 1]
    if not fourier and data.dtype.kind == "c":
        raise file.fail("/measurement/data", "complex values with isFourierTransformed = 0", "real values")
    if data.ndim != 4:
        raise file.fail("/measurement/data", f"shape {data.shape}", "four axes: frames, periods, channels, samples")
    if _flag(file, "isFastFrameAxis"):
        data = np.moveaxis(data, -1, 0)
    if 0 in data.shape:
        raise file.fail("/measurement/data", f"shape {data.shape}", "at least one value along each axis")
    frames, periods, channels, length = data.shape
    _check_counts(file, frames, periods, channels)

    samples = file.integer("/acquisition/receiver/numSamplingPoints", least=1)
    bandwidth = file.number("/acquisition/receiver/bandwidth")
    if bandwidth <= 0:
        raise file.fail("/acquisition/receiver/bandwidth", f"{bandwidth:g} Hz", "a positive frequency")
    if not fourier and length != samples:
        raise file.fail(
            "/measurement/data", f"{length} samples a period", f"{samples} (/acquisition/receiver/numSamplingPoints)"
        )
    selection = _selection(file, length, samples, notes) if fourier else np.arange(samples // 2 + 1)
    _compare_cycle(file, samples / (2 * bandwidth), notes)
    spectrum = _convert(file, data, fourier, selection, samples)
    return _Stored(
        spectrum=spectrum,
        frequencies=2 * bandwidth / samples * selection.astype(np.float64),
        selection=selection,
        is_background=_background_mask(file, frames, notes),
        acquired=_acquired(file, frames, notes),
    )


def _compare_cycle(file: Hdf5, seconds: float, notes: list[str]) -> None:
    """Bandwidth and sampling points say how long a period is; so does the drive field."""
    field = "/acquisition/drivefield/cycle"
    name = located(file, field)
    if not file.has(name):
        return
    try:
        said = file.number(name)
    except DataError as error:
        notes.append(str(error).removeprefix(f"{file.path}: "))
        return
    if abs(said - seconds) > 1e-3 * seconds:
        notes.append(
            f"{field}: {said:.6g} s, but sampling points and bandwidth make a period of {seconds:.6g} s; frequencies "
            "are taken from these"
        )


def _check_counts(file: Hdf5, frames: int, periods: int, channels: int) -> None:
    # The number of periods is checked against 2.1's name only: 2.0 counted them over all frames in some writers.
    for field, count in (
        ("/acquisition/numFrames", frames),
        ("/acquisition/numPeriodsPerFrame", periods),
        ("/acquisition/receiver/numChannels", channels),
    ):
        if file.has(field) and (declared := file.integer(field)) != count:
            raise file.fail(field, str(declared), f"{count} as in /measurement/data")


def _selection(file: Hdf5, length: int, samples: int, notes: list[str]) -> NDArray[np.int64]:
    total = samples // 2 + 1
    if not _flag(file, "isFrequencySelection"):
        if length != total:
            raise file.fail(
                "/measurement/data", f"{length} frequencies without isFrequencySelection",
                f"{total} for {samples} sampling points",
            )  # fmt: skip
        return np.arange(total)
    field = "/measurement/frequencySelection"
    indices = _whole(file, field, (length,))
    if indices.min() != 0:  # the specification counts from 1; a 0 can only come from a writer that counts from 0
        indices = indices - 1
    else:
        notes.append(f"{field}: counts from 0, the format from 1; it is read as it counts")
    if indices.min() < 0 or indices.max() >= total or len(np.unique(indices)) != length:
        raise file.fail(field, f"indices {indices.min() + 1} to {indices.max() + 1}", f"distinct ones in 1..{total}")
    return indices


def _whole(file: Hdf5, field: str, shape: Sequence[int | None]) -> NDArray[np.int64]:
    values = file.array(field, shape)
    if values.dtype.kind not in "iufb" or not np.isfinite(values).all() or (np.abs(values.astype(float)) > 2**53).any():
        raise file.fail(field, f"{values.dtype} values", "whole numbers")
    whole = values.astype(np.int64)
    if not (whole == values).all():
        raise file.fail(field, "fractions", "whole numbers")
    return whole


def _convert(file: Hdf5, data: NDArray[Any], fourier: bool, selection: NDArray[np.int64], samples: int) -> Complex:
    factor = located(file, "/acquisition/receiver/dataConversionFactor")
    scale, offset = np.ones(data.shape[2]), np.zeros(data.shape[2])
    if file.has(factor):
        values = file.array(factor, (data.shape[2], 2))
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise file.fail(factor, "values that are not finite numbers", "scale and offset of each channel")
        scale, offset = values[:, 0].astype(float), values[:, 1].astype(float)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond complex64 become Inf and are reported as such
        if fourier:
            spectrum: Complex = data.astype(np.complex64, copy=False)  # ours to change: it was read for this
            if (scale != 1).any():
                spectrum *= scale.astype(np.float32)[:, None]
            if offset.any() and 0 in selection:  # a constant lies in the zero-frequency bin alone
                spectrum[..., np.flatnonzero(selection == 0)[0]] += (offset * samples).astype(np.complex64)
            return spectrum
        exact = data.dtype.itemsize <= (4 if data.dtype.kind == "f" else 2)
        signal: NDArray[Any] = data.astype(np.float32 if exact else np.float64)
        if (scale != 1).any() or offset.any():
            signal = signal * scale[:, None] + offset[:, None]
        return np.asarray(scipy.fft.rfft(signal, axis=-1)).astype(np.complex64, copy=False)


def _background_mask(file: Hdf5, frames: int, notes: list[str]) -> NDArray[np.bool_]:
    field = "/measurement/isBackgroundFrame"
    if not file.has(field):
        notes.append(f"{field}: is missing, all {frames} frames are taken to hold a sample")
        return np.zeros(frames, dtype=bool)
    mask = _whole(file, field, (frames,))
    if not np.isin(mask, (0, 1)).all():
        raise file.fail(field, "values other than 0 and 1", "0 or 1 for each frame")
    if mask.all():
        raise file.fail(field, f"all {frames} frames marked as background", "at least one frame with a sample")
    return mask.astype(bool)


def _acquired(file: Hdf5, frames: int, notes: list[str]) -> NDArray[np.int64]:
    if not _flag(file, "isFramePermutation"):
        return np.arange(frames)
    field = "/measurement/framePermutation"
    permutation = _whole(file, field, (frames,))
    if permutation.min() == 0:
        notes.append(f"{field}: counts from 0, the format from 1; it is read as it counts")
    permutation -= permutation.min()
    if not np.array_equal(np.sort(permutation), np.arange(frames)):
        raise file.fail(field, "repeated or missing frames", f"a permutation of 1..{frames}")
    return permutation


def _transfer_function(file: Hdf5, stored: _Stored) -> NDArray[np.complex128] | None:
    field = "/acquisition/receiver/transferFunction"
    if not file.has(field):
        return None
    values = file.array(field)
    if values.dtype.kind != "c" and values.shape[-1:] == (2,):
        values = values[..., 0] + 1j * values[..., 1]
    channels, length = stored.spectrum.shape[2], len(stored.selection)
    total = file.integer("/acquisition/receiver/numSamplingPoints") // 2 + 1
    if values.shape == (channels, total):
        values = values[:, stored.selection]
    if values.shape != (channels, length):
        raise file.fail(field, f"shape {values.shape}", f"({channels}, {total}) or ({channels}, {length})")
    check_finite(file.path, field, values, "channel")
    return np.ascontiguousarray(values, dtype=np.complex128)


def _snr(file: Hdf5, stored: _Stored) -> NDArray[np.float64] | None:
    field = "/calibration/snr"
    if not file.has(field):
        return None
    _, periods, channels, length = stored.spectrum.shape
    total = file.integer("/acquisition/receiver/numSamplingPoints") // 2 + 1
    snr = file.array(field)
    if snr.ndim == 2 and periods == 1:
        snr = snr[None]
    if snr.shape == (periods, channels, total):
        snr = snr[..., stored.selection]
    if snr.shape != (periods, channels, length) or snr.dtype.kind not in "iuf":
        raise file.fail(field, f"{snr.dtype} of shape {snr.shape}", f"real ({periods}, {channels}, {length})")
    return np.ascontiguousarray(snr, dtype=np.float64)


def _grid(file: Hdf5, count: int, notes: list[str]) -> tuple[str, Grid, NDArray[np.int64], dict[str, Any]]:
    """The image axes, the grid, for each of its voxels which foreground frame (in file order) belongs to it, and all
    three axes as fields of the format."""
    positions = _positions(file, count)
    if file.has("/calibration/size"):
        size = _whole(file, "/calibration/size", (3,))
        if (size < 1).any() or int(np.prod(size, dtype=object)) != count:
            raise file.fail(
                "/calibration/size", " x ".join(map(str, size)), f"{count} positions as in /measurement/data"
            )
    elif positions is not None:
        size = np.array([len(_levels(positions[:, axis])) for axis in range(3)])
        if int(np.prod(size, dtype=object)) != count:
            raise file.fail("/calibration/positions", f"{count} positions off any regular grid", "a full grid")
    else:
        raise DataError(f"{file.path}: /calibration/size is missing, and so is /calibration/positions; pass grid=")

    extent, center = _extent(file, size, positions, notes)
    spacing = extent / size
    if not (spacing.min() >= SHORTEST and max(spacing.max(), np.abs(center).max()) <= LONGEST):
        sizes = ", ".join(f"{length:g}" for length in (*spacing, *center))
        raise DataError(
            f"{file.path}: /calibration: voxels and a centre of {sizes} m, expected lengths of {SHORTEST:g} to "
            f"{LONGEST:g} m"
        )
    if positions is not None:
        steps = (positions - center) / spacing + (size - 1) / 2
        cells = np.rint(steps)
        if (np.abs(steps - cells) > 0.1).any() or (cells < 0).any() or (cells >= size).any():
            raise file.fail("/calibration/positions", "positions off the grid", "those of size and fieldOfView")
        x, y, z = cells.astype(np.int64).T
        voxel = (z * size[1] + y) * size[0] + x
        if len(np.unique(voxel)) != count:
            raise file.fail("/calibration/positions", "a position that occurs twice", "every voxel once")
        frame_of_voxel = np.argsort(voxel)
    else:
        frame_of_voxel = _stored_order(file, size)

    keep = "zyx"
    for axis in "zyx":
        if len(keep) > 2 and size["xyz".index(axis)] == 1:
            keep = keep.replace(axis, "")
    picked = ["xyz".index(axis) for axis in keep]
    grid = Grid(
        shape=tuple(int(size[i]) for i in picked),
        spacing=tuple(float(spacing[i]) for i in picked),
        center=tuple(float(center[i]) for i in picked),
    )
    place = {"size": size, "fieldOfView": extent, "fieldOfViewCenter": center}
    return keep, grid, frame_of_voxel, {f"/calibration/{name}": value for name, value in place.items()}


def _positions(file: Hdf5, count: int) -> NDArray[np.float64] | None:
    field = "/calibration/positions"
    if not file.has(field):
        return None
    values = file.array(field, (count, 3))
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise file.fail(field, "values that are not finite numbers", "x, y and z in metres")
    return values.astype(np.float64)


def _levels(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distinct coordinates along an axis; closer than a thousandth of the extent counts as the same."""
    values = np.sort(values)
    width = values[-1] - values[0]
    return values[np.concatenate([[True], np.diff(values) > 1e-3 * width])] if width > 0 else values[:1]


def _extent(
    file: Hdf5, size: NDArray[np.int64], positions: NDArray[np.float64] | None, notes: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Field of view and centre along x, y, z; from the positions where the fields are missing."""
    field = "/calibration/fieldOfView"
    if file.has(field):
        extent = file.array(field, (3,)).astype(np.float64)
        if not np.isfinite(extent).all() or (extent[size > 1] <= 0).any() or (extent < 0).any():
            raise file.fail(field, f"{extent} m", "positive lengths")
        if (extent == 0).any():
            notes.append(f"{field}: 0 along an axis of one voxel, which is taken to be 1 mm thick")
        extent = np.where(extent > 0, extent, 1e-3)
    elif positions is not None:
        step = [np.diff(_levels(positions[:, axis])).mean() if size[axis] > 1 else 1e-3 for axis in range(3)]
        extent = np.asarray(step) * size
    else:
        raise DataError(f"{file.path}: {field} is missing, and so is /calibration/positions; pass grid=")
    field = "/calibration/fieldOfViewCenter"
    if file.has(field):
        center = file.array(field, (3,)).astype(np.float64)
        if not np.isfinite(center).all():
            raise file.fail(field, f"{center} m", "finite numbers")
    elif positions is not None:
        center = (positions.min(axis=0) + positions.max(axis=0)) / 2
    else:
        notes.append(f"{field}: is missing, the grid is taken to lie around the centre of the scanner")
        center = np.zeros(3)
    return extent, center


def _stored_order(file: Hdf5, size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which foreground frame each voxel (x fastest) has, by ``order`` and ``isMeanderingGrid``."""
    order = file.text("/calibration/order", default="xyz").strip().lower()
    if order not in ORDERS:
        raise file.fail("/calibration/order", f"{order!r}", f"one of {', '.join(ORDERS)}")
    nx, ny, nz = size
    if file.flag("/calibration/isMeanderingGrid", default=False) and not _flag(file, "isFramePermutation"):
        # The robot goes back and forth: x turns on every line, y on every plane.
        if order != "xyz":
            raise file.fail("/calibration/order", f"{order!r} on a meandering grid", "'xyz'")
        z, y, x = np.meshgrid(np.arange(nz), np.arange(ny), np.arange(nx), indexing="ij")
        x = np.where((y + z) % 2, nx - 1 - x, x)
        y = np.where(z % 2, ny - 1 - y, y)
        return np.asarray((z * ny + y) * nx + x, np.int64).ravel()
    slow_to_fast = order[::-1]
    frames = np.arange(nx * ny * nz).reshape([size["xyz".index(axis)] for axis in slow_to_fast])
    return frames.transpose([slow_to_fast.index(axis) for axis in "zyx"]).ravel()
