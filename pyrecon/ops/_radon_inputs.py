"""What a CT geometry may be made of: numbers, lengths and views, judged."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import FLOATING, check_memory, described

UNITS = {"m": 1.0, "mm": 1e-3}
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Length = float | Tensor


def unit_scale(unit: str | None) -> float:
    if unit is None:
        return 1.0
    if not isinstance(unit, str) or unit not in UNITS:
        raise ValueError(f"unit: {described(unit)} is not known, expected 'm' or 'mm'")
    return UNITS[unit]


def finite_numbers(name: str, value: Any, meaning: str) -> Tensor:
    """``value`` as a float64 tensor of finite numbers on the CPU; a tensor that requires grad stays in its graph."""
    if isinstance(value, Tensor):
        if value.dtype not in (*WHOLE, torch.float16, torch.bfloat16, *FLOATING):
            raise TypeError(f"{name}: dtype {value.dtype} is not supported, expected {meaning}")
        check_memory(name, value)
        tensor = value
    else:
        try:
            tensor = torch.as_tensor(value, dtype=torch.float64)
        except (OverflowError, RuntimeError, TypeError, ValueError):
            raise TypeError(f"{name}: {described(value)}, expected {meaning}") from None
    tensor = tensor.to("cpu", torch.float64)
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise ValueError(f"{name}: holds NaN or infinity, expected {meaning}")
    return tensor


def view_angles(value: Any) -> Tensor:
    angles = finite_numbers("angles", value, "angles in radians, (A,)")
    if angles.dim() != 1 or not len(angles):
        raise ValueError(f"angles: shape {tuple(angles.shape)} does not fit, expected one or more, (A,)")
    known = angles.detach()
    if float(known.abs().max()) > 8 * math.pi:
        warnings.warn(
            f"angles: up to {float(known.abs().max()):.4g} radians; are they degrees? torch.deg2rad makes radians",
            stacklevel=3,
        )
    turned, _ = torch.sort(known.remainder(2 * math.pi))
    gaps = torch.cat([turned.diff(), turned[:1] + 2 * math.pi - turned[-1:]])
    repeated = int((gaps < 1e-9).sum()) if len(gaps) > 1 else 0
    if repeated:
        warnings.warn(
            f"angles: {repeated} of {len(angles)} repeat others (modulo 360 degrees): counted again in least squares, "
            "not in fbp. A full turn has no view at both ends",
            stacklevel=3,
        )
    return angles


def length(name: str, value: Length) -> Tensor:
    """A positive length, a tensor of one."""
    tensor = finite_numbers(name, value, "one length")
    if tensor.numel() != 1:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit, expected one length")
    if not float(tensor.detach()) > 0:
        raise ValueError(f"{name}: {float(tensor.detach())} does not fit, expected a length > 0")
    return tensor.reshape(())


def offset(value: Length, views: int) -> Tensor:
    tensor = finite_numbers("det_offset", value, "one length or one per view")
    if tensor.numel() == 1 and tensor.dim() < 2:
        return tensor.reshape(())
    if tensor.shape != (views,):
        raise ValueError(f"det_offset: shape {tuple(tensor.shape)} does not fit, expected one or ({views},)")
    return tensor


def vectors(name: str, value: Any, count: int | None = None) -> Tensor:
    found = finite_numbers(name, value, "vectors (A, 2)")
    if found.dim() != 2 or found.shape[1] != 2 or not len(found) or count not in (None, len(found)):
        wanted = "A" if count is None else count
        raise ValueError(f"{name}: shape {tuple(found.shape)} does not fit, expected ({wanted}, 2), one view or more")
    return found


def view_index(views: Any, count: int) -> Tensor:
    if isinstance(views, slice):
        index = torch.arange(count)[views]
    else:
        try:
            index = torch.as_tensor(views).detach().cpu()
        except (RuntimeError, TypeError, ValueError):
            raise TypeError(f"views: {described(views)}, expected numbers of views or a slice") from None
        if index.dtype == torch.bool and index.shape == (count,):
            index = index.nonzero()[:, 0]
        if index.dtype not in WHOLE and index.numel():
            raise TypeError(f"views: dtype {index.dtype}, expected whole numbers, a slice or {count} flags")
    index = index.to(torch.int64)
    if index.dim() != 1 or not len(index):
        raise ValueError(f"views: shape {tuple(index.shape)} does not fit, expected one view or more, (n,)")
    if int(index.min()) < 0 or int(index.max()) >= count:
        raise ValueError(f"views: {int(index.min())} to {int(index.max())} does not fit, expected 0 to {count - 1}")
    return index
