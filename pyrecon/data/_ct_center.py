"""Where the axis of rotation projects to, found from the projections themselves.

Two ways, both for parallel rays. Over half a turn: a projection seen from behind is its mirror image, so the sinogram
and its mirror image about the right centre make one of a whole turn, whose spectrum lies in a double wedge
``|k| <= 2 pi R |f|`` (angular order k, frequency f, an object of radius R); about a wrong one there are jumps, which
put energy outside. The centre with the least of it is the answer (Vo et al., Opt Express 22:19078, 2014). Over less:
the centre of mass moves on a sinusoid about the centre, which is fitted; that wants an object that is never cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # whose parts load when they are used: half a second of the start of every command
from numpy.typing import NDArray

Real = NDArray[np.floating[Any]]

_LEAST_ARC = math.radians(60)  # below it the sinusoid and its centre cannot be told apart
_VIEWS, _COARSE = 90, 128  # means of views and pixels until there are about so many: less noise, less time
_SMOOTH = 1.0  # pixels; a shift by half a pixel must not count as less noise


def find_center(sinogram: Real, angles: Real) -> tuple[float, str]:
    """The detector pixel (fractional, from 0) that the axis projects to, and the way it was found.

    Parameters
    ----------
    sinogram
        ``(S, A, D)`` line integrals of parallel rays; the slices are averaged.
    angles
        ``(A,)`` radians, ascending or descending.

    Returns
    -------
    center, way
        ``way`` is "mirrored sinogram", "centre of mass", or "assumed" for the middle of the detector where there is too
        little to go by. Within 0.1 pixels for simulated objects of 180 views with 1 % noise.
    """
    projections = np.asarray(sinogram, np.float64).mean(axis=0)
    middle = (projections.shape[1] - 1) / 2
    views = len(angles)
    arc = abs(float(angles[-1] - angles[0]))
    step = arc / max(1, views - 1)
    if not np.ptp(projections) > 0 or views < 3 or arc < _LEAST_ARC:
        return middle, "assumed"
    half = int(np.sum(np.abs(angles - angles[0]) < math.pi - step / 2))  # views of the first half turn
    if arc + step < math.pi - step / 2 or half < 8:
        return _of_mass(projections, angles), "centre of mass"
    return _of_mirror(projections[:half]), "mirrored sinogram"


def _of_mass(projections: Real, angles: Real) -> float:
    """c of the fit c + p cos a + q sin a to the centres of mass."""
    mass = projections.sum(axis=1)
    centers = projections @ np.arange(projections.shape[1]) / np.where(mass == 0, 1, mass)
    system = np.stack([np.ones(len(angles)), np.cos(angles), np.sin(angles)], axis=1)
    found = np.linalg.lstsq(system, centers, rcond=None)[0][0]
    return float(np.clip(found, 0, projections.shape[1] - 1))


def _of_mirror(projections: Real) -> float:
    smooth = scipy.ndimage.gaussian_filter1d(
        _binned(projections, len(projections) // _VIEWS), _SMOOTH, axis=1, mode="nearest"
    )
    smooth = smooth - np.minimum(smooth[:, :1], smooth[:, -1:]).mean()
    width = smooth.shape[1]
    bins = max(1, width // _COARSE)
    small = _binned(smooth.T, bins).T
    reach = max(2, small.shape[1] // 4)
    middle = (small.shape[1] - 1) / 2
    scale = width / small.shape[1]
    wide = min(middle + np.arange(-2 * reach, 2 * reach + 1) / 2, key=_energy_of(small))
    start = (wide + 0.5) * scale - 0.5
    energy = _energy_of(smooth)
    best = float(min(start + np.arange(-bins, bins + 1), key=energy))
    fine = scipy.optimize.minimize_scalar(
        energy, bounds=(best - 1, best + 1), method="bounded", options={"xatol": 0.01}
    )
    return float(fine.x)


def _energy_of(projections: Real) -> Callable[[float], float]:
    views, width = projections.shape
    outside = _outside(2 * views, width)

    def energy(center: float) -> float:
        # Mirrored about the centre: pixel i holds what was at 2 center - i.
        shift = 2 * center - (width - 1)
        mirrored = scipy.ndimage.shift(projections[:, ::-1], (0, shift), order=3, mode="constant")
        return float(np.abs(np.fft.fft2(np.concatenate([projections, mirrored]))[outside]).mean())

    return energy


def _binned(values: Real, count: int) -> Real:
    """Means of about ``count`` rows at a time, of all rows."""
    parts = np.array_split(values, max(1, len(values) // max(1, count)))
    return np.stack([part.mean(axis=0) for part in parts])


def _outside(views: int, width: int) -> NDArray[np.bool_]:
    """Coefficients outside the double wedge of an object as wide as the detector, low orders left out."""
    order = np.abs(np.fft.fftfreq(views, 1 / views))[:, None]
    frequency = np.abs(np.fft.fftfreq(width))[None, :]
    outside: NDArray[np.bool_] = (order > math.pi * width * frequency + 2) & (order > 4)
    return outside
