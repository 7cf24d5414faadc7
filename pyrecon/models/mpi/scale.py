"""The scale in which DEQ-MPI is stated, and the way of any system matrix and its data into it and back.

A learned model has seen images and noise of one strength only, so every problem is brought there first::

    A' = gain A      mean energy |a_i|^2 of the rows 0.34
    x' = x / unit    signals A' x' of root mean square 0.41 for a typical image
    y' = gain y / unit = A' x' + n',    sigma' = 0.41 * 10^(-SNR / 20),    |n'| about eps = sigma' sqrt(M)

(DEQ-MPI, sections IV-A and IV-D; the signals' strength is that of its training set. Its system matrix is not published;
0.34 is the row energy of one that gives such signals from images that peak near 1.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyrecon._errors import DataError
from pyrecon.models.mpi._system import FactoredSystem
from pyrecon.nn import RowLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrecon.data.mpi import MPISystem
    from pyrecon.data.raw import MPICalibration
    from pyrecon.models.deq_mpi import Problem

ROW_ENERGY = 0.34
SIGNAL_RMS = 0.41
_IMAGE_RMS = 0.2  # of images whose signals have that root mean square


def noise_std(snr_db: float) -> float:
    """Standard deviation of the noise in every real row of data in the model's scale, ``0.41 * 10^(-SNR / 20)``."""
    return SIGNAL_RMS * 10 ** (-snr_db / 20)


@dataclass(frozen=True)
class ScaledSystem:
    """A system matrix in the scale of the model.

    Attributes
    ----------
    matrix
        ``(M, N)`` ``A' = gain A``: M stacked real rows of mean energy 0.34.
    shape
        ``(H, W)`` of an image.
    gain
        What the whitened rows were multiplied by.
    unit
        Value of the images in the unit of the calibration (concentration of the undiluted tracer) that the model calls
        1: ``x = unit x'``.
    layout
        Where the rows lie in the scan, for a learned consistency; None where they are not known to form a grid.
    """

    matrix: Tensor
    shape: tuple[int, int]
    gain: float
    unit: float = 1.0
    layout: RowLayout | None = None

    @classmethod
    def of(cls, system: MPISystem, images: Tensor | None = None) -> ScaledSystem:
        """From a whitened system; ``images`` ``(B, H, W)`` are typical ones and set ``unit``.

        Raises
        ------
        DataError
            If the grid is not an image or the matrix is zero.
        """
        scaled = cls.of_matrix(system.matrix, system.grid.shape, images)
        return replace(scaled, layout=row_layout(system))

    @classmethod
    def of_matrix(cls, matrix: Tensor, shape: tuple[int, ...], images: Tensor | None = None) -> ScaledSystem:
        """The same from a bare real matrix ``(M, N)``; axes of ``shape`` with a single voxel are dropped."""
        gain = row_gain(matrix)
        scaled = cls(gain * matrix, image_shape(shape), gain)
        if images is None:
            return scaled
        rms = float((images.flatten(1).to(matrix) @ scaled.matrix.T).square().mean().sqrt())
        if not rms > 0 or not math.isfinite(rms):
            raise DataError(f"images: give signals of root mean square {rms}, nothing to scale by")
        return replace(scaled, unit=rms / SIGNAL_RMS)

    def data(self, y: Tensor) -> Tensor:
        """``(B, M)`` whitened data in the scale of the model."""
        return y * (self.gain / self.unit)

    def radius(self, snr_db: float) -> float:
        """``eps = sigma' sqrt(M)``: the norm of the noise at an SNR."""
        return noise_std(snr_db) * math.sqrt(len(self.matrix))

    def problem(self, snr_db: float | None = None) -> Problem:
        """All M rows for :class:`~pyrecon.models.DEQMPI`, its start cut off for noise at the SNR."""
        from pyrecon.models.deq_mpi import Problem

        cutoff = 1e-4 if snr_db is None else start_cutoff(self.matrix, noise_std(snr_db))
        return Problem(self.matrix, self.shape, cutoff=cutoff)


def row_gain(matrix: Tensor) -> float:
    """The factor that gives the rows of ``(M, N)`` a mean energy of 0.34."""
    energy = float(matrix.double().square().sum()) / max(len(matrix), 1)
    if not energy > 0 or not math.isfinite(energy):
        raise DataError(f"system matrix: mean energy of its rows is {energy}, nothing to scale by")
    return math.sqrt(ROW_ENERGY / energy)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """``(H, W)`` of a grid with at most two axes longer than one voxel; DataError otherwise."""
    axes = tuple(n for n in shape if n > 1)
    if len(axes) != 2:
        raise DataError(f"grid: shape {tuple(shape)} is not an image, DEQ-MPI denoises images of two axes")
    return axes[0], axes[1]


def row_layout(system: MPISystem) -> RowLayout | None:
    """Where the rows lie: (period, channel) x frequency, periods being the angles of a field-free line.

    All frequencies up to the last selected one are used. None where one record of one channel leaves no grid.
    """
    periods, channels, frequencies = system.calibration.spectrum.shape[:3]
    if periods * channels < 2 or len(system.rows) == 0:
        return None
    period, channel, frequency = torch.from_numpy(system.rows).T
    points = (period * channels + channel) * frequencies + frequency
    return RowLayout((periods * channels, frequencies), points, int(frequency.max()) + 1)


def rows_of(layout: RowLayout, calibration: MPICalibration) -> NDArray[np.int64]:
    """``(m, 3)`` rows of a calibration that lie as ``layout`` says, for :func:`pyrecon.data.mpi.prepare_system`.

    So a system matrix of another selection field gets the rows that a learned consistency was trained on. The inverse
    of :func:`row_layout`; DataError where the calibration's grid of (period, channel) x frequency is another.
    """
    periods, channels, frequencies = calibration.spectrum.shape[:3]
    if layout.grid != (periods * channels, frequencies):
        raise DataError(
            f"system matrix: has {periods * channels} x {frequencies} angles (or channels) x frequencies, the learned "
            f"consistency belongs to {layout.grid[0]} x {layout.grid[1]}"
        )
    points = layout.rows.cpu().numpy()
    group, frequency = np.divmod(points, frequencies)
    return np.stack([group // channels, group % channels, frequency], axis=1)


def compressed(system: FactoredSystem, snr_db: float | None = None, *, gain: float = 1.0) -> Problem:
    """``gain`` times the system in the ``r + 1`` coordinates of its data, for a model without learned consistency.

    With ``A = Q S V^T`` and data ``Q y_r + y_p``, every vector that the iteration of :class:`~pyrecon.models.DEQMPI`
    meets lies in the span of Q and y_p: ``A x`` does, the projection onto the ball moves towards y, and the dual starts
    at zero. In the basis ``(Q, y_p / |y_p|)`` it is the same iteration, image by image, with ``[S V^T; 0]`` for A and
    :meth:`FactoredSystem.coordinates` for data: 339 rows in place of 5,486.
    """
    from pyrecon.models.deq_mpi import Problem

    small = torch.cat([gain * system.s[:, None] * system.V.T, system.V.new_zeros(1, len(system.V))])
    cutoff = 1e-4 if snr_db is None else start_cutoff(small, noise_std(snr_db))
    return Problem(small, image_shape(system.shape), cutoff=cutoff)


def start_cutoff(matrix: Tensor, sigma: float) -> float:
    """Relative cut-off of the least-squares start: singular values whose noise is a tenth of a typical image stay out.

    On the simulated scanner at 25 dB a tenth of all enter. After 25 steps the image is 0.2 dB better than from all of
    them, at 15 dB 0.5, because the first steps need not remove noise; at the equilibrium there is no difference.
    """
    largest = float(torch.linalg.matrix_norm(matrix.double(), ord=2))
    return min(0.5, max(1e-4, 10 * sigma / (_IMAGE_RMS * largest)))


def published_start(problem: Problem) -> Problem:
    """The same with least squares from 250 of 338 singular values as published, of another rank in proportion.

    For models whose result depends on where they start. A network alone learns to tell noise from image, but not to
    guess what was cut off: trained at 35 dB it comes to 33.3 dB with these (600 steps) and to 23.8 with those of
    :func:`start_cutoff` (1000 steps). The equilibrium itself does not depend on it.
    """
    values = problem.A.singular_values()
    problem.cutoff = 1e-4
    problem.rank = round(250 / 338 * int((values > problem.cutoff * values[:1]).sum()))
    return problem
