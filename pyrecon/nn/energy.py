"""The energy network: from an image to one number, low where images are like those that it was trained on."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrecon._check import FLOATING, check_count, check_dtype, check_flag, check_number, check_shape
from pyrecon.nn._channels import channels_last

LEAK = 0.05
_LAST = 5  # pixels along an axis that the published network ends with


class EnergyNet(nn.Module):
    """``R(u) = U(w . S_L(...S_1(u)))``, ``S(x) = a(V * a(W * x))``: V of stride 2, a(x) = max(0.05 x, x), U = ``|.|``.

    Images ``(B, size, size)`` to ``(B,)``, float32 or float64. Stage s has 3x3 kernels from c(s-1) to c(s-1) channels
    (the first: from 1 to c(0)) and from c(s-1) to c(s), with ``c(s) = width int(growth^s)``, and there are no biases:
    R(t u) = t R(u) for t > 0. The published network, of 320 pixels, has 21,350,640 weights; those of its text, with
    biases and a geometric progression of channels, would be others.

    Parameters
    ----------
    size
        Pixels along both axes.
    width, growth
        Of the channels: 48 and 1.75 are published.
    stages
        Halvings of the size, rounded up; by default those that leave five pixels or fewer.
    absolute
        Without it energies may be negative. With it samples gather where R = 0, and small networks did not train.

    M. Zach, F. Knoll, T. Pock, Stable deep MRI reconstruction using generative priors, 2023, eq. 16.
    """

    def __init__(
        self,
        size: int = 320,
        width: int = 48,
        *,
        growth: float = 1.75,
        stages: int | None = None,
        absolute: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.width = check_count("size", size, 2), check_count("width", width)
        self.growth = check_number("growth", growth, 1.0)
        check_flag("absolute", absolute)
        self.absolute = absolute
        self.sizes = [size]
        while len(self.sizes) - 1 < check_count("stages", stages) if stages is not None else self.sizes[-1] > _LAST:
            self.sizes.append((self.sizes[-1] + 1) // 2)
        if stages is not None and len(self.sizes) > 1 and self.sizes[-2] == 1:
            raise ValueError(f"stages: {stages} halvings of {size} pixels, expected at most {(size - 1).bit_length()}")
        self.stages = len(self.sizes) - 1
        channels = [self.width * int(self.growth**s) for s in range(self.stages + 1)]
        self.convs = nn.ModuleList()
        before = 1
        for one, two in itertools.pairwise(channels):
            self.convs.append(nn.Conv2d(before, one, 3, padding=1, bias=False))
            self.convs.append(nn.Conv2d(one, two, 3, stride=2, padding=1, bias=False))
            before = two
        self.last = nn.Conv2d(before, 1, self.sizes[-1], bias=False)
        with torch.no_grad():
            for conv in self.convs:
                nn.init.kaiming_normal_(conv.weight, a=LEAK)  # type: ignore[arg-type]
            nn.init.kaiming_normal_(self.last.weight, nonlinearity="linear")
            self.last.weight.mul_(0.1)  # energies begin near 0: at the usual size the first chains ran off

    @property
    def config(self) -> dict[str, int | float | bool]:
        """What makes a network of the same tensors."""
        return {
            "size": self.size, "width": self.width, "growth": self.growth, "stages": self.stages,
            "absolute": self.absolute,
        }  # fmt: skip

    @staticmethod
    def tensors(stages: int) -> int:
        """How many tensors a network of so many stages has."""
        return 2 * stages + 1

    def forward(self, u: Tensor) -> Tensor:
        check_dtype("u", u, FLOATING)
        check_shape("u", u, (None, self.size, self.size), "(B, size, size)")
        # Channels last: 0.75 to 0.9 of the time on a CPU at 64 pixels and 12 to 24 channels, forward and backward.
        x = channels_last(u[:, None])
        for i, conv in enumerate(self.convs):
            weight: Tensor = conv.weight  # type: ignore[assignment]
            x = F.leaky_relu(F.conv2d(x, channels_last(weight), stride=1 + i % 2, padding=1), LEAK)
        # A product in place of a kernel as large as the map: the same numbers.
        energy = torch.einsum("bchw,chw->b", x, self.last.weight[0])
        return energy.abs() if self.absolute else energy
