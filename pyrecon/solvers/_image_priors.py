"""Priors of real images for :func:`~pyrecon.solvers.ipalm`: an energy, its gradient, and how fast it may rise.

A prior is any object with ``energy_and_gradient(u) -> ((B,), like u)`` for ``u`` ``(B, H, W)``. It may offer
``energy(u) -> (B,)``, where that is cheaper, and ``curvature(u, d) -> (B,)``, a quadratic form of d that lies above::

    R(u + d) <= R(u) + <grad R(u), d> + 1/2 curvature(u, d)        for all d

With it a backtracking test needs no energy: a difference of energies in single precision says nothing of small steps.
For sampling (:mod:`pyrecon.models.mri.posterior`) it may offer ``metric(v)`` and ``perturbation(draw)``, a constant
operator above its Hessian and numbers of that covariance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyrecon._check import check_callable, check_number, check_size, described
from pyrecon.ops._charbonnier import charbonnier, charbonnier_curvature
from pyrecon.solvers._batch import applied, check_state, dot
from pyrecon.solvers._samplers import Draw


@runtime_checkable
class ImagePrior(Protocol):
    """What :func:`~pyrecon.solvers.ipalm` needs of a prior."""

    def energy_and_gradient(self, u: Tensor, /) -> tuple[Tensor, Tensor]:
        """R(u), ``(B,)``, and its gradient, like u ``(B, H, W)``."""
        ...


class Charbonnier:
    """Smoothed total variation: ``sum over pixels of sqrt((D_y u)^2 + (D_x u)^2 + epsilon^2)``.

    Differences of neighbours, zero past the last row and column. The root is concave in the square, which gives the
    curvature ``sum |D d|^2 / sqrt(|D u|^2 + epsilon^2)``. Charbonnier et al., IEEE TIP 6:298 (1997).

    Parameters
    ----------
    epsilon
        Positive, in units of the image: differences below it are smoothed, beyond it edges are kept. The published
        value is for images of peak 1. The curvature is up to ``8 / epsilon``, and a sampler's steps fall with it: 0.01
        costs ten times fewer of them, and smooths only differences that noise of a percent hides.
    """

    def __init__(self, epsilon: float = 1e-3) -> None:
        self.epsilon = check_number("epsilon", epsilon, above=True)

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """R(u), ``(B,)``, and its gradient, for u ``(B, H, W)``."""
        return charbonnier(u, self.epsilon)

    def energy(self, u: Tensor) -> Tensor:
        return charbonnier(u, self.epsilon)[0]

    def curvature(self, u: Tensor, d: Tensor) -> Tensor:
        return charbonnier_curvature(u, d, self.epsilon)

    def metric(self, v: Tensor) -> Tensor:
        """``D^T D v / epsilon``, above the Hessian of R wherever that is taken: the unit of a sampler's steps."""
        gradient = torch.zeros_like(v)
        _add_adjoint(gradient, v[:, 1:] - v[:, :-1], v[:, :, 1:] - v[:, :, :-1])
        return gradient / self.epsilon

    def perturbation(self, draw: Draw) -> Tensor:
        """White numbers on differences, turned back: of the covariance :meth:`metric`."""
        _, height, width = draw.like.shape
        eta = torch.zeros_like(draw.like)
        _add_adjoint(eta, draw(height - 1, width), draw(height, width - 1))
        return eta / float(self.epsilon**0.5)

    def __repr__(self) -> str:
        return f"Charbonnier(epsilon={self.epsilon:g})"


def _add_adjoint(image: Tensor, rows: Tensor, cols: Tensor) -> None:
    """D^T of differences along rows and columns, added to an image."""
    image[:, 1:] += rows
    image[:, :-1] -= rows
    image[:, :, 1:] += cols
    image[:, :, :-1] -= cols


class Denoised:
    """Regularisation by a denoiser f: energy ``1/2 <u, u - f(u)>``, gradient ``u - f(u)``.

    The gradient is that of the energy where f is homogeneous and its Jacobian symmetric; of other denoisers the steps
    are those of the published method all the same. With a non-expansive f the curvature is ``2 |d|^2``. Romano, Elad
    and Milanfar, The little engine that could: regularization by denoising, SIAM J. Imaging Sci. 10, 2017.

    Parameters
    ----------
    denoiser
        ``(B, H, W)`` to the same shape: a function or module.
    """

    def __init__(self, denoiser: Callable[[Tensor], Tensor]) -> None:
        check_callable("denoiser", denoiser)
        self.denoiser = denoiser

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        check_state("u", u)
        gradient = u - applied("denoiser", self.denoiser, u)
        return (dot(u, gradient) / 2).to(u.dtype), gradient

    def curvature(self, u: Tensor, d: Tensor) -> Tensor:
        return (2 * dot(d, d)).to(u.dtype)


class CenterCrop:
    """A prior of the central part of an image, for networks of one size: the gradient is zero elsewhere.

    The adjoint of cropping pads with zeros. Where an image is smaller than the crop, it is padded with zeros for the
    prior instead.

    Parameters
    ----------
    prior
        Of images of ``shape``.
    shape
        Rows and columns.
    """

    def __init__(self, prior: Any, shape: tuple[int, int]) -> None:
        self.prior = check_prior("prior", prior)
        self.shape = check_size("shape", shape, 2)
        if hasattr(prior, "curvature"):
            self.curvature = self._curvature

    def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        part = self._crop(u)
        energy, inner = self.prior.energy_and_gradient(part)
        return energy, self._resized(inner, u.shape[1:])

    def energy(self, u: Tensor) -> Tensor:
        return energy_of(self.prior, self._crop(u))

    def _curvature(self, u: Tensor, d: Tensor) -> Tensor:
        bound: Tensor = self.prior.curvature(self._crop(u), self._crop(d))
        return bound

    def _crop(self, u: Tensor) -> Tensor:
        return self._resized(u, self.shape)

    @staticmethod
    def _resized(u: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Cropped or padded about the centre pixel ``n // 2``."""
        edges: list[int] = []
        for n, m in zip(reversed(u.shape[1:]), reversed(shape), strict=True):
            before = m // 2 - n // 2
            edges += [before, m - n - before]
        return torch.nn.functional.pad(u, edges) if any(edges) else u


def check_prior(name: str, prior: Any) -> Any:
    """``prior``; TypeError unless it is an object with ``energy_and_gradient``."""
    if isinstance(prior, type) or not callable(getattr(prior, "energy_and_gradient", None)):
        raise TypeError(
            f"{name}: {described(prior)}, expected an object with energy_and_gradient(u), e.g. Charbonnier()"
        )
    return prior


def energy_of(prior: Any, u: Tensor) -> Tensor:
    """R(u) by the cheapest means that the prior has."""
    energy: Tensor = prior.energy(u) if hasattr(prior, "energy") else prior.energy_and_gradient(u)[0]
    return energy
