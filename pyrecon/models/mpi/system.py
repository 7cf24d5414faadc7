"""A system matrix made ready, once: its scale, its factors, and what learned models take of it.

The scale
---------
A learned model has seen images and noise of one strength only, so every problem is brought there first::

    A' = gain A      mean energy |a_i|^2 of the rows 0.34
    x' = x / unit    signals A' x' of root mean square 0.41 for a typical image
    y' = gain y / unit = A' x' + n',    sigma' = 0.41 * 10^(-SNR / 20),    |n'| about eps = sigma' sqrt(M)

(DEQ-MPI, sections IV-A and IV-D; the signals' strength is that of its training set. Its system matrix is not published;
0.34 is the row energy of one that gives such signals from images that peak near 1.)

The factors
-----------
With the thin singular value decomposition ``A = Q S V^T`` (Q: M x r with orthonormal columns, r the rank) every datum
splits into ``y = Q y_r + y_p`` with ``y_p`` orthogonal to everything the model can produce. No norm ``|A x - y|`` ever
needs more than the r + 1 numbers ``(y_r, |y_p|)``::

    |A x - y|^2 = |S V^T x - y_r|^2 + |y_p|^2

They are ``y`` in the orthonormal basis (Q, y_p / |y_p|). For an MPI scan that is 5,486 numbers in 339.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrecon._check import FLOATING, check_count, check_dtype, check_like, check_number, check_shape, check_size
from pyrecon._errors import DataError
from pyrecon.linops import SystemMatrix
from pyrecon.nn import RowLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyrecon.data.mpi import MPISystem
    from pyrecon.data.raw import MPICalibration
    from pyrecon.models.deq_mpi import DEQMPI

State = tuple[Tensor, Tensor, Tensor]
ROW_ENERGY = 0.34
SIGNAL_RMS = 0.41
_LARGE = 2000  # rows and columns from which the Gram matrix is taken
_IMAGE_RMS = 0.2  # of images whose signals have that root mean square


class FactoredSystem:
    """A real system matrix, its factors, and the linear reconstructions that are read off them.

    Parameters
    ----------
    matrix
        ``(M, N)`` float32 or float64; complex rows stacked, real parts on top of imaginary parts.
    shape
        Shape of one image, ``prod(shape) == N``.
    spacing
        Distance of voxels along each axis, for methods that compare neighbours; None: the same along all.
    rank
        Where it is known that the matrix has no more singular values than that, what lies below is rounding.
    noisy
        Whether the matrix holds noise of its own, so that what is in its range may still be noise.

    Attributes
    ----------
    gain
        What brings the matrix into the scale of the learned models: a mean row energy of 0.34.
    Q, s, V
        ``(M, r)``, ``(r,)`` descending, ``(N, r)``; computed in float64 when first used, kept in the matrix's
        precision. Singular values below that precision (``eps * s[0]``) are rounding noise of the matrix itself, or of
        the factorisation, and are dropped; of a matrix with more than 2000 rows and columns, those below ``1e-6 s[0]``.
    """

    def __init__(
        self,
        matrix: Tensor,
        shape: tuple[int, ...],
        spacing: tuple[float, ...] | None = None,
        rank: int | None = None,
        noisy: bool = False,
    ) -> None:
        check_dtype("matrix", matrix, FLOATING)
        self._most = None if rank is None else check_count("rank", rank)
        shape = check_size("shape", shape)
        if spacing is not None and (len(spacing) != len(shape) or not all(0 < h < math.inf for h in spacing)):
            raise ValueError(f"spacing: {spacing}, expected a positive number for each axis of {shape}")
        check_shape("matrix", matrix, (None, math.prod(shape)), "(M, N) with N the size of an image")
        if not torch.isfinite(matrix).all():
            raise ValueError("matrix: holds NaN or infinite values")
        if not matrix.any():
            raise ValueError("matrix: is zero")
        self.matrix = matrix.contiguous()
        self.shape, self.spacing, self.noisy = shape, spacing, noisy

    @classmethod
    def normalised(
        cls,
        matrix: Tensor,
        shape: tuple[int, ...],
        spacing: tuple[float, ...] | None = None,
        rank: int | None = None,
        noisy: bool = False,
    ) -> tuple[FactoredSystem, float]:
        """The matrix in the scale of the learned models, once and for all, and the factor that brought it there."""
        gain = row_gain(matrix) if bool(matrix.any()) else 1.0
        system = cls(matrix * gain, shape, spacing, rank, noisy)
        system.gain = 1.0
        return system, gain

    @cached_property
    def gain(self) -> float:
        return row_gain(self.matrix)

    def factorise(self) -> None:
        """Compute the factors now rather than when they are first needed."""
        _ = self._factors

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.matrix.dtype
        if dtype == torch.float32 and min(self.matrix.shape) > _LARGE:
            q, s, v = (part[..., : self._most] for part in _by_gram(self.matrix.double()))
            return q.to(dtype).contiguous(), s.to(dtype), v.to(dtype).contiguous()
        q, s, vh = torch.linalg.svd(self.matrix.double(), full_matrices=False)
        noise = max(torch.finfo(dtype).eps, max(self.matrix.shape) * torch.finfo(torch.float64).eps)
        rank = int((s > noise * s[0])[: self._most].sum())
        return q[:, :rank].to(dtype).contiguous(), s[:rank].to(dtype), vh[:rank].T.to(dtype).contiguous()

    @property
    def Q(self) -> Tensor:
        return self._factors[0]

    @property
    def s(self) -> Tensor:
        return self._factors[1]

    @property
    def V(self) -> Tensor:
        return self._factors[2]

    @property
    def rank(self) -> int:
        return len(self.s)

    @property
    def denoised(self) -> bool:
        """Whether ``rank`` was given: what is beyond has been taken out as noise."""
        return self._most is not None

    def coordinates(self, y: Tensor) -> Tensor:
        """``(B, M)`` data to ``(B, r + 1)``: ``y_r``, then ``|y_p|``."""
        self.check_data(y)
        inside = y @ self.Q
        outside = torch.linalg.vector_norm(torch.addmm(y, inside, self.Q.T, alpha=-1), dim=1, keepdim=True)
        return torch.cat([inside, outside], dim=1)

    def check_data(self, y: Tensor) -> None:
        check_like("y", y, "matrix", self.matrix)
        check_shape("y", y, (None, self.matrix.shape[0]), "(B, M)")

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """``|A x - y|_2`` per sample, ``(B,)``, for images ``(B, N)``."""
        misfit = torch.addmm(y, x, self.matrix.T, beta=-1)
        return torch.linalg.vector_norm(misfit, dim=1)  # type: ignore[no-any-return]

    @property
    def spare_rows(self) -> int:
        """Rows beyond the rank: dimensions of the data that no image reaches."""
        return self.matrix.shape[0] - self.rank

    def noise_std(self, coordinates: Tensor) -> Tensor:
        """Of the noise in every element of y, ``(B,)``, from the part of y that no image explains.

        White noise leaves ``|y_p|^2 = sigma^2 (M - r)``. An error of the model counts as noise here, which is what the
        radius of acceptable misfit should do.
        """
        if self.spare_rows == 0:
            raise DataError(
                f"noise: a matrix of {len(self.matrix)} rows and rank {self.rank} leaves nothing to estimate noise "
                "from; give it, or background frames with the measurement or the system matrix"
            )
        return coordinates[:, -1] / math.sqrt(self.spare_rows)

    def truncated(self, coordinates: Tensor, *, rank: int | None = None, cutoff: float = 0.0) -> Tensor:
        """Truncated-SVD least squares ``(B, N)``: at most ``rank`` singular values, all at least ``cutoff * s[0]``."""
        if rank is not None and rank < 1:
            raise ValueError(f"rank: {rank} is not a number of singular values, expected at least 1")
        if not 0 <= cutoff <= 1:
            raise ValueError(f"cutoff: {cutoff} is not relative to the largest singular value, expected 0 to 1")
        keep = min(self.rank if rank is None else rank, int((self.s >= cutoff * self.s[0]).sum()))
        return torch.mm(coordinates[:, :keep] / self.s[:keep], self.V[:, :keep].T)

    def tikhonov(self, coordinates: Tensor, weights: Tensor | float) -> Tensor:
        """``argmin |A x - y|^2 + weight |x|^2``, ``(B, N)``.

        Many weights at once: ``(W,)``, or ``(W, B)`` with a weight of its own for each sample, give ``(W, B, N)``.
        """
        weight = torch.as_tensor(weights, dtype=self.s.dtype, device=self.s.device)
        if bool((weight < 0).any()):  # NaN passes: it is one sample's, whose image it makes NaN
            raise ValueError(f"weights: {float(weight.min()):g} is negative")
        if weight.dim() == 1:
            weight = weight[:, None]
        filtered = self.s / (self.s.square() + weight[..., None])
        return torch.matmul(coordinates[:, :-1] * filtered, self.V.T)


class Problem(nn.Module):
    """A system matrix made ready for :class:`~pyrecon.models.DEQMPI`: ``M = (I + c A^T A)^-1`` and the start.

    Both follow the matrix: where it is replaced, moved or written to (``load_state_dict``), they are made anew.

    Parameters
    ----------
    matrix
        ``(M, N)`` float32 or float64: real parts over imaginary parts, in the scale of the model.
    shape
        ``(H, W)`` of an image.
    cutoff
        Singular values below ``cutoff`` times the largest stay out of the start.
    rank
        At most so many singular values enter the start; DEQ-MPI takes 250 of 338 in training and 220 at inference.
    factors
        ``(U, s, V)`` with ``matrix = U diag(s) V^T``, where they are known: saves the decomposition.
    """

    def __init__(
        self,
        matrix: Tensor,
        shape: tuple[int, int],
        *,
        cutoff: float = 1e-4,
        rank: int | None = None,
        factors: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(matrix, Tensor) and matrix.is_complex():
            raise TypeError("matrix: is complex; stack its parts with SystemMatrix.stacked(matrix).matrix")
        check_dtype("matrix", matrix, FLOATING)
        check_size("shape", shape, 2)
        cutoff, rank = check_number("cutoff", cutoff), None if rank is None else check_count("rank", rank, 0)
        if cutoff >= 1:
            raise ValueError(f"cutoff: {cutoff} is not a fraction of the largest singular value, expected below 1")
        if matrix.dim() != 2 or matrix.shape[1] != shape[0] * shape[1]:
            raise ValueError(f"matrix: shape {tuple(matrix.shape)} does not fit images of {tuple(shape)}")
        self.A, self.shape, self.cutoff, self.rank = SystemMatrix(matrix), (shape[0], shape[1]), cutoff, rank
        if factors is not None:
            self.A.know_factors(*factors)

    def inverse(self, penalty: float = 1.0) -> Tensor:
        """M, computed once for each penalty."""

        def invert(wide: Tensor) -> Tensor:
            # In float64: the condition of I + c A^T A is beyond what a float32 factor bears. M itself is below 1.
            eye = torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device)
            factor = torch.linalg.cholesky(eye + penalty * (wide.T @ wide))
            inverse: Tensor = torch.cholesky_inverse(factor).to(self.A.matrix.dtype)
            return inverse

        return self.A.derived(f"inverse {penalty!r}", invert)

    def check_data(self, y: Tensor) -> None:
        """TypeError or ValueError unless y is ``(B, M)`` of the matrix's type and device."""
        check_like("y", y, "matrix", self.A.matrix)
        check_shape("y", y, (None, self.A.matrix.shape[0]), "(B, M)")

    def start(self, y: Tensor, x: Tensor | None = None) -> State:
        """Least squares (or ``x``, ``(B, N)`` or ``(B, H, W)``) with zero duals."""
        self.check_data(y)
        if x is None:
            x = self.A.pinv(y, rtol=self.cutoff, rank=self.rank)
        else:
            check_like("start", x, "y", y)
            x = x.flatten(1) if x.dim() == 3 and tuple(x.shape[1:]) == self.shape else x
            check_shape("start", x, (len(y), self.A.matrix.shape[1]), "(B, N) or (B, H, W)")
        return x, torch.zeros_like(x), torch.zeros_like(y)

    def step_of(self, model: DEQMPI) -> Any:
        """The model's step with this system matrix, a function of state, data and radius."""
        return lambda state, y, radius: model.step(self, state, y, radius)


def _by_gram(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(Q, s, V)`` of a float64 matrix by the eigenvectors of its smaller Gram matrix, in a third of an SVD's time.

    Squares of singular values come out to about 1e-16 of the largest, so those above ``1e-6 s[0]`` to 1e-4 or better.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    energies, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    keep = energies > 1e-12 * energies[-1]
    s, vectors = energies[keep].sqrt().flip(0), vectors[:, keep].flip(1)
    others = (matrix if tall else matrix.T) @ vectors / s
    return (others, s, vectors) if tall else (vectors.contiguous(), s, others)


# --- the scale ---------------------------------------------------------------------------------------------------
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
        problem = Problem(self.matrix, self.shape)
        if snr_db is not None:
            problem.cutoff = start_cutoff(float(problem.A.singular_values()[0]), noise_std(snr_db))
        return problem


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


def compressed(system: FactoredSystem, snr_db: float | None = None) -> Problem:
    """The system, in the scale of the model, in the ``r + 1`` coordinates of its data, where no data step is learned.

    With ``A = Q S V^T`` and data ``Q y_r + y_p``, every vector that the iteration of :class:`~pyrecon.models.DEQMPI`
    meets lies in the span of Q and y_p: ``A x`` does, the projection onto the ball moves towards y, and the dual starts
    at zero. In the basis ``(Q, y_p / |y_p|)`` it is the same iteration, image by image, with ``[S V^T; 0]`` for A and
    :meth:`FactoredSystem.coordinates` for data: 339 rows in place of 5,486.
    """
    s, V = system.gain * system.s, system.V
    small = torch.cat([s[:, None] * V.T, V.new_zeros(1, len(V))])
    basis = torch.eye(len(small), len(s), dtype=V.dtype, device=V.device)
    return Problem(small, image_shape(system.shape), cutoff=_cutoff(s, snr_db), factors=(basis, s, V))


def whole(system: FactoredSystem, snr_db: float | None = None) -> Problem:
    """The system, in the scale of the model, with all its rows, as a learned data step needs them."""
    s = system.gain * system.s
    matrix = system.matrix if system.gain == 1.0 else system.gain * system.matrix
    return Problem(matrix, image_shape(system.shape), cutoff=_cutoff(s, snr_db), factors=(system.Q, s, system.V))


def _cutoff(s: Tensor, snr_db: float | None) -> float:
    return 1e-4 if snr_db is None else start_cutoff(float(s[0]), noise_std(snr_db))


def start_cutoff(largest: float, sigma: float) -> float:
    """Relative cut-off of the least-squares start: singular values whose noise is a tenth of a typical image stay out.

    On the simulated scanner at 25 dB a tenth of all enter. After 25 steps the image is 0.2 dB better than from all of
    them, at 15 dB 0.5, because the first steps need not remove noise; at the equilibrium there is no difference.
    """
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
