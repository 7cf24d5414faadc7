"""The system function of one line angle: a function of the distance to the line alone.

Tabulated finely and interpolated, it turns the spectrum of any object into one small matrix product per angle, the
table times the object's projection onto the normal of the line, in place of a time signal per voxel and angle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

from pyrecon.physics.mpi.particles import Particles

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]

_STEP = 0.05  # of the table, in field scales
_BURST_NODES = 96  # Gauss-Legendre over the burst, exact to rounding for ten oscillations within it
_SLICE_NODES = 4  # Gauss-Legendre through the slice, two of them distinct


def harmonics_of_magnetization(
    particles: Particles, offset: ArrayLike, transverse: ArrayLike, drive: float, harmonics: NDArray[np.int64]
) -> Real:
    """Coefficients c_n of M(B + A cos phi) = sum_n c_n exp(i n phi): real, A/m, shape of B plus (harmonics,).

    c_n = 1/pi int_0^pi M(B + A cos phi) cos(n phi) dphi by the trapezoidal rule. B (``offset``) and the field across
    (``transverse``) broadcast; tesla.
    """
    offset, transverse = np.broadcast_arrays(np.asarray(offset, np.float64), np.asarray(transverse, np.float64))
    # M(B) has its poles pi field scales off the real axis, so c_n falls like exp(-n asinh(pi scale / A)); the rule
    # confuses n with 2 nodes - n, which leaves exp(-32) = 1e-14.
    decay = np.arcsinh(np.pi * particles.field_scale / drive)
    nodes = int(np.ceil(harmonics.max() + 16 / decay))
    phi = np.pi * np.arange(nodes + 1) / nodes
    basis = np.cos(phi[:, None] * harmonics) / nodes
    basis[[0, -1]] /= 2
    return np.asarray(particles.magnetization(offset[..., None] + drive * np.cos(phi), transverse[..., None]) @ basis)


@dataclass(frozen=True)
class SystemFunction:
    """Spectrum of the magnetisation of undiluted tracer against its distance xi to the centre of the line's sweep.

    S_nq(xi) = 2/T_b int_{-T_b/2}^{T_b/2} c_n(G xi + B_s 2t/T_b) exp(-2 pi i q t) dt

    in A/m, with the harmonics c_n of the magnetisation, averaged through the slice, where the selection field adds
    G z across. ``values`` is (harmonics, offsets q, nodes), node j at ``(j - nodes // 2) * step`` metres.
    """

    values: Complex
    step: float

    @staticmethod
    def tabulate(
        particles: Particles,
        *,
        gradient: float,
        drive: float,
        shift: float,
        harmonics: NDArray[np.int64],
        offsets: Real,
        burst: float,
        thickness: float,
        reach: float,
    ) -> SystemFunction:
        """``offsets`` q in Hz; ``reach`` is the largest distance that must be covered, metres."""
        # Cubic interpolation errs by 3/128 of the step^4 times the fourth derivative: 2e-8 of the saturation.
        step = _STEP * particles.field_scale / gradient
        half = int(np.ceil(reach / step)) + 2
        distance = np.arange(-half, half + 1) * step

        count = half + int(np.ceil(abs(shift) / (gradient * step))) + 2
        field = np.arange(-count, count + 1) * gradient * step
        z, weights = np.polynomial.legendre.leggauss(_SLICE_NODES)
        upper = z > 0  # both halves of the slice see the same
        coefficients = np.zeros((len(field), len(harmonics)))
        for height, weight in zip(z[upper], weights[upper], strict=True):
            transverse = gradient * height * thickness / 2
            coefficients += weight * harmonics_of_magnetization(particles, field, transverse, drive, harmonics)

        t, weights = np.polynomial.legendre.leggauss(_BURST_NODES)
        envelope = CubicSpline(field, coefficients)(gradient * distance[:, None] + shift * t)  # (X, t, harmonics)
        kernel = weights[:, None] * np.exp(-1j * np.pi * burst * t[:, None] * offsets)
        return SystemFunction(np.einsum("xtn,tq->nqx", envelope, kernel, optimize=True), step)

    def projection(
        self, distance: Real, weights: Real, columns: NDArray[np.int64], count: int
    ) -> scipy.sparse.csr_array:
        """Matrix (nodes, ``count``) that spreads points at ``distance`` (P,) over the nodes, by cubic interpolation.

        Point p adds to column ``columns[p]`` with ``weights[p]``, so that ``values @ projection`` is the spectrum of
        each column.
        """
        nodes = self.values.shape[-1]
        position = distance / self.step + nodes // 2
        first = np.clip(np.floor(position).astype(np.int64) - 1, 0, nodes - 4)
        u = position - first
        lagrange = (
            -(u - 1) * (u - 2) * (u - 3) / 6,
            u * (u - 2) * (u - 3) / 2,
            -u * (u - 1) * (u - 3) / 2,
            u * (u - 1) * (u - 2) / 6,
        )
        rows = np.concatenate([first + k for k in range(4)])
        data = np.concatenate([weights * w for w in lagrange])
        return scipy.sparse.csr_array((data, (rows, np.tile(columns, 4))), shape=(nodes, count))
