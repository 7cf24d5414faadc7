"""How far maps of T1 are from the truth: numbers a sample, the same for every method and table."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrecon.data.brains import CLASSES

__all__ = ["TISSUES", "map_errors", "tissue_errors"]

# By name, the classes of pyrecon.data.brains that are one tissue in a table.
TISSUES: Mapping[str, tuple[int, ...]] = {
    "fluid": tuple(i for i, c in enumerate(CLASSES) if c.name == "fluid"),
    "grey": tuple(i for i, c in enumerate(CLASSES) if c.name in ("grey matter", "deep grey matter")),
    "white": tuple(i for i, c in enumerate(CLASSES) if c.name == "white matter"),
}


def map_errors(t1: Tensor, truth: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Errors of T1 within a mask, per sample.

    Parameters
    ----------
    t1, truth
        ``(B, H, W)`` in seconds. A pixel where no T1 was found (not finite, or not above 0) counts as T1 = 0 and
        R1 = 0, an error of all of it; the truth is above 0.
    inside
        ``(B, H, W)`` bool.

    Returns
    -------
    dict
        ``(B,)`` float64 each, NaN of a sample without a pixel inside: ``"nrmse"`` is ``|T1 - ref| / |ref|``, ``"mae"``
        the mean of ``|T1 - ref|`` in seconds, ``"r1_nrmse"`` that of ``R1 = 1 / T1``, ``"median"`` the median of
        ``|T1 - ref| / ref``.
    """
    for name, tensor in (("truth", truth), ("inside", inside)):
        if tensor.shape != t1.shape or t1.dim() != 3:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, t1 has {tuple(t1.shape)}, expected (B, H, W)")
    if inside.dtype != torch.bool:
        raise TypeError(f"inside: {inside.dtype}, expected bool")
    rows = [_errors(*pair) for pair in zip(t1.double(), truth.double(), inside, strict=True)]
    names = ("nrmse", "mae", "r1_nrmse", "median")
    stacked = torch.stack(rows, 1) if rows else t1.new_zeros(len(names), 0, dtype=torch.float64)
    return dict(zip(names, stacked, strict=True))


def tissue_errors(t1: Tensor, truth: Tensor, inside: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
    """:func:`map_errors` within each of ``TISSUES`` by name; ``labels`` ``(B, H, W)`` are those of
    :func:`pyrecon.data.brains.brains`."""
    masks = {name: inside & torch.isin(labels, labels.new_tensor(places)) for name, places in TISSUES.items()}
    return {name: map_errors(t1, truth, mask) for name, mask in masks.items()}


def _errors(t1: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
    """``(4,)`` of one sample."""
    found, known = t1[inside], truth[inside]
    there = torch.isfinite(found) & (found > 0)
    found = torch.where(there, found, 0.0)
    rate, known_rate = torch.where(there, 1 / found, 0.0), 1 / known
    change = (found - known).abs()
    if not len(known):
        return truth.new_full((4,), torch.nan)
    return torch.stack(
        (change.norm() / known.norm(), change.mean(), (rate - known_rate).norm() / known_rate.norm(),
         (change / known).median())
    )  # fmt: skip
