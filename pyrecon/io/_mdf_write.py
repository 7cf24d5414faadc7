"""Writing MDF 2.1.0. The public functions are in :mod:`pyrecon.io.mdf`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from pyrecon.data.raw import MPICalibration, MPIScan
from pyrecon.io._files import PathLike, written_whole
from pyrecon.io._hdf5 import Hdf5
from pyrecon.io._mdf_spec import FIELDS, problems

_NEW_NAMES = {older: field.path for field in FIELDS.values() for older in field.older}
_UNKNOWN = "n.a."
_OF_READERS = ("axes", "notes", "periods")  # made anew by those who read


def write_measurement(path: PathLike, scan: MPIScan, *, domain: Literal["frequency", "time"] = "frequency") -> None:
    """Write a measurement as MDF 2.1.0, whole or not at all.

    Entries of ``scan.metadata`` whose key is a path of the specification fill that field (texts default to ``"n.a."``,
    unknown field strengths to NaN); other keys are kept under ``/_pyrecon``. ``domain="time"`` stores the real signal,
    with components that the scan lacks set to zero.

    Raises
    ------
    ValueError
        if the frequencies are not multiples of one frequency, an entry of ``metadata`` does not fit its field, or the
        spectrum is that of no real signal and ``domain="time"``.
    """
    if domain not in ("frequency", "time"):
        raise ValueError(f"domain: got {domain!r}, expected 'frequency' or 'time'")
    frames, periods, channels, length = _shape("scan.spectrum", scan.spectrum, 4)
    _check_shapes(
        frequencies=(scan.frequencies, (length,)),
        is_background=(scan.is_background, (frames,)),
        transfer_function=(scan.transfer_function, (channels, length)),
    )
    bins = _bins(scan.frequencies, scan.metadata)
    fields = _common(scan, bins, frames, periods, channels, scan.is_background)
    fields["/measurement/isFastFrameAxis"] = np.int8(0)
    fields["/measurement/isFramePermutation"] = np.int8(0)
    if domain == "time":
        full = np.zeros((frames, periods, channels, bins.samples // 2 + 1), np.complex64)
        full[..., bins.indices] = scan.spectrum
        ends = full[..., [0, -1]] if bins.samples % 2 == 0 else full[..., :1]
        if np.abs(ends.imag).max() > 1e-5 * np.abs(full).max():
            raise ValueError("scan: no real signal has an imaginary part at zero or at half the sampling frequency")
        fields["/measurement/data"] = np.asarray(scipy.fft.irfft(full, n=bins.samples, axis=-1)).astype(np.float32)
        fields["/measurement/isFourierTransformed"] = np.int8(0)
        fields["/measurement/isFrequencySelection"] = np.int8(0)
        fields.pop("/measurement/frequencySelection", None)
        if scan.transfer_function is not None:
            transfer = np.zeros((channels, bins.samples // 2 + 1), np.complex128)
            transfer[:, bins.indices] = scan.transfer_function
            fields["/acquisition/receiver/transferFunction"] = transfer
    else:
        fields["/measurement/data"] = scan.spectrum.astype(np.complex64)
    _write(path, fields)


def write_system_matrix(path: PathLike, calibration: MPICalibration, *, method: str | None = None) -> None:
    """Write a system matrix as MDF 2.1.0, whole or not at all: positions in order xyz, then background frames.

    ``method`` says how it was obtained ("robot", "hybrid", "simulation"); without it, the metadata do, or it is
    "unknown". The image axes y and x (or z, y, x) are those of the grid unless ``metadata["axes"]`` names others. See
    :func:`write_measurement` for ``metadata`` and errors.
    """
    spectrum, grid, background = calibration.spectrum, calibration.grid, calibration.background
    periods, channels, length, count = _shape("calibration.spectrum", spectrum, 4)
    extra = 0 if background is None else len(background)
    _check_shapes(
        spectrum=(spectrum, (periods, channels, length, grid.size)),
        frequencies=(calibration.frequencies, (length,)),
        background=(background, (extra, periods, channels, length)),
        background_positions=(calibration.background_positions, (extra,)),
        position_order=(calibration.position_order, (count,)),
        snr=(calibration.snr, (periods, channels, length)),
        transfer_function=(calibration.transfer_function, (channels, length)),
    )
    axes = str(calibration.metadata.get("axes", "zyx"[-len(grid.shape) :]))
    if len(axes) != len(grid.shape) or not set(axes) <= set("xyz") or len(set(axes)) != len(axes):
        raise ValueError(f"metadata['axes']: got {axes!r}, expected {len(grid.shape)} of the letters x, y, z")

    # Voxels with x fastest: the image axes sorted z, y, x.
    voxels = np.arange(count).reshape(grid.shape).transpose(np.argsort([-"xyz".index(a) for a in axes])).ravel()
    data = np.moveaxis(spectrum[..., voxels], -1, 0)
    if background is not None:
        data = np.concatenate([data, background])
    is_background = np.arange(count + extra) >= count

    bins = _bins(calibration.frequencies, calibration.metadata)
    fields = _common(calibration, bins, count + extra, periods, channels, is_background)
    fields["/measurement/data"] = np.ascontiguousarray(np.moveaxis(data, 0, -1), dtype=np.complex64)
    fields["/measurement/isFastFrameAxis"] = np.int8(1)
    fields["/measurement/isFramePermutation"] = np.int8(0)
    order = np.arange(count) if calibration.position_order is None else calibration.position_order
    times = order[voxels] + 0.5
    if extra and calibration.background_positions is None:
        fields["/_pyrecon/background_positions"] = "unknown"
        times = np.append(times, np.full(extra, count))
    elif extra:
        times = np.append(times, np.asarray(calibration.background_positions, float))
    if not np.all(times[1:] >= times[:-1]):
        # Frame i of the file was acquired as number permutation[i]: positions in their order, background in between.
        rank = np.empty(count + extra, np.int64)
        rank[np.argsort(times, kind="stable")] = np.arange(count + extra)
        fields["/measurement/isFramePermutation"] = np.int8(1)
        fields["/measurement/framePermutation"] = rank + 1

    for name, values, fill in (("size", grid.shape, 1), ("fieldOfView", grid.field_of_view, 1e-3)):
        given = dict(zip(axes, values, strict=True))
        fields[f"/calibration/{name}"] = np.array([given.get(axis, fill) for axis in "xyz"])
    center = dict(zip(axes, grid.center, strict=True))
    fields["/calibration/fieldOfViewCenter"] = np.array([center.get(axis, 0.0) for axis in "xyz"])
    for name in ("fieldOfView", "fieldOfViewCenter"):  # a slice's own thickness and place, if known
        known = calibration.metadata.get(f"/calibration/{name}")
        if known is not None and np.shape(known) == (3,):
            for i, axis in enumerate("xyz"):
                if axis not in axes:
                    fields[f"/calibration/{name}"][i] = np.asarray(known)[i]
    fields["/calibration/order"] = "xyz"
    fields["/calibration/method"] = method or str(calibration.metadata.get("/calibration/method", "unknown"))
    fields.pop("/calibration/isMeanderingGrid", None)
    for name in ("offsetFields", "offsetField"):  # one row a position, in the order of the file it came from
        fields.pop(f"/calibration/{name}", None)
    if calibration.snr is not None:
        fields["/calibration/snr"] = calibration.snr.astype(np.float64)
    _write(path, fields)


def _shape(name: str, values: NDArray[Any], axes: int) -> tuple[int, ...]:
    if values.ndim != axes or values.size == 0:
        raise ValueError(f"{name}: got shape {values.shape}, expected {axes} axes, none of them empty")
    return values.shape


def _check_shapes(**arrays: tuple[NDArray[Any] | None, tuple[int, ...]]) -> None:
    for name, (values, expected) in arrays.items():
        if values is not None and np.shape(values) != expected:
            raise ValueError(f"{name}: got shape {np.shape(values)}, expected {expected}")


class _Bins(NamedTuple):
    samples: int  # V
    bandwidth: float  # Hz
    indices: NDArray[np.int64]  # (K,) from 0


def _bins(frequencies: NDArray[np.float64], metadata: Mapping[str, Any]) -> _Bins:
    """Sampling points, bandwidth and bin numbers that give ``frequencies = 2 bandwidth / samples * indices``."""
    frequencies = np.asarray(frequencies, dtype=np.float64)
    if frequencies.ndim != 1 or len(frequencies) == 0 or not np.isfinite(frequencies).all() or (frequencies < 0).any():
        raise ValueError(f"frequencies: got shape {frequencies.shape}, expected (K,) finite values in Hz from 0")
    if len(np.unique(frequencies)) != len(frequencies):
        raise ValueError("frequencies: a value occurs twice, expected distinct ones")
    known = [metadata.get(f"/acquisition/receiver/{name}") for name in ("numSamplingPoints", "bandwidth")]
    if known[0] is not None and known[1] is not None:
        samples, bandwidth = int(known[0]), float(known[1])
        steps = frequencies * samples / (2 * bandwidth)
        indices = np.rint(steps).astype(np.int64)
        if np.abs(steps - indices).max() < 1e-3 and indices.max() <= samples // 2:
            return _Bins(samples, bandwidth, indices)

    step = _common_divisor(frequencies)
    indices = np.rint(frequencies / step).astype(np.int64)
    if indices.max() > 2**26 or np.abs(frequencies / step - indices).max() > 1e-3:
        raise ValueError("frequencies: they are not multiples of one frequency, which the format needs")
    # A full spectrum ends at half the sampling rate; the last of some chosen bins must stay below it, where a real
    # signal has no imaginary part.
    top = int(indices.max())
    samples = max(2, 2 * top if len(indices) == top + 1 else 2 * top + 2)
    return _Bins(samples, step * samples / 2, indices)


def _common_divisor(frequencies: NDArray[np.float64]) -> float:
    largest = float(frequencies.max())
    if largest == 0:
        return 1.0
    divisor = 0.0
    for value in np.unique(frequencies):  # Euclid's algorithm with rounding
        a, b = float(value), divisor
        while b > 1e-6 * largest:
            rest = a % b
            a, b = b, 0.0 if b - rest < 1e-6 * largest else rest
        divisor = a
    indices = np.rint(frequencies / divisor)
    return float((indices * frequencies).sum() / (indices * indices).sum())


def _common(
    source: MPIScan | MPICalibration,
    bins: _Bins,
    frames: int,
    periods: int,
    channels: int,
    is_background: NDArray[np.bool_],
) -> dict[str, Any]:
    """All mandatory fields but the data itself: defaults, then the metadata, then what the arrays say."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    step = 2 * bins.bandwidth / bins.samples
    fields: dict[str, Any] = {
        f"/{group}/{name}": _UNKNOWN
        for group, names in {
            "study": ("description", "name"),
            "experiment": ("description", "name", "subject"),
            "scanner": ("facility", "manufacturer", "name", "operator", "topology"),
        }.items()
        for name in names
    }
    fields |= {
        "/study/number": 0,
        "/study/uuid": str(uuid.uuid4()),
        "/experiment/number": 0,
        "/experiment/isSimulation": 0,
        "/experiment/uuid": str(uuid.uuid4()),
        "/acquisition/numAverages": 1,
        "/acquisition/startTime": now,
        "/acquisition/drivefield/numChannels": 1,
        "/acquisition/drivefield/baseFrequency": step * bins.samples,
        "/acquisition/drivefield/cycle": 1 / step,
        "/acquisition/drivefield/divider": [[bins.samples]],
        "/acquisition/drivefield/phase": np.full((periods, 1, 1), np.nan),
        "/acquisition/drivefield/strength": np.full((periods, 1, 1), np.nan),
        "/acquisition/drivefield/waveform": [["sine"]],
        "/measurement/isSpectralLeakageCorrected": 0,
    }
    for key, value in source.metadata.items():
        if key not in _OF_READERS:
            fields[_NEW_NAMES.get(key, key) if key.startswith("/") else f"/_pyrecon/{key}"] = value
    for name in ("dataConversionFactor", "transferFunction"):  # applied already, or written from the container below
        fields.pop(f"/acquisition/receiver/{name}", None)
    if "/tracer/name" in fields:  # the group is optional, but not its fields
        tracers = np.atleast_1d(fields["/tracer/name"])
        for name, unknown in (("batch", _UNKNOWN), ("solute", "Fe"), ("vendor", _UNKNOWN),
                              ("concentration", np.nan), ("volume", np.nan)):  # fmt: skip
            fields.setdefault(f"/tracer/{name}", [unknown] * len(tracers))
    if source.transfer_function is not None:
        fields["/acquisition/receiver/transferFunction"] = source.transfer_function.astype(np.complex128)
    selected = len(bins.indices) != bins.samples // 2 + 1 or (np.diff(bins.indices) < 0).any()
    if selected:
        fields["/measurement/frequencySelection"] = bins.indices + 1
    return fields | {
        "/version": "2.1.0",
        "/uuid": str(uuid.uuid4()),
        "/time": now,
        "/acquisition/numFrames": frames,
        "/acquisition/numPeriodsPerFrame": periods,
        "/acquisition/receiver/bandwidth": bins.bandwidth,
        "/acquisition/receiver/numChannels": channels,
        "/acquisition/receiver/numSamplingPoints": bins.samples,
        "/acquisition/receiver/unit": source.unit,
        "/measurement/isBackgroundCorrected": source.background_corrected,
        "/measurement/isBackgroundFrame": is_background,
        "/measurement/isFourierTransformed": 1,
        "/measurement/isFrequencySelection": selected,
        "/measurement/isSparsityTransformed": 0,
        "/measurement/isTransferFunctionCorrected": source.transfer_corrected,
    }


_DTYPES = {"Int": np.int64, "Float": np.float64, "Flag": np.int8, "Complex": np.complex128}


def _write(path: PathLike, fields: Mapping[str, Any]) -> None:
    with written_whole(path) as temporary:
        with h5py.File(temporary, "w") as file:
            for name, value in fields.items():
                try:
                    file[name] = _stored(name, value)
                except (TypeError, ValueError, OSError) as error:
                    raise ValueError(f"metadata[{name!r}]: {value!r} cannot be stored ({error})") from error
        with Hdf5(temporary) as written:
            wrong = problems(written)
        if wrong:
            raise ValueError(f"metadata: does not fit the format; {'; '.join(wrong)}")


def _stored(name: str, value: Any) -> Any:
    field = FIELDS.get(name)
    if field is not None and field.type == "String":
        array = np.asarray(value, dtype=object)
        array = np.atleast_1d(array) if field.dims and array.ndim == 0 else array
        return array.astype(h5py.string_dtype()) if array.ndim else str(value)
    if field is not None and field.type in _DTYPES:
        array = np.asarray(value, dtype=_DTYPES[field.type])
        return np.atleast_1d(array) if field.dims else array.reshape(())
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return array.astype(h5py.string_dtype()) if array.ndim else str(value)
    if array.dtype == bool:
        return array.astype(np.int8)
    return value
