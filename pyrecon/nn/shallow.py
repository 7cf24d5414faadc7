"""The shallow block whose fixed point is a regulariser's update, in stages of LUSER."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pyrecon._check import check_count, check_number
from pyrecon.implicit import spectral_norm
from pyrecon.nn._channels import channels_last

_SLOPE = 0.01
_DATA = 0.1  # the last group norm of Data, at the start


class ShallowBlock(nn.Module):
    """``Mix(Data(r) ++ Inject(d))``: the next residual r of an image d, both ``(B, channels, H, W)``.

    Inject is two 3x3 convolutions with leaky ReLU, Data two with group norm besides, Mix three of twice the width, the
    last one bare. All have biases and a spectral norm of one (of the weight as a matrix). That and the group norms do
    not make it contract; its start does: the last group norm begins at ``gain``, so the first residuals are small, and
    Data's first biases are spread over +-``spread``, beside which r counts for little after the norm. So equilibria
    exist from the first step on, and training finds how much of r they want. What Data makes of these biases must not
    drown the image, which Inject brings unnormalised: Data's last group norm begins at 0.1 (0.4 dB after 200 steps of
    CT against a start at 1).

    Weights are passed as tensors, from :meth:`weights`, so that a solve and the application that is recorded have the
    same: every look at a spectrally normalised weight in training moves its power iteration.

    Guan, Jin, Romberg and Davenport, Loop unrolled shallow equilibrium regularizer (LUSER), 2022, Table 1; the second
    row of its data layer is a misprint, 32 channels go in.

    Parameters
    ----------
    channels, width
        Of images, and of Inject and Data; 32 is published, with 93,953 weights for one channel.
    groups
        Of the group norms; divides ``width``. The paper does not say. In one group the spread of the biases outweighs a
        small r; one channel a group would make Data blind to the size of r, and steep near r = 0.
    gain, spread
        At the start, of the last group norm and of Data's first biases.
    """

    def __init__(
        self, channels: int = 1, *, width: int = 32, groups: int = 1, gain: float = 0.03, spread: float = 1.0
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        if check_count("width", width) % check_count("groups", groups):
            raise ValueError(f"groups: {groups} does not divide the width, {width}")
        check_number("gain", gain)
        check_number("spread", spread)
        self.config = {"width": width, "groups": groups}
        self.inject = nn.ModuleList([_conv(channels, width), _conv(width, width)])
        self.data = nn.ModuleList([_conv(channels, width), _conv(width, width)])
        self.data_norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(2))
        self.mix = nn.ModuleList([_conv(2 * width, 2 * width), _conv(2 * width, 2 * width), _conv(2 * width, channels)])
        self.mix_norms = nn.ModuleList(nn.GroupNorm(groups, 2 * width) for _ in range(2))
        nn.init.constant_(self.data_norms[-1].weight, _DATA)  # type: ignore[arg-type]
        nn.init.constant_(self.mix_norms[-1].weight, gain)  # type: ignore[arg-type]
        nn.init.uniform_(self.data[0].bias, -spread, spread)  # type: ignore[arg-type]
        nn.init.zeros_(self.mix[-1].bias)  # type: ignore[arg-type]
        spectral_norm(self)

    def weights(self) -> list[Tensor]:
        """All weights as they are now, normalised: weight and bias of each layer in turn."""
        layers = (*self.inject, *self.data, *self.data_norms, *self.mix, *self.mix_norms)
        return [channels_last(tensor) for layer in layers for tensor in (layer.weight, layer.bias)]

    def injected(self, image: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """What Mix's first convolution makes of ``Inject(d)``, ``(B, 2 width, H, W)``: the same in all iterations."""
        x = channels_last(image)
        for i in (0, 2):
            x = F.leaky_relu_(F.conv2d(x, weights[i], weights[i + 1], padding=1), _SLOPE)
        return F.conv2d(x, weights[12][:, x.shape[1] :], weights[13], padding=1)

    def residual(self, r: Tensor, injected: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The next residual."""
        groups = self.config["groups"]
        x = channels_last(r)
        for i in (4, 6):
            x = F.conv2d(x, weights[i], weights[i + 1], padding=1)
            x = F.leaky_relu_(F.group_norm(x, groups, weights[i + 4], weights[i + 5]), _SLOPE)
        # The convolution of both halves side by side is the sum of theirs.
        x = F.conv2d(x, weights[12][:, : x.shape[1]], padding=1) + injected
        x = F.leaky_relu_(F.group_norm(x, groups, weights[18], weights[19]), _SLOPE)
        x = F.conv2d(x, weights[14], weights[15], padding=1)
        x = F.leaky_relu_(F.group_norm(x, groups, weights[20], weights[21]), _SLOPE)
        return F.conv2d(x, weights[16], weights[17], padding=1)

    def forward(self, r: Tensor, image: Tensor) -> Tensor:
        """One application, for those who need no equilibrium."""
        weights = self.weights()
        return self.residual(r, self.injected(image, weights), weights)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
