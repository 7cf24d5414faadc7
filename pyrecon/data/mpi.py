"""From a calibration and a scan to a real linear system ``A x = y`` with white noise.

Each complex row (one period, channel and frequency) goes through the same four steps in the system matrix and in the
data: the background of an empty scanner is subtracted, rows whose signal does not stand out of the noise are left
out, the rest is divided by the standard deviation of its noise, and real parts are stacked on top of imaginary parts.
The noise of the calibration itself is taken out of the matrix as far as it can be (:mod:`pyrecon.data._matrix_noise`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.data._background import Background, EmptyScanner
from pyrecon.data._grids import FINER as FINER
from pyrecon.data._grids import blurred_rows as blurred_rows
from pyrecon.data._grids import box_downsample as box_downsample
from pyrecon.data._grids import upsample_rows as upsample_rows
from pyrecon.data._matrix_noise import CalibrationNoise, without_noise
from pyrecon.data._matrix_noise import MatrixError as MatrixError
from pyrecon.data._mpi_settings import expect_other_noise
from pyrecon.data._mpi_settings import match_periods as match_periods
from pyrecon.data.raw import Complex, Grid, MPICalibration, MPIScan, Real, fault, usable

Whitening = Literal["component", "row", "none"]
GRID = Grid((26, 13), (2e-3, 2e-3), (0.0, 0.0))  # rows along y; the field of view of DEQ-MPI, 52 x 26 mm


@dataclass(frozen=True)
class MPISystem:
    """A system matrix ready for reconstruction.

    Attributes
    ----------
    matrix
        ``(2m, N)`` float32: real parts of m whitened rows on top of their imaginary parts.
    grid
        Where the N voxels are.
    rows
        ``(m, 3)`` period, channel and frequency index of each row in the calibration.
    frequencies
        ``(m,)`` Hz.
    snr
        ``(m,)`` by which the rows were selected; NaN where it could not be measured.
    scale
        ``(2, m)`` what the real and imaginary parts were divided by, in the calibration's unit.
    calibration
        The calibration without its spectrum: what :func:`prepare_frames` compares a scan with.
    noise_of
        Whose noise ``scale`` is: ``"measurement"``, ``"system matrix"``, or ``""`` where rows are not whitened.
    error
        What the noise of the calibration leaves unknown in the matrix; None where fewer than two background frames
        tell that noise.
    """

    matrix: Tensor
    grid: Grid
    rows: NDArray[np.int64]
    frequencies: Real
    snr: Real
    scale: Real
    calibration: MPICalibration
    noise_of: str = ""
    error: MatrixError | None = None

    @property
    def rank(self) -> int | None:
        """Of a matrix that noise was taken out of: it has no other singular values; None for one as measured."""
        return None if self.error is None else self.error.rank

    @property
    def noisy(self) -> bool:
        """Whether the matrix is as it was measured, with noise that is not known to be none."""
        return self.error is None or (self.error.rank is None and self.error.std > 0)

    def upsampled(self, factor: int = 2) -> MPISystem:
        """The system on a grid ``factor`` times finer along both axes, rows interpolated bicubically.

        A fine voxel holds ``1 / factor^2`` of the tracer of a coarse one, so its column is weaker by as much and the
        image keeps its unit (concentration).
        """

        def interpolate(rows: Tensor) -> Tensor:
            return upsample_rows(rows, self._image_shape(), factor) / factor**2

        return replace(self._combined(interpolate), grid=self.grid.finer(factor))

    def scaled(self, factor: float) -> MPISystem:
        """``factor A``, for data that are multiplied as well."""
        return replace(
            self, matrix=factor * self.matrix, error=self.error and replace(self.error, std=factor * self.error.std)
        )

    def blurred(self, factor: int = FINER) -> MPISystem:
        """``A U D``, see :func:`blurred_rows`."""
        return self._combined(lambda rows: blurred_rows(rows, self._image_shape(), factor))

    def _combined(self, interpolate: Callable[[Tensor], Tensor]) -> MPISystem:
        """With other columns, each a combination of these; so the error's are the same combinations."""
        error = self.error and self.error.interpolated(interpolate(torch.eye(self.matrix.shape[1])))
        return replace(self, matrix=interpolate(self.matrix), error=error)

    def _image_shape(self) -> tuple[int, int]:
        shape = tuple(n for n in self.grid.shape if n > 1)
        if len(shape) != 2:
            raise DataError(f"grid: shape {self.grid.shape} is not an image, interpolation needs two axes")
        return shape


@dataclass(frozen=True)
class MPIFrames:
    """Data ready for reconstruction.

    Attributes
    ----------
    y
        ``(B, 2m)`` float32, rows as in the system matrix.
    noise_std
        ``(B,)`` standard deviation of the noise in every element of y, measured in the scan's background frames; None
        where there are fewer than two.
    notes
        What was left out or assumed on the way, which a reconstruction tells in its report.
    """

    y: Tensor
    noise_std: Tensor | None
    notes: tuple[str, ...] = ()

    @property
    def noise_norm(self) -> Tensor | None:
        """``(B,)`` expected ``|noise|_2 = noise_std sqrt(2m)``: the radius of the data constraint."""
        return None if self.noise_std is None else self.noise_std * self.y.shape[1] ** 0.5

    @property
    def snr_db(self) -> Tensor | None:
        """``(B,)`` estimate of ``20 log10(|clean| / |noise|)`` (DEQ-MPI Eq. 36) with ``|clean|^2 = |y|^2 - |noise|^2``.

        Minus infinity for a frame that holds no more than noise.
        """
        noise = self.noise_norm
        if noise is None:
            return None
        noise = noise.double().square()
        power = self.y.double().square().sum(dim=1)
        return 10 * torch.log10((power - noise).clamp(min=0) / noise)


# --- the system matrix -------------------------------------------------------------------------------------------
def prepare_system(
    calibration: MPICalibration,
    scan: MPIScan | None = None,
    *,
    snr_threshold: float = 5.0,
    band: tuple[float, float] = (0.0, np.inf),
    channels: Sequence[int] | None = None,
    rows: NDArray[np.int64] | None = None,
    background: Background = "smooth",
    whiten: Whitening = "component",
    denoise: bool = True,
) -> MPISystem:
    """Turn a measured system matrix into the linear system that reconstruction solves.

    Parameters
    ----------
    calibration
        The measured system matrix.
    scan
        The scan to be reconstructed: the noise is that of its background frames, if there are at least two, otherwise
        that of the calibration's.
    snr_threshold
        Rows whose signal-to-noise ratio is lower are left out. The ratio is the file's; where it has none, the largest
        amplitude over all positions divided by the standard deviation of the (complex) noise, as MPIFiles does. (The
        simulated scanner's noise is set so that this selects about as many rows as published.)
    band
        Lowest and highest frequency in Hz.
    channels
        Which receive channels; all by default.
    rows
        Take these rows, ``(m, 3)`` period, channel and frequency index in increasing order, whatever their
        signal-to-noise ratio: those of another calibration of the same scanner, say, to which a learned consistency
        belongs. ``snr_threshold``, ``band`` and ``channels`` then play no part.
    background
        What to subtract from every position: the ``"smooth"`` curve in time that fits the background frames best (their
        mean where nothing drifts, see :mod:`pyrecon.data._background`), a linear function between them
        (``"interpolate"``), their ``"mean"``, or ``"none"``. A calibration marked as corrected is left as it is.
    whiten
        Divide every row by the standard deviation of its noise: of real and imaginary part apart (``"component"``), of
        both together (``"row"``), or not (``"none"``). The noise is taken to be the same in all periods.
    denoise
        Take out of the matrix what singular values tell to be the calibration's own noise, where at least two of its
        background frames tell how strong that is (:mod:`pyrecon.data._matrix_noise`). A matrix without noise stays as
        it is. On the simulated scanner 11 dB of the error's energy go. False leaves the matrix as measured.

    Raises
    ------
    DataError
        When calibration and scan do not belong together, no row is left, or what is left cannot be used.
    """
    _check_choice("background", background, ("smooth", "interpolate", "mean", "none"))
    _check_choice("whiten", whiten, ("component", "row", "none"))
    empty = EmptyScanner.of_calibration(calibration)
    noise = None if empty is None or empty.noise is None else empty.noise.variance
    candidates = _candidates(calibration, band, channels)
    positions = np.arange(calibration.grid.size) if calibration.position_order is None else calibration.position_order
    weights = None
    if empty is not None and not calibration.background_corrected and background != "none":
        weights = empty.weights(positions, background)

    def corrected(rows: NDArray[np.int64]) -> Complex:
        """(rows, N) of the system matrix, background subtracted."""
        values = calibration.spectrum[tuple(rows.T)]
        if weights is not None and empty is not None:
            values = values - empty.background(weights, *rows.T).T
        return np.asarray(values)

    if calibration.snr is not None:
        snr = np.asarray(calibration.snr, dtype=np.float64)
    else:
        snr = np.full(candidates.shape, np.nan)
        if noise is not None:
            for part in np.array_split(np.argwhere(candidates), candidates.sum() // 4096 + 1):
                snr[tuple(part.T)] = _snr(corrected(part), noise[:, part[:, 1], part[:, 2]])
    rows = _select(candidates, snr, snr_threshold) if rows is None else _given(rows, candidates.shape)

    noise_of = "" if noise is None or whiten == "none" else "system matrix"
    if scan is not None:
        expect_other_noise(calibration, scan)
        matched = match_frequencies(calibration, scan)
        theirs = EmptyScanner.of_scan(scan)
        if theirs is not None and theirs.noise is not None:
            noise_of = "" if whiten == "none" else "measurement"
            noise = np.where(matched >= 0, theirs.noise.variance[..., matched], np.nan)
    scale = _scale(noise, rows, whiten)

    period, channel, frequency = rows.T
    spectrum = corrected(rows)
    finite = np.isfinite(spectrum).all(axis=1)
    if not finite.all():
        p, c, k = rows[~finite][0]
        raise DataError(
            f"system matrix: {(~finite).sum()} of {len(rows)} selected rows hold NaN or infinite values (the first: "
            f"period {p}, channel {c}, {calibration.frequencies[k]:.6g} Hz)"
        )
    error = None
    if empty is not None and empty.noise is not None:
        spectrum, error = without_noise(CalibrationNoise(calibration, empty, weights, rows), spectrum, scale, denoise)
    return MPISystem(
        matrix=_stack("system matrix", spectrum, scale[:, :, None], axis=0),
        grid=calibration.grid,
        rows=rows,
        frequencies=calibration.frequencies[frequency],
        snr=snr[period, channel, frequency],
        scale=scale,
        calibration=replace(calibration, spectrum=calibration.spectrum[..., :0], background=None),
        noise_of=noise_of,
        error=error,
    )


def _candidates(
    calibration: MPICalibration, band: tuple[float, float], channels: Sequence[int] | None
) -> NDArray[np.bool_]:
    """(periods, channels, K): what band and channels leave."""
    low, high = band
    frequencies = calibration.frequencies
    inside = (frequencies >= low) & (frequencies <= high)
    if not inside.any():
        raise DataError(
            f"band: {low:g} to {high:g} Hz holds none of the system matrix's {len(frequencies)} frequencies "
            f"({frequencies.min():g} to {frequencies.max():g} Hz)"
        )
    count = calibration.spectrum.shape[1]
    listed = list(range(count)) if channels is None else list(channels)
    if not listed or not all(0 <= c < count for c in listed):
        raise DataError(f"channels: {listed} was asked for, the system matrix has channels 0 to {count - 1}")
    candidates = np.zeros(calibration.spectrum.shape[:3], dtype=bool)
    candidates[:, listed] = inside
    return candidates


def _snr(rows: Complex, variance: Real) -> Real:
    """Largest amplitude over the positions / standard deviation of the complex noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.abs(rows).max(axis=1) / np.sqrt(variance.sum(axis=0)))


def _select(candidates: NDArray[np.bool_], snr: Real, threshold: float) -> NDArray[np.int64]:
    """(m, 3) indices of the rows to use."""
    if not threshold > 0:
        return np.argwhere(candidates)
    known = candidates & ~np.isnan(snr)
    if not known.any():
        warnings.warn(
            "system matrix: no signal-to-noise ratios and fewer than two background frames to measure them with; all "
            f"{candidates.sum()} rows are used",
            stacklevel=3,
        )
        return np.argwhere(candidates)
    rows = np.argwhere(known & (snr >= threshold))
    if len(rows) == 0:
        best = np.sort(snr[known])[::-1]
        raise DataError(
            f"snr_threshold: no row of {known.sum()} reaches {threshold:g}; the best has {best[0]:.3g}, "
            f"{min(100, len(best))} rows reach {best[min(100, len(best)) - 1]:.3g}: lower the threshold"
        )
    return rows


def _given(rows: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Rows as asked for, if a calibration of that shape has them."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] != 3 or len(rows) == 0 or not np.issubdtype(rows.dtype, np.integer):
        raise DataError(f"rows: {rows.dtype} {rows.shape}, expected indices (m, 3) of period, channel, frequency")
    inside = ((rows >= 0) & (rows < np.array(shape))).all(axis=1)
    if not inside.all():
        sizes = ", ".join(f"{n} {what}" for n, what in zip(shape, ("periods", "channels", "frequencies"), strict=True))
        raise DataError(
            f"rows: {(~inside).sum()} of {len(rows)} are not in the system matrix, which has {sizes} (the first: "
            f"{', '.join(map(str, rows[~inside][0]))}); it belongs to another scanner setting"
        )
    points = np.ravel_multi_index(tuple(rows.T), shape)
    if not (np.diff(points) > 0).all():
        raise DataError("rows: are not in increasing order, or there are some twice")
    return rows.astype(np.int64)


def _scale(noise: Real | None, rows: NDArray[np.int64], whiten: Whitening) -> Real:
    """(2, m) standard deviation of the noise in real and imaginary part of each row, or ones."""
    if whiten == "none":
        return np.ones((2, len(rows)))
    if noise is None:
        warnings.warn(
            "noise: neither system matrix nor measurement has two background frames, so rows are not whitened; noisy "
            "rows weigh as much as good ones",
            stacklevel=3,
        )
        return np.ones((2, len(rows)))
    variance = noise[:, rows[:, 1], rows[:, 2]]
    if whiten == "row":
        variance = np.broadcast_to(variance.mean(axis=0), variance.shape)
    bad = ~(np.isfinite(variance) & (variance > 0)).all(axis=0)
    if bad.any():
        p, c, k = rows[bad][0]
        raise DataError(
            f"noise: background frames have no usable variance in {bad.sum()} of {len(rows)} rows (the first: period "
            f"{p}, channel {c}, frequency {k}); choose whiten='none' for noiseless data"
        )
    return np.sqrt(variance)


# --- the measurement ---------------------------------------------------------------------------------------------
def prepare_frames(
    system: MPISystem, scan: MPIScan, *, average: int = 1, background: Background = "smooth"
) -> MPIFrames:
    """The frames of a scan as right-hand sides of ``system``.

    Parameters
    ----------
    average
        Average this many consecutive frames into one; a remainder makes a last, noisier one.
    background
        As in :func:`prepare_system`, in time between the scan's own background frames.

    Raises
    ------
    DataError
        When scan and system matrix do not belong together or there is no frame with a sample in the scanner.
    """
    _check_choice("background", background, ("smooth", "interpolate", "mean", "none"))
    if average < 1:
        raise ValueError(f"average: {average} is not a number of frames")
    matched = match_frequencies(system.calibration, scan)
    period, channel, frequency = system.rows.T
    missing = matched[frequency] < 0
    if missing.any():
        raise DataError(
            f"measurement: {missing.sum()} of {len(missing)} rows of the system matrix lie at frequencies it does not "
            f"have (the first: {system.frequencies[missing][0]:.6g} Hz)"
        )
    rows = (period, channel, matched[frequency])
    foreground = np.flatnonzero(~scan.is_background)
    if len(foreground) == 0:
        raise DataError(f"measurement: all {len(scan.is_background)} frames are background frames")

    values = scan.spectrum[(foreground[:, None], *rows)]
    empty = EmptyScanner.of_scan(scan)
    starts = np.arange(0, len(values), average)
    sizes = np.diff(np.append(starts, len(values)))
    subtracted = np.zeros(len(starts))  # variance that the background brings, in units of one frame's
    if empty is not None and not scan.background_corrected and background != "none":
        weights = empty.weights(foreground, background)
        values = values - empty.background(weights, *rows)
        grouped = [np.add.reduceat(w, starts, axis=0) / sizes[:, None] for w in weights]
        subtracted = empty.noise_gain(grouped, *rows[1:])
    elif empty is None and not scan.background_corrected and background != "none":
        warnings.warn("measurement: no background frames, so no background is subtracted", stacklevel=2)

    values = np.add.reduceat(values, starts, axis=0) / sizes[:, None]
    noise_std = None
    if empty is not None and empty.noise is not None:
        # The rows were divided by this estimate or one like it, and the mean of chi2_f / f's inverse is f / (f - 2).
        freedom = empty.noise.freedom
        whitened = (empty.noise.variance[:, channel, rows[2]] / system.scale**2).mean() * freedom / max(freedom - 2, 1)
        noise_std = torch.from_numpy(np.sqrt(whitened * (1 / sizes + subtracted))).float()
    elif system.noise_of == "system matrix" and len(system.matrix) <= system.matrix.shape[1]:
        # Some image explains such data to the last digit, so they do not tell their noise themselves.
        many = _averages(system.calibration) / _averages(scan)
        noise_std = torch.from_numpy(np.sqrt(many / sizes)).float()
        warnings.warn(
            "noise: the measurement has fewer than two background frames; its noise is taken to be that of the system "
            f"matrix's, of {many:g} times as many averages",
            stacklevel=2,
        )
    notes = [*system.calibration.metadata.get("notes", ()), *scan.metadata.get("notes", ())]
    y = _stack("measurement", values, system.scale[:, None, :], axis=1)
    return MPIFrames(y, noise_std, tuple(dict.fromkeys(notes)))


def _averages(source: MPICalibration | MPIScan) -> float:
    """How many recordings a stored frame is the mean of; 1 where the file does not say."""
    known = np.ravel(source.metadata.get("/acquisition/numAverages", 1))
    is_count = len(known) == 1 and np.issubdtype(known.dtype, np.number) and np.isfinite(known[0]) and known[0] >= 1
    return float(known[0]) if is_count else 1.0


def match_frequencies(calibration: MPICalibration, scan: MPIScan) -> NDArray[np.int64]:
    """``(K,)`` index of each of the calibration's frequencies among the scan's, -1 where it has none.

    Raises
    ------
    DataError
        Naming what differs, when system matrix and measurement were not taken with the same scanner settings.
    """
    ours, theirs = calibration.spectrum.shape, scan.spectrum.shape
    advice = "; see pyrecon.data.mpi.match_periods"
    for name, a, b in (("periods", ours[0], theirs[1]), ("receive channels", ours[1], theirs[2])):
        if a != b:
            raise DataError(f"{name}: the system matrix has {a}, the measurement {b}{advice * (name == 'periods')}")
    if calibration.unit != scan.unit:
        raise DataError(f"unit: the system matrix is in {calibration.unit!r}, the measurement in {scan.unit!r}")
    if calibration.transfer_corrected != scan.transfer_corrected:
        done, left = (
            ("system matrix", "measurement") if calibration.transfer_corrected else ("measurement", "system matrix")
        )
        raise DataError(f"transfer function: divided out of the {done} but not of the {left}; correct both or neither")

    order = np.argsort(scan.frequencies, kind="stable")
    between = (scan.frequencies[order][1:] + scan.frequencies[order][:-1]) / 2
    nearest = order[np.searchsorted(between, calibration.frequencies)]
    # Files store frequencies in double or compute them from the bandwidth; lines lie at least 1e-5 of it apart.
    tolerance = 1e-6 * max(np.abs(calibration.frequencies).max(), 1.0)
    matched = np.where(np.abs(scan.frequencies[nearest] - calibration.frequencies) <= tolerance, nearest, -1)
    if (matched < 0).all():
        raise DataError(
            f"frequencies: none of the system matrix's {_span(calibration.frequencies)} is among the measurement's "
            f"{_span(scan.frequencies)}"
        )
    _check_transfer_functions(calibration, scan, matched)
    return matched


def _check_transfer_functions(calibration: MPICalibration, scan: MPIScan, matched: NDArray[np.int64]) -> None:
    """Data that still carry the receive chain's transfer function must carry the same one."""
    a, b = calibration.transfer_function, scan.transfer_function
    if calibration.transfer_corrected or a is None or b is None:
        return
    both = matched >= 0
    a, b = a[:, both], b[:, matched[both]]
    difference = np.linalg.norm(a - b) / max(np.linalg.norm(a), np.finfo(float).tiny)
    if difference > 1e-3:
        raise DataError(
            f"transfer function: that of the measurement differs from the system matrix's by {100 * difference:.2g} % "
            "and neither is divided out: the receive chain was changed in between"
        )


def _span(frequencies: Real) -> str:
    return f"{len(frequencies)} frequencies ({frequencies.min():g} to {frequencies.max():g} Hz)"


# --- small things ------------------------------------------------------------------------------------------------
def _stack(name: str, values: NDArray[Any], scale: Real, axis: int) -> Tensor:
    """Real parts before imaginary parts along ``axis``, each divided by its scale, as a float32 tensor."""
    stacked = np.concatenate([values.real / scale[0], values.imag / scale[1]], axis=axis)
    if not usable(stacked).all():
        raise DataError(
            f"{name}: {fault(stacked)}, in units of the noise; is the noise of the background frames right?"
        )
    return torch.from_numpy(stacked.astype(np.float32))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is not known, expected one of {', '.join(choices)}")
