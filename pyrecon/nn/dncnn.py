"""DnCNN, a plain convolutional denoiser."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrecon._check import check_count, check_flag
from pyrecon.implicit import spectral_norm
from pyrecon.nn._channels import channels_last, from_channels, to_channels

Statistics = Literal["batch", "unmoved", "running"]
Running = tuple[Tensor, Tensor]
_MOMENTUM = 0.1
_EPS = 1e-5


class DnCNN(nn.Module):
    """``D(x) = x - N(x)``: ``layers`` 3x3 convolutions of ``width`` channels, ReLU, batch norm on all but two of them.

    Zhang, Zuo, Chen, Meng and Zhang, Beyond a Gaussian denoiser, IEEE Trans. Image Process. 26 (2017). Images
    ``(B, channels, H, W)``, or ``(B, H, W)`` real (1 channel) or complex (2). N starts at a tenth of its usual size, so
    a new network is near the identity.

    Parameters
    ----------
    channels, layers, width
        17 layers of 64 channels are published; with one channel they have 556,032 weights.
    norm
        Batch norm. In training it uses the statistics of the batch and follows them in ``running``, which evaluation
        uses and which lag behind for the first hundred steps.
    bias
        Biases of the convolutions; the published ones have none.
    spectral
        Convolutions divided by their spectral norms (of the weight as a matrix).
    residual
        False: ``D(x) = N(x)``.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        layers: int = 17,
        width: int = 64,
        norm: bool = True,
        bias: bool = False,
        spectral: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("layers", layers, 2)
        check_count("width", width)
        for name, value in (("norm", norm), ("bias", bias), ("spectral", spectral), ("residual", residual)):
            check_flag(name, value)
        self.channels, self.residual = channels, residual
        self.config: dict[str, int | bool] = {
            "layers": layers, "width": width, "norm": norm, "bias": bias, "spectral": spectral, "residual": residual,
        }  # fmt: skip
        widths = [channels, *[width] * (layers - 1), channels]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=bias) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, _EPS, _MOMENTUM) for _ in range(layers - 2) if norm)
        with torch.no_grad():
            for conv in self.convs:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]
            # A spectral norm would undo a small last convolution.
            last = self.norms[-1] if self.norms else self.convs[-1]
            last.weight.mul_(0.1)  # type: ignore[operator]
        if spectral:
            spectral_norm(self)

    @staticmethod
    def tensors(*, layers: int, norm: bool, bias: bool, spectral: bool, **rest: int | bool) -> int:
        """How many tensors a network of a configuration has."""
        return layers * (1 + bias + 2 * spectral) + 5 * norm * (layers - 2)

    def weights(self) -> list[Tensor]:
        """The convolutions' weights as they are now, normalised: a look in training moves a spectral norm's power
        iteration, so an equilibrium and what is recorded of it share one."""
        return [channels_last(conv.weight) for conv in self.convs]  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        return self.denoised(image, self.weights(), "batch" if self.training else "running")

    def denoised(
        self, image: Tensor, weights: Sequence[Tensor], statistics: Statistics, running: Running | None = None
    ) -> Tensor:
        """With given weights; batch norm by ``"batch"`` statistics, which running ones follow, by ``"unmoved"`` ones
        of the batch, which they do not, or by the ``"running"`` ones themselves: the network's own, or mean and
        variance ``(layers - 2, width)`` of the caller's."""
        x = channels_last(to_channels(image))
        if x.shape[1] != self.channels:
            raise ValueError(f"image: has {x.shape[1]} channels, the network takes {self.channels}")
        last = len(weights) - 1
        for i, (conv, weight) in enumerate(zip(self.convs, weights, strict=True)):
            x = F.conv2d(x, weight, conv.bias, padding=1)  # type: ignore[arg-type]
            if 0 < i < last and self.norms:
                norm: nn.BatchNorm2d = self.norms[i - 1]  # type: ignore[assignment]
                own = (
                    (norm.running_mean, norm.running_var) if running is None else (running[0][i - 1], running[1][i - 1])
                )
                x = _normalised(x, norm, statistics, *own)  # type: ignore[arg-type]
            if i < last:
                x = F.relu_(x)
        x = from_channels(x, image)
        return image - x if self.residual else x


def _normalised(x: Tensor, norm: nn.BatchNorm2d, statistics: Statistics, mean: Tensor, var: Tensor) -> Tensor:
    if statistics == "unmoved":
        mean, var = mean.clone(), var.clone()
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, statistics != "running", _MOMENTUM, _EPS)
