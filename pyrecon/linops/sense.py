"""Multi-coil Cartesian MRI as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrecon.linops._base import LinearOperator
from pyrecon.ops import sense_adjoint, sense_forward, sense_normal


class Sense(LinearOperator):
    """``A x = mask * F(maps * x)``, images ``(B, H, W)`` to coil data ``(B, C, H, W)``.

    Parameters
    ----------
    maps
        Coil sensitivities ``(B | 1, C, H, W)``, complex. May require grad, or depend on what does.
    mask
        ``(B | 1, 1, H | 1, W | 1)``, bool or real: see :func:`pyrecon.ops.sense_forward`. With a 1-D mask, declared by
        an axis of size 1, :meth:`gram` transforms along the other axis alone.
    """

    maps: Tensor
    mask: Tensor

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        super().__init__()
        for name, tensor in (("maps", maps), ("mask", mask)):
            if tensor.dim() != 4:
                raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit, expected four axes")
        self.register_buffer("maps", maps)
        self.register_buffer("mask", mask)
        rows, cols = torch.broadcast_shapes(maps.shape[2:], mask.shape[2:])
        self.domain_shape = (rows, cols)
        self.range_shape = (maps.shape[1], rows, cols)

    @property
    def norm_bound(self) -> Tensor:
        """Upper bound of the largest eigenvalue of ``A^H A`` per set of maps and mask, ``(B | 1,)``.

        The largest sum over coils of ``|maps|^2`` times the largest ``mask^2``: 1 for normalised maps.
        """
        coils = self.maps.detach().abs().square().sum(dim=1).amax(dim=(1, 2))
        return coils * self.mask.to(coils.dtype).square().amax(dim=(1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return sense_forward(x, self.maps, self.mask)

    def adjoint(self, y: Tensor) -> Tensor:
        return sense_adjoint(y, self.maps, self.mask)

    def gram(self, x: Tensor) -> Tensor:
        return sense_normal(x, self.maps, self.mask)
