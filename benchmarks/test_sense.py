"""Speed of pyrecon.ops.sense at the size of a fastMRI brain slice.

The goals are stated against torch's bare transform of the coil data, without maps, mask, shifts or the sum over coils:
no composition of torch operations can beat it. "torch" is the usual composition of torch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import log2
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrecon
from pyrecon.ops import sense_adjoint, sense_forward, sense_normal

COILS, ROWS, COLS = 15, 640, 368
SIZES = {"coils": COILS, "rows": ROWS, "cols": COLS}
AXES = (-2, -1)
IMAGE_BYTES = 8 * ROWS * COLS
COIL_BYTES = COILS * IMAGE_BYTES
K = log2(ROWS * COLS) + 8  # see the case table: one rounding per level of a transform, and a few
MASKS = {"2-D mask": (ROWS, COLS), "1-D mask along W": (1, COLS), "1-D mask along H": (ROWS, 1)}


@cache
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Image, maps and k-space."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, ROWS, COLS), (1, COILS, ROWS, COLS), (1, COILS, ROWS, COLS)
    image, maps, kspace = (torch.randn(shape, generator=generator, dtype=torch.complex64) for shape in shapes)
    return image, maps, kspace


@cache
def mask(name: str) -> Tensor:
    return (torch.rand(1, 1, *MASKS[name], generator=torch.Generator().manual_seed(1)) > 0.7).float()


@cache
def expected(op: Callable[..., Tensor], mask_name: str) -> Tensor:
    image, maps, kspace = (t.to(torch.complex128) for t in inputs())
    with pyrecon.backend("reference"):
        return op(kspace if op is sense_adjoint else image, maps, mask(mask_name).double())


@cache
def spectrum() -> Tensor:
    return torch.fft.fft2(inputs()[1].to(torch.complex128), norm="ortho")


def fourier(x: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, dim=AXES), norm="ortho"), dim=AXES)


def fourier_adjoint(k: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, dim=AXES), norm="ortho"), dim=AXES)


def bare_pair(maps: Tensor, k: Tensor, out: Tensor) -> Tensor:
    torch.fft.fft2(maps, norm="ortho", out=k)
    return torch.fft.ifft2(k, norm="ortho", out=out)


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "bare FFT"])
def test_forward(timed: Callable[..., None], impl: str) -> None:
    image, maps, _ = inputs()
    sampled, out = mask("2-D mask"), torch.empty_like(maps)
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: sense_forward(image, maps, sampled, out=out),
        "torch": lambda: torch.mul(fourier(maps * image[:, None]), sampled, out=out),
        "bare FFT": lambda: torch.fft.fft2(maps, norm="ortho", out=out),
    }
    timed(
        calls[impl],
        row="SENSE forward 15x640x368",
        impl=impl,
        expected=spectrum() if impl == "bare FFT" else expected(sense_forward, "2-D mask"),
        k=K,
        goal={"ratio": 0.65, "against": "bare FFT"},
        bytes_moved=2 * COIL_BYTES + IMAGE_BYTES,
        sizes=SIZES,
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "bare FFT"])
def test_adjoint(timed: Callable[..., None], impl: str) -> None:
    image, maps, kspace = inputs()
    sampled, out, coils = mask("2-D mask"), torch.empty_like(image), torch.empty_like(maps)
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: sense_adjoint(kspace, maps, sampled, out=out),
        "torch": lambda: torch.sum(maps.conj() * fourier_adjoint(sampled * kspace), dim=1, out=out),
        "bare FFT": lambda: torch.fft.fft2(maps, norm="ortho", out=coils),
    }
    timed(
        calls[impl],
        row="SENSE adjoint 15x640x368",
        impl=impl,
        expected=spectrum() if impl == "bare FFT" else expected(sense_adjoint, "2-D mask"),
        k=K,
        goal={"ratio": 0.65, "against": "bare FFT"},
        bytes_moved=2 * COIL_BYTES + IMAGE_BYTES,
        sizes=SIZES,
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch", "bare FFT + inverse"])
@pytest.mark.parametrize("name", MASKS)
def test_normal(timed: Callable[..., None], name: str, impl: str) -> None:
    image, maps, _ = inputs()
    sampled, out, k, coils = mask(name), torch.empty_like(image), torch.empty_like(maps), torch.empty_like(maps)
    squared = sampled.square()
    calls: dict[str, Callable[[], Any]] = {
        "pyrecon": lambda: sense_normal(image, maps, sampled, out=out),
        "torch": lambda: torch.sum(
            maps.conj() * fourier_adjoint(squared * fourier(maps * image[:, None])), dim=1, out=out
        ),
        "bare FFT + inverse": lambda: bare_pair(maps, k, coils),
    }
    timed(
        calls[impl],
        row=f"SENSE normal 15x640x368, {name}",
        impl=impl,
        expected=maps.to(torch.complex128) if impl == "bare FFT + inverse" else expected(sense_normal, name),
        k=2 * K,
        goal={"ratio": 0.45 if name == "2-D mask" else 0.2, "against": "bare FFT + inverse"},
        bytes_moved=COIL_BYTES + 2 * IMAGE_BYTES,
        sizes=SIZES,
    )
