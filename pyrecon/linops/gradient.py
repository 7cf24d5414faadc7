"""Finite differences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrecon._check import check_number, check_size
from pyrecon.linops._base import LinearOperator


class Gradient(LinearOperator):
    """Forward differences along every axis: ``(B, *shape)`` to ``(B, len(shape), *shape)``, real or complex.

    ``(A x)[b, i] = (x[.. n_i + 1 ..] - x[.. n_i ..]) / spacing[i]`` along axis i, zero at the last index: for images
    axis 0 is the difference of rows, axis 1 of columns. The adjoint is the negative divergence. ``|A|^2 <=
    norm_bound``.

    Parameters
    ----------
    shape
        Shape of one sample, any number of axes.
    spacing
        Distance of neighbours along each axis, positive; default 1.
    """

    def __init__(self, shape: tuple[int, ...], spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        self.domain_shape = check_size("shape", shape)
        self.range_shape = (len(self.domain_shape), *self.domain_shape)
        steps = [1.0] * len(self.domain_shape) if spacing is None else list(spacing)
        if len(steps) != len(self.domain_shape):
            raise ValueError(f"spacing: {len(steps)} numbers, expected one for each of {len(self.domain_shape)} axes")
        self.spacing = tuple(check_number("spacing", step, above=True) for step in steps)

    @property
    def norm_bound(self) -> float:
        """Upper bound of the largest eigenvalue of ``A^H A``: ``4 / spacing^2`` per axis."""
        return sum(4.0 / step**2 for step in self.spacing)

    def forward(self, x: Tensor) -> Tensor:
        steps = enumerate(self.spacing, start=1)
        return torch.stack([_pad(_over(x.diff(dim=axis), step), axis, 0, 1) for axis, step in steps], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        result = torch.zeros_like(y[:, 0])
        for i, (n, step) in enumerate(zip(self.domain_shape, self.spacing, strict=True)):
            inner = _over(y[:, i].narrow(i + 1, 0, n - 1), step)
            result = result - _pad(inner, i + 1, 0, 1) + _pad(inner, i + 1, 1, 0)
        return result


def _over(x: Tensor, step: float) -> Tensor:
    return x if step == 1 else x / step


def _pad(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    sides = [0, 0] * (x.dim() - 1 - axis) + [before, after]
    return torch.nn.functional.pad(x, sides)
