"""Readouts that are sampled while the gradient still rises or falls already (echo-planar imaging), on a uniform grid.

The samples are equally far apart in time, not in k-space: where each lies is the integral of the gradient. What is
sought is the image along the readout that they are the Fourier transform of, by least squares on the pixels that the
widest step between samples can tell apart; its uniform k-space takes their place. With x the pixels of W and k in steps
of their k-space::

    s_i = W^(-1/2) sum_x exp(-2 pi i k_i x / W) u_x,      |x| < W / (2 max |k_(i+1) - k_i|)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pyrecon._errors import DataError
from pyrecon.io._files import PathLike
from pyrecon.io._readouts import Readout

Real = NDArray[np.float64]

MOST_SAMPLES = 4096  # of a readout: a matrix of as many rows and columns is inverted
_LEAST = 1e-2  # of the largest singular value: what less is told by the samples is left zero
_FELT = 0.25  # turns of the phase that an image off the centre gets on the ramps


@dataclass(frozen=True)
class Ramp:
    """A gradient of a ramp, a flat top and a ramp, and when it is sampled: times in microseconds, from its beginning.

    Attributes
    ----------
    up, flat, down
        How long the gradient rises, stays and falls.
    delay, duration
        When sampling begins and how long it takes, all ``samples`` alike; each counts as taken in its middle.
    columns, kept
        W, and of these the pixels of the image.
    sine
        Whether ramps are a quarter of a sine's period, else straight.
    """

    up: float
    flat: float
    down: float
    delay: float
    duration: float
    samples: int
    columns: int
    kept: int
    sine: bool = False

    def problem(self) -> tuple[str, str] | None:
        """What was found and what is expected, where nothing can be resampled by it."""
        times = (self.up, self.flat, self.down, self.delay, self.duration)
        if not (all(math.isfinite(t) and 0 <= t < 1e6 for t in times) and self.duration > 0):
            return f"times of {', '.join(f'{t:g}' for t in times)} us", "numbers from 0 to 1e6"
        if not 2 <= self.samples <= MOST_SAMPLES or not 2 <= self.columns <= MOST_SAMPLES:
            return f"{self.samples} samples for {self.columns} columns", f"2 to {MOST_SAMPLES}"
        whole, end = self.up + self.flat + self.down, self.delay + self.duration
        if end > whole + self.duration / self.samples:
            return f"sampling until {end:g} us of a gradient that lasts {whole:g} us", "it to end before"
        if self._pixels < self.kept:
            step = float(np.diff(self.positions).max())
            return f"samples {step:.3g} steps apart, for {self._pixels} pixels", f"the {self.kept} of the image"
        return None

    @property
    def is_uniform(self) -> bool:
        """Whether all samples are taken on the flat top."""
        return bool(self.up <= self.delay and self.delay + self.duration <= self.up + self.flat)

    @cached_property
    def positions(self) -> Real:
        """Of the samples in k-space, in steps from its centre, which half the gradient's area leads to."""
        area = self._area(self._times)
        return np.asarray(self._steps * (area - self._area(self.up + self.flat + self.down) / 2))

    @cached_property
    def detours(self) -> Real:
        """By how many steps the flat top's gradient alone would be elsewhere: a receiver that is tuned to an image off
        the centre follows that one."""
        grid = np.linspace(0, self.up + self.flat + self.down, 4097)  # when the centre is reached
        middle = float(np.interp(self._area(grid[-1]) / 2, self._area(grid), grid))
        return np.asarray(self._steps * (self._times - middle) - self.positions)

    @property
    def noise(self) -> float:
        """Noise power of a pixel of the image, over that of an image of as many uniform samples."""
        weights, column = _matrix(self, 0, self.samples, False)
        whole = np.zeros((self.columns, self.samples), complex)
        whole[column : column + len(weights)] = weights
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(whole, axes=0), axis=0, norm="ortho"), axes=0)
        first = self.columns // 2 - self.kept // 2
        return float((np.abs(image[first : first + self.kept]) ** 2).sum() / self.kept)

    @property
    def facts(self) -> dict[str, str]:
        """What a report says."""
        form = "sinusoidal" if self.sine else "straight"
        return {
            "ramp_sampling": f"{self.samples} samples resampled: {form} ramps of {self.up:g} and {self.down:g} us, "
            f"a flat top of {self.flat:g} us, sampled from {self.delay:g} to {self.delay + self.duration:g} us"
        }

    @property
    def _times(self) -> Real:
        return np.asarray(self.delay + (np.arange(self.samples) + 0.5) * self.duration / self.samples)

    @property
    def _steps(self) -> float:
        """For an area of 1: what is sampled covers all of the matrix."""
        covered = self._area(self.delay + self.duration) - self._area(self.delay)
        return self.columns / max(float(covered), 1e-9)

    @property
    def _pixels(self) -> int:
        return min(self.columns, math.floor(self.columns / max(float(np.diff(self.positions).max()), 1e-9) + 1e-6))

    def _area(self, time: float | Real) -> Real:
        """Under the gradient, whose flat top is 1, until ``time``."""
        t = np.asarray(time, np.float64)
        left = (self.up + self.flat + self.down - t).clip(0, self.down)
        falling = self._rise(np.asarray(self.down), self.down) - self._rise(left, self.down)
        return np.asarray(self._rise(t.clip(0, self.up), self.up) + (t - self.up).clip(0, self.flat) + falling)

    def _rise(self, time: Real, length: float) -> Real:
        """Area of a ramp from its foot."""
        if length == 0:
            return np.zeros_like(time)
        if self.sine:
            return np.asarray(2 * length / np.pi * (1 - np.cos(np.pi / 2 * time / length)))
        return np.asarray(time**2 / (2 * length))

    def resampled(self, r: Readout, off_center: float = 0.0) -> Readout:
        """A readout, whose ``column`` is the number of its first sample, on the grid; ``off_center`` is how far the
        image lies off the scanner's centre along it, in fields of view of the whole readout."""
        count = r.data.shape[1]
        weights, column = _matrix(self, r.column, count, r.backwards)
        detours = -self.detours[::-1] if r.backwards else self.detours
        turn = np.exp(2j * np.pi * off_center * detours[r.column : r.column + count])
        with np.errstate(over="ignore", invalid="ignore"):  # of samples that the file is refused for later
            data = (r.data * turn) @ weights.T
        return r._replace(data=np.asarray(data, np.complex64), column=column)


@lru_cache(maxsize=64)
def _matrix(ramp: Ramp, first: int, count: int, backwards: bool) -> tuple[NDArray[np.complex128], int]:
    """From some of the samples, left to right, to the columns that they span; and the first of these."""
    k = ramp.positions
    k = (-k[::-1] if backwards else k)[first : first + count]
    x = np.arange(ramp._pixels) - ramp._pixels // 2
    inverse = np.linalg.pinv(_waves(k, x, ramp.columns), rcond=_LEAST)
    grid = np.arange(ramp.columns) - ramp.columns // 2
    inside = np.flatnonzero((grid >= k[0] - 0.5) & (grid <= k[-1] + 0.5))
    return _waves(grid[inside].astype(float), x, ramp.columns) @ inverse, int(inside[0])


def _waves(k: Real, x: NDArray[np.int64], columns: int) -> NDArray[np.complex128]:
    return np.asarray(np.exp(-2j * np.pi * np.outer(k, x) / columns) / math.sqrt(columns))


def uniform(
    path: PathLike, ramp: Ramp | None, readouts: Sequence[Readout], width: float, against: bool, notes: list[str]
) -> list[Readout]:
    """The readouts on the grid, as they are without a ramp; ``width`` of the whole readout's field of view in metres.

    Images off the centre along the readout were measured with a frequency that does not follow the ramps: that is
    undone where they run ``against`` the scanner's axes, as Siemens' do, and told of otherwise.
    """
    if ramp is None:
        return list(readouts)
    found, largest = [], 0.0
    reach = float(np.abs(ramp.detours).max())
    for r in readouts:
        if not 0 <= r.column < r.column + r.data.shape[1] <= ramp.samples:
            raise DataError(
                f"{path}: a readout sampled on gradient ramps has samples {r.column} to "
                f"{r.column + r.data.shape[1] - 1}, expected {ramp.samples} as the trajectory describes"
            )
        off = 0.0
        if r.frame is not None and r.frame.is_sound:
            off = float(np.dot(r.frame.position, r.frame.read)) / width
        largest = max(largest, abs(off) * reach)
        found.append(ramp.resampled(r, off if against else 0.0))
    if largest > _FELT and not against:
        notes.append(
            f"the image lies off the centre along a readout that was sampled on gradient ramps: up to {largest:.2g} "
            "turns of phase that only Siemens scanners are known to leave are not undone; it may be blurred"
        )
    return found


# ---- Siemens' protocols

# One value for each kind of readout, that of images first.
_TIMES = (
    "alRegridRampupTime", "alRegridFlattopTime", "alRegridRampdownTime", "alRegridDelaySamplesTime",
    "aflRegridADCDuration",
)  # fmt: skip
_UNIFORM, _TRAPEZOID, _SINE = 1, 2, 4


def siemens_is_ramped(path: PathLike, said: Callable[[str], str | None]) -> bool:
    """Whether image readouts are sampled on gradient ramps; ``said(name)`` is the text of a parameter."""
    modes = [int(mode) for mode in (said("alRegridMode") or "").split() if mode.isdecimal() and len(mode) < 10]
    if not any(mode > _UNIFORM for mode in modes):
        return False
    if modes[0] not in (_TRAPEZOID, _SINE):
        raise DataError(
            f"{path}: protocol alRegridMode: {' '.join(map(str, modes[:8]))}, readouts sampled on gradient ramps, "
            f"expected {_TRAPEZOID} (a trapezoid) or {_SINE} (sinusoidal ramps) for the image"
        )
    return True


def siemens_ramp(
    path: PathLike, said: Callable[[str], str | None], samples: int, columns: int, kept: int
) -> Ramp | None:
    """The gradient of image readouts of so many samples; None where all of them are taken on its flat top."""
    values = []
    for name in _TIMES:
        text = (said(name) or "").split()
        try:
            values.append(float(text[0]))
        except (IndexError, ValueError):
            raise DataError(
                f"{path}: protocol {name}: {' '.join(text)[:80]!r}, expected a number: readouts are sampled on "
                "gradient ramps (alRegridMode)"
            ) from None
    up, flat, down, delay, duration = values
    sine = (said("alRegridMode") or "").split()[0] == str(_SINE)
    ramp = Ramp(up, flat, down, delay, duration, samples, columns, kept, sine)
    if ramp.is_uniform:
        return None
    problem = ramp.problem()
    if problem:
        raise DataError(
            f"{path}: protocol {_TIMES[0]} and others, of gradient ramps: {problem[0]}, expected {problem[1]}"
        )
    return ramp
