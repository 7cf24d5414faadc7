"""The Fourier convention of all MRI code here: centred (DC at n // 2 in both spaces) and orthonormal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrecon._fft import transformed


def fft_centered(x: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Image to k-space along ``dims``; unitary."""
    return _centered(torch.fft.fftn, x, dims)


def ifft_centered(x: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """K-space to image along ``dims``; the inverse and the adjoint of :func:`fft_centered`."""
    return _centered(torch.fft.ifftn, x, dims)


def centered_slice(n: int, size: int) -> slice:
    """The ``size`` samples about the centre of ``n``, so that both centres coincide: index n // 2 becomes size // 2."""
    start = n // 2 - size // 2
    return slice(start, start + size)


def _centered(transform: Callable[..., Tensor], x: Tensor, dims: tuple[int, ...]) -> Tensor:
    shifted = transformed(transform, torch.fft.ifftshift(x, dims), dim=dims, norm="ortho")
    result: Tensor = torch.fft.fftshift(shifted, dims)
    return result
