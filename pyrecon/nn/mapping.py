"""Networks of the rivals of PINQI: of series of images in an iteration, and from images to maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import check_count
from pyrecon.nn._channels import channels_last

_SMALL = 0.1  # what last layers begin with


class RecurrentNet(nn.Module):
    """A series of images improved again and again, by a network that remembers along time and along iterations.

    C. Qin et al., Convolutional recurrent neural networks for dynamic MR image reconstruction, IEEE Trans. Med. Imaging
    38 (2019), as DeepT1 has it: one layer that runs along the series in both directions, ``layers - 2`` that remember
    what they said of the same image in the iteration before, one last 3x3 convolution. 297,538 weights.

    Parameters
    ----------
    width
        Channels.
    layers
        Three at least.
    """

    def __init__(self, width: int = 64, layers: int = 5) -> None:
        super().__init__()
        check_count("width", width)
        check_count("layers", layers, 3)
        self.width = width
        self.into = _conv(2, width, bias=False)
        self.before = _conv(width, width, bias=False)
        self.along = _conv(width, width, bias=False)
        self.biases = nn.Parameter(torch.zeros(2, width))  # forward and backward in time
        self.middle = nn.ModuleList(_conv(width, width) for _ in range(layers - 2))
        self.remembered = nn.ModuleList(_conv(width, width, bias=False) for _ in range(layers - 2))
        self.last = _conv(width, 2)

    def forward(self, images: Tensor, memory: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Of complex ``(B, T, H, W)`` what to add to them, and the memory for the next iteration; empty before the
        first."""
        batch, times, *plane = images.shape
        frames = channels_last(torch.view_as_real(images.resolve_conj()).flatten(0, 1).movedim(-1, 1))
        x = self.into(frames)
        if memory:
            x = x + self.before(memory[0])
        series = x.unflatten(0, (batch, times))
        both = torch.zeros_like(series)
        for bias, order in zip(self.biases, (range(times), reversed(range(times))), strict=True):
            state: Tensor | None = None
            found: list[tuple[int, Tensor]] = []
            for t in order:
                step = series[:, t] + bias.view(1, -1, 1, 1)
                state = F.relu(step if state is None else step + self.along(state))
                found.append((t, state))
            both = both + torch.stack([value for _, value in sorted(found, key=lambda pair: pair[0])], dim=1)
        x = both.flatten(0, 1)
        remembered = [x]
        for i, (conv, recall) in enumerate(zip(self.middle, self.remembered, strict=True)):
            x = conv(x)
            x = F.relu(x + recall(memory[i + 1]) if memory else x)
            remembered.append(x)
        change = self.last(x).movedim(1, -1).contiguous()
        return torch.view_as_complex(change).view(batch, times, *plane), remembered


class PlainUNet(nn.Module):
    """Real ``(B, C, H, W)`` of any size to ``(B, out_channels, H, W)``: two 3x3 convolutions with ReLU at every
    resolution, maxima on the way down, transposed 2x2 convolutions on the way up; no norm.

    The parameter network of DeepT1; 20,547,906 weights from 8 channels to 2.
    """

    def __init__(self, channels: int, out_channels: int, widths: tuple[int, ...] = (64, 128, 256, 512, 512)) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("out_channels", out_channels)
        if len(widths) < 2:
            raise ValueError(f"widths: {widths}, expected those of two resolutions and more")
        self.down = nn.ModuleList(_pair(a, b) for a, b in pairwise((channels, *widths)))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_pair(2 * a, a) for a in widths[:-1])
        self.last = nn.Conv2d(widths[0], out_channels, 1)
        # Without a norm torch's own start lets signals fade over so many layers: nRMSE of 0.27 in place of 0.19.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # all have one
        with torch.no_grad():
            self.last.weight.mul_(_SMALL)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = channels_last(_padded(x, 2 ** len(self.rise)))
        passed = []
        for block in self.down[:-1]:
            x = block(x)
            passed.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[-1](x)
        for rise, block in zip(reversed(self.rise), reversed(self.up), strict=True):
            x = block(torch.cat((passed.pop(), rise(x)), dim=1))
        found: Tensor = self.last(x)
        return found[..., : size[0], : size[1]]


class StridedUNet(nn.Module):
    """Real ``(B, C, H, W)`` of any size to ``(B, out_channels, H, W)``: 4x4 convolutions of stride 2 down and
    transposed up, batch norm and ReLU, features handed across.

    MANTIS, after P. Isola et al., CVPR 2017; 29,248,258 weights from 8 channels to 2.
    """

    def __init__(
        self, channels: int, out_channels: int, widths: tuple[int, ...] = (64, 128, 256, 512, 512, 512)
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("out_channels", out_channels)
        if len(widths) < 2:
            raise ValueError(f"widths: {widths}, expected those of two resolutions and more")
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise((channels, *widths)))
        self.down_norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths)
        inward = [widths[-1], *(2 * b for b in widths[-2:0:-1])]
        outward = widths[-2::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in zip(inward, outward, strict=True)
        )
        self.up_norms = nn.ModuleList(nn.BatchNorm2d(b) for b in outward)
        self.last = nn.ConvTranspose2d(2 * widths[0], out_channels, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = channels_last(_padded(x, 2 ** len(self.down)))
        passed: list[Tensor] = []
        for conv, norm in zip(self.down, self.down_norms, strict=True):
            x = norm(conv(F.relu(x) if passed else x))
            passed.append(x)
        x = passed.pop()
        for conv, norm in zip(self.up, self.up_norms, strict=True):
            x = torch.cat((passed.pop(), norm(conv(F.relu(x)))), dim=1)
        found: Tensor = self.last(F.relu(x))
        return found[..., : size[0], : size[1]]


class InstanceNet(nn.Module):
    """``layers`` convolutions of ``width`` channels without bias, each with instance norm and ReLU, and a last one with
    bias: the networks of DOPAMINE. ``kernel`` 1 or 3."""

    def __init__(self, channels: int, out_channels: int, *, width: int = 64, layers: int = 5, kernel: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for a, b in pairwise((channels, *(width,) * check_count("layers", layers))):
            parts += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), nn.InstanceNorm2d(b, affine=True)]
            parts.append(nn.ReLU())
        self.last = nn.Conv2d(width, out_channels, kernel, padding=kernel // 2)
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.layers(channels_last(x)))
        return found


def _conv(inward: int, width: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inward, width, 3, padding=1, bias=bias)


def _pair(inward: int, width: int) -> nn.Sequential:
    return nn.Sequential(_conv(inward, width), nn.ReLU(), _conv(width, width), nn.ReLU())


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Down and to the right, by repeating the border."""
    missing = [-n % multiple for n in x.shape[-2:]]
    return F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x
