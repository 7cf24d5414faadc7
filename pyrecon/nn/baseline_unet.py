"""The U-Net of the fastMRI baseline, plain and for complex images that it normalises itself."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import COMPLEX, check_count, check_dtype, check_number, check_shape

_SLOPE = 0.2  # of the leaky ReLU below zero


class BaselineUNet(nn.Module):
    """Real channels ``(B, C, H, W)`` to ``(B, out_channels, H, W)`` of any height and width from ``2^pools`` on.

    At every resolution two 3x3 convolutions without bias, each with instance norm (without weights), leaky ReLU of
    slope 0.2 and dropout; down by means over 2 x 2 pixels with twice the channels, up by 2x2 transposed convolutions of
    stride 2 with norm and leaky ReLU, features of each resolution handed across, a 1x1 convolution with bias at the
    end. An odd row or column that the way down leaves out comes back as a mirror of the one beside it.

    J. Zbontar et al., fastMRI: An open dataset and benchmarks for accelerated MRI, 2018, section 5.2: 7,756,097 weights
    with one channel, ``width`` 32 and four pools. float32 or float64, CPU and GPU.

    Parameters
    ----------
    channels, out_channels
        Of input and output.
    width
        Channels at full resolution.
    pools
        How often the resolution is halved.
    dropout
        Share of channels that training leaves out, from 0 to less than 1.
    """

    def __init__(
        self, channels: int = 1, out_channels: int = 1, width: int = 32, pools: int = 4, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("out_channels", out_channels)
        check_count("width", width)
        check_count("pools", pools, 1, 16)
        if not check_number("dropout", dropout) < 1:
            raise ValueError(f"dropout: {dropout}, expected a share from 0 to less than 1")
        self.channels, self.pools, self.dropout = channels, pools, dropout
        widths = [width * 2**level for level in range(pools + 1)]
        self.down = nn.ModuleList(_Block(a, b, dropout) for a, b in pairwise((channels, *widths)))
        self.rise = nn.ModuleList(_Rise(b, a) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_Block(2 * w, w, dropout) for w in widths[:-1])
        self.last = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_shape("x", x, (None, self.channels, None, None), "(B, C, H, W)")
        least = 2**self.pools
        height, width = x.shape[2:]
        # Of a single pixel at the lowest resolution an instance norm leaves nothing.
        if min(height, width) < least or (height < 2 * least and width < 2 * least):
            raise ValueError(
                f"x: {height} x {width} pixels, expected {least} x {2 * least} or more for {self.pools} pools"
            )
        # Channels innermost in memory are no faster here (0.98 to 1.06 of the time): instance norm copies to and fro.
        passed = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            passed.append(x)
        passed.pop()
        for rise, block in zip(reversed(self.rise), reversed(self.up), strict=True):
            across = passed.pop()
            x = block(torch.cat((_as_large(rise(x), across), across), dim=1))
        image: Tensor = self.last(x)
        return image


class NormalisedUNet(nn.Module):
    """A :class:`BaselineUNet` on complex images ``(B, H, W)``, real and imaginary part as two channels.

    Each part of each image is brought to mean 0 and standard deviation 1 and back, so that the network is positively
    homogeneous, ``N(c x) = c N(x)`` for c > 0: of any unit. Zeros around the image (as many on both sides, one more at
    the end) make both sizes multiples of ``2^pools``. A. Sriram et al., End-to-end variational networks for accelerated
    MRI reconstruction, MICCAI 2020, section 3. complex64 or complex128, as the weights.
    """

    def __init__(self, width: int = 18, pools: int = 4, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.unet = BaselineUNet(2, 2, width, pools, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        check_dtype("x", x, COMPLEX)
        check_shape("x", x, (None, None, None), "(B, H, W)")
        parts = torch.view_as_real(x.resolve_conj()).movedim(3, 1)
        mean = parts.mean(dim=(2, 3), keepdim=True)
        spread = parts.std(dim=(2, 3), keepdim=True)
        scale = torch.where(spread > 0, spread, torch.ones_like(spread))  # a constant part stays what it is
        (top, bottom), (left, right) = (_around(n, 2**self.unet.pools) for n in x.shape[1:])
        padded = F.pad((parts - mean) / scale, (left, right, top, bottom))
        found = self.unet(padded)[..., top : top + x.shape[1], left : left + x.shape[2]]
        return torch.view_as_complex((found * scale + mean).movedim(1, 3).contiguous())


class _Block(nn.Sequential):
    """Two convolutions."""

    def __init__(self, inward: int, outward: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        for a, b in ((inward, outward), (outward, outward)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.InstanceNorm2d(b), nn.LeakyReLU(_SLOPE, True)]
            layers += [nn.Dropout2d(dropout)] if dropout else []
        super().__init__(*layers)


class _Rise(nn.Sequential):
    """To twice the resolution and half the channels."""

    def __init__(self, inward: int, outward: int) -> None:
        rise = nn.ConvTranspose2d(inward, outward, 2, stride=2, bias=False)
        super().__init__(rise, nn.InstanceNorm2d(outward), nn.LeakyReLU(_SLOPE, True))


def _as_large(x: Tensor, like: Tensor) -> Tensor:
    """With the last row and column twice where ``like`` has one more."""
    rows, columns = (a - b for a, b in zip(like.shape[2:], x.shape[2:], strict=True))
    return F.pad(x, (0, columns, 0, rows), mode="reflect") if rows or columns else x


def _around(n: int, multiple: int) -> tuple[int, int]:
    """Zeros before and after ``n`` for the next multiple, two of them at least: an instance norm needs more than a
    pixel."""
    missing = max(-n % multiple, 2 * multiple - n)
    return missing // 2, missing - missing // 2
