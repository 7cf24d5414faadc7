"""The normal operator along a radial trajectory: a convolution on the SENSE kernels against two transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from pyrecon.linops import NonCartesianSense

pytest.importorskip("finufft", reason="needs finufft: pip install 'pyrecon-imaging[nufft]'")
COILS, SIZE, SPOKES = 8, 256, 200


@cache
def problem() -> tuple[NonCartesianSense, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    angle = torch.arange(SPOKES)[:, None] * (math.pi / SPOKES)
    radius = torch.linspace(-SIZE / 2, SIZE / 2 - 0.5, 2 * SIZE)
    points = torch.stack((radius * torch.sin(angle), radius * torch.cos(angle)), dim=-1).view(-1, 2)
    maps, image = (
        torch.randn(shape, dtype=torch.complex64, generator=generator)
        for shape in ((1, COILS, SIZE, SIZE), (1, SIZE, SIZE))
    )
    exact = NonCartesianSense(maps.to(torch.complex128), points.double(), eps=1e-9)
    wide = image.to(torch.complex128)
    return NonCartesianSense(maps, points), image, exact.adjoint(exact(wide))


@pytest.mark.parametrize("impl", ["pyrecon", "FINUFFT, both transforms"])
def test_normal(timed: Callable[..., None], impl: str) -> None:
    A, image, expected = problem()
    timed(
        {"pyrecon": lambda: A.gram(image), "FINUFFT, both transforms": lambda: A.adjoint(A(image))}[impl],
        row=f"radial SENSE normal {COILS}x{SIZE}x{SIZE}, {SPOKES} spokes",
        impl=impl,
        expected=expected,
        k=256,  # FINUFFT is asked for 1e-6
        sizes={"coils": COILS, "size": SIZE, "points": 2 * SIZE * SPOKES},
    )
