"""The sampled Fourier transform of single-coil MRI."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, check_count, check_dtype, check_number, check_shape, check_size
from pyrecon.linops._base import LinearOperator
from pyrecon.ops import sense_adjoint, sense_forward, sense_normal


class Fourier(LinearOperator):
    """``A x = mask * F(x)``: images ``(B, H, W)`` to k-space ``(B, H, W)``, centred and orthonormal.

    Parameters
    ----------
    mask
        ``(B | 1, 1, H | 1, W | 1)``, bool or real, of every image at least one sample: see
        :func:`pyrecon.ops.sense_forward`.
    shape
        ``(H, W)``; needed where the mask is constant along an axis.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        shape = check_size("shape", shape, 2)  # type: ignore[assignment]  # two of them
        check_dtype("mask", mask, (torch.bool, *FLOATING))
        if mask.dim() != 4 or any(m not in (1, n) for m, n in zip(mask.shape[2:], shape, strict=True)):
            raise ValueError(
                f"mask: shape {tuple(mask.shape)} does not fit, expected (B | 1, 1, H | 1, W | 1) of {shape}"
            )
        if not mask.is_meta and not bool((mask != 0).flatten(1).any(dim=1).all()):
            raise ValueError("mask: takes no sample of some image, expected at least one of each")
        self.register_buffer("mask", mask)
        self.domain_shape = self.range_shape = (shape[0], shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return sense_forward(x, self._one_coil(x), self.mask)[:, 0]

    def adjoint(self, y: Tensor) -> Tensor:
        return sense_adjoint(y[:, None], self._one_coil(y), self.mask)

    def gram(self, x: Tensor) -> Tensor:
        return sense_normal(x, self._one_coil(x), self.mask)

    def pinv(self, y: Tensor, *, rtol: float | None = None, max_iter: int | None = None) -> Tensor:
        """``F^H (y / mask)``, zero where nothing was taken: exact, so ``rtol`` and ``max_iter`` play no part."""
        check_dtype("y", y, (*FLOATING, *COMPLEX))
        check_shape("y", y, (None, *self.range_shape), "(B, H, W)")
        if rtol is not None:
            check_number("rtol", rtol)
        if max_iter is not None:
            check_count("max_iter", max_iter, 0)
        weight = self.mask.to(y.real.dtype)
        return sense_adjoint(y[:, None], self._one_coil(y), torch.where(weight != 0, 1 / weight, 0.0))

    def _random(self, shape: tuple[int, ...], seed: int, batch: int) -> Tensor:
        x = super()._random(shape, seed, batch)  # of the mask's dtype, which is real
        return torch.view_as_complex(torch.stack([x, super()._random(shape, seed + 2**20, batch)], dim=-1))

    def _one_coil(self, like: Tensor) -> Tensor:
        return torch.ones(1, 1, 1, 1, dtype=like.dtype, device=like.device)
