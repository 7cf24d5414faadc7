r"""The noise of a calibration: what of it can be taken out of a system matrix, and what the rest does to images.

A system matrix is measured, and what is subtracted at every position, the empty scanner's record, is measured too and
shared by many positions. In units of the noise of a row (real and imaginary part apart), with the weights B (positions
x background frames) of :meth:`pyrecon.data._background.EmptyScanner.weights`, a calibration is::

    X = A + N (I + B B^T)^(1/2)        N white, of standard deviation 1

A signal A x errs by a number of variance ``|x|^2 + |B^T x|^2`` in every row. The second term is the larger
one for images, which have a sum, and it does the harm: few directions of images hold all of it, and stand out of the
white noise as a signal does.

The matrix without most of N, in three steps:

1. ``X (I + B B^T)^(-1/2)``: noise that is white again, so that what is shared is known as noise.
2. Where there are several periods or channels, the frequencies, as rows of (period, channel, position), are reduced to
   the directions whose singular values are above those of noise, ``sqrt(m) + sqrt(n)``: components of one harmonic see
   nearly the same thing, and averaging them is most of the gain.
3. Rows x positions: every singular value s of an m x n matrix becomes ``sqrt((s^2 - m - n)^2 - 4 m n) / s``, below
   ``sqrt(m) + sqrt(n)`` zero, which leaves the least error that any function of s can (Gavish and Donoho, Optimal
   shrinkage of singular values, IEEE Trans. Inf. Theory 63(4), 2017).

A Wiener filter of every row's image leaves a smaller error of the matrix and worse images: what counts are the
directions in which nothing but noise was left, and only a cut removes them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # whose parts load when they are used
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon.data._background import EmptyScanner
from pyrecon.data.raw import Complex, MPICalibration, Real

_FREQUENCIES = 4096  # of which a Gram matrix of complex doubles, 256 MB, is made
_POSITIONS = 8192  # of which one of doubles, 512 MB, is made
_SHARED = 1e-6  # variance relative to a position's own below which shared noise is rounding


@dataclass(frozen=True)
class MatrixError:
    """What a calibration's noise leaves unknown: a row errs by white noise times ``std (I + B B^T)^(1/2)``.

    Attributes
    ----------
    std
        In the unit of the system's rows; 1 is the noise of the data they are whitened by.
    shared
        B, ``(N, k)`` float32.
    rank
        Of a matrix from which noise was taken: it has no other singular values. None: as measured.
    removed_db
        By how much the energy of the matrix's error was reduced, as estimated without knowing the matrix.
    through
        ``(N, N')`` where columns were interpolated since: N' voxels act as the N measured positions ``through @ x``.
    """

    std: float
    shared: Tensor
    rank: int | None = None
    removed_db: float = 0.0
    through: Tensor | None = None

    @classmethod
    def none(cls, positions: int) -> MatrixError:
        """Of a matrix that is exact."""
        return cls(0.0, torch.zeros(positions, 0))

    def variance(self, images: Tensor) -> Tensor:
        """``std^2 (|x|^2 + |B^T x|^2)``: of the error of a row's signal, for images ``(B, N)``."""
        x = images if self.through is None else images @ self.through.to(images).T
        return self.std**2 * (x.square().sum(dim=1) + (x @ self.shared.to(x)).square().sum(dim=1))

    def interpolated(self, through: Tensor) -> MatrixError:
        """Of a matrix whose columns are combined: ``matrix @ through``."""
        return replace(self, through=through if self.through is None else self.through @ through)


def shrunk(energies: Real, m: int, n: int) -> Real:
    """Squares of the singular values of an m x n matrix with white noise of standard deviation 1, after step 3."""
    inside = np.maximum((energies - m - n) ** 2 - 4 * m * n, 0) / energies
    return np.where(energies >= (math.sqrt(m) + math.sqrt(n)) ** 2, inside, 0)


def without_noise(
    noise: CalibrationNoise, spectrum: Complex, scale: Real, denoise: bool
) -> tuple[Complex, MatrixError]:
    """The rows without the calibration's noise, as far as it is to be taken out, and what is left of it, in units of
    ``scale``."""
    deviation = float(np.sqrt(np.square(noise.std / scale).mean()))
    error = MatrixError(deviation, torch.from_numpy(np.ascontiguousarray(noise.shared, np.float32)))
    if denoise and spectrum.shape[1] > _POSITIONS:
        warnings.warn(
            f"system matrix: its noise is left in, {spectrum.shape[1]} positions are more than {_POSITIONS}",
            stacklevel=3,
        )
    elif denoise and (found := noise.removed()) is not None:
        spectrum, rank, reduction = found
        error = replace(error, rank=rank, removed_db=reduction)
    return spectrum, error


@dataclass
class CalibrationNoise:
    """A calibration in units of its own noise: what images see of it, and its rows without most of it.

    Parameters
    ----------
    calibration
        Its spectrum is read a period and channel at a time.
    empty
        Its background frames, at least two.
    weights
        How they are subtracted, of :meth:`EmptyScanner.weights`; None where they are not.
    rows
        ``(m, 3)`` period, channel and frequency of the rows that are wanted.

    Attributes
    ----------
    shared
        B of the rows together, ``(N, k)`` with orthogonal columns.
    std
        ``(2, m)`` of the noise in both parts of every row.
    """

    calibration: MPICalibration
    empty: EmptyScanner
    weights: list[Real] | None
    rows: NDArray[np.int64]

    def __post_init__(self) -> None:
        noise = self.empty.noise
        assert noise is not None
        self._deviations = np.sqrt(noise.variance)
        self.std = self._deviations[:, self.rows[:, 1], self.rows[:, 2]]
        self.shared = self._shared()
        self._frequencies, self._where = np.unique(self.rows[:, 2], return_inverse=True)
        periods, channels = range(self.calibration.spectrum.shape[0]), np.unique(self.rows[:, 1])
        self._groups = [(period, int(channel)) for period in periods for channel in channels]

    def _shared(self) -> Real:
        if self.weights is None:
            return np.zeros((self.calibration.grid.size, 0))
        share = np.bincount(self.empty.drift(*self.rows[:, 1:].T), minlength=len(self.weights)) / len(self.rows)
        parts = [math.sqrt(s) * w for s, w in zip(share, self.weights, strict=True) if s > 0]
        u, s, _ = np.linalg.svd(np.concatenate(parts, axis=1), full_matrices=False)
        keep = s**2 > _SHARED
        return np.asarray(u[:, keep] * s[keep])

    def removed(self) -> tuple[Complex, int, float] | None:
        """The rows ``(m, N)`` without noise, in the calibration's unit, their rank, and the reduction in dB of the
        error's energy; None where there is nothing to take out: no noise, or nothing else."""
        if not (np.isfinite(self.std) & (self.std > 0)).all():
            return None
        basis, n = self._directions(), self.calibration.grid.size
        parts = [basis.conj().T @ group for group in self._white()]
        gram = np.zeros((n, n))
        for part in parts:
            gram += part.real.T @ part.real + part.imag.T @ part.imag
        m = 2 * basis.shape[1] * len(self._groups)
        energies, vectors = scipy.linalg.eigh(gram, subset_by_value=((math.sqrt(m) + math.sqrt(n)) ** 2, np.inf))
        if not len(energies):
            return None
        kept = shrunk(energies, m, n)
        right = self._scaled(vectors.T, 0.5)
        values = np.empty((len(self.rows), n), np.complex128)
        for (period, channel), part in zip(self._groups, parts, strict=True):
            chosen = np.flatnonzero((self.rows[:, 0] == period) & (self.rows[:, 1] == channel))
            left = (part @ vectors) * (kept / energies) ** 0.5
            values[chosen] = (basis[self._where[chosen]] @ left) @ right
        values = values.real * self.std[0][:, None] + 1j * values.imag * self.std[1][:, None]

        # Of a kept value with the truth x, s^2 = (x^2 + m) (x^2 + n) / x^2, the error is x^2 less what it became; what
        # was cut off with the noise is what the total has beyond noise and truths.
        truths = (energies - m - n + (kept * energies) ** 0.5) / 2
        error = float((truths - kept).sum()) + max(0.0, float(np.trace(gram) - m * n - truths.sum()))
        noise = 2 * len(self._frequencies) * len(self._groups) * n
        return values, len(energies), 10 * math.log10(noise / error) if error > 0 else math.inf

    def _directions(self) -> Complex:
        """``(F, r)`` orthonormal: what frequencies consist of; all of them for a single period and channel."""
        count = len(self._frequencies)
        if len(self._groups) == 1 or count > _FREQUENCIES:
            return np.eye(count, dtype=np.complex128)
        gram = np.zeros((count, count), np.complex128)
        for group in self._white():
            gram += group @ group.conj().T
        energies, vectors = np.linalg.eigh(gram)
        edge = 2 * (math.sqrt(count) + math.sqrt(len(self._groups) * self.calibration.grid.size)) ** 2
        return np.asarray(vectors[:, energies > edge])

    def _white(self) -> Iterator[Complex]:
        """``(F, N)`` of each period and channel, with white noise of standard deviation 1 in both parts; zero where a
        row that was not asked for holds no numbers or no noise."""
        asked = np.zeros(self.calibration.spectrum.shape[:3], bool)
        asked[tuple(self.rows.T)] = True
        for period, channel in self._groups:
            values = self.calibration.spectrum[period, channel, self._frequencies]
            if self.weights is not None:
                index = (np.full_like(self._frequencies, period), np.full_like(self._frequencies, channel))
                values = values - self.empty.background(self.weights, *index, self._frequencies).T
            real, imaginary = self._deviations[:, channel, self._frequencies, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                values = values.real / real + 1j * (values.imag / imaginary)
            wanted = asked[period, channel, self._frequencies] | np.isfinite(values).all(axis=1)
            yield self._scaled(np.where(wanted[:, None], values, 0), -0.5)

    def _scaled(self, values: NDArray[Any], power: float) -> NDArray[Any]:
        """``values (I + B B^T)^power``; the columns of B are orthogonal."""
        energy = np.square(self.shared).sum(axis=0)
        return np.asarray(values + ((values @ self.shared) * (((1 + energy) ** power - 1) / energy)) @ self.shared.T)
