"""The parts of the end-to-end variational network: coil maps from the centre of k-space, and cascades of steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrecon._check import check_count
from pyrecon.data.fourier import ifft_centered
from pyrecon.nn.baseline_unet import NormalisedUNet
from pyrecon.ops import sense_adjoint, sense_forward


class SensitivityNet(nn.Module):
    """Coil maps ``(B, C, H, W)`` from k-space ``(B, C, H, W)`` that is zero outside a fully sampled centre.

    A U-Net refines the image of every coil by itself, the maps are these over their root sum of squares, so that theirs
    is 1; 0 where all coils are 0. A. Sriram et al., MICCAI 2020, Eq. 6 with ``dSS`` and CNN.
    """

    def __init__(self, width: int = 8, pools: int = 4, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = NormalisedUNet(width, pools, dropout=dropout)

    def forward(self, centre: Tensor) -> Tensor:
        coils = self.net(ifft_centered(centre).flatten(0, 1)).view(centre.shape)
        power = coils.abs().square().sum(dim=1, keepdim=True)
        # Of zero the gradient of a root is infinite, and that of 0 / 0 is NaN even where it is not used.
        root = torch.where(power > 0, power, torch.ones_like(power)).sqrt()
        return torch.where(power > 0, coils / root, torch.zeros_like(coils))


class Cascade(nn.Module):
    """``k - eta M (k - y) - F(S N(S^H F^-1 k))``: one step in k-space, ``(B, C, H, W)`` to the same.

    eta is learned, y the data, M the mask, N a :class:`~pyrecon.nn.baseline_unet.NormalisedUNet`. A. Sriram et al., Eq.
    4 and 5, with the sign of the authors' program: N gives the mean of its input back, so with the other one the mean
    of a new network's image doubles with every step (4 steps at 64 x 64: NMSE 4.9 before training, in place of 0.1).
    """

    def __init__(self, width: int = 18, pools: int = 4, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = NormalisedUNet(width, pools, dropout=dropout)
        self.step = nn.Parameter(torch.ones(()))

    def forward(self, k: Tensor, y: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
        every = mask.new_ones(1, 1, 1, 1)
        image = self.net(sense_adjoint(k, maps, every))
        return k - self.step * mask * (k - y) - sense_forward(image, maps, every)


class VariationalNetwork(nn.Module):
    """Magnitudes ``(B, H, W)`` from undersampled k-space: maps, cascades, root sum of squares.

    29,936,966 weights with the defaults, which are the published ones: 12 cascades of 2,454,339 and 484,898 of the
    maps.

    Parameters
    ----------
    cascades, width, pools
        Steps, and their U-Nets.
    sensitivity_width, sensitivity_pools
        Of the U-Net of the maps.
    dropout
        Of all of them.
    """

    def __init__(
        self,
        cascades: int = 12,
        width: int = 18,
        pools: int = 4,
        sensitivity_width: int = 8,
        sensitivity_pools: int = 4,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("cascades", cascades)
        self.sensitivity = SensitivityNet(sensitivity_width, sensitivity_pools, dropout=dropout)
        self.cascades = nn.ModuleList(Cascade(width, pools, dropout=dropout) for _ in range(cascades))

    def forward(self, y: Tensor, mask: Tensor, centre: Tensor) -> Tensor:
        """``y`` ``(B, C, H, W)`` complex, zero where ``mask`` ``(B | 1, 1, H | 1, W | 1)``, real, is 0; ``centre``
        ``(B | 1, 1, H | 1, W | 1)`` the fully sampled part that maps come from."""
        maps = self.sensitivity(y * centre)
        k = y
        for cascade in self.cascades:
            k = cascade(k, y, maps, mask)
        return root_sum_of_squares(ifft_centered(k))


def root_sum_of_squares(coils: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H, W)``, with gradient 0 where all coils are 0."""
    power = coils.abs().square().sum(dim=1)
    return torch.where(power > 0, torch.where(power > 0, power, torch.ones_like(power)).sqrt(), power)
