"""Maps of relaxation times from series of images: which model fits a series, its maps and errors, values of regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._check import check_count
from pyrecon._errors import DataError
from pyrecon.data.series import ImageSeries
from pyrecon.ops import (
    CustomSignal,
    EchoDecay,
    InversionRecovery,
    LookLocker,
    MultiSpinEcho,
    SaturationRecovery,
    SignalModel,
    SpoiledGradientEcho,
    VoxelFit,
    fit_voxels,
    inversion_recovery,
)
from pyrecon.report import Recorder, Report
from pyrecon.solvers import Status

__all__ = ["KINDS", "Kind", "Maps", "Region", "fit_series", "regions"]

Model = SignalModel | CustomSignal | MultiSpinEcho


@dataclass(frozen=True)
class Kind:
    """What is fitted in words, the setting that changes from image to image, the name of the time that is found, and
    what else may change, because the fit knows of it."""

    about: str
    setting: str
    time: str
    besides: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "ir": Kind("T1 by inversion recovery", "inversion time", "T1", ("repetition time",)),
    "sr": Kind("T1 by saturation recovery", "inversion time", "T1", ("repetition time",)),
    "molli": Kind("T1 by Look-Locker readouts of an inversion (MOLLI)", "inversion time", "T1", ("repetition time",)),
    "vfa": Kind("T1 by spoiled gradient echoes of several flip angles", "flip angle", "T1", ("repetition time",)),
    "t2": Kind("T2 by spin echoes", "echo time", "T2"),
    "epg": Kind("T2 by trains of spin echoes, stimulated ones included", "echo time", "T2"),
    "t2star": Kind("T2* by gradient echoes", "echo time", "T2*"),
}


@dataclass(frozen=True)
class Maps:
    """Of a series.

    Attributes
    ----------
    values, errors
        ``(S, H, W)`` float32 by name: times in seconds, factors in the unit of the images, complex ones as magnitudes;
        their standard errors. 0 outside the mask, NaN where nothing was found.
    residual
        Root mean square of data less fit, in the unit of the images.
    status
        ``(S, H, W)`` int8: :class:`pyrecon.solvers.Status` of every voxel.
    at_bound
        ``(S, H, W)`` bool: the best rate is the smallest or largest that was looked at, so the time is no estimate.
    inside
        ``(S, H, W)`` bool: what was fitted.
    units
        Of the values, by name.
    """

    values: dict[str, NDArray[np.float32]]
    errors: dict[str, NDArray[np.float32]]
    residual: NDArray[np.float32]
    status: NDArray[np.int8]
    at_bound: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    units: dict[str, str] = field(default_factory=dict)

    def of_slices(self, chosen: NDArray[np.int64]) -> Maps:
        """The maps of these slices, in this order."""
        return self._some(chosen)

    def of_rows(self, rows: slice) -> Maps:
        """These rows of the maps."""
        return self._some((slice(None), rows))

    def _some(self, chosen: Any) -> Maps:
        return replace(
            self,
            values={name: values[chosen] for name, values in self.values.items()},
            errors={name: values[chosen] for name, values in self.errors.items()},
            residual=self.residual[chosen],
            status=self.status[chosen],
            at_bound=self.at_bound[chosen],
            inside=self.inside[chosen],
        )


@dataclass(frozen=True)
class Region:
    """A map over one region: ``voxels`` with a value, of ``size``; ``error`` is the mean standard error of a voxel."""

    label: int
    name: str
    size: int
    voxels: int
    mean: float
    deviation: float
    median: float
    error: float


def fit_series(
    series: ImageSeries,
    kind: str,
    *,
    mask: NDArray[Any] | None = None,
    b1: NDArray[Any] | None = None,
    offset: bool = False,
    noise_std: float | None = None,
    efficiency: float | None = None,
    refocusing: float = math.pi,
    t1: float = 1.0,
    max_iter: int = 50,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Maps, Report]:
    """Fit every voxel of a series, slice by slice (:func:`pyrecon.ops.fit_voxels`).

    Parameters
    ----------
    series
        With the setting that the kind needs (``KINDS[kind].setting``). Real images without negative values are taken
        for magnitudes, where that makes a difference.
    kind
        One of ``KINDS``. Inversions whose repetition times are known and differ between images are fitted with them.
    mask
        ``(S, H, W)``: 0 outside.
    b1
        ``(S, H, W)``, actual over nominal flip angle, for ``"vfa"`` and ``"epg"``, which finds it itself otherwise.
    offset
        ``"t2"``, ``"t2star"``: with a constant beside the decay.
    noise_std
        Standard deviation of the noise in the real and the imaginary part, in the unit of the images, which are
        magnitudes: fits by the Rician likelihood in place of least squares, which late echoes near the noise mislead.
    efficiency
        ``"ir"`` with repetition times that differ: of the inversion, see :func:`pyrecon.ops.inversion_recovery`; None:
        fitted.
    refocusing, t1
        ``"epg"``: nominal angle of the refocusing pulses, radians, and the T1 that is assumed, seconds
        (:class:`pyrecon.ops.MultiSpinEcho` says what an error in it does).

    Raises
    ------
    DataError
        For a series without the settings that are needed, and options that do not belong to the kind.
    """
    if kind not in KINDS:
        raise DataError(f"kind: {kind!r}, expected one of {', '.join(KINDS)}")
    check_count("max_iter", max_iter)
    options = _Options(offset, efficiency, refocusing, t1)
    _check_options(kind, b1=b1 is not None, options=options)
    values, details = _values(series, kind)
    slices, height, width = series.images.shape[1:]
    inside = np.ones((slices, height, width), bool) if mask is None else np.asarray(mask) != 0
    for name, given in (("mask", mask), ("b1", b1)):
        if given is not None and given.shape != (slices, height, width):
            raise DataError(f"{name}: shape {given.shape}, the images have {(slices, height, width)}")
    if not inside.any():
        raise DataError("mask: is zero everywhere, nothing to fit")
    if b1 is not None and not np.isfinite(b1[inside]).all():
        raise DataError("b1: NaN or infinite values inside the mask")
    first, said = _model(series, kind, values, None if b1 is None else b1[0], options)
    if noise_std is not None:
        said["assumed"] = f"Rician noise of {noise_std:g} (real and imaginary part)"
    details = {"fit": KINDS[kind].about, **details, **said, **series.metadata}
    run = Recorder(type(first).__name__, _parameters(first, max_iter), device=device, details=details)
    parts = list[Maps]()
    for s in range(slices):
        with run:
            model = _model(series, kind, values, None if b1 is None else b1[s], options)[0]
            data = torch.from_numpy(series.images[None, :, s]).to(device)
            times = torch.from_numpy(values)
            within = torch.from_numpy(inside[None, s]).to(device)
            try:
                fit = fit_voxels(model, data, times, mask=within, noise_std=noise_std, max_iter=max_iter)
            except (ValueError, TypeError) as error:
                raise DataError(str(error)) from error
            parts.append(_read_off(fit, KINDS[kind].time, inside[s]))
        progress(s + 1, slices)
    maps = Maps(
        {name: np.stack([part.values[name] for part in parts]) for name in parts[0].values},
        {name: np.stack([part.errors[name] for part in parts]) for name in parts[0].errors},
        np.stack([part.residual for part in parts]),
        np.stack([part.status for part in parts]),
        np.stack([part.at_bound for part in parts]),
        inside,
        parts[0].units,
    )
    report = run.report()
    count_voxels(report, maps, KINDS[kind].time, _range(first))
    return maps, report


def count_voxels(report: Report, maps: Maps, time: str, ends: tuple[float, float]) -> None:
    """How the voxels ended; ``ends`` are those of the rate, 1/s, whose inverse is called ``time``."""
    inside = maps.inside
    report.samples, report.counted = int(inside.sum()), "voxels"
    counts = {status.name: int((maps.status[inside] == int(status)).sum()) for status in Status}
    report.status = {name: number for name, number in counts.items() if number}
    if maps.at_bound.any():
        report.details["at a bound"] = (
            f"{int(maps.at_bound.sum())} voxels, whose {time} is {1 / ends[1]:.4g} or {1 / ends[0]:.4g} s, or beyond"
        )


def regions(maps: Maps, labels: NDArray[Any], name: str) -> Iterator[Region]:
    """A map in every region of ``labels``, whole numbers (0 is none), among the voxels that have a value: not
    those without signal, those that did not converge, nor those at a bound."""
    numbers = np.asarray(labels)
    if numbers.dtype.kind == "f" and not (numbers == np.round(numbers)).all():
        raise DataError("mask: values that are no whole numbers, expected 0 outside and the number of a region")
    values, errors = maps.values[name], maps.errors[name]
    for label in np.unique(numbers[numbers != 0]):
        here = numbers == label
        known = here & np.isfinite(values) & (maps.status == int(Status.CONVERGED)) & ~maps.at_bound
        v = values[known].astype(float)
        e = errors[known].astype(float)
        e = e[np.isfinite(e)]
        mean, deviation, median = (float(f(v)) if len(v) else math.nan for f in (np.mean, np.std, np.median))
        error = float(e.mean()) if len(e) else math.nan
        yield Region(int(label), name, int(here.sum()), len(v), mean, deviation, median, error)


# --- the model of a series
@dataclass(frozen=True)
class _Options:
    """Of :func:`fit_series`."""

    offset: bool
    efficiency: float | None
    refocusing: float
    t1: float


def _check_options(kind: str, *, b1: bool, options: _Options) -> None:
    if b1 and kind not in ("vfa", "epg"):
        raise DataError(f"--b1: of flip angles, is for vfa and epg, not for {kind}")
    if kind != "epg" and (options.refocusing, options.t1) != (math.pi, 1.0):
        raise DataError(f"--refocusing-angle, --t1: are for epg, not for {kind}")
    if options.offset and kind not in ("t2", "t2star"):
        raise DataError(f"--offset: is for t2 and t2star, not for {kind}")


def _values(series: ImageSeries, kind: str) -> tuple[NDArray[np.float64], dict[str, str]]:
    """The setting that changes, ``(T,)``, and what is said of it."""
    wanted = KINDS[kind].setting
    count = len(series.images)
    known = {name: v for name, v in series.settings.items() if np.isfinite(v).all()}
    if kind == "sr" and not _changes(known.get(wanted)) and _changes(known.get("repetition time")):
        wanted = "repetition time"  # each image after a saturation of its own
    if wanted not in known:
        there = ", ".join(known) or "none"
        option = "--flip-angles" if wanted == "flip angle" else "--times"
        raise DataError(f"{kind}: needs the {wanted} of every image, the series says {there}; give {option}")
    values = known[wanted]
    if len(values) != count:
        raise DataError(f"{wanted}: {len(values)} values, but {count} images")
    if count > 1 and np.ptp(values) == 0:
        raise DataError(
            f"{kind}: the {wanted} is {_said(wanted, values)} in all {count} images; is this such a series?"
        )
    others = [name for name, v in known.items() if name not in (wanted, *KINDS[kind].besides) and _changes(v)]
    if others:
        what = " and ".join(f"the {name} ({_said(name, known[name])})" for name in others)
        raise DataError(f"{kind}: beside the {wanted} {what} changes from image to image; fit such images apart")
    return values, {wanted: _said(wanted, values)}


def _changes(values: NDArray[np.float64] | None) -> bool:
    """By more than headers are rounded."""
    return values is not None and bool(np.ptp(values) > 1e-3 * np.abs(values).max())


def _said(name: str, values: NDArray[np.float64]) -> str:
    shown = np.degrees(values) if name == "flip angle" else 1e3 * values
    unit = "degrees" if name == "flip angle" else "ms"
    different = list(dict.fromkeys(f"{v:.6g}" for v in shown))
    return ", ".join(different[:12]) + (" ..." if len(different) > 12 else "") + f" {unit}"


def _model(
    series: ImageSeries,
    kind: str,
    values: NDArray[np.float64],
    b1: NDArray[Any] | None,
    options: _Options,
) -> tuple[Model, dict[str, str]]:
    """And what is assumed."""
    offset, efficiency = options.offset, options.efficiency
    magnitude, is_complex = series.magnitudes, bool(np.iscomplexobj(series.images))
    sign = "complex" if is_complex else "magnitudes" if magnitude else "real with a sign"
    tr = series.settings.get("repetition time")
    if kind == "ir" and tr is not None and np.ptp(tr) > 0:
        every = torch.from_numpy(tr).view(1, -1, 1, 1)
        known = {"magnitude": magnitude, "is_complex": is_complex, "efficiency": efficiency}
        said = f"inversion efficiency {efficiency:g}" if efficiency is not None else "inversion efficiency fitted"
        model = inversion_recovery(every, **known)  # type: ignore[arg-type]
        return model, {"data": sign, "assumed": f"repetition times {_said('', tr)}, {said}"}
    if efficiency is not None:
        raise DataError(
            "--efficiency: is for inversions whose repetition times differ between images; with one of them, "
            "a + b exp(-TI / T1) fits any efficiency"
        )
    if kind == "ir":
        return InversionRecovery(magnitude=magnitude), {"data": sign, "assumed": "the same repetition time for all"}
    if kind == "molli":
        return LookLocker(magnitude=magnitude), {"data": sign}
    if kind == "sr":
        return SaturationRecovery(), {"assumed": "perfect saturation"}
    if kind == "vfa":
        return _spoiled(series, b1)
    if kind == "epg":
        known_b1 = None if b1 is None else torch.from_numpy(np.asarray(b1, np.float64))[None, None]
        said = f"refocusing by {math.degrees(options.refocusing):g} degrees, T1 of {options.t1:g} s, no slice profile"
        try:
            return MultiSpinEcho(options.refocusing, t1=options.t1, b1=known_b1), {"assumed": said}
        except ValueError as error:
            raise DataError(f"--refocusing-angle, --t1: {error}") from error
    return EchoDecay(offset=offset), {"assumed": "a constant beside the decay" if offset else "no noise floor"}


def _spoiled(series: ImageSeries, b1: NDArray[Any] | None) -> tuple[Model, dict[str, str]]:
    tr = series.settings.get("repetition time")
    if tr is None:
        raise DataError("vfa: needs the repetition time, the series says none; give --repetition-time")
    every = torch.from_numpy(tr).view(1, -1, 1, 1)
    factor = None if b1 is None else torch.from_numpy(np.asarray(b1, np.float64))[None, None]
    told = "B1 as given" if b1 is not None else "flip angles as nominal (no B1 map)"
    try:
        return SpoiledGradientEcho(every, factor), {
            "repetition time": _said("", tr),
            "assumed": f"{told}, full spoiling",
        }
    except (ValueError, TypeError) as error:
        raise DataError(str(error)) from error


def _parameters(model: Model, max_iter: int) -> dict[str, Any]:
    known = {"max_iter": max_iter}
    if isinstance(model, InversionRecovery):
        known["magnitude"] = model.magnitude
    if isinstance(model, EchoDecay):
        known["offset"] = model.offset
    return known


def _read_off(fit: VoxelFit, time: str, inside: NDArray[np.bool_]) -> Maps:
    """Of one slice."""
    kept = torch.from_numpy(inside)

    def plain(v: Tensor) -> NDArray[np.float32]:
        found = (v.abs() if v.is_complex() else v)[0].cpu()
        return torch.where(kept, found, 0.0).float().numpy()

    rename = {"T2": time} if time == "T2*" else {}
    values = {rename.get(name, name): v for name, v in fit.maps().items()}
    errors = {rename.get(name, name): v for name, v in fit.errors().items()}
    residual = fit.residuals().abs().double().square().mean(1).sqrt()
    low, high = (torch.tensor(end, dtype=fit.value.dtype) for end in _range(fit.model))
    rate = fit.value[0, 0].cpu()
    units = {name: "s" if name.startswith("T") else "" if name in ("efficiency", "B1") else "a.u." for name in values}
    return Maps(
        {name: plain(v) for name, v in values.items()},
        {name: plain(v) for name, v in errors.items()},
        plain(residual),
        fit.status[0].cpu().numpy(),
        inside & ((rate <= low) | (rate >= high)).numpy(),
        inside,
        units,
    )


def _range(model: Model) -> tuple[float, float]:
    """Of the rate, 1/s."""
    return model.bounds[0] if isinstance(model, CustomSignal) else model.range
