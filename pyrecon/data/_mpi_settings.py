"""Do a system matrix and a measurement belong together: their periods, and what else the files say of the scanner.

A frame has J periods. Where the fields are the same in all of them they are repetitions, and their mean says it all.
Where the offset field moves the sampled region the frame is *multi-patch*; where the gradient turns, a field-free line
sees the object from several sides. Then every period is a set of rows of its own, of the matrix as of the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pyrecon._errors import DataError
from pyrecon.data.raw import MPICalibration, MPIScan, Real

NOISE_SEED = "noise_seed"  # in the metadata of what is simulated
# Fields with one entry for each period: what tells periods apart.
PER_PERIOD = (
    "/acquisition/offsetField",
    "/acquisition/gradient",
    "/acquisition/drivefield/strength",
    "/acquisition/drivefield/phase",
)
# What must be the same in both files for rows to mean the same.
_COMPARED = (
    "/scanner/name",
    "/scanner/topology",
    "/tracer/name",
    "/acquisition/drivefield/baseFrequency",
    "/acquisition/drivefield/cycle",
    "/acquisition/drivefield/divider",
    "/acquisition/drivefield/waveform",
    "/acquisition/drivefield/customWaveform",
    "/acquisition/receiver/inductionFactor",
    "/measurement/isSpectralLeakageCorrected",
    *PER_PERIOD,
)
_TOLERANCE = 1e-2  # of the largest value: what controllers of currents leave, not what a user changes
_UNKNOWN = ("", "n.a.", "unknown")


def match_periods(
    calibration: MPICalibration, scan: MPIScan, *, average: bool = False
) -> tuple[MPICalibration, MPIScan]:
    """Both with the same periods; what was done stands in the scan's ``metadata["periods"]``, what was assumed, and
    what the files say differently of the scanner, in its ``"notes"``.

    Periods are averaged where ``average`` asks for it, or where the two have not as many and the fields say that they
    repeat each other: all into one, or into the patches of the system matrix. Otherwise they stay rows of their own.

    Raises
    ------
    DataError
        Where periods with different fields would be averaged, patches are at other places, or the numbers do not fit.
    """
    counts = calibration.spectrum.shape[0], scan.spectrum.shape[1]
    ours, theirs = _patches(calibration.metadata, counts[0]), _patches(scan.metadata, counts[1])
    kinds = len(np.unique(ours)), len(np.unique(theirs))
    if average:
        told = (calibration.metadata, scan.metadata)
        for what, kind, count, metadata in zip(("system matrix", "measurement"), kinds, counts, told, strict=True):
            if kind > 1:
                raise DataError(f"{what}: {_named(metadata, count, kind)} and cannot be averaged")
        groups = np.zeros(counts[0], np.int64), np.zeros(counts[1], np.int64)
    elif counts[0] == counts[1]:
        if max(kinds) > 1:
            _check_places(calibration, scan)
        return calibration, _told(calibration, scan, _kept(scan.metadata, counts[1], kinds[1]))
    elif kinds == (1, 1):
        groups = ours, theirs
    else:
        groups = _joined(calibration, scan, kinds, ours, theirs)
    said = f"{counts[1]} of the measurement and {counts[0]} of the system matrix, averaged to {groups[1].max() + 1}"
    notes = []
    if kinds == (1, 1) and counts[1] > 1 and PER_PERIOD[0] not in scan.metadata:
        notes = [
            f"periods: the measurement's {counts[1]} are averaged as repetitions; it has no {PER_PERIOD[0]}, which "
            "would say whether they are patches"
        ]
    calibration, scan = _average_calibration(calibration, groups[0]), _average_scan(scan, groups[1])
    return calibration, _told(calibration, scan, said, notes)


def _told(calibration: MPICalibration, scan: MPIScan, said: str, notes: list[str] | None = None) -> MPIScan:
    known = [*scan.metadata.get("notes", ()), *(notes or ()), *differences(calibration.metadata, scan.metadata)]
    return replace(scan, metadata={**scan.metadata, "notes": known, "periods": said})


# --- periods -----------------------------------------------------------------------------------------------------
def _values(metadata: Mapping[str, Any], field: str, count: int) -> Real | None:
    """``(count, n)`` of a field with an entry for each period, what is not known as 0; None where there is no such."""
    values = np.asarray(metadata.get(field, ""))
    if values.dtype.kind not in "iuf" or values.ndim == 0 or values.size == 0 or len(values) not in (1, count):
        return None
    flat = values.astype(np.float64).reshape(len(values), -1)
    return np.nan_to_num(np.broadcast_to(flat, (count, flat.shape[1])), nan=0.0, posinf=0.0, neginf=0.0)


def _patches(metadata: Mapping[str, Any], count: int) -> NDArray[np.int64]:
    """``(count,)`` which periods have the same fields: numbers from 0 in the order in which they come."""
    columns = [_rounded(values) for f in PER_PERIOD if (values := _values(metadata, f, count)) is not None]
    if not columns:
        return np.zeros(count, np.int64)
    _, first, group = np.unique(np.hstack(columns), axis=0, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[group.reshape(-1)], np.int64)


def _rounded(values: Real) -> Real:
    largest = np.abs(values).max()
    return np.asarray(np.round(values / largest, 4) if largest > 0 else values)


def _varying(metadata: Mapping[str, Any], count: int) -> list[str]:
    """Fields that are not the same in all periods."""
    found = []
    for field in PER_PERIOD:
        values = _values(metadata, field, count)
        if values is not None and (_rounded(values) != _rounded(values)[:1]).any():
            found.append(field)
    return found


def _named(metadata: Mapping[str, Any], count: int, kinds: int) -> str:
    """``"is multi-patch (4 values of /acquisition/offsetField in 8 periods)"``."""
    fields = _varying(metadata, count)
    what = "is multi-patch" if PER_PERIOD[0] in fields else "has periods of different fields"
    return f"{what} ({kinds} values of {', '.join(fields)} in {count} periods)"


def _kept(metadata: Mapping[str, Any], count: int, kinds: int) -> str:
    if count == 1:
        return "1"
    if kinds == 1:
        return f"{count} with the same fields, each with rows of its own"
    what = "patches" if PER_PERIOD[0] in _varying(metadata, count) else "periods of different fields"
    return f"{count}: {kinds} {what}, each with rows of its own"


def _check_places(calibration: MPICalibration, scan: MPIScan) -> None:
    """That each patch of both is at the same place."""
    count, field = scan.spectrum.shape[1], PER_PERIOD[0]
    a, b = _values(calibration.metadata, field, count), _values(scan.metadata, field, count)
    if a is None or b is None:
        return
    bad = np.flatnonzero(_apart(a, b)) if a.shape == b.shape else np.arange(count)
    if len(bad):
        i = bad[0]
        raise DataError(
            f"{field}: {len(bad)} of {count} patches lie elsewhere (the first: period {i}, matrix {_short(a[i])}, "
            f"measurement {_short(b[i])}); a multi-patch matrix must be measured with the same patches"
        )


def _apart(a: Real, b: Real) -> NDArray[np.bool_]:
    return np.asarray((np.abs(a - b) > _TOLERANCE * max(np.abs(a).max(), np.abs(b).max())).any(axis=-1))


def _joined(
    calibration: MPICalibration,
    scan: MPIScan,
    kinds: tuple[int, int],
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which patch of the system matrix every period of both is; DataError where they are others."""
    counts = len(ours), len(theirs)
    if kinds[1] > 1 and kinds[0] == 1:
        raise DataError(
            f"measurement: {_named(scan.metadata, counts[1], kinds[1])}, the system matrix has one patch; it takes one "
            "that was measured over the whole field of view with the same patches, as periods of its frames"
        )
    keys: list[tuple[Real, Real]] = []
    for field in PER_PERIOD:
        a, b = _values(calibration.metadata, field, counts[0]), _values(scan.metadata, field, counts[1])
        if a is not None and b is not None and a.shape[1] == b.shape[1]:
            largest = max(np.abs(a).max(), np.abs(b).max(), np.finfo(float).tiny)
            keys.append((a / largest, b / largest))
    group = np.full(counts[1], -1)
    if keys:
        first = np.unique(ours, return_index=True)[1]
        patches = cKDTree(np.hstack([a for a, _ in keys])[first])
        away, nearest = patches.query(np.hstack([b for _, b in keys]), p=np.inf)
        group = np.where(away <= _TOLERANCE, nearest, -1).astype(np.int64)
    if set(group.tolist()) != set(range(kinds[0])):
        raise DataError(
            f"periods: the system matrix has {counts[0]} ({kinds[0]} with different fields), the measurement "
            f"{counts[1]} ({kinds[1]}), and they are not the same"
        )
    return ours, group


def _average_scan(scan: MPIScan, groups: NDArray[np.int64]) -> MPIScan:
    return replace(scan, spectrum=_mean(scan.spectrum, groups, 1), metadata=_first(scan.metadata, groups))


def _average_calibration(calibration: MPICalibration, groups: NDArray[np.int64]) -> MPICalibration:
    snr, background = calibration.snr, calibration.background
    if snr is not None:  # the mean of n periods has sqrt(n) of it
        snr = _mean(snr, groups, 0) * np.sqrt(np.bincount(groups))[:, None, None]
    return replace(
        calibration,
        spectrum=_mean(calibration.spectrum, groups, 0),
        background=None if background is None else _mean(background, groups, 1),
        snr=snr,
        metadata=_first(calibration.metadata, groups),
    )


def _mean(values: NDArray[Any], groups: NDArray[np.int64], axis: int) -> NDArray[Any]:
    if groups.max() + 1 == len(groups) and (groups == np.arange(len(groups))).all():
        return values
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    return np.stack([values.take(m, axis=axis).mean(axis=axis) for m in members], axis=axis)


def _first(metadata: Mapping[str, Any], groups: NDArray[np.int64]) -> dict[str, Any]:
    """Fields of each period cut down to those of one period of each group."""
    first = np.unique(groups, return_index=True)[1]
    cut = {f: metadata[f] for f in PER_PERIOD if f in metadata and np.ndim(metadata[f]) > 0}
    return {**metadata, **{f: np.asarray(v)[first] for f, v in cut.items() if len(v) == len(groups)}}


# --- everything else ---------------------------------------------------------------------------------------------
def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What a system matrix's metadata and a measurement's say differently of the scanner, one line a field."""
    return [
        f"{field}: the system matrix has {_short(ours[field])}, the measurement {_short(theirs[field])}; taken with "
        "other settings, the matrix does not fit the data"
        for field in _COMPARED
        if field in ours and field in theirs and not _agree(ours[field], theirs[field])
    ]


def _agree(a: Any, b: Any) -> bool:
    a, b = np.squeeze(np.asarray(a)), np.squeeze(np.asarray(b))
    if a.dtype.kind in "OUS" or b.dtype.kind in "OUS":
        texts = [[str(v).strip().lower() for v in np.atleast_1d(x).ravel()] for x in (a, b)]
        return texts[0] == texts[1] or any(all(v in _UNKNOWN for v in text) for text in texts)
    if a.dtype.kind not in "iufb" or b.dtype.kind not in "iufb":
        return np.array_equal(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    try:
        a, b = np.broadcast_arrays(a, b)
    except ValueError:
        return False
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return True
    return bool(np.abs(a - b)[known].max() <= _TOLERANCE * max(np.abs(a[known]).max(), np.abs(b[known]).max()))


def _short(value: Any) -> str:
    values = np.asarray(value).ravel()
    shown = ", ".join(f"{v:.6g}" if isinstance(v, float | np.floating) else str(v) for v in values[:9].tolist())
    return shown + (", ..." if len(values) > 9 else "")


def expect_other_noise(calibration: MPICalibration, scan: MPIScan) -> None:
    """Warn of a simulated scan that repeats the noise of its calibration."""
    seeds = [source.metadata.get(NOISE_SEED) for source in (calibration, scan)]
    if seeds[0] is not None and seeds[0] == seeds[1]:
        warnings.warn(
            f"noise: calibration and scan were simulated with one seed ({seeds[0]}), so the scan's noise is in the "
            "system matrix too, record by record, which no scanner has; give them different seeds",
            stacklevel=3,
        )
