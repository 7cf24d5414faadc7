"""Cases of pyrecon/ops/_joint.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from pyrecon.ops import joint_coils
from pyrecon.ops._joint import joint_extrapolate, joint_maps_step, joint_maps_test
from pyrecon.testing.cases._case import Case, Make, complex_randn, randn

REAL = (torch.float32, torch.float64)


def _maps(generator: Generator, *shape: int, dtype: torch.dtype, empty: bool = False) -> Tensor:
    """Coil maps ``(B, C, H, W)`` of every size, of which the first pixel has none with ``empty``."""
    maps = complex_randn(generator, *shape, like=dtype)
    if empty:
        maps[:, :, 0, 0] = 0
    return maps


def _image(generator: Generator, maps: Tensor, dtype: torch.dtype) -> Tensor:
    return randn(generator, maps.shape[0], *maps.shape[2:], dtype=dtype)


def _coils(*shape: int, empty: bool = False) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        maps = _maps(generator, *shape, dtype=dtype, empty=empty)
        return _image(generator, maps, dtype), maps

    return make


def _two_maps(*shape: int) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        maps, previous = (_maps(generator, *shape, dtype=dtype, empty=True) for _ in range(2))
        inertia = torch.linspace(0.3, 0.9, shape[0], dtype=torch.float64).to(dtype)
        return maps, previous, inertia, _image(generator, maps, dtype)

    return make


def _step(*shape: int, empty: bool = True) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        maps = _maps(generator, *shape, dtype=dtype, empty=empty)
        response, data = (_maps(generator, *shape, dtype=dtype) for _ in range(2))
        step = torch.linspace(0.5, 2.0, shape[0], dtype=torch.float64).to(dtype)
        return maps, response, data, _image(generator, maps, dtype), step

    return make


def _test(*shape: int) -> Make:
    def make(generator: Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        maps, _, data, image, step = _step(*shape)(generator, dtype)
        proposal, moved = (_maps(generator, *shape, dtype=dtype) for _ in range(2))
        if proposal.numel() > 1:
            proposal[:, :, 0, 1:2] = 0
        return proposal, maps, moved, step, image, _image(generator, maps, dtype), data

    return make


# k: |S|^2 sums 2 C squares (C / 4 roundings of a vector's lane at most 8 here), its root and inverse take 3 more, and
# pixels of few coils may have small |S|, through which those of the gradient grow. The sums of joint_maps_test take
# numbers of either sign.
CASES: tuple[Case, ...] = (
    Case(joint_coils, "2x3x3x5-empty", _coils(2, 3, 3, 5, empty=True), k=8, dtypes=REAL, tiny=True),
    Case(joint_coils, "1x4x3x3", _coils(1, 4, 3, 3), k=8, dtypes=REAL, tiny=True, grad=(0, 1)),
    Case(joint_coils, "one-coil", _coils(2, 1, 4, 3), k=8, dtypes=REAL, tiny=True, grad=(0, 1)),
    Case(joint_coils, "empty-batch", _coils(0, 3, 4, 4), k=8, dtypes=REAL),
    Case(joint_coils, "odd", _coils(3, 5, 37, 61), k=8, dtypes=REAL),
    Case(joint_coils, "mri", _coils(1, 15, 160, 92), k=8, dtypes=REAL),
    Case(joint_extrapolate, "2x3x3x5", _two_maps(2, 3, 3, 5), k=8, dtypes=REAL, tiny=True),
    Case(joint_extrapolate, "one-each", _two_maps(3, 1, 1, 1), k=8, dtypes=REAL, tiny=True),
    Case(joint_extrapolate, "odd", _two_maps(3, 5, 37, 61), k=8, dtypes=REAL),
    Case(joint_extrapolate, "mri", _two_maps(1, 15, 160, 92), k=8, dtypes=REAL),
    Case(joint_maps_step, "2x3x3x5", _step(2, 3, 3, 5), k=16, dtypes=REAL, tiny=True),
    Case(joint_maps_step, "one-coil", _step(2, 1, 3, 5), k=16, dtypes=REAL, tiny=True),
    Case(joint_maps_step, "empty-batch", _step(0, 3, 4, 4), k=16, dtypes=REAL),
    Case(joint_maps_step, "odd", _step(3, 5, 37, 61), k=16, dtypes=REAL),
    Case(joint_maps_step, "mri", _step(1, 15, 160, 92), k=16, dtypes=REAL),
    Case(joint_maps_test, "2x3x3x5", _test(2, 3, 3, 5), k=16, dtypes=REAL, tiny=True),
    Case(joint_maps_test, "bound", _test(2, 1, 3, 5), k=16, options={"bound": 2.5}, dtypes=REAL, tiny=True),
    Case(joint_maps_test, "empty-batch", _test(0, 3, 4, 4), k=16, dtypes=REAL),
    Case(joint_maps_test, "odd", _test(3, 5, 37, 61), k=16, dtypes=REAL),
    Case(joint_maps_test, "mri", _test(1, 15, 160, 92), k=16, dtypes=REAL),
)  # fmt: skip
