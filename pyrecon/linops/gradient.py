"""Finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrecon._check import check_size
from pyrecon.linops._base import LinearOperator


class Gradient(LinearOperator):
    """Forward differences along every axis: ``(B, *shape)`` to ``(B, len(shape), *shape)``, real or complex.

    ``(A x)[b, i] = x[.. n_i + 1 ..] - x[.. n_i ..]`` along axis i, zero at the last index: for images axis 0 is the
    difference of rows, axis 1 of columns. The adjoint is the negative divergence. ``|A|^2 <= norm_bound``.

    Parameters
    ----------
    shape
        Shape of one sample, any number of axes.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.domain_shape = check_size("shape", shape)
        self.range_shape = (len(self.domain_shape), *self.domain_shape)

    @property
    def norm_bound(self) -> float:
        """Upper bound of the largest eigenvalue of ``A^H A``: 4 per axis."""
        return 4.0 * len(self.domain_shape)

    def forward(self, x: Tensor) -> Tensor:
        axes = range(1, len(self.domain_shape) + 1)
        return torch.stack([_pad(x.diff(dim=axis), axis, 0, 1) for axis in axes], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        result = torch.zeros_like(y[:, 0])
        for i, n in enumerate(self.domain_shape):
            inner = y[:, i].narrow(i + 1, 0, n - 1)
            result = result - _pad(inner, i + 1, 0, 1) + _pad(inner, i + 1, 1, 0)
        return result


def _pad(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    sides = [0, 0] * (x.dim() - 1 - axis) + [before, after]
    return torch.nn.functional.pad(x, sides)
