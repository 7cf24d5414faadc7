"""A U-Net of residual blocks that knows how far an iteration is, for images and for series of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import check_count, check_flag

_WAVES = 32  # numbers of which half are waves that the iteration is shown as
_LONGEST = 10.0  # of their lengths over the shortest


class ConditionedUNet(nn.Module):
    """Real channels ``(B, C, H, W)`` to ``(B, out_channels, H, W)`` of any size, or series ``(B, C, T, H, W)``.

    Widths belong to resolutions, each half the one before (maxima over 2 x 2 pixels) and doubled again on the way back
    (bilinear, then a 3x3 convolution); features of a resolution are handed across. Every block is
    ``SiLU(s + a N(x))``: s is x, or a 1x1 convolution of it, a starts at 1e-3, so that a new network acts pixel by
    pixel; N are two 3x3 convolutions with group norm, the first scaled and shifted by what ``level`` says (FiLM, E.
    Perez et al., AAAI 2018) and a SiLU after it. Of a series N convolves along time, too, over three images.

    The networks of PINQI (F. F. Zimmermann et al., 2023, section 3.2): with the default widths, 11 channels in, 3 out
    and ``conditioned`` 2,235,308 weights and 2,112 of the embedding; with half the widths, 3 in, 2 out, 8 groups and
    ``temporal`` 597,323.

    Parameters
    ----------
    channels, out_channels
        Of input and output.
    widths
        Channels at every resolution; two at least.
    groups
        Of group norm, or as many as divide the channels.
    conditioned
        Whether blocks, but the lowest, are scaled and shifted by ``level``.
    temporal
        For series.
    last
        Standard deviation of the last convolution's first weights.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (32, 64, 96, 128, 128),
        *,
        groups: int = 16,
        conditioned: bool = False,
        temporal: bool = False,
        last: float = 0.05,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("out_channels", out_channels)
        check_flag("conditioned", conditioned)
        check_flag("temporal", temporal)
        if len(widths) < 2:
            raise ValueError(f"widths: {widths}, expected those of two resolutions and more")
        for width in widths:
            check_count("widths", width)
        self.temporal = temporal
        self.embedding = _Embedding() if conditioned else None
        size = 0 if self.embedding is None else self.embedding.size

        def block(inward: int, width: int, size: int) -> _Block:
            return _Block(inward, width, check_count("groups", groups), size, temporal)

        self.down = nn.ModuleList(block(a, b, size) for a, b in pairwise((channels, *widths[:-1])))
        self.lowest = block(widths[-2], widths[-1], 0)
        self.rise = nn.ModuleList(nn.Conv2d(b, b, 3, bias=False) for b in widths[1:])
        self.up = nn.ModuleList(block(a + b, a, size) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[0], out_channels, 1)
        nn.init.normal_(self.last.weight, 0.0, last)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """``level`` ``(B,)``: how far the iteration is, from 0 on; of a network that is conditioned."""
        axes = 5 if self.temporal else 4
        if x.dim() != axes:
            raise ValueError(
                f"x: shape {tuple(x.shape)}, expected (B, C, {'T, ' if self.temporal else ''}H, W) of real numbers"
            )
        if (level is None) != (self.embedding is None):
            raise ValueError("level: is for conditioned networks, which need it")
        known = None if self.embedding is None or level is None else self.embedding(level.to(x))
        # With the channels of a pixel side by side convolutions of so few take half the time (2 x on AVX-512).
        x = x.contiguous(memory_format=torch.channels_last_3d if self.temporal else torch.channels_last)
        passed = []
        for block in self.down:
            x = block(x, known)
            passed.append(x)
            x = _each_frame(lambda v: F.max_pool2d(v, 2, ceil_mode=True), x)
        x = self.lowest(x, None)
        for rise, block in zip(reversed(self.rise), reversed(self.up), strict=True):
            across = passed.pop()
            size = across.shape[-2:]

            def raised(v: Tensor, rise: nn.Module = rise, size: torch.Size = size) -> Tensor:
                larger = F.interpolate(v, size=size, mode="bilinear", align_corners=False)
                conv: Tensor = rise(F.pad(larger, (1, 1, 1, 1), mode="replicate"))
                return conv

            x = block(torch.cat((across, _each_frame(raised, x)), dim=1), known)
        return _each_frame(self.last, x)


class _Block(nn.Module):
    def __init__(self, inward: int, width: int, groups: int, size: int, temporal: bool) -> None:
        super().__init__()
        shared = math.gcd(groups, width)
        self.first, self.second = nn.Conv2d(inward, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(shared, width) for _ in range(2))
        self.film: nn.Linear | None = None
        if size:
            self.film = nn.Linear(size, 2 * width)
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        self.along = nn.Conv1d(width, width, 3, bias=False) if temporal else None
        self.skip = nn.Conv2d(inward, width, 1) if inward != width else None
        self.share = nn.Parameter(torch.full((1,), 1e-3))

    def forward(self, x: Tensor, known: Tensor | None) -> Tensor:
        y = self.norms[0](_each_frame(self.first, x))
        if self.film is not None and known is not None:
            scale, shift = self.film(known).view(len(x), -1, *[1] * (x.dim() - 2)).chunk(2, dim=1)
            y = y * (1 + scale) + shift
        y = _each_frame(self.second, F.silu(y))
        if self.along is not None:
            longer = torch.cat((y[:, :, :1], y, y[:, :, -1:]), dim=2)
            y = F.conv2d(longer.flatten(3), self.along.weight[..., None]).view(y.shape)
        y = self.norms[1](y)
        across = x if self.skip is None else _each_frame(self.skip, x)
        return F.silu(across + self.share * y)


class _Embedding(nn.Module):
    """Sines and cosines of a number, mixed: 2,112 weights."""

    size = 64
    rates: Tensor

    def __init__(self) -> None:
        super().__init__()
        half = _WAVES // 2
        self.register_buffer("rates", _LONGEST ** -(torch.arange(half) / (half - 1)))
        self.mix = nn.Linear(_WAVES, self.size)

    def forward(self, level: Tensor) -> Tensor:
        waves = level.reshape(-1, 1) * self.rates
        return F.silu(self.mix(torch.cat((waves.sin(), waves.cos()), dim=1)))


def _each_frame(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of a series as of a batch of its images."""
    if x.dim() == 4:
        return f(x)
    frames = x.transpose(1, 2)
    y: Tensor = f(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return y.transpose(1, 2)
