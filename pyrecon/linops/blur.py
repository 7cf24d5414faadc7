"""Convolution with a point spread function."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import FLOATING, check_count, check_dtype, check_number, check_size
from pyrecon.linops._base import LinearOperator

Border = Literal["zero", "periodic", "reflect"]


class Blur(LinearOperator):
    """x convolved with ``kernel``, the result as large as x: ``(B, H, W)``, or ``(B, C, H, W)`` with ``channels``.

    ``(A x)[i] = sum_j kernel[j] x[i + k // 2 - j]`` along both axes, k the kernel's size.
    """

    kernel: Tensor

    def __init__(
        self,
        kernel: Tensor,
        shape: tuple[int, int],
        *,
        channels: int | None = None,
        border: Border = "zero",
        method: Literal["auto", "direct", "fft"] = "auto",
    ) -> None:
        super().__init__()
        shape = check_size("shape", shape, 2)  # type: ignore[assignment]  # two of them
        check_dtype("kernel", kernel, FLOATING)
        if isinstance(kernel, nn.Parameter):
            self.kernel = kernel
        else:
            self.register_buffer("kernel", kernel)
        self.border = border
        self.domain_shape = self.range_shape = (*(() if channels is None else (channels,)), shape[0], shape[1])

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel.to(x.dtype)
        rows, cols = k.shape[-2:]
        planes = x.reshape(-1, 1, *x.shape[-2:])
        planes = F.pad(planes, (cols - 1 - cols // 2, cols // 2, rows - 1 - rows // 2, rows // 2))
        return F.conv2d(planes, k.flip(-2, -1)[None, None]).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        k = self.kernel.to(y.dtype)
        rows, cols = k.shape[-2:]
        planes = y.reshape(-1, 1, *y.shape[-2:])
        full = F.conv_transpose2d(planes, k.flip(-2, -1)[None, None])
        top, left = rows - 1 - rows // 2, cols - 1 - cols // 2
        return full[..., top : top + y.shape[-2], left : left + y.shape[-1]].reshape(y.shape)


def gaussian_kernel(size: int, variance: float) -> Tensor:
    """``(size, size)`` float64 of sum 1, about the centre; variance in pixels squared."""
    check_count("size", size)
    check_number("variance", variance, above=True)
    r = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-0.5 * r.square() / variance)
    return torch.outer(line, line) / line.sum().square()
