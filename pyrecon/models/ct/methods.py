"""The methods: from line integrals and their rays to images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyrecon._check import check_count
from pyrecon._threads import one_thread_if_small
from pyrecon.data.ct import field_of_view, noise_std
from pyrecon.linops import Radon
from pyrecon.models.method import Method
from pyrecon.ops import FanBeam, ViewBeam, tv_prox
from pyrecon.ops._fbp import check_ideal
from pyrecon.ops._variation import MAX_ITERATIONS
from pyrecon.solvers import Solution, Status, cgls, fista, sirt

_LEAST_NOISE = 1e-3  # of the largest line integral: what pixels and rays of finite width cost even without noise


class CTMethod(Method):
    """A reconstruction of line integrals."""

    @property
    def label(self) -> str:
        """As tables that compare methods call it."""
        return self.name

    @property
    def shape(self) -> tuple[int, int] | None:
        """Of images where nobody asks for another; None: the scan's own."""
        return None

    def facts(self, physics: Radon) -> dict[str, str]:
        """What a report says of the way to the image, by name."""
        return {}

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        """Images ``(S, H, W)`` in 1/m from line integrals ``(S, A, D)``, float32 or float64, along the rays of
        ``physics.geometry``."""
        raise NotImplementedError(f"{type(self).__name__}: a method defines solve")


@dataclass(frozen=True)
class FBP(CTMethod):
    """Filtered back-projection: exact for complete scans without noise, streaks where views are few or missing.

    A fan beam short of a full turn is weighed by Parker's weights; where it is too short for any line to be measured
    twice, by none.

    Parameters
    ----------
    filter
        Window on the ramp, see :func:`pyrecon.ops.fbp`: the further down the list, the smoother and the less noisy.
    nonneg
        Set negative values to 0 afterwards.
    circle
        Set what lies beyond the disc that every view sees to 0: it is wrong there.
    """

    name: ClassVar[str] = "FBP"
    filter: Literal["ramp", "shepp-logan", "cosine", "hamming", "hann"] = "ramp"
    nonneg: bool = False
    circle: bool = True

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        geometry = physics.geometry
        check_ideal(geometry)
        fan = isinstance(geometry, FanBeam) or (isinstance(geometry, ViewBeam) and geometry.sources is not None)
        if fan and geometry.arc < 2 * math.pi - geometry.full_arc:
            # No line is measured twice: nothing to share, and full weight, of which a full turn gives half.
            image = 2 * physics.fbp(sinogram, self.filter, short_scan=False)
        else:
            image = physics.fbp(sinogram, self.filter)
        image = image.clamp(min=0) if self.nonneg else image
        return _direct(image * _disc(physics, image) if self.circle else image)


@dataclass(frozen=True)
class CGLS(CTMethod):
    """Least squares by conjugate gradients, ended where the data are explained down to the noise.

    The number of iterations is the regularisation: the error falls, then rises as noise is fitted (semi-convergence).
    Ended by the discrepancy principle, or at ``max_iter``.

    Parameters
    ----------
    noise_std
        Of a line integral. None: estimated from each slice (:func:`pyrecon.data.ct.noise_std`), a thousandth of the
        largest line integral at least. 0: run to ``max_iter`` or the minimum.
    max_iter
        Iterations at most. Rays of finite width, scatter and a beam of many energies keep real data from being
        explained down to their noise, so this is often what ends it, and the status says MAX_ITER.
    """

    name: ClassVar[str] = "CGLS"
    noise_std: float | None = None
    max_iter: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.noise_std, self.max_iter)

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        limit = noise_of(sinogram, self.noise_std) * math.sqrt(sinogram[0].numel())
        return cgls(physics, physics.adjoint, sinogram, atol=limit, max_iter=self.max_iter)


@dataclass(frozen=True)
class SIRT(CTMethod):
    """Simultaneous iterative reconstruction, ended like :class:`CGLS`: slower, smoother, and never negative.

    Gregor and Benson, IEEE Trans Med Imaging 27:918 (2008).

    Parameters
    ----------
    relaxation
        Above 0 and below 2; larger is faster.
    nonneg
        Keep the image at 0 or above.
    noise_std
        As of :class:`CGLS`.
    max_iter
        Iterations at most.
    """

    name: ClassVar[str] = "SIRT"
    relaxation: float = 1.9
    nonneg: bool = True
    noise_std: float | None = None
    max_iter: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.noise_std, self.max_iter)
        if not 0 < self.relaxation < 2:
            raise ValueError(f"relaxation: {self.relaxation}, expected a number above 0 and below 2")

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        limit = noise_of(sinogram, self.noise_std) * math.sqrt(sinogram[0].numel())
        return sirt(
            physics, physics.adjoint, sinogram, relaxation=self.relaxation, nonneg=self.nonneg, atol=limit, tol=0.0,
            max_iter=self.max_iter,
        )  # fmt: skip


@dataclass(frozen=True)
class TV(CTMethod):
    """``argmin_x 1/2 |A x - y|^2 + w TV(x)``, over ``x >= 0`` with nonneg, by FISTA.

    The proximal map of TV within is the dual method of :func:`pyrecon.ops.tv_prox`, carried on from its last dual and
    certified by its duality gap. Two products with A an iteration, as many as preconditioned primal-dual splitting
    takes (Pock and Chambolle, ICCV 2011); that was 2.5 and 3.5 times further from the minimum after 200 of them at 30
    and 90 degrees with the best of nine steps, and far more for 24 views of a full turn. Sidky and Pan, Phys Med Biol
    53:4777 (2008).

    Parameters
    ----------
    weight
        In units of the noise: ``w = weight * noise_std * sqrt(views)`` for pixels of side 1, so that it means the same
        for other scans and grids. The default gives the best PSNR, within 0.2 dB, of discs with holes seen by fans of
        180 views, 91 over 90 degrees or 24, and by 180 parallel views, with 1 and 3 % of noise (0.1 to 4 tried).
    nonneg
        Keep the image at 0 or above.
    noise_std
        As of :class:`CGLS`.
    tol
        Stops when an iteration changes the image by less than ``tol`` relative to it. Limited angles want it small:
        with 1e-4 the discs of the Helsinki Tomography Challenge at 90 degrees end at a Matthews correlation of 0.83,
        with 1e-5 at 0.86.
    max_iter, max_inner
        Iterations at most, of FISTA and of the proximal map within.
    """

    name: ClassVar[str] = "TV"
    weight: float = 1.0
    nonneg: bool = True
    noise_std: float | None = None
    tol: float = 1e-5
    max_iter: int = 1000
    max_inner: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.noise_std, self.max_iter)
        if not self.weight >= 0:
            raise ValueError(f"weight: {self.weight}, expected a number >= 0")
        if not self.tol > 0:
            raise ValueError(f"tol: {self.tol}, expected a number > 0")
        check_count("max_inner", self.max_inner, 1, MAX_ITERATIONS)

    def solve(self, sinogram: Tensor, physics: Radon) -> Solution[Tensor]:
        # Images in 1/pixel: the operator is then a sum of path lengths in pixels, whatever the units.
        pixel = math.sqrt(math.prod(physics.geometry.pixel_size))
        weight = self.weight * math.sqrt(physics.geometry.views) * noise_of(sinogram, self.noise_std).to(sinogram.dtype)
        curvature = _largest_eigenvalue(physics, sinogram) / pixel**2
        back = physics.adjoint(sinogram) / pixel
        dual: Tensor | None = None

        def prox(x: Tensor, step: Tensor) -> Tensor:
            nonlocal dual
            image, dual = tv_prox(
                x, weight * step.flatten(), dual, iterations=self.max_inner, tol=self.tol, nonneg=self.nonneg,
                return_dual=True,
            )  # fmt: skip
            return image

        with one_thread_if_small(back.numel()):
            found = fista(
                lambda x: physics.gram(x) / pixel**2 - back, prox, torch.zeros_like(back), step=1 / curvature,
                max_iter=self.max_iter, tol=self.tol,
            )  # fmt: skip
        return Solution(found.value / pixel, found.status, found.iterations, found.residual)


METHODS: dict[str, type[CTMethod]] = {"fbp": FBP, "cgls": CGLS, "sirt": SIRT, "tv": TV}


def noise_of(sinogram: Tensor, given: float | None = None) -> Tensor:
    """Standard deviation of a line integral per slice, ``(S,)`` float64: what is given, or an estimate."""
    if given is not None:
        return torch.full((len(sinogram),), given, dtype=torch.float64, device=sinogram.device)
    data = sinogram.detach().cpu().numpy()
    found = [max(noise_std(slice_), _LEAST_NOISE * float(abs(slice_).max())) for slice_ in data]
    return torch.tensor(found, dtype=torch.float64, device=sinogram.device)


def _largest_eigenvalue(physics: Radon, sinogram: Tensor) -> float:
    """Of ``A^T A``, from above: Radon's entries are not negative, so power iteration from ones converges in a few
    steps, and the largest ratio of two iterates is a bound (Collatz and Wielandt)."""
    x = physics.adjoint(sinogram.new_ones((1, *physics.range_shape)))
    bound = math.inf
    with torch.no_grad():
        for _ in range(10):
            x = x / x.amax()
            y = physics.gram(x)
            seen = x > 1e-6
            bound = min(bound, float((y[seen] / x[seen]).max()))
            x = y
    return bound


def _direct(image: Tensor) -> Solution[Tensor]:
    """The solution of a method without iterations."""
    count = torch.zeros(len(image), dtype=torch.int32, device=image.device)
    finite = torch.isfinite(image).flatten(1).all(dim=1)
    status = torch.where(finite, int(Status.CONVERGED), int(Status.NONFINITE)).to(torch.int8)
    return Solution(image, status, count, torch.zeros(len(image), dtype=image.dtype, device=image.device))


def _disc(physics: Radon, image: Tensor) -> Tensor:
    """``(H, W)`` bool: the pixels that every view sees; all, where there are none."""
    radius = field_of_view(physics.geometry)
    height, width = physics.geometry.shape
    dy, dx = physics.geometry.pixel_size
    y = dy * (torch.arange(height, device=image.device) - (height - 1) / 2)[:, None]
    x = dx * (torch.arange(width, device=image.device) - (width - 1) / 2)
    inside = (x.square() + y.square()).sqrt() <= radius + max(dx, dy)
    return inside if radius > 0 else torch.ones_like(inside)


def _check(noise: float | None, max_iter: int) -> None:
    if noise is not None and not noise >= 0:
        raise ValueError(f"noise_std: {noise}, expected a number >= 0, or None for an estimate")
    if max_iter < 1:
        raise ValueError(f"max_iter: {max_iter}, expected at least 1")
