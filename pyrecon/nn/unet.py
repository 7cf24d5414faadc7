"""A small residual U-Net, the denoiser of equilibrium models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from pyrecon._check import check_count, check_flag
from pyrecon.nn._channels import channels_last

Norm = Literal["none", "spectral", "weight"]
_GROUP = 8  # channels of a group of group norm


class ResidualUNet(nn.Module):
    """``D(x) = x + N(x)`` on real channels ``(B, C, H, W)`` of any height and width.

    N goes down ``levels - 1`` times by means over 2 x 2 pixels and up again by nearest neighbours, with twice the
    channels at each level below and the features of each level handed across; two 3x3 convolutions with zero padding,
    bias and ReLU at every level, one last convolution. It starts small, so that a new network is near the identity and
    an equilibrium with it exists from the first step on.

    Parameters
    ----------
    channels
        C: 1 for real images, 2 for complex ones (real and imaginary part), 3 for colours.
    width, levels
        Channels at full resolution, and resolutions. The defaults have 28,081 weights with one channel.
    norm
        Of the weights: ``"spectral"`` divides each by its norm as a matrix (:func:`pyrecon.implicit.spectral_norm` says
        what that does and does not bound), and a learned factor starts N small; ``"weight"`` learns direction and
        length apart.
    group_norm
        Group normalisation after every convolution but the last, in groups of 8 channels.
    """

    def __init__(
        self, channels: int = 1, width: int = 16, levels: int = 2, *, norm: Norm = "none", group_norm: bool = False
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("width", width)
        check_count("levels", levels, 1, 16)
        check_flag("group_norm", group_norm)
        if norm not in get_args(Norm):
            raise ValueError(f"norm: {norm!r}, expected one of {', '.join(get_args(Norm))}")
        self.channels = channels
        self.config = {"width": width, "levels": levels, "norm": norm, "group_norm": group_norm}
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            _Block(a, b, b, group_norm) for a, b in zip([channels, *widths[:-1]], widths, strict=True)
        )
        # Channels are halved before the way up: on a CPU copying costs as much as convolving.
        self.rise = nn.ModuleList(_Conv(2 * w, w) for w in widths[:-1])
        self.up = nn.ModuleList(_Block(2 * w, w, w, group_norm) for w in widths[:-1])
        self.last = _Conv(width, channels)
        self.gain = nn.Parameter(torch.tensor(0.1)) if norm == "spectral" else None
        if norm != "spectral":
            with torch.no_grad():
                for value in self.last.parameters():
                    value.mul_(0.1)
        if norm != "none":
            apply = parametrizations.spectral_norm if norm == "spectral" else parametrizations.weight_norm
            for part in [part for part in self.modules() if isinstance(part, nn.Conv2d)]:
                apply(part)

    def forward(self, x: Tensor) -> Tensor:
        features = channels_last(x)
        passed = []
        for level, block in enumerate(self.down):
            features = block(F.avg_pool2d(features, 2, ceil_mode=True) if level else features)
            passed.append(features)
        passed.pop()
        for rise, block in zip(reversed(self.rise), reversed(self.up), strict=True):
            across = passed.pop()
            raised = F.interpolate(rise(features), scale_factor=2.0, mode="nearest")
            features = block(torch.cat((across, raised[..., : across.shape[2], : across.shape[3]]), dim=1))
        change: Tensor = self.last(features)
        return x + (change if self.gain is None else self.gain * change)


class _Block(nn.Module):
    """Two convolutions, each with its norm and a ReLU."""

    def __init__(self, inward: int, between: int, outward: int, group_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((inward, between), (between, outward)):
            layers += [_Conv(a, b), *([nn.GroupNorm(max(1, b // _GROUP), b)] if group_norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class _Conv(nn.Conv2d):
    """3x3, with the channels innermost in memory before and after: of a single channel torch cannot tell, and takes the
    slow way through the whole network (2.3 times as long at 48 x 48)."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__(inward, outward, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(F.conv2d(x, channels_last(self.weight), self.bias, padding=1))


@contextmanager
def steady_weights(module: nn.Module) -> Iterator[None]:
    """Within it, norms of weights are computed once: a fixed point needs one network, and spectral norm in training
    takes a step of power iteration each time that it is looked at. Gradients reach the weights all the same."""
    normed = [part for part in module.modules() if parametrize.is_parametrized(part)]
    if not normed:
        yield
        return
    with parametrize.cached():
        for part in normed:
            for name in part.parametrizations:  # type: ignore[union-attr]
                getattr(part, name)
        yield
