r"""What a scanner records when it is empty: how strong the noise is, and what to subtract from a frame taken at time t.

The record of one row is modelled as a level that moves plus white noise, ``b(t) = c + w(t) + e(t)``: c unknown, e of
variance r, and w a random walk (a wandering feed-through) or a straight line (slow warming) of variance ``rho r`` after
the time between first and last frame, or zero. Each channel and frequency takes the kind and the rho of the highest
restricted likelihood, all periods and both parts of the complex numbers together, and the level at any time is its best
linear estimate. That is the mean of all frames where nothing moves, linear interpolation between frames where a walk is
much stronger than the noise, and a smooth curve in between. It matters which: the noise of a background frame is shared
by every position it is subtracted from, and adds up in their sum.

With the covariance ``K_ij`` of w at the frames (``min(t_i, t_j)`` or ``t_i t_j``), the Helmert contrasts H and
``H K H^T = U diag(lam) U^T``, the numbers ``z = U^T H b`` are independent with variance ``r (1 + rho lam)``, and ::

    level(t) = mean(b) + rho (k_t - mean(K)) H^T U diag(1 / (1 + rho lam)) z
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy  # whose parts load when they are used
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.data.raw import Complex, MPICalibration, MPIScan, Real

_Kernel = Callable[[Any, Any], Any]
Background = Literal["smooth", "interpolate", "mean", "none"]

# How far the level moves between first and last frame, in variances of the noise of one frame.
_RHO = 4.0 ** np.arange(-3, 9)
_ENOUGH = 30.0  # degrees of freedom for a variance that data may be divided by: it then has 26 % standard deviation


@dataclass(frozen=True)
class Noise:
    """Of each channel and frequency, the same in all periods.

    Attributes
    ----------
    variance
        ``(2, channels, K)`` of real and imaginary part.
    drift
        ``(channels, K)`` which motion of the level fits best, a number of :meth:`EmptyScanner.weights`.
    freedom
        Degrees of freedom of each variance.
    """

    variance: Real
    drift: NDArray[np.int64]
    freedom: float


@dataclass(frozen=True)
class EmptyScanner:
    """Background frames ``(n, periods, channels, K)``, when each was taken, and which run of frames it belongs to."""

    spectrum: Complex
    times: Real
    runs: NDArray[np.int64]

    @classmethod
    def of_calibration(cls, calibration: MPICalibration) -> EmptyScanner | None:
        if calibration.background is None or len(calibration.background) == 0:
            return None
        frames = _finite(calibration.background, "system matrix")
        if calibration.background_positions is None:
            return cls(frames, np.zeros(len(frames)), np.zeros(len(frames), np.int64))
        # A frame taken after p positions lies between number p - 1 and number p.
        times = np.asarray(calibration.background_positions, np.float64) - 0.5
        return cls(frames, times, np.unique(times, return_inverse=True)[1])

    @classmethod
    def of_scan(cls, scan: MPIScan) -> EmptyScanner | None:
        index = np.flatnonzero(scan.is_background)
        if len(index) == 0:
            return None
        runs = np.cumsum(np.diff(index, prepend=index[0]) > 1, dtype=np.int64)
        return cls(_finite(scan.spectrum[index], "measurement"), index.astype(np.float64), runs)

    @cached_property
    def _motions(self) -> list[tuple[_Kernel, Real, Real]]:
        """For each kind of motion its covariance, ``U^T H`` (n - 1, n) and lam (n - 1)."""
        contrasts = scipy.linalg.helmert(len(self.times))
        t = self._since(self.times)
        found: list[tuple[_Kernel, Real, Real]] = []
        for kernel in (np.minimum.outer, np.multiply.outer):
            lam, u = np.linalg.eigh(contrasts @ kernel(t, t) @ contrasts.T)
            found.append((kernel, u.T @ contrasts, lam.clip(min=0)))
        return found

    def _since(self, times: NDArray[Any]) -> Real:
        """Time since the first frame, 1 at the last; both motions start at zero there and the unknown c absorbs it."""
        span = float(np.ptp(self.times))
        return np.asarray((times - self.times.min()) / (span if span > 0 else 1.0), np.float64)

    @cached_property
    def noise(self) -> Noise | None:
        """Variance and drift; None from a single frame.

        Where few frames and periods leave few degrees of freedom, variances of neighbouring frequencies are averaged:
        rows that are divided by too small a deviation by chance would outweigh all others.
        """
        n, periods, channels, count = self.spectrum.shape
        if n < 2:
            return None
        variances: list[Real] = []
        costs: list[Real] = []
        for _, basis, lam in self._motions:
            rho = _RHO if variances else np.array([0.0, *_RHO])
            spread = 1 + rho[:, None] * lam
            squares = np.zeros((len(rho), 2, channels, count))
            for period in range(periods):
                z = np.tensordot(basis, self.spectrum[:, period], axes=1)
                for part, values in enumerate((z.real, z.imag)):
                    squares[:, part] += np.tensordot(1 / spread, np.square(values), axes=1)
            variances.append(squares / (periods * (n - 1)))
            with np.errstate(divide="ignore"):
                costs.append(np.log(variances[-1]).sum(axis=1) + 2 * np.log(spread).mean(axis=1)[:, None, None])
        cost = np.concatenate(costs)
        # Motion is believed where the likelihood ratio says so at 5 %; noise alone would always find some.
        gained = cost.min(axis=0) < cost[0] - 3.84 / (periods * (n - 1))
        drift = np.where(gained, cost.argmin(axis=0), 0)
        variance = np.take_along_axis(np.concatenate(variances), drift[None, None], axis=0)[0]
        freedom = float(periods * (n - 1))
        width = min(2 * int(np.ceil((_ENOUGH / freedom - 1) / 2)) + 1, 2 * (count // 2) + 1)
        if width > 1:
            variance = scipy.ndimage.uniform_filter1d(variance, width, axis=-1, mode="nearest")
        return Noise(variance, drift, freedom * max(width, 1))

    def weights(self, at: NDArray[np.int64], mode: Background) -> list[Real]:
        """``(len(at), n)`` for each motion: the background of a row at those times is ``weights[drift] @ frames``.

        The first motion is none, then walks and lines from weak to strong.
        """
        n = len(self.times)
        mean = np.full((len(at), n), 1 / n)
        count = 1 + 2 * len(_RHO)
        if mode == "mean" or n == 1:
            return [mean] * count
        if mode == "interpolate":
            sizes = np.bincount(self.runs)
            centers = np.bincount(self.runs, weights=self.times) / sizes
            order = np.argsort(centers)
            share = np.stack([np.interp(at, centers[order], row[order]) for row in np.eye(len(sizes))], axis=1)
            return [(share / sizes)[:, self.runs]] * count
        result = [mean]
        t, s = self._since(self.times), self._since(at)
        for kernel, basis, lam in self._motions:
            inside = (
                s.clip(min=0) if kernel is np.minimum.outer else s
            )  # a walk's best guess before its start is its start
            projected = (kernel(inside, t) - kernel(t, t).mean(axis=0)) @ basis.T
            result += [mean + (rho * projected / (1 + rho * lam)) @ basis for rho in _RHO]
        return result

    def background(
        self,
        weights: list[Real],
        period: NDArray[np.int64],
        channel: NDArray[np.int64],
        frequency: NDArray[np.int64],
    ) -> NDArray[np.complex128]:
        """What to subtract from the rows with those indices, ``(times, rows)``, with what :meth:`weights` gave."""
        drift = self.drift(channel, frequency)
        result = np.empty((len(weights[0]), len(period)), np.complex128)
        for level in np.unique(drift):
            rows = drift == level
            result[:, rows] = weights[level] @ self.spectrum[:, period[rows], channel[rows], frequency[rows]]
        return result

    def noise_gain(self, weights: list[Real], channel: NDArray[np.int64], frequency: NDArray[np.int64]) -> Real:
        """``(times,)`` variance of the estimated background relative to one frame's, the mean over those rows."""
        share = np.bincount(self.drift(channel, frequency), minlength=len(weights)) / max(len(channel), 1)
        return np.asarray(sum(s * np.square(w).sum(axis=1) for s, w in zip(share, weights, strict=True)))

    def drift(self, channel: NDArray[np.int64], frequency: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(rows,)`` which of :meth:`weights` a row takes."""
        return np.zeros(len(channel), np.int64) if self.noise is None else self.noise.drift[channel, frequency]


def _finite(frames: Complex, source: str) -> Complex:
    bad = np.flatnonzero(~np.isfinite(frames).all(axis=(1, 2, 3)))
    if len(bad):
        raise DataError(f"{source}: background frame {bad[0]} holds NaN or infinite values ({len(bad)} such frames)")
    return frames
