"""torch's Fourier transforms, also of nothing: on a CPU torch's own end an empty batch with an error of MKL's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def transformed(transform: Callable[..., Tensor], x: Tensor, *sizes: Any, **options: Any) -> Tensor:
    """``transform(x, ...)``, a function of :mod:`torch.fft`; of an x without numbers, what its shape would be."""
    if x.numel():
        return transform(x, *sizes, **options)
    like = transform(x.detach().to("meta"), *sizes, **options)
    nothing = x.sum().to(like.dtype) if like.is_complex() else x.sum().real.to(like.dtype)  # keeps the way of gradients
    return torch.zeros(like.shape, dtype=like.dtype, device=x.device) + nothing
