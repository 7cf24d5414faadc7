"""Speed of pyrecon/ops/_sine.py: the smoothness prox of coil maps at the size of a fastMRI brain slice and others.

Rivals transform both axes there and back, with a division in between: ducc0 and scipy by their sine transforms, torch
by Fourier transforms of odd extensions, as it has no sine transform.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import scipy.fft
import torch
from torch import Tensor

import pyrecon
from pyrecon.ops import dst1, prox_smooth_maps

WEIGHT = 10.0
K = 12 * (1 + WEIGHT**0.5)  # see the case table
# What n + 1 is: 641 and 9 41; both 257, prime; 641 and 373, both prime; 512 and 9 57.
SIZES = {"15x640x368": 0.2, "8x256x256": 0.4, "8x640x372": 0.4, "8x511x512": 0.4}


@cache
def coils(size: str) -> Tensor:
    shape = [int(n) for n in size.split("x")]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.complex64)


@cache
def damping(size: str) -> Tensor:
    def eigenvalues(n: int) -> Tensor:
        k = torch.arange(1, n + 1, dtype=torch.float64)
        return 2 - 2 * torch.cos(torch.pi * k / (n + 1))

    rows, cols = coils(size).shape[1:]
    return (1 / (1 + WEIGHT * (eigenvalues(rows)[:, None] + eigenvalues(cols)))).float()


@cache
def expected(op: Callable[..., Tensor], size: str) -> Tensor:
    x = coils(size).to(torch.complex128)
    with pyrecon.backend("reference"):
        return op(x) if op is dst1 else op(x, WEIGHT)


def ducc_transform(x: Tensor, out: Tensor) -> Tensor:
    ducc0 = pytest.importorskip("ducc0", reason="the rival ducc0 is not installed")
    # ducc0 transforms reals, of any strides: complex numbers are pairs of them.
    source, target = torch.view_as_real(x).numpy(), torch.view_as_real(out).numpy()
    ducc0.fft.dst(source, type=1, axes=(1, 2), inorm=1, out=target, nthreads=torch.get_num_threads())
    return out


def scipy_transform(x: Tensor, out: Tensor) -> Tensor:
    result = scipy.fft.dstn(
        x.numpy(), type=1, axes=(1, 2), norm="ortho", workers=torch.get_num_threads(), overwrite_x=x is out
    )
    return torch.from_numpy(result)


def torch_transform(x: Tensor, out: Tensor | None = None) -> Tensor:
    for axis in (2, 1):
        n = x.shape[axis]
        zero = torch.zeros_like(x.narrow(axis, 0, 1))
        spectrum = torch.fft.fft(torch.cat([zero, x, zero, -x.flip(axis)], axis), dim=axis, norm="ortho")
        x = 1j * spectrum.narrow(axis, 1, n)
    return x if out is None else out.copy_(x)


TRANSFORMS = {"ducc0": ducc_transform, "scipy": scipy_transform, "torch odd extension": torch_transform}
IMPLEMENTATIONS = pytest.mark.parametrize("impl", ["pyrecon", *TRANSFORMS])


@IMPLEMENTATIONS
@pytest.mark.parametrize("size", SIZES)
def test_prox_smooth_maps(timed: Callable[..., None], size: str, impl: str) -> None:
    maps, factor, out = coils(size), damping(size), torch.empty_like(coils(size))

    def rival() -> Tensor:
        transform = TRANSFORMS[impl]
        spectrum = transform(maps, out)
        spectrum *= factor
        return transform(spectrum, spectrum)

    call: Callable[[], Any] = (lambda: prox_smooth_maps(maps, WEIGHT, out=out)) if impl == "pyrecon" else rival
    timed(
        call,
        row=f"sensitivity prox {size}",
        impl=impl,
        expected=expected(prox_smooth_maps, size),
        k=K,
        goal={"ratio": SIZES[size], "against": "ducc0"},
        bytes_moved=2 * maps.nbytes,
        sizes=dict(zip(("coils", "rows", "cols"), maps.shape, strict=True)),
    )


@IMPLEMENTATIONS
@pytest.mark.parametrize("size", ["15x640x368"])
def test_dst1(timed: Callable[..., None], size: str, impl: str) -> None:
    x, out = coils(size), torch.empty_like(coils(size))
    call: Callable[[], Any] = (lambda: dst1(x, out=out)) if impl == "pyrecon" else lambda: TRANSFORMS[impl](x, out)
    timed(
        call,
        row=f"dst1 {size}",
        impl=impl,
        expected=expected(dst1, size),
        k=12,
        bytes_moved=2 * x.nbytes,
        sizes=dict(zip(("coils", "rows", "cols"), x.shape, strict=True)),
    )


@pytest.mark.parametrize("impl", ["pyrecon", "torch odd extension"])
def test_backward(timed: Callable[..., None], impl: str) -> None:
    """The gradient of the prox with respect to the maps: it is its own adjoint."""
    size = "8x256x256"
    maps, factor = coils(size), damping(size)
    cotangent = coils(size).flip(-1)

    def rival(x: Tensor) -> Tensor:
        return torch_transform(factor * torch_transform(x))

    prox = (lambda x: prox_smooth_maps(x, WEIGHT)) if impl == "pyrecon" else rival

    def gradient() -> Tensor:
        leaf = maps.detach().requires_grad_()
        return torch.autograd.grad(prox(leaf), leaf, cotangent)[0]

    with pyrecon.backend("reference"):
        wide = prox_smooth_maps(cotangent.to(torch.complex128), WEIGHT)
    timed(
        gradient,
        row=f"sensitivity prox {size}, forward and backward",
        impl=impl,
        expected=wide,
        k=K,
        sizes=dict(zip(("coils", "rows", "cols"), maps.shape, strict=True)),
    )
