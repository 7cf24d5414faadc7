"""Losses of reconstruction models, as functions of images, data and physics; means over a batch."""

from __future__ import annotations

from torch import Tensor


def supervised(images: Tensor, truth: Tensor) -> Tensor:
    """``mean |images - truth|^2`` over all pixels, real or complex, of one shape; a scalar."""
    if images.shape != truth.shape:
        raise ValueError(f"images: shape {tuple(images.shape)} does not fit the truth's {tuple(truth.shape)}")
    difference = images - truth
    return (difference.abs().square() if difference.is_complex() else difference.square()).mean()
