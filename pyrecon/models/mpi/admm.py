r"""l1-, TV- and Hyb-ADMM: minimise R(x) over images that explain the data to within the noise.

The problem is ``min R(x)  s.t.  |A x - y|_2 <= radius`` (and ``x >= 0``), DEQ-MPI Eq. 2, with a radius that is stated
where it acts, in the range of A (:meth:`pyrecon.models.mpi.method.Data.ball`). ADMM with one copy ``z0`` of
``A x``, one copy ``z_i`` of ``x`` per term of R (p of them), and scaled duals ``d`` iterates (Eqs. 5-9)::

    z0  = proj(A x - d0)                             onto the ball of radius around y
    z_i = prox_i(x - d_i)
    x   = M (A^T (z0 + d0) + sum_i (z_i + d_i))      M = (p I + A^T A)^-1
    d0  = d0 + z0 - A x
    d_i = d_i + z_i - x

The same in r + 1 dimensions, exactly
-------------------------------------
Take the thin factorisation ``A = Q S V^T`` and ``y = Q y_r + y_p`` with ``Q^T y_p = 0``. Start from ``d0 = 0`` and
suppose ``d0 = Q d_r + (u - 1) y_p`` with a number u, so u = 1 at first. Then::

    A x - d0 - y = Q (S V^T x - d_r - y_r) - u y_p

The ball step scales that vector by ``s = min(1, radius / sqrt(|S V^T x - d_r - y_r|^2 + u^2 |y_p|^2))``, so the new
dual ``d0 + z0 - A x`` is again of the supposed form, with ``u <- 1 + u (1 - s)``. By induction nothing ever leaves the
span of Q and y_p. In its orthonormal basis the data are ``(y_r, |y_p|)``, the model is ``S V^T`` with a zero last row,
the ball keeps its radius, and ADMM is the iteration above with M = 5,486 replaced by r + 1 <= 339: the very same
images. A ball in the range of A is the same with ``y_p = 0``.

In the basis V of the image the solve is diagonal, ``V^T x = (S (z_r + d_r) + V^T w) / (p + S^2)`` with
``w = sum_i (z_i + d_i)``, and outside of it ``x = w / p``. So an iteration takes two products with V, N x r, in place
of two with A, M x N, and one with M, N x N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from pyrecon._check import check_count, check_number
from pyrecon._threads import PRODUCTS, one_thread_if_small
from pyrecon.models.method import Progress
from pyrecon.models.mpi.method import KAPPA, Data, MPIMethod
from pyrecon.models.mpi.system import FactoredSystem
from pyrecon.models.mpi.variation import Variation
from pyrecon.ops import project_l2_ball, soft_threshold
from pyrecon.ops._variation import MAX_ITERATIONS
from pyrecon.solvers import Solution, Status

Spacing = tuple[float, ...] | None
_CHECK = 5  # iterations between stop tests: each one synchronises with the device


@dataclass
class ADMMState:
    """Where a run ended: image (B, N), image duals (p, B, N), data dual in coordinates (B, r + 1)."""

    x: Tensor
    duals: Tensor
    data_dual: Tensor


@dataclass(frozen=True)
class _BallADMM(MPIMethod):
    """What the three methods share.

    Attributes
    ----------
    mu
        Step: the terms of R enter their proximal maps with weight 1 / mu. At convergence the image does not depend on
        it; after a fixed number of iterations it decides how far the data have been followed.
    iterations
        The most iterations.
    tol
        Stop a sample when ``|change| / (|state| + 1e-5)`` over image and duals is at most this; 0 runs all iterations.
    nonneg
        Whether images must not be negative.
    kappa
        Of the ball: the misfit in the range of A as a multiple of the noise expected there.
    epsilon
        The radius as a multiple of the noise's norm in all of the data, as published; then kappa plays no part.
    cutoff
        Start from truncated-SVD least squares with this relative cut-off; None starts from zero.
    """

    mu: float
    iterations: int
    tol: float = 0.0
    nonneg: bool = True
    kappa: float = KAPPA
    epsilon: float | None = None
    cutoff: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mu > 0:
            raise ValueError(f"mu: {self.mu} is not positive")
        if self.iterations < 0:
            raise ValueError(f"iterations: {self.iterations} is negative")
        check_number("kappa", self.kappa)
        if self.epsilon is not None:
            check_number("epsilon", self.epsilon)
        if self.cutoff is not None and not 0 <= self.cutoff <= 1:
            raise ValueError(f"cutoff: {self.cutoff} is not relative to the largest singular value, expected 0 to 1")

    def _terms(self, shape: tuple[int, ...], spacing: Spacing = None) -> list[_Term]:
        raise NotImplementedError

    def _solve(
        self, system: FactoredSystem, data: Data, start: ADMMState | None, progress: Progress
    ) -> tuple[Solution[Tensor], ADMMState]:
        coordinates, terms = data.coordinates, self._terms(system.shape, system.spacing)
        center, radius = data.ball(self.kappa) if self.epsilon is None else (coordinates, self.epsilon * data.noise)
        if start is None:
            x = system.truncated(coordinates, cutoff=self.cutoff) if self.cutoff is not None else None
            start = _zero_state(system, coordinates, len(terms), x)
        # A second thread saves nothing of products this small; beside a busy process they take 100 times as long.
        with one_thread_if_small(coordinates.numel() * max(1, len(system.V) // PRODUCTS)):
            solution, state = _iterate(system, center, radius, terms, start, self.iterations, self.tol)
        if self.nonneg:  # x lies between its copies, which are not negative, and may still be by a little
            solution = replace(solution, value=solution.value.clamp(min=0))
        return solution, state

    def carry(self, state: ADMMState, last: Tensor, count: int) -> ADMMState:
        x, duals, data_dual = state.x[last], state.duals[:, last], state.data_dual[last]
        return ADMMState(x.repeat(count, 1), duals.repeat(1, count, 1), data_dual.repeat(count, 1))


@dataclass(frozen=True)
class L1ADMM(_BallADMM):
    """``min |x|_1``, for images with few bright pixels.

    Its ball is larger than that of the others: what voxels and model get wrong costs the smooth penalties a blur, and
    this one bright pixels.
    """

    mu: float = 250.0
    iterations: int = 200
    kappa: float = 1.5
    name: ClassVar[str] = "l1-ADMM"

    def _terms(self, shape: tuple[int, ...], spacing: Spacing = None) -> list[_Term]:
        return [_Sparse(1 / self.mu, self.nonneg)]

    @classmethod
    def paper(cls, snr_db: float) -> Self:
        """As printed in DEQ-MPI section IV-A."""
        return cls(mu=250.0, iterations=200, epsilon=1.0)

    @classmethod
    def released(cls, snr_db: float) -> Self:
        """As in the authors' program: threshold 1/50, least-squares start."""
        return cls(mu=50.0, iterations=200, epsilon=1.0, cutoff=_RELEASED_CUTOFF)


@dataclass(frozen=True)
class TVADMM(_BallADMM):
    """``min TV(x)``, for images and volumes made of flat patches, the sides of voxels taken into account.

    ``inner_iterations`` and ``isotropic`` are those of :func:`pyrecon.ops.tv_prox`.
    """

    mu: float = 50.0
    iterations: int = 100
    isotropic: bool = True
    inner_iterations: int = 10
    name: ClassVar[str] = "TV-ADMM"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("inner_iterations", self.inner_iterations, 1, MAX_ITERATIONS)

    def _terms(self, shape: tuple[int, ...], spacing: Spacing = None) -> list[_Term]:
        return [Variation(shape, 1 / self.mu, self.inner_iterations, self.isotropic, self.nonneg, spacing)]

    @classmethod
    def paper(cls, snr_db: float) -> Self:
        """As printed in DEQ-MPI section IV-A; the proximal map's own iterations are not given there."""
        return cls(mu=50.0, iterations=100, epsilon=1.0)

    @classmethod
    def released(cls, snr_db: float) -> Self:
        """As in the authors' program: weight 1/250, anisotropic, 10 inner iterations, least-squares start.

        Their differences wrap around the image borders, ours do not.
        """
        return cls(mu=250.0, iterations=100, isotropic=False, epsilon=1.0, cutoff=_RELEASED_CUTOFF)


@dataclass(frozen=True)
class HybADMM(_BallADMM):
    """``min alpha |x|_1 + (1 - alpha) TV(x)`` with a copy of the image for each term."""

    mu: float = 10.0
    iterations: int = 100
    alpha: float = 0.8
    isotropic: bool = True
    inner_iterations: int = 10
    name: ClassVar[str] = "Hyb-ADMM"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: {self.alpha} is not a share, expected 0 to 1")
        check_count("inner_iterations", self.inner_iterations, 1, MAX_ITERATIONS)

    def _terms(self, shape: tuple[int, ...], spacing: Spacing = None) -> list[_Term]:
        return [
            _Sparse(self.alpha / self.mu, self.nonneg),
            Variation(shape, (1 - self.alpha) / self.mu, self.inner_iterations, self.isotropic, self.nonneg, spacing),
        ]

    @classmethod
    def paper(cls, snr_db: float) -> Self:
        """As printed in DEQ-MPI section IV-A: alpha 0.1 below 20 dB, 0.8 below 30 dB, 0.9 from there."""
        alpha = 0.1 if snr_db < 20 else 0.8 if snr_db < 30 else 0.9
        return cls(mu=10.0, iterations=100, alpha=alpha, epsilon=1.0)

    @classmethod
    def released(cls, snr_db: float) -> Self:
        """As in the authors' program: anisotropic, least-squares start."""
        alpha = cls.paper(snr_db).alpha
        return cls(mu=10.0, iterations=100, alpha=alpha, isotropic=False, epsilon=1.0, cutoff=_RELEASED_CUTOFF)


_RELEASED_CUTOFF = 1e-3  # they keep 220 singular values of a matrix of theirs; a relative cut-off carries over


class _Term(Protocol):
    """One term of R: its proximal map, and which samples are still in the batch."""

    def prox(self, v: Tensor, out: Tensor) -> Tensor: ...

    def keep(self, stay: Tensor) -> None: ...


class _Sparse:
    def __init__(self, weight: float, nonneg: bool) -> None:
        self.weight, self.nonneg = weight, nonneg

    def prox(self, v: Tensor, out: Tensor) -> Tensor:
        return soft_threshold(v, self.weight, nonneg=self.nonneg, out=out)

    def keep(self, stay: Tensor) -> None:
        pass


def _zero_state(system: FactoredSystem, coordinates: Tensor, splits: int, x: Tensor | None) -> ADMMState:
    batch, n = len(coordinates), system.V.shape[0]
    zeros = coordinates.new_zeros((splits, batch, n))
    return ADMMState(torch.zeros_like(zeros[0]) if x is None else x, zeros, torch.zeros_like(coordinates))


def _iterate(
    system: FactoredSystem,
    center: Tensor,
    radius: Tensor,
    terms: Sequence[_Term],
    start: ADMMState,
    iterations: int,
    tol: float,
) -> tuple[Solution[Tensor], ADMMState]:
    """ADMM in coordinates. Samples that meet ``tol`` leave the batch and cost nothing more."""
    p, r, vt = len(terms), system.rank, system.V.T
    damping = 1 / (p + system.s.square())
    ended, final = _unfinished(start, iterations)

    active = torch.arange(len(center), device=center.device)
    # NaN lies in no ball, but the projection lets it pass; the image shows it.
    usable = torch.isfinite(center).all(dim=1) & torch.isfinite(radius)
    x, d, e = torch.where(usable[:, None], start.x, torch.nan), start.duals.clone(), start.data_dual.clone()
    ax = torch.zeros_like(e)  # A x; its last coordinate stays zero
    torch.mul(x @ system.V, system.s, out=ax[:, :r])
    before = (x.clone(), d.clone(), e.clone())
    v, z0, w, z, vt_w, vt_x = (torch.empty_like(t) for t in (e, e, x, x, e[:, :r], e[:, :r]))
    # For one image a call costs more than its arithmetic, so views are taken once and a sum over one term is skipped.
    duals, e_r, ax_r = list(d), e[:, :r], ax[:, :r]

    for k in range(1, iterations + 1):
        test = k == iterations or (tol > 0 and k % _CHECK == 0)
        if test:
            before[0].copy_(x), before[1].copy_(d), before[2].copy_(e)
        e += project_l2_ball(torch.sub(ax, e, out=v), center, radius, out=z0)  # z0 + d0
        for d_i, term in zip(duals, terms, strict=True):
            d_i += term.prox(torch.sub(x, d_i, out=w), z)  # z_i + d_i
        total = duals[0] if p == 1 else torch.sum(d, dim=0, out=w)
        torch.mm(total, system.V, out=vt_w)
        torch.addcmul(vt_w, e_r, system.s, out=vt_x).mul_(damping)
        torch.mul(vt_x, system.s, out=ax_r)
        torch.addmm(total, vt_x.sub_(vt_w, alpha=1 / p), vt, beta=1 / p, out=x)
        e -= ax
        d -= x
        if not test:
            continue

        change = _norm(x - before[0], d - before[1], e - before[2])
        residual = change / (_norm(x, d, e) + 1e-5)
        leave = ~(residual > tol)  # converged, or not a number
        if k == iterations:
            leave.fill_(True)
        if not bool(leave.any()):
            continue
        gone, stay = active[leave], ~leave
        final.x[gone], final.duals[:, gone], final.data_dual[gone] = x[leave], d[:, leave], e[leave]
        ended.iterations[gone] = k
        ended.residual[gone] = residual[leave]
        ended.status[gone] = _status(residual[leave], tol)
        active = active[stay]
        if len(active) == 0:
            break
        n = len(active)
        for term in terms:
            term.keep(stay)
        x, d, e, ax = x[stay], d[:, stay], e[stay], ax[stay]
        center, radius = center[stay], radius[stay]
        before = (before[0][:n], torch.empty_like(d), before[2][:n])
        v, z0, w, z, vt_w, vt_x = (buffer[:n] for buffer in (v, z0, w, z, vt_w, vt_x))
        duals, e_r, ax_r = list(d), e[:, :r], ax[:, :r]
    return ended, final


def _unfinished(start: ADMMState, iterations: int) -> tuple[Solution[Tensor], ADMMState]:
    """Results to be filled in as samples end."""
    batch, like = len(start.x), start.x
    final = ADMMState(start.x.clone(), start.duals.clone(), start.data_dual.clone())
    ended = Solution(
        final.x,
        torch.full((batch,), Status.MAX_ITER, dtype=torch.int8, device=like.device),
        torch.full((batch,), iterations, dtype=torch.int32, device=like.device),
        torch.full((batch,), torch.inf, dtype=like.dtype, device=like.device),
    )
    return ended, final


def _norm(x: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """Norm over one sample's whole state."""
    return (x.square().sum(dim=1) + d.square().sum(dim=(0, 2)) + e.square().sum(dim=1)).sqrt()


def _status(residual: Tensor, tol: float) -> Tensor:
    status = torch.full(residual.shape, Status.MAX_ITER, dtype=torch.int8, device=residual.device)
    status[residual <= tol] = Status.CONVERGED
    status[~torch.isfinite(residual)] = Status.NONFINITE
    return status
