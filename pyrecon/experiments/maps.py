"""How far maps of T1 are from the truth in each tissue, the same for every method and table."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrecon.data.brains import CLASSES
from pyrecon.metrics import t1_errors

__all__ = ["TISSUES", "tissue_errors"]

# By name, the classes of pyrecon.data.brains that are one tissue in a table.
TISSUES: Mapping[str, tuple[int, ...]] = {
    "fluid": tuple(i for i, c in enumerate(CLASSES) if c.name == "fluid"),
    "grey": tuple(i for i, c in enumerate(CLASSES) if c.name in ("grey matter", "deep grey matter")),
    "white": tuple(i for i, c in enumerate(CLASSES) if c.name == "white matter"),
}


def tissue_errors(t1: Tensor, truth: Tensor, inside: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
    """:func:`~pyrecon.metrics.t1_errors` within each of ``TISSUES`` by name; ``labels`` ``(B, H, W)`` are those of
    :func:`pyrecon.data.brains.brains`."""
    masks = {name: inside & torch.isin(labels, labels.new_tensor(places)) for name, places in TISSUES.items()}
    return {name: t1_errors(t1, truth, mask) for name, mask in masks.items()}
