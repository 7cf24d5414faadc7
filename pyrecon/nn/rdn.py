"""The residual dense network that denoises MPI images."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from pyrecon.nn._convolutions import packable, runs_as_op
from pyrecon.ops import rdn


class RDN(nn.Module):
    """Residual dense network ``(B, H, W) -> (B, H, W)``, not negative (Zhang et al., CVPR 2018; DEQ-MPI section III).

    Two shallow convolutions, ``blocks`` residual dense blocks of ``layers`` convolutions each, their outputs fused by
    1x1 and 3x3 convolutions, the first features added, one last convolution, the input added, ReLU. All others are 3x3
    with zero padding and biases; only those inside blocks are followed by a ReLU.

    Parameters
    ----------
    features, growth
        Channels between blocks, and those that each convolution of a block adds.
    blocks, layers
        Numbers of blocks and of convolutions per block. The defaults are those of the released DEQ-MPI weights, 58,393
        parameters; the paper prints ``layers=12``.
    """

    def __init__(self, features: int = 12, growth: int = 12, blocks: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.config = {"features": features, "growth": growth, "blocks": blocks, "layers": layers}
        self.shallow = _conv(1, features)
        self.deep = _conv(features, features)
        self.blocks = nn.ModuleList(_DenseBlock(features, growth, layers) for _ in range(blocks))
        self.fuse = _conv(blocks * features, features, size=1)
        self.smooth = _conv(features, features)
        self.last = _conv(features, 1)

    def packed(self) -> Tensor:
        """All parameters in one vector, the ``weights`` of :func:`pyrecon.ops.rdn`; differentiable."""
        return _flatten_dense_tensors(list(self.parameters()))  # type: ignore[no-any-return]

    def operands(self) -> dict[str, Any] | None:
        """What the op ``deq_mpi`` takes of the network, or None where its modules must run."""
        weights = packable(self._convolutions()) if runs_as_op(self, RDN) else None
        return None if weights is None else {"weights": _flatten_dense_tensors(weights), **self.config}

    def scaled(self, strength: float) -> RDN:
        """``x -> RDN(strength x) / strength``, a copy: a denoiser of noise that is ``strength`` times weaker.

        Convolutions are linear and a ReLU commutes with positive factors, so only the biases change, by 1 / strength.
        """
        if not 0 < strength < math.inf:
            raise ValueError(f"strength: {strength}, expected a number above 0")
        copy = deepcopy(self)
        with torch.no_grad():
            for name, value in copy.named_parameters():
                if name.endswith("bias"):
                    value.div_(strength)
        return copy

    def forward(self, image: Tensor) -> Tensor:
        weights = packable(self._convolutions(), image, op="rdn")
        if weights is None:
            return self._by_modules(image)
        return rdn(image, _flatten_dense_tensors(weights), **self.config)  # type: ignore[arg-type]

    def _convolutions(self) -> list[nn.Module]:
        found = [self.shallow, self.deep]
        for block in self.blocks:
            found += [*block.layers, block.fuse]  # type: ignore[misc,list-item]
        return [*found, self.fuse, self.smooth, self.last]

    def _by_modules(self, image: Tensor) -> Tensor:
        x = image[:, None]
        shallow = self.shallow(x)
        features, outputs = self.deep(shallow), []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        fused = self.smooth(self.fuse(torch.cat(outputs, dim=1))) + shallow
        return torch.relu(self.last(fused) + x)[:, 0]


class _DenseBlock(nn.Module):
    def __init__(self, features: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_conv(features + i * growth, growth) for i in range(layers))
        self.fuse = _conv(features + layers * growth, features, size=1)

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for layer in self.layers:
            dense = torch.cat((dense, torch.relu(layer(dense))), dim=1)
        return x + self.fuse(dense)  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)
