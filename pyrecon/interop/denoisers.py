"""Denoisers of other packages."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_FILE = "dncnn_sigma2_gray.pth"  # deepinv's name for the weights of its DnCNN for one channel


def deepinv_dncnn() -> nn.Module | None:
    """deepinv's DnCNN with its own weights, for any number of channels, each by itself; None where either is missing.

    Nothing is fetched: the weights are those in torch's hub folder, where ``deepinv.models.DnCNN(1, 1)`` leaves them.
    It was trained on photographs in [0, 1]. Runs on ``(B, C, H, W)``.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / _FILE
    if not path.is_file():
        return None
    try:
        models = import_module("deepinv.models")
    except ImportError:
        return None
    return _ByChannel(models.DnCNN(in_channels=1, out_channels=1, pretrained=str(path)))


class _ByChannel(nn.Module):
    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor) -> Tensor:
        denoised: Tensor = self.denoiser(x.reshape(-1, 1, *x.shape[2:]))
        return denoised.reshape(x.shape)
