"""The Fourier convention of all MRI code here: centred (DC at n // 2 in both spaces) and orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor


def fft_centered(x: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Image to k-space along ``dims``; unitary."""
    shifted: Tensor = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, dims), dim=dims, norm="ortho"), dims)
    return shifted


def ifft_centered(x: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """K-space to image along ``dims``; the inverse and the adjoint of :func:`fft_centered`."""
    shifted: Tensor = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(x, dims), dim=dims, norm="ortho"), dims)
    return shifted


def centered_slice(n: int, size: int) -> slice:
    """The ``size`` samples about the centre of ``n``, so that both centres coincide: index n // 2 becomes size // 2."""
    start = n // 2 - size // 2
    return slice(start, start + size)
