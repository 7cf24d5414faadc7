"""The system function of one line angle: a function of the distance to the line alone.

It is tabulated finely, reduced to the few independent shapes that it consists of, and interpolated: a spectrum at a
point then costs four multiplications per shape in place of a time signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
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
    G z across. S = ``mixing`` (components, shapes) @ shapes; ``shapes`` is (nodes, shapes), its node j at
    ``(j - nodes // 2) * step`` metres. Without a shift each harmonic has one shape, with one a few.
    """

    mixing: Complex
    shapes: Real
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
        envelope = CubicSpline(field, coefficients)(gradient * distance[:, None] + shift * t)  # (nodes, t, harmonics)
        kernel = weights[:, None] * np.exp(-1j * np.pi * burst * t[:, None] * offsets)
        parts = np.concatenate([kernel.real, kernel.imag], axis=1)
        mixing, shapes = zip(*(_factors(parts.T @ envelope[:, :, n].T) for n in range(len(harmonics))), strict=True)
        split = scipy.linalg.block_diag(*mixing).reshape(len(harmonics), 2, len(offsets), -1)
        complex_mixing = (split[:, 0] + 1j * split[:, 1]).reshape(len(harmonics) * len(offsets), -1)
        return SystemFunction(complex_mixing, np.ascontiguousarray(np.concatenate(shapes).T), step)

    def at(self, distance: Real) -> Real:
        """The shapes at ``distance`` (P,) metres, (P, shapes), by cubic interpolation."""
        nodes = len(self.shapes)
        position = distance / self.step + nodes // 2
        first = np.clip(np.floor(position).astype(np.int64) - 1, 0, nodes - 4)
        u = position - first
        lagrange = np.stack(
            [
                -(u - 1) * (u - 2) * (u - 3) / 6,
                u * (u - 2) * (u - 3) / 2,
                -u * (u - 1) * (u - 3) / 2,
                u * (u - 1) * (u - 2) / 6,
            ],
            axis=1,
        )
        columns = first[:, None] + np.arange(4)
        starts = np.arange(0, 4 * len(distance) + 1, 4)
        rows = scipy.sparse.csr_array((lagrange.ravel(), columns.ravel(), starts), shape=(len(distance), nodes))
        return np.asarray(rows @ self.shapes)


def _factors(table: Real) -> tuple[Real, Real]:
    """``table`` (a, nodes) as a product (a, r) @ (r, nodes) of its numerical rank r."""
    u, s, v = np.linalg.svd(table, full_matrices=False)
    rank = max(1, int(np.sum(s > 1e-13 * s[0])))
    return u[:, :rank] * s[:rank], v[:rank]
