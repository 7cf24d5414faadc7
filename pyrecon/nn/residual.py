"""A small residual denoiser of complex images."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class ResidualDenoiser(nn.Module):
    """``D(x) = x + N(x)``, complex images ``(B, H, W)`` to the same; real and imaginary part are two channels of N.

    N has ``layers`` 3x3 convolutions with zero padding, biases and ReLU between them. The last one starts at a tenth of
    the usual size, so that a new network is near the identity and an equilibrium with it exists from the first step on.

    Parameters
    ----------
    width, layers
        Channels between the convolutions, and their number, from 2.
    """

    def __init__(self, width: int = 16, layers: int = 4) -> None:
        super().__init__()
        if width < 1 or layers < 2:
            raise ValueError(f"width, layers: {width} and {layers}, expected at least 1 and 2")
        self.config = {"width": width, "layers": layers}
        widths = [2, *[width] * (layers - 1), 2]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        with torch.no_grad():
            for value in self.convs[-1].parameters():
                value.mul_(0.1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.view_as_real(image).movedim(-1, 1)
        for conv in self.convs[:-1]:
            x = torch.relu(conv(x))
        x = self.convs[-1](x).movedim(1, -1).contiguous()
        return image + torch.view_as_complex(x)
