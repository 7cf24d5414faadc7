"""Total variation of images and volumes as a term of ADMM.

With voxels of unequal sides the differences are divided by what the sides are relative to their geometric mean::

    TV(u) = sum over voxels of |D u|,    (D u)_i = (u[.. n_i + 1 ..] - u[.. n_i ..]) / h_i,    prod h_i = 1

so an edge counts by its area, whatever way it faces, and with equal sides TV is that of :func:`pyrecon.ops.tv_prox`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrecon.linops import Gradient
from pyrecon.ops import tv_prox
from pyrecon.ops._variation import _schedule

_EQUAL = 1e-3  # relative differences of sides that files round to


class Variation:
    """The proximal map of ``weight TV``, over u >= 0 with ``nonneg``.

    A call goes on from the dual of the call before, so that a few inner iterations are enough. Images with square
    pixels take the compiled :func:`~pyrecon.ops.tv_prox`; all others the same iteration with the step of their own
    ``|D|^2``, in plain torch.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        weight: float,
        iterations: int,
        isotropic: bool,
        nonneg: bool,
        spacing: tuple[float, ...] | None = None,
    ) -> None:
        self.shape, self.weight = shape, weight
        self.iterations, self.isotropic, self.nonneg = iterations, isotropic, nonneg
        self.dual: Tensor | None = None
        sides = relative_sides(shape, spacing)
        self.gradient = None if len(shape) == 2 and set(sides) == {1.0} else Gradient(shape, sides)

    def prox(self, v: Tensor, out: Tensor) -> Tensor:
        size = (len(v), *self.shape)
        if self.dual is None:
            self.dual = v.new_zeros((len(v), len(self.shape), *self.shape))
        if self.gradient is not None:
            self._ascend(self.gradient, v.view(size), out.view(size))
            return out
        tv_prox(
            v.view(size),
            self.weight,
            self.dual,
            iterations=self.iterations,
            isotropic=self.isotropic,
            nonneg=self.nonneg,
            return_dual=True,
            out=(out.view(size), self.dual),
        )
        return out

    def keep(self, stay: Tensor) -> None:
        if self.dual is not None:
            self.dual = self.dual[stay]

    def _ascend(self, gradient: Gradient, x: Tensor, out: Tensor) -> None:
        """The proximal optimized gradient method on the dual, as in :mod:`pyrecon.ops._variation`, whose coefficients
        are for ``|D|^2 <= 8``."""
        assert self.dual is not None
        step = 8 / gradient.norm_bound
        q, s = self._project(self.dual), torch.zeros_like(self.dual)
        for of_q, of_d, next_z, next_q, next_d in _schedule(self.iterations).tolist():
            d = gradient(self._image(gradient, x, q))
            z = torch.add(d.mul(of_d * step), q, alpha=of_q).add_(s)
            s = torch.add(d.mul_(-next_d * step), z, alpha=next_z).add_(q, alpha=-next_q)
            q = self._project(z)
        self.dual = q
        out.copy_(self._image(gradient, x, q))

    def _image(self, gradient: Gradient, x: Tensor, q: Tensor) -> Tensor:
        u = x - gradient.adjoint(q)
        return u.clamp_(min=0) if self.nonneg else u

    def _project(self, q: Tensor) -> Tensor:
        """Onto ``|q| <= weight`` at every voxel, or of every part."""
        length = torch.linalg.vector_norm(q, dim=1, keepdim=True) if self.isotropic else q.abs()
        tiny = torch.finfo(q.dtype).tiny
        return q * (self.weight / length.clamp(min=max(self.weight, tiny)))


def relative_sides(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> tuple[float, ...]:
    """Sides of a voxel over their geometric mean, both of the axes with more than one voxel; 1 where they are equal."""
    long = [h for h, n in zip(spacing or (), shape, strict=False) if n > 1]
    if not long or spacing is None or max(long) <= (1 + _EQUAL) * min(long):
        return (1.0,) * len(shape)
    mean = math.prod(long) ** (1 / len(long))
    return tuple(h / mean if n > 1 else 1.0 for h, n in zip(spacing, shape, strict=True))
